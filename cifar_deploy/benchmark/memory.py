"""What a loaded file takes of the memory, while others are loaded beside it."""

import contextlib
import ctypes
from collections.abc import Iterator

import torch

from cifar_deploy.device import MIB, memory_taken


class Memory:
    """What one contender takes of its device's memory: what its own steps add, as others wait."""

    def __init__(self, device: torch.device | None = None) -> None:
        """`device`: None where it is not to be known."""
        self._device = device
        self._kept = 0  # bytes, since the last step
        self.mib: int | None = None  # whole MiB at the end of the last step; None: not known

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Count what the contender takes, or gives back, meanwhile."""
        before = self._settled()
        yield
        # With what was freed and is kept: it was needed to compute. The next step takes it anew.
        taken = memory_taken(self._device) if self._device else None
        after = self._settled()
        if before is not None and taken is not None and after is not None:
            self.mib = round((self._kept + taken - before) / MIB)
            self._kept += after - before

    def _settled(self) -> int | None:
        """Bytes that are taken when what was freed has been given back, by whomever it was kept.

        Else a contender that comes later would take what another one has left, and seem smaller.
        """
        if not self._device:
            return None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            with contextlib.suppress(AttributeError, OSError, TypeError):  # not with glibc
                ctypes.CDLL(None).malloc_trim(0)
        return memory_taken(self._device)
