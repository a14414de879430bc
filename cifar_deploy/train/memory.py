"""Memory: which batch fits, and keeping what a step on a CPU frees."""

import ctypes
import sys
from collections.abc import Callable

import torch

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# In the words of cuDNN, cuBLAS, CUDA and torch's allocator for CPUs.
FULL = ("unable to find an engine", "ALLOC_FAILED", "out of memory", "can't allocate memory")


def exhausted(error: RuntimeError) -> bool:
    """Whether torch failed for want of memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in FULL)


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
