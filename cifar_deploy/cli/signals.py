"""A scheduler's SIGTERM and a closed terminal's SIGHUP end a command as Ctrl-C does."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def as_ctrl_c() -> Iterator[Callable[[], int]]:
    """Raise KeyboardInterrupt for a signal that would end this process, so that it cleans up.

    What is yielded answers with the exit status that a shell gives the first one (128 and its
    number), or with 0 where none came: a library may have made another exception of it. Training
    has a way of its own meanwhile. Signals that are ignored, as by nohup, stay so, and a process
    of torchrun's, which could be waiting for the others, dies at once as before.
    """
    caught: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        if number != signal.SIGINT:  # `timeout` sends two, and the second must not disturb the end
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in NUMBERS}
    with contextlib.suppress(ValueError):  # not the main thread: signals are another's business
        for number, handler in before.items():
            if handler in usual and "LOCAL_RANK" not in os.environ:
                signal.signal(number, end)
    try:
        yield lambda: 128 + caught[0] if caught else 0
    finally:
        with contextlib.suppress(ValueError):
            for number, handler in before.items():
                signal.signal(number, handler)
