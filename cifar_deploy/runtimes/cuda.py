"""What CUDA refuses during a run, told as a user's error."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from cifar_deploy.errors import UserError, one_line

MIB = 1 << 20


def on(device: torch.device) -> AbstractContextManager[None]:
    """What is done meanwhile without naming a device is done on this one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def cuda_errors(what: str, device: torch.device, batch: int, need: float = 0) -> Iterator[None]:
    """Run on `device`; `what` is running a batch there, and is known to need `need` bytes.

    Raises UserError where the GPU's memory is exhausted, with the need and what is free, and where
    the GPU fails or is gone.
    """
    try:
        with on(device):
            yield
    except torch.OutOfMemoryError as error:
        known = f"it needs {need / MIB:,.0f} MiB, " if need else ""
        raise UserError(
            f"{what}: the GPU's memory does not hold a batch of {batch}: {known}{_free(device)}; "
            "use a smaller batch, or close what else runs there"
        ) from error
    except torch.AcceleratorError as error:
        raise UserError(
            f"{what}: the GPU failed during a run ({one_line(error)}); see `cifar-deploy doctor`, "
            "and start again"
        ) from error


def refusal(error: Exception) -> str:
    """A line for the user where `error` is CUDA's, wherever it was raised; else nothing."""
    first = one_line(error)
    if isinstance(error, torch.OutOfMemoryError):
        need = ". ".join(first.split(". ")[:2])  # what torch says of the rest goes on for lines
        return f"the GPU's memory is exhausted: {need}; close what else runs there"
    if isinstance(error, torch.AcceleratorError):
        return f"the GPU failed: {first}; see `cifar-deploy doctor`, and start again"
    return ""


def _free(device: torch.device) -> str:
    try:
        free, total = torch.cuda.mem_get_info(device)
    except (RuntimeError, ValueError):
        return "and the GPU does not say what is free"
    return f"{free / MIB:,.0f} of {total / MIB:,.0f} MiB are free"
