"""Charts as inline SVG whose letters keep their size at any width: x in percent, y in pixels.

The drawing is the plot alone. What stands beside it (the axes' numbers, labels) hangs over its
edges, into the padding that the page's style sheet leaves around a chart.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape
from rich.cells import cell_len

LINE = 15  # pixels from one label to the next
MOST_TICKS = 8
LONGEST_NAME = 24  # letters beside a group of bars; wide ones, as Chinese, count twice
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Mark:
    """A point of a chart. `style` is its CSS class; `title` is shown where a mouse rests on it."""

    x: float
    y: float
    style: str
    title: str


@dataclass(frozen=True)
class Series:
    """Marks that belong together, joined by a line."""

    label: str  # stands beside them in a scatter
    style: str
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Bar:
    """One bar of a group: a signed length, or None where there is nothing to measure."""

    value: float | None
    style: str
    title: str


class Axis:
    """Maps values to 0..1, and has the values at which ticks stand, with what stands there."""

    def __init__(self, low: float, high: float, ticks: dict[float, str], log: bool) -> None:
        self._log = log
        self._low, self._high = self._scaled(low), self._scaled(high)
        self.ticks = {tick: text for tick, text in ticks.items() if low <= tick <= high}

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def at(self, value: float) -> float:
        """Where `value` stands: 0 is the low end, 1 the high one."""
        return (self._scaled(value) - self._low) / (self._high - self._low)


def log_axis(values: Iterable[float], ends: float = 0.0) -> Axis:
    """A logarithmic axis over positive `values`, at least from one to its fourfold.

    `ends` is the share of its length that is left at either end, for labels.
    """
    values = list(values)
    low, high = min(values), max(values)
    room = max(1.3, math.sqrt(4 * low / high), (high / low) ** (ends / (1 - 2 * ends)))
    low, high = low / room, high * room
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0), (1.0, 2.0, 5.0), (1.0,)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        if sum(low <= tick <= high for tick in ticks) <= MOST_TICKS:
            break
    return Axis(low, high, {tick: short_number(tick) for tick in ticks}, log=True)


def linear_axis(values: Iterable[float], least: float) -> Axis:
    """A linear axis over `values`, at least `least` long: small differences stay small."""
    values = list(values)
    low, high = min(values), max(values)
    room = max(0.1 * (high - low), (least - (high - low)) / 2)
    low, high = low - room, high + room
    decade = math.floor(math.log10((high - low) / 3))
    step = 10.0**decade
    step *= next((m for m in (5, 2) if (high - low) / (m * step) >= 3), 1)
    first, last = math.ceil(low / step), math.floor(high / step)
    ticks = {n * step: f"{n * step:.{max(-decade, 0)}f}" for n in range(first, last + 1)}
    return Axis(low, high, ticks, log=False)


def spread(positions: Sequence[float]) -> list[float]:
    """`positions` of labels, moved as little as needed (least squares) to stand LINE apart.

    Isotonic regression by pooling adjacent violators (Barlow et al. 1972), with a slope of LINE.
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    pools: list[tuple[float, int]] = []  # mean and size
    for rank, i in enumerate(order):
        mean, size = positions[i] - rank * LINE, 1
        while pools and pools[-1][0] > mean:
            other, count = pools.pop()
            mean, size = (other * count + mean * size) / (count + size), count + size
        pools.append((mean, size))
    levels = [mean for mean, size in pools for _ in range(size)]
    placed = list(positions)
    for rank, i in enumerate(order):
        placed[i] = levels[rank] + rank * LINE
    return placed


def scatter(groups: Sequence[Series], x: Axis, y: Axis, height: int, caption: str) -> Markup:
    """Points, those of a group joined by a thin line, its label on the side that has more room."""
    parts = [_grid(x, y, height)]
    sides = []
    for group in groups:
        marks = sorted(group.marks, key=lambda mark: mark.x)
        parts += _joined(marks, x, y, height, "join")
        to_right = 1 - x.at(marks[-1].x) >= x.at(marks[0].x)
        sides.append((marks[-1] if to_right else marks[0], to_right))
    heights = [(1 - y.at(mark.y)) * height for mark, _ in sides]
    for group, (mark, to_right), own, level in zip(
        groups, sides, heights, spread(heights), strict=True
    ):
        way, style = (1, "label") if to_right else (-1, "label end")
        name = escape(shortened(group.label))  # the legend, or the page, has the whole one
        text = _tag("text", x=way * 15, y=level, dy=4, class_=style, inside=name)
        # A nested drawing counts in pixels from the point.
        line = _tag("line", x1=way * 6, y1=own, x2=way * 13, y2=level, class_="join")
        parts.append(_tag("svg", x=_percent(x.at(mark.x)), inside=line + text))
    # Above the labels, whose halos would hide them.
    parts += [_mark(mark, x, y, height) for group in groups for mark in group.marks]
    return _chart(parts, height, caption)


def lines(series: Sequence[Series], x: Axis, y: Axis, height: int, caption: str) -> Markup:
    """A line for each series, with its marks."""
    parts = [_grid(x, y, height)]
    for one in series:
        parts += _joined(one.marks, x, y, height, f"line {one.style}")
    parts += [_mark(mark, x, y, height) for one in series for mark in one.marks]
    return _chart(parts, height, caption)


def shortened(name: str) -> str:
    """`name`; of one longer than LONGEST_NAME what it begins and ends with."""
    text, keep = name, LONGEST_NAME
    while cell_len(text) > LONGEST_NAME:
        keep -= 1
        text = f"{name[: keep // 2]}\N{HORIZONTAL ELLIPSIS}{name[len(name) - keep + keep // 2 :]}"
    return text


def room(names: Iterable[str]) -> int:
    """Pixels that `bars` needs to the left of the drawing for the `names` of its groups."""
    return 15 + 15 * max(cell_len(shortened(name)) for name in names) // 2


def bars(groups: Sequence[tuple[str, Sequence[Bar]]], least: float, caption: str) -> Markup:
    """Horizontal bars to both sides of zero, a group a row; the scale reaches at least `least`.

    The groups' names hang into the `room` at the left.
    """
    values = [abs(bar.value) for _, group in groups for bar in group if bar.value is not None]
    reach = max([least, *values])
    thick, gap = 11, 9
    parts, top = [], 0
    for name, group in groups:
        tall = thick * max(len(group), 1)
        middle = top + tall / 2
        said = _tag("title", inside=escape(name)) + escape(shortened(name))
        parts.append(_tag("text", x=0, dx=-8, y=middle, dy=4, class_="end", inside=said))
        for bar in group:
            parts.append(_bar(bar, top, thick, reach))
            top += thick
        top += gap
    height = top - gap
    parts.insert(0, _line("50%", 0, "50%", height, "zero"))
    return _chart(parts, height, caption)


def _bar(bar: Bar, top: int, thick: int, reach: float) -> Markup:
    title = _tag("title", inside=escape(bar.title))
    if bar.value is None:
        said = _tag("text", x="50%", dx=6, y=top + 9, class_="value", inside=Markup("no images"))
        return _tag("g", inside=title + said)
    # A fifth of either half is left to the number at the bar's end.
    length = 0.4 * abs(bar.value) / reach
    negative = bar.value < 0
    rectangle = _tag(
        "rect",
        x=_percent(0.5 - length if negative else 0.5),
        y=top + 1,
        width=_percent(length),
        height=thick - 2,
        class_=bar.style,
    )
    number = _tag(
        "text",
        x=_percent(0.5 - length if negative else 0.5 + length),
        dx=-4 if negative else 4,
        y=top + 9,
        class_="value end" if negative else "value",
        inside=Markup(signed(bar.value)),
    )
    return _tag("g", inside=title + rectangle + number)


def signed(value: float, digits: int = 1) -> str:
    """`value` with its sign, a true minus; 0 without one."""
    text = f"{value:+.{digits}f}".replace("-", MINUS)
    return "0" if text.strip(f"+{MINUS}0.") == "" else text


def short_number(value: float) -> str:
    """A tick's number: 0.05, 2, 500, 20k, 1M."""
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{suffix}"
    return f"{value:g}"


def _grid(x: Axis, y: Axis, height: int) -> Markup:
    parts = [_line("0", height, "100%", height, "axis")]
    for tick, text in y.ticks.items():
        level = (1 - y.at(tick)) * height
        parts.append(_line("0", level, "100%", level, "grid"))
        number = escape(text)
        parts.append(_tag("text", x=0, dx=-8, y=level, dy=4, class_="tick end", inside=number))
    for tick, text in x.ticks.items():
        place = _percent(x.at(tick))
        parts.append(_line(place, height, place, height + 4, "axis"))
        number = escape(text)
        parts.append(_tag("text", x=place, y=height + 17, class_="tick middle", inside=number))
    return Markup("").join(parts)


def _joined(marks: Sequence[Mark], x: Axis, y: Axis, height: int, style: str) -> list[Markup]:
    """Lines from mark to mark; a polyline takes no percentages."""
    places = [(_percent(x.at(m.x)), (1 - y.at(m.y)) * height) for m in marks]
    return [_line(*a, *b, style) for a, b in itertools.pairwise(places)]


def _mark(mark: Mark, x: Axis, y: Axis, height: int) -> Markup:
    return _tag(
        "circle",
        cx=_percent(x.at(mark.x)),
        cy=(1 - y.at(mark.y)) * height,
        r=4.5,
        class_=f"mark {mark.style}",
        inside=_tag("title", inside=escape(mark.title)),
    )


def _line(x1: str, y1: float, x2: str, y2: float, style: str) -> Markup:
    return _tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=style)


def _chart(parts: Iterable[Markup], height: int, caption: str) -> Markup:
    inside = Markup("").join(parts)
    return _tag("svg", height=height, role="img", aria_label=caption, inside=inside)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _tag(name: str, inside: Markup | None = None, **attributes: str | float) -> Markup:
    """An element. `class_` and `aria_label` are written as SVG writes them; values are escaped."""
    written = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"),
            value if isinstance(value, str) else f"{round(value, 3):g}",
        )
        for key, value in attributes.items()
    )
    if inside is None:
        return Markup("<{}{}/>").format(name, written)
    return Markup("<{}{}>{}</{}>").format(name, written, inside, name)
