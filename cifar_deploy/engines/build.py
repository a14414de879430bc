"""An ONNX file to a serialised engine: parse, profiles, config, build.

Only what TensorRT 10.13, 11 and TensorRT for RTX 1.7 share is called; tests/engines/test_api.py
compares the names with those of the library at hand.
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html
"""

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from cifar_deploy.data.dataset import SIZE
from cifar_deploy.device import MIB
from cifar_deploy.disk import Json
from cifar_deploy.engines import cache
from cifar_deploy.engines.flavour import RTX, Flavour
from cifar_deploy.engines.manifest import TURING
from cifar_deploy.engines.options import HARDWARE, Options, target
from cifar_deploy.errors import UserError

NEED = r"(?:size was |GPU memory \()(\d+) bytes"  # in TensorRT's words for memory that lacks
NO_LINEAR_LAYER = "FP32 GEMM is not supported"  # in its words for Turing, of which `not_for` warns
POLL = 0.05  # seconds; how often a build looks for Ctrl-C
Begin: TypeAlias = Callable[[], object]  # done first in the thread that builds


class Watch(Protocol):
    """Told how a build goes on; called from the library's threads."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of `steps` steps begins, inside `parent` if there is one."""

    def step(self, phase: str, done: int) -> None:
        """`done` steps of it are over."""

    def finish(self, phase: str) -> None:
        """It is over."""


@dataclass(frozen=True)
class Built:
    """A serialised engine and what the parser saw of its interface."""

    engine: bytes
    inputs: list[Json]  # each with name, dtype, shape
    outputs: list[Json]
    seconds: float  # of parsing and building


def build(
    flavour: Flavour,
    onnx: bytes,
    source: Path,
    options: Options,
    watch: Watch | None = None,
    timing_cache: Path | None = None,
    begin: Begin | None = None,
) -> Built:
    """Build an engine from the deployment graph in `onnx`; `source` is its name in messages.

    The network is strongly typed: the precisions are those of the file. `timing_cache` is read,
    and written again if the disk lets it. Ctrl-C stops the build at its next step and raises
    KeyboardInterrupt. `begin` makes a device the current one, which it is for a thread alone; this
    one's is where the builder is made.

    Raises UserError where the parser refuses a node (with its name) and where the build fails.
    """
    trt, log = flavour.module, flavour.log
    started = time.perf_counter()
    builder = flavour.make("Builder", log)
    # Version 11 and TensorRT for RTX know strongly typed networks only.
    typed = flavour.name != RTX and flavour.major < 11
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed if typed else 0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        raise _refused(flavour, parser, source)
    config = builder.create_builder_config()
    name = network.get_input(0).name
    for profile in options.profiles:
        shapes = [(batch, SIZE, SIZE, 3) for batch in (profile.min, profile.opt, profile.max)]
        wanted = builder.create_optimization_profile()
        wanted.set_shape(name, *shapes)
        config.add_optimization_profile(wanted)
    _configure(flavour, config, options)
    if timing_cache:
        kept = _timings(config, cache.read(timing_cache))
        log.clear()  # a cache that was refused is no reason why a build fails
    stop = threading.Event()
    monitor = _monitor(trt, watch, stop)  # the config keeps no reference of its own in version 10
    config.progress_monitor = monitor
    raw = interruptibly(lambda: builder.build_serialized_network(network, config), stop, begin)
    if raw is None:
        raise _failed(flavour, source, options)
    if timing_cache:
        # A finished engine is not lost to a cache that cannot be kept.
        with contextlib.suppress(UserError):
            cache.write(timing_cache, bytes(kept.serialize()))
    inputs = [_tensor(network.get_input(i)) for i in range(network.num_inputs)]
    outputs = [_tensor(network.get_output(i)) for i in range(network.num_outputs)]
    return Built(bytes(raw), inputs, outputs, time.perf_counter() - started)


def layer_information(flavour: Flavour, engine: Any) -> Any:
    """Every layer of a deserialised engine, as the library's inspector writes it in JSON."""
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(flavour.module.LayerInformationFormat.JSON)
    return json.loads(text)


def _timings(config: Any, data: bytes) -> Any:
    """The timing cache of a build: what was kept, or an empty one where the library refuses it.

    It refuses one of another GPU or of another version.
    """
    kept = config.create_timing_cache(data)
    if kept is None or not config.set_timing_cache(kept, False):
        kept = config.create_timing_cache(b"")
        config.set_timing_cache(kept, False)
    return kept


def _configure(flavour: Flavour, config: Any, options: Options) -> None:
    trt = flavour.module
    # RTX's default. Else a context may need what the largest batch does, whatever it runs
    # (TensorRT's NvInfer.h, PreviewFeature).
    config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace * MIB)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatibility is not None:
        config.hardware_compatibility_level = getattr(
            trt.HardwareCompatibilityLevel, HARDWARE[options.hardware_compatibility]
        )
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            config.set_compute_capability(target(flavour, capability), index)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.strip_weights:
        # Refit puts the same weights back, so the kernels need not be fit for others.
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    if options.layer_info:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _monitor(trt: Any, watch: Watch | None, stop: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if watch:
                watch.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if watch:
                watch.step(phase_name, step + 1)
            return not stop.is_set()  # False: the library cancels the build

        def phase_finish(self, phase_name: str) -> None:
            if watch:
                watch.finish(phase_name)

    return Monitor()


def interruptibly(
    work: Callable[[], Any], stop: threading.Event, begin: Begin | None = None
) -> Any:
    """`work()` in a thread of its own, so that Ctrl-C reaches this one at once.

    Then `stop` is set, and KeyboardInterrupt goes on once the work has ended. `begin` is what the
    thread does first.
    """
    with ThreadPoolExecutor(1, initializer=begin) as pool:
        # A Ctrl-C while the pool starts its thread would leave that one behind, unstopped.
        pool.submit(bool).result()
        try:
            future = pool.submit(work)
            while not future.done():
                time.sleep(POLL)
        except KeyboardInterrupt:
            stop.set()  # and the pool's end waits for the build to see it
            raise
        return future.result()


def _tensor(tensor: Any) -> Json:
    dtype = tensor.dtype.name.lower().replace("float", "float32").replace("half", "float16")
    shape = ["batch" if size < 0 else int(size) for size in tensor.shape]
    return {"name": str(tensor.name), "dtype": dtype, "shape": shape}


def _refused(flavour: Flavour, parser: Any, source: Path) -> UserError:
    error = parser.get_error(0)
    node, operator = error.node_name(), error.node_operator()
    reason = " ".join(str(error.desc()).split())
    if not operator:
        return UserError(f"{source}: {flavour} cannot read it: {reason}; export it again")
    # The parser says "false" where an operator is not supported at all.
    why = "the operator is not supported" if reason in ("", "false") else reason
    return UserError(
        f"{source}: {flavour} refuses node {node!r} ({operator}): {why}; use --format onnx"
    )


def _failed(flavour: Flavour, source: Path, options: Options) -> UserError:
    log = flavour.log
    if log.out_of_memory():
        # The amount stands in the error or in a warning beside it.
        lines = [*log.errors(), *log.warnings()]
        needs = [int(need[1]) for line in lines if (need := re.search(NEED, line))]
        said = f"{max(needs) / MIB:,.0f} MiB" if needs else "more memory than there is"
        full = any("Cuda Runtime" in line for line in log.errors())  # the card, and not the limit
        limit = options.workspace * MIB if options.workspace is not None and not full else None
        over = limit is not None and any(need > limit for need in needs)
        way_out = "raise --workspace, or lower" if over else "lower --workspace or"
        return UserError(
            f"{source}: {flavour} needs {said} to build the engine; "
            f"{way_out} the largest batch of --batch-profile"
        )
    way_out = ""
    if any("insufficient workspace" in line for line in log.errors()):
        way_out = "; raise --workspace"
    if TURING in options.compute_capabilities and NO_LINEAR_LAYER in " ".join(log.errors()):
        way_out = "; give --precision fp16 and keep no linear layer in fp32"
    return UserError(f"{source}: {flavour} cannot build an engine: {log.reason()}{way_out}")
