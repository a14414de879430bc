"""Throughput with several batches in flight, and how long each of them takes meanwhile.

On CUDA one thread keeps a queue: each batch has a stream, buffers and copies of its own, and is
waited for only when its turn comes again, as trtexec does with `--infStreams`. On a CPU each batch
has a thread, and its share of the runtime's threads, as benchmark_app does with `-nstreams`.
"""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch

from cifar_deploy.data.dataset import Images
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes.protocol import Bound, Runtime
from cifar_deploy.timing import STREAMS, Pool, stream


@dataclass(frozen=True)
class Flown:
    """What came through, and in what time from the first batch's start to the last one's end."""

    images: int
    seconds: float
    # Of each call, from its issue until its answer is there: on CUDA the copies are in it. Without
    # the first call of each batch in flight, which finds the caches cold, where more follow.
    milliseconds: list[float]


class Flight(Protocol):
    """Buffers for several batches, ready to fly."""

    count: int  # of batches in flight

    def fly(self, seconds: float) -> Flown:
        """Keep all in flight for about `seconds`, and wait for the last."""


def flight(
    runtime: Runtime, pool: Pool, batch: int, count: int, one_stream: bool = False
) -> Flight:
    """`count` batches of `batch` images in flight, warmed up.

    `one_stream`: their computing must not overlap.
    """
    made: Flight
    if runtime.device.startswith("cuda"):
        made = CudaFlight(runtime, pool, batch, count, one_stream)
    else:
        made = CpuFlight(runtime, pool, batch, count)
    made.fly(0.0)
    return made


class CpuFlight:
    """A thread a batch."""

    def __init__(self, runtime: Runtime, pool: Pool, batch: int, count: int) -> None:
        self.count = count
        self._batch = batch
        self._pool = pool
        # Torch's number of threads is the calling thread's.
        self._threads = max(1, torch.get_num_threads() // count)
        streams = runtime.streams(count)
        with self._sharing():  # torch.compile compiles for a number of threads
            self._bounds = [one.bind(pool.images[:batch].numpy()) for one in streams]

    def fly(self, seconds: float) -> Flown:
        """As the protocol says; at least one batch a thread."""
        with self._sharing():
            start = time.perf_counter()
            with ThreadPoolExecutor(
                self.count, initializer=torch.set_num_threads, initargs=(self._threads,)
            ) as threads:
                done = threads.map(lambda bound: self._repeat(bound, start + seconds), self._bounds)
                calls = list(done)
            spent = time.perf_counter() - start
        images = self._batch * sum(map(len, calls))
        return Flown(images, spent, [took for one in calls for took in one[1:] or one])

    @contextlib.contextmanager
    def _sharing(self) -> Iterator[None]:
        """Torch's number of threads is a batch's share; it is also what new threads begin with."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _repeat(self, bound: Bound, end: float) -> list[float]:
        calls: list[float] = []
        while not calls or time.perf_counter() < end:
            bound.given.copy_(self._pool.take(self._batch))
            issued = time.perf_counter_ns()
            bound.run()
            calls.append((time.perf_counter_ns() - issued) / 1e6)
        return calls


class CudaFlight:
    """A stream a batch, all of them fed by one thread."""

    def __init__(
        self, runtime: Runtime, pool: Pool, batch: int, count: int, one_stream: bool
    ) -> None:
        self.count = count
        self._batch = batch
        self._pool = pool
        self._slots = slots(runtime, pool.images[:batch].numpy(), count, one_stream)

    def fly(self, seconds: float) -> Flown:
        """As the protocol says; at least one batch a stream."""
        calls: list[float] = []
        sent, start = 0, time.perf_counter()
        while sent < self.count or time.perf_counter() - start < seconds:
            slot = self._slots[sent % self.count]
            if sent >= self.count:
                calls.append(slot.took())
            slot.send(self._pool.take(self._batch))
            sent += 1
        for number in range(sent, sent + self.count):  # the eldest first
            calls.append(self._slots[number % self.count].took())
        spent = time.perf_counter() - start
        return Flown(sent * self._batch, spent, calls[self.count :] or calls)


def slots(runtime: Runtime, images: Images, count: int, one_stream: bool = False) -> "list[Slot]":
    """`count` slots for batches of the size of `images`, each on a stream of its own.

    Raises UserError for more than a GPU has streams.
    """
    if not runtime.device.startswith("cuda"):
        return [Slot(runtime, images, None) for _ in range(count)]
    if one_stream:
        one, idle = stream(runtime.device, 0), stream(runtime.device, 1)
        return [Slot(runtime, images, one, idle) for _ in range(count)]
    if count > STREAMS:
        raise UserError(
            f"{count} batches in flight: on a GPU each has a stream of its own, and torch has "
            f"{STREAMS}; ask for fewer"
        )
    return [Slot(runtime, images, stream(runtime.device, i)) for i in range(count)]


class Slot:
    """A batch's buffers. What is sent is computed on the stream; without one (a CPU) at once.

    `idle`: another stream, on which nothing computes meanwhile, where slots share theirs.
    """

    def __init__(
        self,
        runtime: Runtime,
        images: Images,
        stream: torch.cuda.Stream | None,
        idle: torch.cuda.Stream | None = None,
    ) -> None:
        self._stream = stream
        with torch.cuda.stream(stream):  # None: as it is
            self._bound = runtime.bind(images)
            self.answer = torch.empty_like(
                self._bound.run(), device="cpu", pin_memory=stream is not None
            )
        if stream:
            # A stream of its own is idle when a batch is sent; a shared one is not.
            self._idle = idle or stream
            self._sent, self._done = (
                torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                for _ in range(2)
            )
            stream.synchronize()

    def send(self, images: torch.Tensor) -> None:
        """Enqueue copy, inference and copy back, when what was sent before is done."""
        self.wait()
        with torch.cuda.stream(self._stream):
            if self._stream:
                self._sent.record(self._idle)
            self._bound.given.copy_(images, non_blocking=True)
            self.answer.copy_(self._bound.run(), non_blocking=True)
            if self._stream:
                self._done.record()

    def wait(self) -> None:
        """Wait until `answer`, float32 [n, classes], is that of what was sent last."""
        if self._stream:
            self._done.synchronize()  # at once, where nothing was sent

    def took(self) -> float:
        """Wait, and say how many milliseconds what was sent last took, from being sent; on CUDA."""
        self.wait()
        self._sent.synchronize()  # at once: it was there before the answer
        return float(self._sent.elapsed_time(self._done))
