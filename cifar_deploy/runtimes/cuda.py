"""What CUDA refuses during a run, told as a user's error."""

import contextlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from cifar_deploy.device import exhausted, gpu_memory_left
from cifar_deploy.errors import UserError, one_line


def on(device: torch.device) -> AbstractContextManager[None]:
    """What is done meanwhile without naming a device is done on this one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def failed(error: BaseException | None) -> bool:
    """Whether it is CUDA's for a GPU that itself failed, and not just its memory that is full."""
    return isinstance(error, torch.AcceleratorError) and not exhausted(error)


@contextlib.contextmanager
def cuda_errors(what: str, device: torch.device, batch: int) -> Iterator[None]:
    """Run on `device`; `what` is running a batch there.

    Raises UserError where the memory is exhausted, on a GPU with the need and what is free, and
    where the GPU fails or is gone.
    """
    try:
        with on(device):
            yield
    except RuntimeError as error:
        if exhausted(error):
            raise _too_small(error, what, device, batch) from error
        if not failed(error):
            raise
        raise UserError(
            f"{what}: the GPU failed during a run ({one_line(error)}); see `cifar-deploy doctor`, "
            "and start again"
        ) from error


def whose(error: BaseException) -> str:
    """The memory that is full."""
    of_cpu = ("CPUAllocator", "could not create a primitive")
    return "the memory" if any(said in str(error) for said in of_cpu) else "the GPU's memory"


def needed(error: BaseException) -> str:
    """What torch tried to allocate, as 2.50 GiB; "" where it does not say."""
    found = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
    return found[1] if found else ""


def _too_small(error: RuntimeError, what: str, device: torch.device, batch: int) -> UserError:
    known = ""
    if device.type == "cuda":
        need = needed(error)
        known = f": {f'it needs {need} more, ' if need else ''}{gpu_memory_left(device)}"
    return UserError(
        f"{what}: {whose(error)} does not hold a batch of {batch}{known}; use a smaller batch, or "
        "close what else runs there"
    )


def refusal(error: Exception) -> str:
    """A line for the user where torch has no memory, or CUDA fails, anywhere; else nothing."""
    first = one_line(error)
    if exhausted(error):
        need = ". ".join(first.split(". ")[:2])  # what torch says of the rest goes on for lines
        return f"{whose(error)} is exhausted: {need}; close what else runs there"
    if failed(error):
        return f"the GPU failed: {first}; see `cifar-deploy doctor`, and start again"
    return ""
