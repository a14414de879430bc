"""Charts as inline SVG whose letters keep their size at any width: x in percent, y in pixels.

The drawing is the plot alone. What stands beside it (the axes' numbers, labels) hangs over its
edges, into the padding that the page's style sheet leaves around a chart.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

LINE = 14  # pixels from one label to the next
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
    """Marks that belong together, joined by a line, and the label that stands beside them."""

    label: str
    style: str
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Bar:
    """One bar of a group: a signed length, or None where there is nothing to measure."""

    value: float | None
    style: str
    title: str


class Axis:
    """Maps values to 0..1, and knows where its ticks stand."""

    def __init__(self, low: float, high: float, ticks: Iterable[float], log: bool) -> None:
        self._log = log
        self._low, self._high = self._scaled(low), self._scaled(high)
        self.ticks = [tick for tick in ticks if low <= tick <= high]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def at(self, value: float) -> float:
        """Where `value` stands: 0 is the low end, 1 the high one."""
        return (self._scaled(value) - self._low) / (self._high - self._low)


def log_axis(values: Iterable[float], room: float = 1.25) -> Axis:
    """A logarithmic axis over positive `values` and a factor of `room` to either side."""
    values = list(values)
    low, high = min(values) / room, max(values) * room
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    if sum(low <= tick <= high for tick in ticks) > 6:
        ticks = [10.0**decade for decade in decades]
    return Axis(low, high, ticks, log=True)


def linear_axis(values: Iterable[float], least: float) -> Axis:
    """A linear axis over `values`, at least `least` long: small differences stay small."""
    values = list(values)
    low, high = min(values), max(values)
    room = max(0.1 * (high - low), (least - (high - low)) / 2)
    low, high = low - room, high + room
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next((m for m in (5, 2) if (high - low) / (m * step) >= 3), 1)
    first = math.ceil(low / step)
    ticks = [round(n * step, 10) for n in range(first, math.floor(high / step) + 1)]
    return Axis(low, high, ticks, log=False)


def spread(positions: Sequence[float], low: float, high: float) -> list[float]:
    """`positions` of labels, moved as little as needed to stand LINE apart within low..high."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = list(positions)
    above = low - LINE
    for i in order:
        above = placed[i] = max(placed[i], above + LINE)
    below = high + LINE
    for i in reversed(order):
        below = placed[i] = min(placed[i], below - LINE)
    return placed


def scatter(groups: Sequence[Series], x: Axis, y: Axis, height: int, caption: str) -> Markup:
    """Points, those of a group joined by a thin line, its label on the side that has more room."""
    parts = [_grid(x, y, height)]
    heights = [
        spread_at * height
        for spread_at in (1 - sum(y.at(m.y) for m in g.marks) / len(g.marks) for g in groups)
    ]
    for group, level in zip(groups, spread(heights, 4, height - 4), strict=True):
        marks = sorted(group.marks, key=lambda mark: mark.x)
        parts += _joined(marks, x, y, height, "join")
        left, right = x.at(marks[0].x), x.at(marks[-1].x)
        to_right = 1 - right >= left
        parts.append(
            _tag(
                "text",
                x=_percent(right if to_right else left),
                y=level,
                dx=9 if to_right else -9,
                dy=4,
                class_="label" if to_right else "label end",
                inside=escape(group.label),
            )
        )
    parts += [_mark(mark, x, y, height) for group in groups for mark in group.marks]
    return _chart(parts, height, caption)


def lines(series: Sequence[Series], x: Axis, y: Axis, height: int, caption: str) -> Markup:
    """A line for each series, its label where it ends."""
    parts = [_grid(x, y, height)]
    ends = [(1 - y.at(one.marks[-1].y)) * height for one in series]
    for one, level in zip(series, spread(ends, 4, height - 4), strict=True):
        parts += _joined(one.marks, x, y, height, f"line {one.style}")
        parts += [_mark(mark, x, y, height) for mark in one.marks]
        place = _percent(x.at(one.marks[-1].x))
        text = escape(one.label)
        parts.append(
            _tag("text", x=place, y=level, dx=9, dy=4, class_=f"label {one.style}", inside=text)
        )
    return _chart(parts, height, caption)


def bars(groups: Sequence[tuple[str, Sequence[Bar]]], least: float, caption: str) -> Markup:
    """Horizontal bars to both sides of zero, a group a row; the scale reaches at least `least`."""
    values = [abs(bar.value) for _, group in groups for bar in group if bar.value is not None]
    reach = max([least, *values])
    thick, gap = 11, 9
    parts, top = [], 0
    for name, group in groups:
        tall = thick * max(len(group), 1)
        middle = top + tall / 2
        parts.append(_tag("text", x=0, dx=-8, y=middle, dy=4, class_="end", inside=escape(name)))
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
    for tick in y.ticks:
        level = (1 - y.at(tick)) * height
        parts.append(_line("0", level, "100%", level, "grid"))
        number = Markup(short_number(tick))
        parts.append(_tag("text", x=0, dx=-8, y=level, dy=4, class_="tick end", inside=number))
    for tick in x.ticks:
        place = _percent(x.at(tick))
        parts.append(_line(place, height, place, height + 4, "axis"))
        number = Markup(short_number(tick))
        parts.append(_tag("text", x=place, y=height + 17, class_="tick middle", inside=number))
    return Markup("").join(parts)


def _joined(marks: Sequence[Mark], x: Axis, y: Axis, height: int, style: str) -> list[Markup]:
    """Lines from mark to mark; a polyline takes no percentages."""
    places = [(_percent(x.at(m.x)), (1 - y.at(m.y)) * height) for m in marks]
    return [_line(*a, *b, style) for a, b in zip(places, places[1:], strict=False)]


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
            value if isinstance(value, str) else f"{value:.4g}",
        )
        for key, value in attributes.items()
    )
    if inside is None:
        return Markup("<{}{}/>").format(name, written)
    return Markup("<{}{}>{}</{}>").format(name, written, inside, name)
