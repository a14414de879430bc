"""A scheduler's SIGTERM and a closed terminal's SIGHUP end a command as Ctrl-C does."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

from cifar_deploy.device import launched
from cifar_deploy.signals import handled

TOGETHER = 1.0  # seconds between signals that are one


@contextlib.contextmanager
def as_ctrl_c() -> Iterator[Callable[[], int]]:
    """Raise KeyboardInterrupt for a signal that would end this process, so that it cleans up.

    What is yielded answers with the exit status that a shell gives the first one (128 and its
    number), or with 0 where none came: a library may have made another exception of it. Training
    has a way of its own meanwhile. A process of torchrun's, which could be waiting for the others,
    dies at once as before.
    """
    caught: list[int] = []
    last = -math.inf

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal last
        one_before, last = last, time.monotonic()
        caught.append(number)
        # `timeout` sends two, and the second must not disturb the end.
        if number == signal.SIGINT or last - one_before > TOGETHER:
            raise KeyboardInterrupt

    with contextlib.nullcontext() if launched() else handled(end):
        yield lambda: 128 + caught[0] if caught else 0
