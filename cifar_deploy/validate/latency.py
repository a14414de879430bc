"""How long an inference takes, and how many images a second go through.

Calls are made one after another, each waited for (MLPerf's SingleStream); the first ones, until the
times are steady, do not count. On CUDA, events on the stream time the computation alone, with the
input on the device; the host's clock times it again with both copies.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cifar_deploy.data.dataset import Images
from cifar_deploy.runtimes.protocol import Runtime

BATCHES = (8, 32, 128, 512)  # tried, in this order, for the most images a second
WINDOW = 8  # calls; two windows of the same median are steady
STEADY = 0.05  # largest difference of the medians, relative
WARM_UP_SECONDS = 3.0  # at most
FEWEST_CALLS = 3


@dataclass(frozen=True)
class Timing:
    """Times of one batch size, in milliseconds a call."""

    batch: int
    calls: int
    p50: float
    p90: float
    p99: float
    images_per_second: float  # at the median
    # The same call with input copied to the device and output back; on a CPU there is no copy.
    with_copies_p50: float
    with_copies_p99: float


@dataclass(frozen=True)
class Speed:
    """Latency at batch 1, and the batch with the most images a second among those tried."""

    single: Timing
    best: Timing
    sweep: tuple[Timing, ...]


def measure(runtime: Runtime, images: Images, seconds: float = 1.0) -> Speed:
    """Time `runtime` on `images`, uint8 [n, 32, 32, 3], for about `seconds` a batch size.

    The sweep over batch sizes ends where a larger batch no longer brings 2 % more images a second.
    """
    single = _time(runtime, images[:1], seconds)
    sweep = [single]
    best = single
    for batch in BATCHES:
        if batch > len(images):
            break
        timing = _time(runtime, images[:batch], seconds)
        sweep.append(timing)
        if timing.images_per_second < 1.02 * best.images_per_second:
            break
        best = timing
    return Speed(single, best, tuple(sweep))


def _time(runtime: Runtime, images: Images, seconds: float) -> Timing:
    call = runtime.bind(images).run

    def round_trip() -> object:
        return runtime.logits(images)

    if runtime.device.startswith("cuda"):
        computed = _collect(_on_stream(call), seconds)
        copied = _collect(_on_host(round_trip), seconds)
    else:
        computed = copied = _collect(_on_host(call), seconds)
    p50, p90, p99 = (float(np.percentile(computed, q)) for q in (50, 90, 99))
    return Timing(
        batch=len(images),
        calls=len(computed),
        p50=p50,
        p90=p90,
        p99=p99,
        images_per_second=1000 * len(images) / p50,
        with_copies_p50=float(np.percentile(copied, 50)),
        with_copies_p99=float(np.percentile(copied, 99)),
    )


def _on_host(call: Callable[[], object]) -> Callable[[], float]:
    """`call`, which waits for its result, timed in milliseconds by the host's clock."""

    def one() -> float:
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) / 1e6

    return one


def _on_stream(call: Callable[[], object]) -> Callable[[], float]:
    """`call` timed in milliseconds between two events on torch's current CUDA stream."""
    import torch

    def one() -> float:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return one


def _collect(one: Callable[[], float], seconds: float) -> list[float]:
    """Warm up, then times of calls for about `seconds`."""
    _warm_up(one)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < FEWEST_CALLS or time.perf_counter() < end:
        times.append(one())
    return times


def _warm_up(one: Callable[[], float]) -> None:
    """Call until two windows of calls have the same median, or WARM_UP_SECONDS are over."""
    end = time.perf_counter() + WARM_UP_SECONDS
    before = float("inf")
    while time.perf_counter() < end:
        window = []
        for _ in range(WINDOW):
            window.append(one())
            if time.perf_counter() > end:
                return
        median = float(np.median(window))
        if abs(median - before) <= STEADY * median:
            return
        before = median
