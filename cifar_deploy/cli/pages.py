"""How the pages of `--help` look: commands and options under headings, none cut short."""

from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

WIDEST = 30  # characters of a left column; what is longer has its text below it


class Group(TyperGroup):
    """The program: its commands stand under the `rich_help_panel` of each."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands. A `short_help` is no part of a text, and so is not cut."""
        commands = [(name, self.commands[name]) for name in self.list_commands(ctx)]
        _write(
            formatter,
            [(_panel(one), (name, one.get_short_help_str())) for name, one in commands],
        )


class Command(TyperCommand):
    """One of its commands: the options stand under the `rich_help_panel` of each."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options."""
        rows = []
        for one in self.get_params(ctx):
            argument = one.param_type_name == "argument"
            if row := one.get_help_record(ctx):
                rows.append(("Arguments" if argument else _panel(one) or "Options", row))
        _write(formatter, rows)


def _panel(one: Any) -> str:
    return getattr(one, "rich_help_panel", None) or ""


def _write(formatter: Any, rows: Iterable[tuple[str, tuple[str, str]]]) -> None:
    """Write a section for each heading, all with columns of one width."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for heading, row in rows:
        sections.setdefault(heading, []).append(row)
    names = [name for section in sections.values() for name, _ in section]
    width = min(WIDEST, max(map(len, names), default=0))
    for heading, section in sections.items():
        with formatter.section(heading):
            formatter.write_dl([(name.ljust(width), text) for name, text in section], WIDEST)
