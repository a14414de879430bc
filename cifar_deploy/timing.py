"""How long an inference takes: copies, computing and enqueueing apart, in trtexec's terms.

Calls are made one after another, each waited for (MLPerf's SingleStream); the first ones, until the
times are steady, do not count. Every call has other images than the one before, and on CUDA they
come over the bus from a pool larger than the GPU's L2 cache, into input buffers that take turns.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from cifar_deploy.data.dataset import SIZE, Images
from cifar_deploy.runtimes.protocol import Bound, Runtime, takes

BATCHES = (1, 8, 32, 128, 256, 1024)
STREAMS = 32  # that torch has for a GPU, before it hands out the same again
BUFFERS = 2  # bound inputs of a batch size that take turns
LEAST_POOL = 8 << 20  # bytes of distinct images, at least
WINDOW = 8  # calls; two windows of the same median are steady
SHORT_WINDOW = 2  # calls at least, where so many take a quarter of the time for warming up
STEADY = 0.05  # largest difference of the medians, relative
WARM_UP_SECONDS = 3.0  # at most
CLOCKS_UP_SECONDS = 0.2  # at least on CUDA, as trtexec: an idle GPU's clocks have to rise
FEWEST_CALLS = 3


class Call(NamedTuple):
    """One inference, in milliseconds."""

    h2d: float  # the GPU's time to copy the input to the device
    compute: float  # the GPU's time to compute, waiting for the host to launch included
    d2h: float  # the GPU's time to copy the output back
    enqueue: float  # the host's time to enqueue the inference, without the copies
    host: float  # the host's time from the first call until the output is there


@dataclass(frozen=True)
class Times:
    """Quantiles over calls, in milliseconds."""

    min: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Timing:
    """Times of one batch size. On a CPU there is no copy, and every time is the host's."""

    batch: int
    calls: int
    latency: Times  # H2D + compute + D2H of a call, trtexec's Latency
    compute: Times  # trtexec's GPU Compute Time
    h2d: Times | None  # trtexec's H2D Latency
    d2h: Times | None
    enqueue: Times | None  # trtexec's Enqueue Time
    end_to_end: Times  # the host's clock around the whole call
    images_per_second: float  # one call after another: at the median of end_to_end


def default_batches(runtime: Runtime) -> list[int]:
    """Of BATCHES those that `runtime` takes, or else its own smallest."""
    taken = [batch for batch in BATCHES if takes(runtime.batches, batch)]
    return taken or [min(sizes[0] for sizes in runtime.batches)]


def times(values: Sequence[float]) -> Times:
    """The quantiles of `values` in milliseconds."""
    p50, p90, p99 = (float(np.percentile(values, q)) for q in (50, 90, 99))
    return Times(min(values), p50, p90, p99)


def summarise(batch: int, calls: Sequence[Call], on_cuda: bool) -> Timing:
    """The figures of `calls` with `batch` images each."""
    end_to_end = times([call.host for call in calls])
    return Timing(
        batch=batch,
        calls=len(calls),
        latency=times([call.h2d + call.compute + call.d2h for call in calls]),
        compute=times([call.compute for call in calls]),
        h2d=times([call.h2d for call in calls]) if on_cuda else None,
        d2h=times([call.d2h for call in calls]) if on_cuda else None,
        enqueue=times([call.enqueue for call in calls]) if on_cuda else None,
        end_to_end=end_to_end,
        images_per_second=1000 * batch / end_to_end.p50,
    )


class Pool:
    """Distinct images in host memory, page-locked for CUDA, handed out a batch at a time."""

    def __init__(self, images: Images, device: torch.device, least: int = 0) -> None:
        """`images`, uint8 [n, 32, 32, 3], and shifted copies of them until there are enough.

        `least`: images of the largest batch, so many there are at least.
        """
        size = LEAST_POOL
        if device.type == "cuda":
            size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
        size = max(size, least * images[0].nbytes)
        copies = min(math.ceil(size / images.nbytes), SIZE * SIZE)
        shifts = itertools.islice(itertools.product(range(SIZE), repeat=2), copies)
        pixels = np.concatenate([np.roll(images, shift, (1, 2)) for shift in shifts])
        self.images = torch.from_numpy(pixels)
        if device.type == "cuda":
            self.images = self.images.pin_memory()
        self._next = 0

    def take(self, batch: int) -> torch.Tensor:
        """The next `batch` images; after the last the first come again."""
        assert batch <= len(self.images)
        start = self._next if self._next + batch <= len(self.images) else 0
        self._next = start + batch
        return self.images[start : start + batch]


@functools.cache
def _streams(device: str) -> list[torch.cuda.Stream]:
    return []


def stream(device: str, number: int) -> torch.cuda.Stream:
    """One of the CUDA streams to measure on, 0 to STREAMS - 1.

    The same ones each time: a runtime may keep a session, and its memory, for every stream it sees.
    """
    made = _streams(device)
    while len(made) <= number:
        one = torch.cuda.Stream(torch.device(device))  # type: ignore[no-untyped-call]
        if one not in made:  # others have asked for streams meanwhile, and torch begins anew
            made.append(one)
    return made[number]


class Lane:
    """A runtime's own stream and buffers for one batch size, and timed calls over them."""

    def __init__(self, runtime: Runtime, pool: Pool, batch: int) -> None:
        self.batch = batch
        self.on_cuda = runtime.device.startswith("cuda")
        self._pool = pool
        first = pool.images[:batch].numpy()
        start = time.perf_counter_ns()
        if self.on_cuda:
            self._stream = stream(runtime.device, 0)
            with torch.cuda.stream(self._stream):
                bounds = [runtime.bind(first)]
                answer = bounds[0].run().cpu()  # waits for it
                self._made = (time.perf_counter_ns() - start) / 1e6
                bounds += [runtime.bind(first) for _ in range(1, BUFFERS)]
                self._events = [
                    torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                    for _ in range(4)
                ]
                self._answer = torch.empty_like(answer, pin_memory=True)
            self._stream.synchronize()
        else:
            bounds = [runtime.bind(first)]
            self._made = (time.perf_counter_ns() - start) / 1e6
            bounds += [runtime.bind(first) for _ in range(1, BUFFERS)]
        self._bounds = itertools.cycle(bounds)

    def first(self) -> float:
        """Make the first call: milliseconds from a loaded runtime to the answer in host memory.

        What is made for a batch of this size counts, once: buffers, and where the runtime does so
        what it compiles, plans or captures. To be called once, before `call`.
        """
        # On CUDA the constructor had to make it, to know the answer's size.
        return self._made if self.on_cuda else self._made + self.call().host

    def call(self) -> Call:
        """One inference on images that were not there before, in the next of the buffers."""
        bound, images = next(self._bounds), self._pool.take(self.batch)
        return self._on_cuda(bound, images) if self.on_cuda else self._on_cpu(bound, images)

    def _on_cpu(self, bound: Bound, images: torch.Tensor) -> Call:
        bound.given.copy_(images)
        start = time.perf_counter_ns()
        bound.run()
        spent = (time.perf_counter_ns() - start) / 1e6
        return Call(0.0, spent, 0.0, spent, spent)

    def _on_cuda(self, bound: Bound, images: torch.Tensor) -> Call:
        begin, copied, computed, done = self._events
        with torch.cuda.stream(self._stream):
            start = time.perf_counter_ns()
            begin.record()
            bound.given.copy_(images, non_blocking=True)
            copied.record()
            launch = time.perf_counter_ns()
            answer = bound.run()
            launched = time.perf_counter_ns()
            computed.record()
            self._answer.copy_(answer, non_blocking=True)
            done.record()
            done.synchronize()
            end = time.perf_counter_ns()
        return Call(
            begin.elapsed_time(copied),
            copied.elapsed_time(computed),
            computed.elapsed_time(done),
            (launched - launch) / 1e6,
            (end - start) / 1e6,
        )


def time_batch(runtime: Runtime, pool: Pool, batch: int, seconds: float) -> Timing:
    """Warm up, then time calls with `batch` images for about `seconds`."""
    lane = Lane(runtime, pool, batch)
    warm_up(lane)
    return summarise(batch, collect(lane.call, seconds), lane.on_cuda)


def collect(
    one: Callable[[], Call],
    seconds: float,
    fewest: int = FEWEST_CALLS,
    most: float = math.inf,
) -> list[Call]:
    """Calls for about `seconds`, at least `fewest` and at most `most`."""
    calls: list[Call] = []
    end = time.perf_counter() + seconds
    while len(calls) < fewest or (len(calls) < most and time.perf_counter() < end):
        calls.append(one())
    return calls


def warm_up(lane: Lane) -> bool:
    """Call until the times are steady; whether they were in the end."""
    return steady(lambda: lane.call().host, CLOCKS_UP_SECONDS if lane.on_cuda else 0.0)


def steady(one: Callable[[], float], least: float = 0.0) -> bool:
    """Call for `least` seconds and until two windows have the same median; whether they had.

    It is given up after WARM_UP_SECONDS.
    """
    start = time.perf_counter()
    end = start + WARM_UP_SECONDS
    before = math.inf
    while (begun := time.perf_counter()) < end:
        window: list[float] = []
        while len(window) < WINDOW:
            window.append(one())
            now = time.perf_counter()
            if now > end:
                return False
            if len(window) >= SHORT_WINDOW and now - begun > WARM_UP_SECONDS / 4:
                break
        median = float(np.median(window))
        if abs(median - before) <= STEADY * median and time.perf_counter() - start >= least:
            return True
        before = median
    return False
