"""TensorRT and TensorRT for RTX: engines on a CUDA GPU, on torch's memory and torch's stream."""

import contextlib
import functools
import itertools
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from cifar_deploy.data.dataset import SIZE, Images
from cifar_deploy.disk import Json, sha256_of
from cifar_deploy.engines import cache
from cifar_deploy.engines.flavour import OUT_OF_MEMORY, RTX, Flavour
from cifar_deploy.engines.load import Opened, gpu_of, open_engine
from cifar_deploy.errors import UserError, one_line
from cifar_deploy.runtimes.cuda import cuda_errors, on
from cifar_deploy.runtimes.protocol import Bound, Logits, in_batches, takes, words

LANES = 8  # batch sizes that a thread keeps a context for; each holds memory of its own
CAPTURES = 3  # tries; whoever waits for the whole device meanwhile breaks one
MEMORY = rf"{OUT_OF_MEMORY}|alloc"  # in TensorRT's words for a GPU that is full

# Loading an engine, building a context and capturing touch the device as a whole: one at a time in
# this process.
_preparing = threading.Lock()

# Of captures that failed: in torch 2.11 and 2.12 an allocator goes on asking them.
_failed: list[torch.cuda.CUDAGraph] = []


@functools.cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """Where work is prepared: torch's default stream cannot be captured.

    One for all, since torch has 32 streams and then hands out the same again.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _stream(device: torch.device) -> torch.cuda.Stream:
    """Any other stream."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _stream(device) if stream == _aside(device) else stream


@dataclass(frozen=True)
class _Lane:
    """All that one batch size needs in one thread: a context of its own, buffers, a graph."""

    context: Any
    given: torch.Tensor  # uint8 [n, 32, 32, 3]
    result: torch.Tensor  # float32 [n, classes]
    memory: torch.Tensor  # uint8, for what is between them
    graph: torch.cuda.CUDAGraph | None  # None: TensorRT for RTX, which replays its own
    kernels: "_Kernels | None"  # has to live as long as the context
    refused: Callable[[str], NoReturn]  # raises for what TensorRT did not do

    def enqueue(self) -> torch.Tensor:
        """One inference on torch's current stream."""
        stream = torch.cuda.current_stream()
        if self.graph is not None:
            self.graph.replay()
        elif not _agreed(lambda: self.context.execute_async_v3(stream.cuda_stream)):
            stream.synchronize()  # tells whether the GPU itself has failed
            self.refused("run")
        return self.result


@dataclass(frozen=True)
class _Own:
    """What a thread has for itself: a stream, and lanes by batch size."""

    stream: torch.cuda.Stream
    lanes: dict[int, _Lane] = field(default_factory=dict)


def shares(profiles: Sequence[tuple[int, int, int]]) -> list[tuple[range, int]]:
    """The batches that each optimization profile, (min, opt, max), runs, and its number.

    Of those that take a batch, the one that is tuned nearest to it runs it, of several the first.
    A C++ program chooses alike (cpp/include/cifar_deploy/backend.hpp).
    """
    ends = {end for low, _, high in profiles for end in (low, high + 1)}
    halves = {(one[1] + other[1]) // 2 for one in profiles for other in profiles}
    cuts = sorted({*ends, *halves, *(half + 1 for half in halves)})
    found: list[tuple[range, int]] = []
    for start, stop in itertools.pairwise(cuts):  # between two of them nothing changes
        fitting = [i for i, (low, _, high) in enumerate(profiles) if low <= start <= high]
        if fitting:
            chosen = min(fitting, key=lambda i: abs(profiles[i][1] - start))
            goes_on = found and found[-1][1] == chosen and found[-1][0].stop == start
            begin = found.pop()[0].start if goes_on else start
            found.append((range(begin, stop), chosen))
    return found


class _Thread:
    """It lives as long as the thread it was made in."""


class _Threads:
    """What each thread has for itself, kept after its end until `let_go`.

    threading.local would free it at the thread's end, while another one may be capturing. A
    thread is known by an object and not by its number, which the next one may have again.
    """

    def __init__(self, make: Callable[[], _Own]) -> None:
        self._make = make
        self._local = threading.local()
        self._kept: list[tuple[weakref.ref[_Thread], _Own]] = []

    def mine(self) -> _Own:
        """What the calling thread has, made at its first call."""
        if not hasattr(self._local, "own"):
            self._local.own, self._local.thread = self._make(), _Thread()
            with _preparing:
                self._kept.append((weakref.ref(self._local.thread), self._local.own))
        own: _Own = self._local.own
        return own

    def let_go(self) -> None:
        """Free what ended threads had; `_preparing` is held meanwhile."""
        self._kept = [(thread, own) for thread, own in self._kept if thread() is not None]


class TensorRT:
    """An engine, loaded. Safe to call from several Python threads: each gets contexts of its own.

    Raises UserError, before the library sees a byte, where the engine is not the one its manifest
    speaks of or cannot run on `device`; `trust` waives the first. `known`: see `open_engine`.
    """

    def __init__(
        self, path: Path, device: torch.device, trust: bool = False, known: Json | None = None
    ) -> None:
        self._path = path
        self._device = device
        with on(device), _preparing:
            self._open(open_engine(path, device, trust, known))

    def _open(self, opened: Opened) -> None:
        self.manifest = opened.manifest
        self._opened = opened  # the engine lives as long as its runtime and its logger
        self._engine, self._trt = opened.engine, opened.flavour.module
        self.runtime = str(opened.flavour)
        self.provider = "CUDA"
        self.device = str(self._device)
        self.precision = str(self.manifest.get("precision", "fp32"))
        self._input, self._output, self.classes = self._interface()
        self._shares = shares(self._read_profiles())
        self.addition = ""
        self.batches: Sequence[range] = [sizes for sizes, _ in self._shares]
        self._refused = functools.partial(_refused, self._path, opened.flavour)
        device = self._device  # and not self, which would then wait for Python's collector
        self._threads = _Threads(lambda: _Own(_stream(device)))
        self._kernels = _Kernels(self) if opened.flavour.name == RTX else None

    def _interface(self) -> tuple[str, str, int]:
        """Names of input and output, and the number of classes, as the engine itself has them."""
        trt, engine = self._trt, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        outputs = [n for n in names if n not in inputs]
        fits = len(inputs) == len(outputs) == 1
        if fits:
            given, result = (engine.get_tensor_shape(n) for n in (*inputs, *outputs))
            fits = (
                engine.get_tensor_dtype(inputs[0]) == trt.DataType.UINT8
                and engine.get_tensor_dtype(outputs[0]) == trt.DataType.FLOAT
                and tuple(given)[1:] == (SIZE, SIZE, 3)
                and len(result) == 2
            )
        if not fits:
            raise UserError(
                f"{self._path}: its inputs and outputs are not the deployment graph's: uint8 "
                f"[batch, {SIZE}, {SIZE}, 3] to float32 [batch, classes]"
            )
        return inputs[0], outputs[0], int(tuple(result)[1])

    def _read_profiles(self) -> list[tuple[int, int, int]]:
        """(min, opt, max) batch of each optimization profile."""
        engine = self._engine
        shapes = [
            engine.get_tensor_profile_shape(self._input, index)
            for index in range(engine.num_optimization_profiles)
        ]
        return [(int(low[0]), int(opt[0]), int(high[0])) for low, opt, high in shapes]

    def logits(self, images: Images) -> Logits:
        """Float32 [n, classes] of uint8 [n, 32, 32, 3]; larger sets go through in batches."""
        mine = self._threads.mine()
        lanes = mine.lanes

        def run(batch: Images) -> Logits:
            size = len(batch)
            with self._cuda(size), torch.cuda.stream(mine.stream):
                if size not in lanes and len(lanes) == LANES:
                    with _preparing:
                        del lanes[next(iter(lanes))]  # the one that was not used for longest
                lane = lanes.pop(size, None) or self._lane(size, mine.stream)
                lanes[size] = lane
                lane.given.copy_(torch.from_numpy(np.ascontiguousarray(batch)))
                answer: Logits = lane.enqueue().cpu().numpy()
            return answer

        return in_batches(run, images, self.batches)

    def bind(self, images: Images) -> Bound:
        """Buffers and a context of their own for a batch of this size, on torch's stream.

        Raises UserError for a batch that no optimization profile takes.
        """
        batch = len(images)
        if not takes(self.batches, batch):
            raise UserError(
                f"{self._path}: a batch of {batch} is outside its profile ({words(self.batches)}); "
                "export it with another --batch-profile"
            )
        with self._cuda(batch):
            lane = self._lane(batch, torch.cuda.current_stream(self._device))
            lane.given.copy_(torch.from_numpy(images))
        return Bound(lane.given, lane.enqueue)

    def streams(self, count: int) -> "list[TensorRT]":
        """Itself: every batch has a context and a CUDA stream of its own."""
        return [self] * count

    def _lane(self, batch: int, stream: torch.cuda.Stream) -> _Lane:
        """A context for `batch`, run once, and captured where the library does not do it."""
        with _preparing:
            self._threads.let_go()
            given = torch.zeros(batch, SIZE, SIZE, 3, dtype=torch.uint8, device=self._device)
            result = torch.empty(batch, self.classes, dtype=torch.float32, device=self._device)
            side = _aside(self._device)
            side.wait_stream(stream)
            context = self._context()
            # TensorRT for RTX captures its graph in the second run and replays it from the third,
            # unless what prepares kernels is not through then.
            runs = 4 if self._kernels else 1
            (profile,) = [index for sizes, index in self._shares if batch in sizes]
            ready = _agreed(
                lambda: (
                    context.set_optimization_profile_async(profile, side.cuda_stream)
                    and context.set_input_shape(self._input, tuple(given.shape))
                    and context.set_tensor_address(self._input, given.data_ptr())
                    and context.set_tensor_address(self._output, result.data_ptr())
                )
            )
            # For just this batch; by itself TensorRT takes what the largest of all profiles needs.
            need = int(context.update_device_memory_size_for_shapes()) if ready else 0
            memory = torch.empty(max(need, 1), dtype=torch.uint8, device=self._device)
            context.set_device_memory(memory.data_ptr(), len(memory))
            for _ in range(runs):
                ready = ready and _agreed(lambda: context.execute_async_v3(side.cuda_stream))
                # Also before a refusal: its buffers are let go then, and a GPU that failed is told.
                side.synchronize()
                if not ready:
                    self._refused("run")
            graph = None
            if self._kernels:
                self._kernels.save()
            else:
                graph = self._capture(context, side)
            stream.wait_stream(side)
            self._opened.flavour.log.clear()  # what a run is refused for comes later
        return _Lane(context, given, result, memory, graph, self._kernels, self._refused)

    def _context(self) -> Any:
        self._opened.flavour.log.clear()
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        how = self._kernels.config if self._kernels else strategy
        context = self._engine.create_execution_context(how)
        if context is None:  # torch may keep for itself the memory that it needs
            torch.cuda.empty_cache()
            self._opened.flavour.log.clear()
            context = self._engine.create_execution_context(how)
        if context is None:
            self._refused("run")
        return context

    def _capture(self, context: Any, side: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        """The inference as a CUDA graph.

        Raises UserError where it cannot be captured: without a graph the figures would be others,
        and nobody would know.
        """
        told = ""
        for _ in range(CAPTURES):
            graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
            try:
                with (
                    # torch.cuda.graph does not give it back where it fails.
                    torch.cuda.stream(side),
                    # Other threads may go on with their own work meanwhile, but not wait for the
                    # whole device: https://github.com/NVIDIA/TensorRT/issues/2888
                    torch.cuda.graph(graph, pool, side, capture_error_mode="thread_local"),
                ):
                    captured = context.execute_async_v3(side.cuda_stream)
            except RuntimeError as error:
                captured, told = False, one_line(error)
                _abandon(graph, pool)
            if captured:
                break
            side.synchronize()  # tells whether the GPU itself has failed
        else:
            self._refused("capture", told)
        return graph

    def _cuda(self, batch: int) -> AbstractContextManager[None]:
        """Work on the device; what it refuses is a `UserError`."""
        return cuda_errors(str(self._path), self._device, batch)


def _refused(path: Path, flavour: Flavour, what: str, told: str = "") -> NoReturn:
    """Raise for what cannot be done with the engine, by TensorRT's words or those of CUDA."""
    log = flavour.log
    reason = log.reason() if log.errors() or not told else told
    lines = [line for line in [*log.errors(), told] if "captur" not in line]
    if any(re.search(MEMORY, line) for line in lines):  # and not just forbidden in a capture
        raise torch.OutOfMemoryError(reason)
    raise UserError(f"{path}: {flavour} cannot {what} it: {reason}")


def _agreed(ask: Callable[[], bool]) -> bool:
    """What TensorRT answers. Some refusals its bindings raise; the log has the reason of each."""
    try:
        return ask()
    except RuntimeError:
        return False


def _abandon(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Leave torch as it was before a capture that failed.

    Before 2.13 its allocator thinks that the capture goes on, and fails at the next empty_cache.
    https://github.com/pytorch/pytorch/pull/180395
    """
    _failed.append(graph)
    # Later versions have ended it, and say so.
    with contextlib.suppress(RuntimeError, AttributeError):
        graph.reset()
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)


class _Kernels:
    """What TensorRT for RTX compiles for this GPU at the first run, kept for the next start.

    It replays CUDA graphs by itself, one for each shape.
    https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-runtime-cache.html
    """

    def __init__(self, owner: TensorRT) -> None:
        trt = owner._trt
        self.config = owner._engine.create_runtime_config()
        self.config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self.config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # Lazily compiled kernels would change under a measurement.
        self.config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        gpu = gpu_of(owner._device)
        assert gpu
        engine = sha256_of(owner._path)[:16]
        self._path: Path | None = None
        with contextlib.suppress(UserError):  # there is no place for it: nothing is kept
            self._path = cache.path("kernels", owner._opened.flavour.version, gpu.name, engine)
        self._cache = self.config.create_runtime_cache()
        self._saved = 0
        if self._path and (kept := cache.read(self._path)):
            # It compares the device's context with that of then, and makes none itself.
            torch.cuda.current_stream(owner._device).synchronize()
            # False where another driver is here now: then it is compiled anew.
            self._saved = len(kept) if self._cache.deserialize(kept) else 0
        self.config.set_runtime_cache(self._cache)
        self._opened = owner._opened  # last, so that the engine goes after what it has made

    def save(self) -> None:
        """Write what has been compiled, if it has grown; a disk that refuses costs only time."""
        made = self._cache.serialize()
        raw = bytes(made) if made is not None else b""
        if self._path and raw and len(raw) != self._saved:
            with contextlib.suppress(UserError):
                cache.write(self._path, raw)
            self._saved = len(raw)
