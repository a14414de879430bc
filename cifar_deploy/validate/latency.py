"""The latency of a file, and the batch with which most images a second go through."""

from dataclasses import dataclass

import torch

from cifar_deploy.data.dataset import Images
from cifar_deploy.runtimes.protocol import Runtime
from cifar_deploy.timing import BATCHES, Pool, Timing, time_batch


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
    pool = Pool(images, torch.device(runtime.device))
    single = time_batch(runtime, pool, BATCHES[0], seconds)
    sweep = [single]
    best = single
    for batch in BATCHES[1:]:
        if batch > len(images):
            break
        timing = time_batch(runtime, pool, batch, seconds)
        sweep.append(timing)
        if timing.images_per_second < 1.02 * best.images_per_second:
            break
        best = timing
    return Speed(single, best, tuple(sweep))
