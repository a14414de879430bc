"""What a user can do wrong: one class, and a text of one or two lines."""

import contextlib
import math
import numbers
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # but tabs and line breaks
FEW = 10  # names in a message
TEMPORARY = Path("to a temporary folder ($TMPDIR can name another)")  # for disk_errors


class UserError(Exception):
    """A mistake or a circumstance that the user can mend.

    The text names the thing and the way out, in one or two lines. The command line prints it on
    standard error and ends with exit status 2; `--debug` shows where it was raised.
    """


class OwnError(UserError):
    """A UserError that only this one of several processes has: it tells it itself."""


def plain(text: str) -> str:
    """`text` with the control characters, which a terminal would obey, as \\x1b."""
    return re.sub(CONTROL, lambda found: f"\\x{ord(found[0]):02x}", text)


def is_plain(name: str) -> bool:
    """Whether a name has nothing in it that a terminal would obey."""
    return plain(name) == name


def one_line(error: Exception) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def few(names: Sequence[object], most: int = FEW) -> str:
    """`names` with commas; of many the first `most`, and how many more there are."""
    more = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {more:,} more" if more > 0 else "")


def points(share: float, digits: int) -> str:
    """An upper bound in points, rounded up: what is over a margin never looks like it."""
    return f"{math.ceil(round(share * 10 ** (digits + 2), 6)) / 10**digits:.{digits}f}"


def check_range(
    what: str, value: object, low: float, high: float = math.inf, whole: bool = False
) -> None:
    """Raise UserError where `value`, an argument called `what`, is not from `low` to `high`.

    And where it is no number, or not a `whole` one where that is asked for. None will do.
    """
    if value is None:
        return
    if not isinstance(value, numbers.Integral if whole else numbers.Real):
        raise UserError(f"{what} {value!r}: it is a {'whole ' * whole}number")
    if not low <= float(value) <= high:
        way = f"{low} or more" if high == math.inf else f"from {low} to {high}"
        raise UserError(f"{what} {value}: it is {way}")


@contextlib.contextmanager
def disk_errors(path: Path, verb: str) -> Iterator[None]:
    """Turn the operating system's refusal to read or write `path` into a `UserError`.

    `verb` is what was tried ("write", "read"). Raises UserError with the system's reason.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"cannot {verb} {error.filename or path}: {reason}") from error
