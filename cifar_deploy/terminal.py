"""Whether anybody watches what is printed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def watched(console: "Console") -> bool:
    """Whether `console` is a terminal: what is drawn again and again is no text for a log.

    Rich takes a log for one where $FORCE_COLOR or $TTY_COMPATIBLE is set, as in many a CI.
    """
    return console.file.isatty()
