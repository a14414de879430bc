import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cifar_deploy.engines import cache
from cifar_deploy.engines.build import _timings, build, interruptibly
from cifar_deploy.engines.flavour import TENSORRT, Flavour
from cifar_deploy.engines.manifest import MAGIC_RTX
from cifar_deploy.engines.options import HARDWARE, Options, Profile
from cifar_deploy.errors import UserError

SOURCE = Path("models/tiny/tiny.fp32.onnx")
Graph = Callable[[str], bytes]


class Notes:
    """A `build.Watch` that writes down what it is told."""

    def __init__(self) -> None:
        self.open: dict[str, tuple[str | None, int]] = {}
        self.done: dict[str, int] = {}
        self.finished: list[str] = []

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        assert parent is None or parent in self.open
        self.open[phase] = (parent, steps)

    def step(self, phase: str, done: int) -> None:
        assert 1 <= done <= self.open[phase][1]
        self.done[phase] = done

    def finish(self, phase: str) -> None:
        self.finished.append(phase)


def test_an_engine_and_its_interface(rtx: Flavour, graph: Graph) -> None:
    built = build(rtx, graph("Relu"), SOURCE, Options())
    assert built.engine.startswith(MAGIC_RTX)
    assert built.inputs == [{"name": "images", "dtype": "uint8", "shape": ["batch", 32, 32, 3]}]
    assert built.outputs == [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}]
    assert 0 < built.seconds < 60


def test_options_reach_the_builder(rtx: Flavour, graph: Graph) -> None:
    plain = build(rtx, graph("Relu"), SOURCE, Options()).engine
    assert build(rtx, graph("Relu"), SOURCE, Options()).engine == plain
    for options in (
        Options(profiles=(Profile(), Profile(1, 1, 1))),
        Options(profiles=(Profile(1, 8, 16),)),
        Options(compute_capabilities=("8.6", "12.0")),
        Options(tf32=True),
    ):
        assert build(rtx, graph("Relu"), SOURCE, options).engine != plain, options


def test_a_refused_node_is_named(rtx: Flavour, graph: Graph) -> None:
    with pytest.raises(UserError) as caught:
        build(rtx, graph("StringNormalizer"), SOURCE, Options())
    assert str(caught.value) == (
        f"{SOURCE}: {rtx} refuses node 'the_node' (StringNormalizer): the operator is not "
        "supported; use --format onnx"
    )


def test_for_turing_there_is_no_linear_layer_in_fp32(rtx: Flavour, graph: Graph) -> None:
    # So for such a GPU an fp16 engine is advised (`manifest.not_for`).
    said = r"'matmul' for Turing \(SM75\): FP32 GEMM is not supported.*; give --precision fp16 and"
    with pytest.raises(UserError, match=said):
        build(rtx, graph("Relu"), SOURCE, Options(compute_capabilities=("7.5",)))


def test_what_is_no_onnx_is_told(rtx: Flavour) -> None:
    with pytest.raises(UserError, match=f"{SOURCE}: .* cannot read it: .*; export it again"):
        build(rtx, b"no ONNX file", SOURCE, Options())


# Of a build with TensorRT 10 on a card with 8 GiB (github.com/NVIDIA/TensorRT, issues 4254, 4258).
CUDA = "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)"
POOL = "[virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2: OutOfMemory"
AMOUNT = "Requested amount of GPU memory ({} bytes) could not be allocated. There may not be enough"
NO_NODE = "Error Code 10: Internal Error (Could not find any implementation for node {cast}"


@pytest.mark.parametrize(
    ("errors", "warnings", "said"),
    [
        ([CUDA], [AMOUNT.format(3 << 20), AMOUNT.format(7 << 30)], "needs 7,168 MiB to build"),
        ([f"{POOL} (Requested size was {5 << 20} bytes.)"], [], "needs 5 MiB to build"),
        ([CUDA, NO_NODE], ["a warning"], "needs more memory than there is to"),
        (["Cuda Driver (CUDA_ERROR_OUT_OF_MEMORY)"], [], "needs more memory than there is to"),
        (["CUDA error 2 loading a module"], [], "needs more memory than there is to"),
    ],
)
def test_memory_that_lacks_is_told_with_the_need(
    rtx: Flavour, graph: Graph, errors: list[str], warnings: list[str], said: str
) -> None:
    message = failing(rtx, graph, errors, warnings)
    assert said in message
    assert message.endswith("; lower --workspace or the largest batch of --batch-profile")


def test_another_error_of_cuda_is_not_memory(rtx: Flavour, graph: Graph) -> None:
    # Of TensorRT for RTX 1.7.1 on a GPU that it does not know.
    said = "CUDA error 222 loading a module"
    assert "memory" not in failing(rtx, graph, [said], [])


def test_a_workspace_that_is_too_small_is_to_be_raised(rtx: Flavour, graph: Graph) -> None:
    message = failing(rtx, graph, [f"{NO_NODE} due to insufficient workspace.)"], [])
    assert message.endswith("due to insufficient workspace.); raise --workspace")
    over = [f"{POOL} (Requested size was {5 << 20} bytes.)"]
    assert "5 MiB to build the engine; raise --work" in failing(rtx, graph, over, [], workspace=4)
    assert "5 MiB to build the engine; lower --work" in failing(rtx, graph, over, [], workspace=9)
    # The card, and not the limit.
    assert "lower --work" in failing(rtx, graph, [CUDA], [AMOUNT.format(5 << 20)], workspace=4)


def failing(
    rtx: Flavour,
    graph: Graph,
    errors: list[str],
    warnings: list[str],
    workspace: int | None = None,
) -> str:
    """What is said of a build that the library gives up with these lines in its log."""

    class Stopped(Notes):
        def start(self, phase: str, parent: str | None, steps: int) -> None:
            if not self.open:
                super().start(phase, None, steps)
                for line in errors:
                    rtx.log.log(rtx.module.ILogger.ERROR, line)
                for line in warnings:
                    rtx.log.log(rtx.module.ILogger.WARNING, line)

        def step(self, phase: str, done: int) -> None:
            raise RuntimeError

    with pytest.raises(UserError) as caught:
        build(rtx, graph("Relu"), SOURCE, Options(workspace=workspace), Stopped())
    return str(caught.value)


def test_progress_is_told_phase_by_phase(rtx: Flavour, graph: Graph) -> None:
    notes = Notes()
    build(rtx, graph("Relu"), SOURCE, Options(), notes)
    (outermost,) = [phase for phase, (parent, _) in notes.open.items() if parent is None]
    assert notes.done[outermost] > 1
    assert notes.finished[-1] == outermost
    assert set(notes.open) == set(notes.finished)


def test_ctrl_c_stops_a_build_at_its_next_step(
    rtx: Flavour, graph: Graph, ctrl_c: Callable[[], None]
) -> None:
    class Impatient(Notes):
        def step(self, phase: str, done: int) -> None:
            if not self.done:
                ctrl_c()
                time.sleep(2)  # the main thread, which Python tells of signals, gets its turn
            super().step(phase, done)

    whole, stopped = Notes(), Impatient()
    build(rtx, graph("Relu"), SOURCE, Options(), whole)
    with pytest.raises(KeyboardInterrupt):
        build(rtx, graph("Relu"), SOURCE, Options(), stopped)
    assert 1 <= sum(stopped.done.values()) < sum(whole.done.values()) / 2
    # The library is as good as before.
    assert build(rtx, graph("Relu"), SOURCE, Options()).engine


def test_ctrl_c_as_early_as_can_be_leaves_nothing_running(ctrl_c: Callable[[], None]) -> None:
    stop, seen = threading.Event(), []

    def work() -> None:
        ctrl_c()
        seen.append(stop.wait(5))

    with pytest.raises(KeyboardInterrupt):
        interruptibly(work, stop)
    assert seen == [True]


def test_a_build_begins_in_the_thread_that_builds(rtx: Flavour, graph: Graph) -> None:
    # CUDA's current device is a thread's own.
    current = threading.local()
    current.device = 0
    work = functools.partial(getattr, current, "device", None)
    assert interruptibly(work, threading.Event()) is None
    assert interruptibly(work, threading.Event(), lambda: setattr(current, "device", 1)) == 1
    begun: list[int] = []
    build(rtx, graph("Relu"), SOURCE, Options(), begin=lambda: begun.append(threading.get_ident()))
    assert begun != [threading.get_ident()]
    assert len(begun) == 1


class Picky:
    """A builder's configuration as TensorRT's is; that for RTX takes any timing cache."""

    def __init__(self, made: bool) -> None:
        self.made = made
        self.kept = b"none"

    def create_timing_cache(self, data: bytes) -> bytes | None:
        return data if self.made or not data else None

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache:
            return False
        self.kept = cache
        return True


@pytest.mark.parametrize("made", [True, False])
def test_a_timing_cache_of_another_gpu_is_begun_anew(made: bool) -> None:
    config = Picky(made)
    assert _timings(config, b"of an H100") == config.kept == b""


class Configuration:
    """TensorRT for RTX's own, and what was set of it: some that is TensorRT's it does not take."""

    def __init__(self, real: Any) -> None:
        vars(self).update(real=real, was_set={}, offered=[], kept=None)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["real"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.was_set[name] = value
        setattr(self.real, name, value)

    def create_timing_cache(self, data: bytes) -> Any:
        self.offered.append(data)
        return self.real.create_timing_cache(data)

    def set_timing_cache(self, timings: Any, ignore_mismatch: bool) -> bool:
        vars(self).update(kept=timings)
        return bool(self.real.set_timing_cache(timings, ignore_mismatch))


class Builder:
    """TensorRT for RTX's own, which notes what it is asked for; its engine is no engine."""

    def __init__(self, real: Any, trt: Any) -> None:
        self.real, self.trt = real, trt
        self.flags: int | None = None
        self.profiles: list[Any] = []

    def create_network(self, flags: int) -> Any:
        self.flags = flags
        return self.real.create_network(flags)

    def create_optimization_profile(self) -> Any:
        self.profiles.append(self.real.create_optimization_profile())
        return self.profiles[-1]

    def create_builder_config(self) -> Configuration:
        self.config = Configuration(self.real.create_builder_config())
        # Off by default in TensorRT.
        resize = self.trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10
        self.config.set_preview_feature(resize, False)
        return self.config

    def build_serialized_network(self, _network: Any, config: Configuration) -> bytes:
        assert config is self.config
        return b"an engine"


def asked_of_tensorrt(
    rtx: Flavour, graph: Graph, version: str, options: Options, timing_cache: Path | None = None
) -> tuple[Builder, set[str]]:
    """What a build asks of TensorRT, which needs a GPU; and the names of the flags that are set."""
    builder = Builder(rtx.make("Builder", rtx.log), rtx.module)
    module = ModuleType(TENSORRT)
    vars(module).update(vars(rtx.module), __version__=version, Builder=lambda _log: builder)
    built = build(Flavour(TENSORRT, module), graph("Relu"), SOURCE, options, None, timing_cache)
    assert built.engine == b"an engine"
    members = rtx.module.BuilderFlag.__members__.items()
    return builder, {name for name, flag in members if builder.config.get_flag(flag)}


@pytest.mark.parametrize(("version", "flag"), [("10.13.2.6", True), ("11.4.0.1", False)])
def test_each_option_reaches_tensorrt(rtx: Flavour, graph: Graph, version: str, flag: bool) -> None:
    trt = rtx.module
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    plain, flags = asked_of_tensorrt(rtx, graph, version, Options())
    assert plain.flags == (strongly_typed if flag else 0)
    assert flags == set()  # TF32 is the library's default, and not this program's
    assert set(plain.config.was_set) == {"progress_monitor"}
    resize = trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10
    assert plain.config.get_preview_feature(resize)  # a small batch takes little memory
    for options, expected in (
        (Options(tf32=True), {"TF32"}),
        (Options(version_compatible=True), {"VERSION_COMPATIBLE"}),
        (Options(strip_weights=True), {"STRIP_PLAN", "REFIT_IDENTICAL"}),
    ):
        asked, flags = asked_of_tensorrt(rtx, graph, version, options)
        assert asked.flags == plain.flags
        assert flags == expected
    for level in (0, 5):
        asked, _ = asked_of_tensorrt(rtx, graph, version, Options(level=level))
        assert asked.config.builder_optimization_level == level
    asked, _ = asked_of_tensorrt(rtx, graph, version, Options(workspace=64))
    assert asked.config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    asked, _ = asked_of_tensorrt(rtx, graph, version, Options(layer_info=True))
    assert asked.config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    for words, member in HARDWARE.items():
        options = Options(hardware_compatibility=words)
        asked, _ = asked_of_tensorrt(rtx, graph, version, options)
        wanted = getattr(trt.HardwareCompatibilityLevel, member)
        assert asked.config.was_set["hardware_compatibility_level"] == wanted
    profiles = (Profile(1, 8, 16), Profile(2, 2, 2))
    asked, _ = asked_of_tensorrt(rtx, graph, version, Options(profiles=profiles))
    assert asked.config.num_optimization_profiles == 2
    assert [profile.get_shape("images") for profile in asked.profiles] == [
        [(size, 32, 32, 3) for size in sizes] for sizes in ((1, 8, 16), (2, 2, 2))
    ]


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
def test_timings_are_kept_between_builds(rtx: Flavour, graph: Graph, tmp_path: Path) -> None:
    file = tmp_path / "timings"
    written = b""
    for _ in range(2):
        asked, _ = asked_of_tensorrt(rtx, graph, "10.13.2.6", Options(), file)
        assert asked.config.offered == [written]
        written = cache.read(file)
        assert written == bytes(asked.config.kept.serialize())
