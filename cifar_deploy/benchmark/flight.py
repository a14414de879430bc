"""Throughput with several batches in flight.

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
from cifar_deploy.runtimes.protocol import Bound, Runtime
from cifar_deploy.timing import Pool, stream


@dataclass(frozen=True)
class Flown:
    """What came through, and in what time from the first batch's start to the last one's end."""

    images: int
    seconds: float


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
                calls = sum(done)
            spent = time.perf_counter() - start
        return Flown(calls * self._batch, spent)

    @contextlib.contextmanager
    def _sharing(self) -> Iterator[None]:
        """Torch's number of threads is a batch's share; it is also what new threads begin with."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _repeat(self, bound: Bound, end: float) -> int:
        calls = 0
        while not calls or time.perf_counter() < end:
            bound.given.copy_(self._pool.take(self._batch))
            bound.run()
            calls += 1
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
        sent, start = 0, time.perf_counter()
        while sent < self.count or time.perf_counter() - start < seconds:
            self._slots[sent % self.count].send(self._pool.take(self._batch))
            sent += 1
        for slot in self._slots:
            slot.wait()
        return Flown(sent * self._batch, time.perf_counter() - start)


def slots(runtime: Runtime, images: Images, count: int, one_stream: bool = False) -> "list[Slot]":
    """`count` slots for batches of the size of `images`, each on a stream of its own."""
    if not runtime.device.startswith("cuda"):
        return [Slot(runtime, images, None) for _ in range(count)]
    return [
        Slot(runtime, images, stream(runtime.device, 0 if one_stream else i)) for i in range(count)
    ]


class Slot:
    """A batch's buffers. What is sent is computed on the stream; without one (a CPU) at once."""

    def __init__(self, runtime: Runtime, images: Images, stream: torch.cuda.Stream | None) -> None:
        self._stream = stream
        with torch.cuda.stream(stream):  # None: as it is
            self._bound = runtime.bind(images)
            self.answer = torch.empty_like(
                self._bound.run(), device="cpu", pin_memory=stream is not None
            )
        if stream:
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            stream.synchronize()

    def send(self, images: torch.Tensor) -> None:
        """Enqueue copy, inference and copy back, when what was sent before is done."""
        self.wait()
        with torch.cuda.stream(self._stream):
            self._bound.given.copy_(images, non_blocking=True)
            self.answer.copy_(self._bound.run(), non_blocking=True)
            if self._stream:
                self._done.record()

    def wait(self) -> None:
        """Wait until `answer`, float32 [n, classes], is that of what was sent last."""
        if self._stream:
            self._done.synchronize()  # at once, where nothing was sent
