"""What is printed: whether anybody watches, and how every table looks."""

from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def watched(console: "Console") -> bool:
    """Whether `console` is a terminal: what is drawn again and again is no text for a log.

    Rich takes a log for one where $FORCE_COLOR or $TTY_COMPATIBLE is set, as in many a CI.
    """
    return console.file.isatty()


def sheet(
    headings: Iterable[str],
    numbers: Container[str] = (),
    whole: Container[str] = (),
    narrow: bool = False,
) -> "Table":
    """An empty table with these columns, `narrow` ones with a space less between them.

    Texts are folded where it is too wide, but for those that stay `whole`; `numbers` stand at the
    right and stay whole, too.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    padding = (0, 1, 0, 0) if narrow else (0, 1)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=padding)
    for heading in headings:
        number = heading in numbers
        table.add_column(
            Text(heading),
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=number or heading in whole,
        )
    return table
