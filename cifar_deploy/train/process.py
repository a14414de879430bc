"""What a process that trains on a CPU sets for itself, before its first arithmetic."""

import ctypes
import sys

import torch

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def prepare(device: torch.device) -> None:
    """Make this process ready to train on `device`, where that is a CPU.

    Call it before torch has started threads, which take over what holds for a thread alone.
    """
    keep_freed(device)
    flush_subnormals(device)


def keep_freed(device: torch.device) -> bool:
    """Let a process that trains on a CPU keep memory that was freed; whether it does from now on.

    A step there allocates and frees gigabytes of activations. glibc maps every large tensor
    afresh and gives it back, so that the kernel clears it page by page in each step (mallopt(3)).
    `benchmarks/train_speed.py memory` measures what that costs.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # a C library without it, such as musl
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def flush_subnormals(device: torch.device) -> bool:
    """Let a CPU take numbers below 1.2e-38 for zero; whether it does from now on.

    It does arithmetic with them many times slower, and a training makes them: the momentum of a
    filter that gets no gradient any more decays until it is of nothing else (`torch.
    set_flush_denormal`). `benchmarks/train_speed.py subnormals` measures what that costs.
    """
    return device.type == "cpu" and torch.set_flush_denormal(True)
