"""Ctrl-C, SIGTERM, a closed terminal: a run ends after its step, not in the middle of it."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from cifar_deploy.signals import handled


class Interrupted(Exception):
    """A signal ended the run after `step`; `checkpoint` holds it. `signal` is its number."""

    def __init__(self, number: int, step: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by signal {number} after step {step}")
        self.signal, self.step, self.checkpoint = number, step, checkpoint


@contextlib.contextmanager
def signals(impatient: bool) -> Iterator[Callable[[], int]]:
    """Note signals instead of dying of them; where `impatient`, a second Ctrl-C ends.

    torchrun sends each of its processes several, and kills them after half a minute anyway;
    `timeout` sends SIGTERM twice. What is yielded answers with the number of the first one that
    came, or 0.
    """
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        if impatient and number == signal.SIGINT:
            signal.signal(number, previous[number])

    with handled(note) as previous:
        yield lambda: next(iter(caught), 0)
