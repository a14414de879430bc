"""Ctrl-C, SIGTERM, a closed terminal: a run ends after its step, not in the middle of it."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

NUMBERS = (int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGHUP))


class Interrupted(Exception):
    """A signal ended the run after `step`; `checkpoint` holds it. `signal` is its number."""

    def __init__(self, number: int, step: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by signal {number} after step {step}")
        self.signal, self.step, self.checkpoint = number, step, checkpoint


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[dict[int, Any]]:
    """Give `handler` SIGINT, SIGTERM and SIGHUP meanwhile; yields whose they were, by number.

    What is ignored, as SIGHUP by nohup, stays so. In another thread than the main one signals are
    another's business, and none is taken.
    """
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in NUMBERS:
            if signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
    try:
        yield previous
    finally:
        for number, theirs in previous.items():
            signal.signal(number, theirs)


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
