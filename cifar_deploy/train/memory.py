"""Memory: which batch fits."""

from collections.abc import Callable


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
