"""Memory: which batch fits, and what is said where it is full."""

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from cifar_deploy import device as machine
from cifar_deploy.data.dataset import SIZE
from cifar_deploy.errors import OwnError

if TYPE_CHECKING:
    from cifar_deploy.train.loop import Trainer

Done = TypeVar("Done")


def in_memory(trainer: "Trainer", work: Callable[[], Done]) -> Done:
    """`work`, of `trainer`'s. Raises UserError where the memory is full, with what would fit."""
    try:
        return work()
    except RuntimeError as error:
        if not machine.exhausted(error):
            raise
        reason = str(error).splitlines()[0]
    # The exception, which holds on to what it was computing, is gone now.
    raise OwnError(_what_fits(trainer, reason))


def _what_fits(trainer: "Trainer", reason: str) -> str:
    """What to say after the device's memory was full: the largest batch that would fit."""
    world, batch = trainer.ranks.world, trainer.job.recipe.train.batch_size
    trainer.batches.forget()
    if world > 1:  # a step of one process alone would wait for the others
        half = max(1, batch // 2 // world) * world
        return (
            f"out of memory on {trainer.job.device} with a batch of {batch}; try {half}: {reason}"
        )

    def fits(size: int) -> bool:
        try:
            attempt(trainer, size)
        except ValueError:  # a batch norm's, of a single image
            return False
        except RuntimeError as error:
            if not machine.exhausted(error):
                raise
            return False
        finally:
            trainer.optimizer.zero_grad()
            gc.collect()
            if trainer.job.device.type == "cuda":
                torch.cuda.empty_cache()
        return True

    if fits(batch):
        return f"out of memory on {trainer.job.device}: {reason}; free some, or use another device"
    best = largest(fits, batch)
    if not best:
        return f"out of memory on {trainer.job.device}: not even one image fits; {reason}"
    return (
        f"out of memory on {trainer.job.device} with a batch of {batch}; one of {best} would fit: "
        f"--batch-size {best} (and --lr in proportion)"
    )


def attempt(trainer: "Trainer", size: int) -> None:
    """A step with `size` images, not compiled; the weights are of no account any more.

    It holds what a run holds meanwhile: the weights before its warm-up, a chunk of images.
    """
    kept = [t.clone() for n in trainer.networks().values() for t in n.state_dict().values()]
    shape = (trainer.batches.together(size) * size, SIZE, SIZE, 3)
    images = torch.zeros(shape, dtype=torch.uint8, device=trainer.job.device)
    labels = torch.zeros(size, dtype=torch.int64, device=trainer.job.device)
    trainer.objective(images[:size], labels)[0].backward()
    trainer.optimizer.step()
    del kept


def largest(fits: Callable[[int], bool], failed: int) -> int:
    """The largest batch below `failed` for which `fits` is true, to within a sixteenth; 0: none.

    Halving finds one that fits, bisection the rest. Above 64 it is a multiple of 8: GPUs like it.
    """
    low, high = failed // 2, failed
    while low and not fits(low):
        low, high = low // 2, low
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low - low % 8 if low > 64 else low
