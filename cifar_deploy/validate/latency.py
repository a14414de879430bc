"""The latency of a file, and the batch with which most images a second go through."""

from dataclasses import dataclass

import torch

from cifar_deploy.data.dataset import Images
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes.protocol import Runtime
from cifar_deploy.timing import BATCHES, Pool, Timing, time_batch


@dataclass(frozen=True)
class Speed:
    """Latency of the smallest batch, and the batch with the most images a second of those tried."""

    smallest: Timing  # of 1 image, where the runtime takes one
    best: Timing
    sweep: tuple[Timing, ...]


def measure(runtime: Runtime, images: Images, seconds: float = 1.0) -> Speed | None:
    """Time `runtime` on `images`, uint8 [n, 32, 32, 3], for about `seconds` a batch size.

    Of BATCHES those that the runtime takes, or else its own smallest; None where `images` are
    fewer. The sweep ends where a larger batch no longer brings 2 % more images a second, or cannot
    be run, for want of memory.
    """
    pool = Pool(images, torch.device(runtime.device))
    taken = [batch for batch in BATCHES if any(batch in sizes for sizes in runtime.batches)]
    sweep: list[Timing] = []
    best: Timing | None = None
    for batch in taken or [min(sizes[0] for sizes in runtime.batches)]:
        if batch > len(images):
            break
        try:
            timing = time_batch(runtime, pool, batch, seconds)
        except (torch.OutOfMemoryError, UserError) as error:
            full = torch.OutOfMemoryError in (type(error), type(error.__cause__))
            lost = isinstance(error.__cause__, torch.AcceleratorError)
            # ONNX Runtime has no error of its own for memory that is full.
            if lost or not (full or best):
                raise
            break
        sweep.append(timing)
        if best and timing.images_per_second < 1.02 * best.images_per_second:
            break
        best = timing
    return Speed(sweep[0], best, tuple(sweep)) if best else None
