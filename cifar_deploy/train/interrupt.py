"""Ctrl-C, SIGTERM, a closed terminal: a run ends after its step, not in the middle of it."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """A signal ended the run after `step`; `checkpoint` holds it. `signal` is its number."""

    def __init__(self, number: int, step: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by signal {number} after step {step}")
        self.signal, self.step, self.checkpoint = number, step, checkpoint


@contextlib.contextmanager
def signals(impatient: bool) -> Iterator[Callable[[], int]]:
    """Note SIGINT, SIGTERM and SIGHUP instead of dying; where `impatient`, a second Ctrl-C ends.

    torchrun sends each of its processes several, and kills them after half a minute anyway;
    `timeout` sends SIGTERM twice. What is ignored, as SIGHUP by nohup, stays so. What is yielded
    answers with the number of the first one that came, or 0.
    """
    caught: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        if impatient and number == signal.SIGINT:
            signal.signal(number, previous[number])

    try:
        for number in map(int, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
            if signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: signals are another's business
        previous.clear()
    try:
        yield lambda: next(iter(caught), 0)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
