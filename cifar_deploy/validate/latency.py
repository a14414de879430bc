"""The latency of a file, and the batch with which most images a second go through."""

from dataclasses import dataclass

import torch

from cifar_deploy.data.dataset import Images
from cifar_deploy.device import exhausted
from cifar_deploy.errors import UserError, one_line
from cifar_deploy.runtimes.cuda import cuda_errors, failed
from cifar_deploy.runtimes.protocol import REMOTE, Runtime
from cifar_deploy.timing import Pool, Timing, default_batches, time_batch


@dataclass(frozen=True)
class Speed:
    """Latency of the smallest batch, and the batch with the most images a second of those tried."""

    smallest: Timing  # of 1 image, where the runtime takes one
    best: Timing
    sweep: tuple[Timing, ...]


def measure(runtime: Runtime, images: Images, seconds: float = 1.0) -> tuple[Speed | None, str]:
    """Time `runtime` on `images`, uint8 [n, 32, 32, 3], for about `seconds` a batch size.

    Of BATCHES those that the runtime takes, or else its own smallest; None where `images` are
    fewer, or the memory does not hold it. The sweep ends where a larger batch cannot be run, and
    the second part of the answer says why; on a CPU, where it takes long, also where one no longer
    brings 2 % more images a second.

    Raises UserError where the GPU fails, and where a runtime refuses the first batch.
    """
    device = torch.device("cpu" if runtime.device == REMOTE else runtime.device)
    pool = Pool(images, device)
    sweep: list[Timing] = []
    best: Timing | None = None
    ended = ""
    for batch in default_batches(runtime):
        if batch > len(images):
            break
        try:
            with cuda_errors(runtime.runtime, device, batch):
                timing = time_batch(runtime, pool, batch, seconds)
        except UserError as error:
            # ONNX Runtime has no error of its own for memory that is full.
            if failed(error.__cause__) or not (exhausted(error.__cause__) or best):
                raise
            ended = f"batches from {batch:,} on were not timed: {one_line(error)}"
            break
        sweep.append(timing)
        if best is None or timing.images_per_second >= 1.02 * best.images_per_second:
            best = timing
        elif device.type == "cpu":
            break
    return Speed(sweep[0], best, tuple(sweep)) if best else None, ended
