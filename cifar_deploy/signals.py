"""Ctrl-C, SIGTERM and a closed terminal, for those who must not be torn out of what they do."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # the last one not on Windows
NUMBERS = tuple(int(getattr(signal, name)) for name in NAMES if hasattr(signal, name))


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[dict[int, Any]]:
    """Give `handler` SIGINT, SIGTERM and SIGHUP meanwhile; yields whose they were, by number.

    What is ignored, as SIGHUP by nohup, stays so, and what another than Python handles, as a server
    that has Python in it. In another thread than the main one signals are another's business, and
    none is taken.
    """
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in NUMBERS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, handler)
    try:
        yield previous
    finally:
        for number, theirs in previous.items():
            signal.signal(number, theirs)


@contextlib.contextmanager
def held() -> Iterator[Callable[[], int]]:
    """Note signals meanwhile, and give the first one to whose it is at the end.

    For libraries that lose what a handler raises, or make an error of their own of it. What is
    yielded answers with the number of the first one that came, or 0. Raises KeyboardInterrupt at
    the end where one came, whatever else was raised.
    """
    caught: list[int] = []
    try:
        with handled(lambda number, _: caught.append(number)):
            yield lambda: next(iter(caught), 0)
    finally:
        if caught:
            signal.raise_signal(caught[0])
            raise KeyboardInterrupt
