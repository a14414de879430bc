"""Where axes, labels and bars stand."""

import html
import itertools
import re

import pytest
from rich.cells import cell_len

from cifar_deploy.validate import svg
from cifar_deploy.validate.svg import Bar, Mark, Series


def test_a_log_axis_gives_every_factor_the_same_length() -> None:
    axis = svg.log_axis([0.1, 1, 10])
    assert axis.at(1) - axis.at(0.1) == pytest.approx(axis.at(10) - axis.at(1))
    assert 0 < axis.at(0.1) < axis.at(10) < 1


@pytest.mark.parametrize("values", [[3.0], [2.0, 4.1], [0.05, 300.0], [1e-3, 1e5], [900, 52_000]])
def test_a_log_axis_has_some_ticks_and_not_too_many(values: list[float]) -> None:
    axis = svg.log_axis(values)
    assert 2 <= len(axis.ticks) <= 10
    assert all(0 <= axis.at(tick) <= 1 for tick in axis.ticks)


@pytest.mark.parametrize("values", [[93.9], [93.9, 93.91], [70.0, 95.3], [0.0, 100.0]])
def test_a_linear_axis(values: list[float]) -> None:
    axis = svg.linear_axis(values, least=1.0)
    assert 1 / (axis.at(1) - axis.at(0)) >= 1.0 - 1e-9
    assert all(0 < axis.at(value) < 1 for value in values)
    assert 3 <= len(axis.ticks) <= 9
    for tick, text in axis.ticks.items():
        assert float(text) == pytest.approx(tick)
    assert len({len(text.partition(".")[2]) for text in axis.ticks.values()}) == 1


def test_labels_far_apart_stay() -> None:
    assert svg.spread([300.0, 0.0, 100.0]) == [300.0, 0.0, 100.0]


def test_close_labels_move_apart_to_both_sides() -> None:
    placed = svg.spread([100.0, 101.0, 99.0, 10.0])
    assert placed[3] == 10.0
    assert placed[:3] == pytest.approx([100.0, 100.0 + svg.LINE, 100.0 - svg.LINE])


def test_labels_pushed_onto_others_push_them_too() -> None:
    placed = sorted(svg.spread([50.0, 50.0, 60.0, 70.0, 80.0]))
    gaps = [b - a for a, b in itertools.pairwise(placed)]
    assert min(gaps) >= svg.LINE - 1e-9
    assert sum(placed) == pytest.approx(310)  # as many moved up as down


def test_a_scatter_places_marks_and_labels() -> None:
    x, y = svg.Axis(1, 100, {}, log=True), svg.linear_axis([0.0, 100.0], least=1.0)
    fast = Series("<fast>", "s1", [Mark(1.0, 100.0, "s1", "a & b")])
    slow = Series("slow", "s2", [Mark(100.0, 0.0, "s2", "c")])
    drawn = svg.scatter([fast, slow], x, y, 120, "caption")
    assert re.findall(r'<circle cx="([\d.]+)%" cy="([\d.]+)"', drawn) == [
        ("0.00", "10"),
        ("100.00", "110"),
    ]
    assert "&lt;fast&gt;" in drawn
    assert "<title>a &amp; b</title>" in drawn
    # The label of what stands at the right edge hangs to the left, and the other way round.
    assert re.findall(r'<text x="(-?\d+)" y="[\d.]+" dy="4" class="(label[ a-z]*)"', drawn) == [
        ("15", "label"),
        ("-15", "label end"),
    ]


def test_no_label_hides_a_point() -> None:
    x, y = svg.log_axis([1.0, 1.1]), svg.linear_axis([90.0], least=1.0)
    groups = [Series(f"file {i}", "s1", [Mark(1 + i / 10, 90.0, "s1", "")]) for i in range(2)]
    drawn = svg.scatter(groups, x, y, 120, "caption")
    assert drawn.rindex('class="label') < drawn.index("<circle")


def test_bars_stand_on_their_side_of_zero() -> None:
    group = [Bar(1.0, "s1", "up"), Bar(-0.5, "s2", "down"), Bar(None, "s3", "none")]
    drawn = svg.bars([("cat", group)], least=0.5, caption="caption")
    assert re.findall(r'<rect x="([\d.]+)%" y="\d+" width="([\d.]+)%"', drawn) == [
        ("50.00", "40.00"),
        ("30.00", "20.00"),
    ]
    assert "no images" in drawn


def test_long_names_of_groups_lose_their_middle() -> None:
    names = ("cat", "n02085620-Japanese_spaniel_puppy", "<\N{CJK UNIFIED IDEOGRAPH-72D7}>" * 9)
    drawn = svg.bars([(name, []) for name in names], least=0.5, caption="caption")
    shown = [html.unescape(name) for name in re.findall("<title>.*?</title>(.+?)</text>", drawn)]
    dog = "n02085620-J\N{HORIZONTAL ELLIPSIS}paniel_puppy"
    assert shown[:2] == ["cat", dog]
    assert cell_len(shown[2]) <= svg.LONGEST_NAME
    titles = re.findall("<title>(.+?)</title>", drawn)
    assert tuple(map(html.unescape, titles)) == names
    assert svg.room(["cat"]) < svg.room(names[:2]) == svg.room(["m" * svg.LONGEST_NAME])


def test_a_long_label_stays_in_a_scatter() -> None:
    x, y = svg.log_axis([1.0]), svg.linear_axis([90.0], least=1.0)
    drawn = svg.scatter([Series("m" * 90, "s1", [Mark(1.0, 90.0, "s1", "")])], x, y, 120, "caption")
    assert f">{svg.shortened('m' * 90)}</text>" in drawn


def test_small_differences_have_short_bars() -> None:
    drawn = svg.bars([("cat", [Bar(0.1, "s1", "")])], least=0.5, caption="caption")
    assert re.findall(r'width="([\d.]+)%"', drawn) == ["8.00"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.04, "0"), (-0.04, "0"), (0.1, "+0.1"), (-10.0, "\N{MINUS SIGN}10.0")]
)
def test_signed(value: float, text: str) -> None:
    assert svg.signed(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (2.0, "2"), (1_500.0, "1.5k"), (2e6, "2M")]
)
def test_short_number(value: float, text: str) -> None:
    assert svg.short_number(value) == text


def test_a_logarithmic_axis_leaves_room_for_labels() -> None:
    for high in (1.0, 3.0, 40.0, 5_000.0):
        axis = svg.log_axis([1.0, high], ends=0.12)
        assert axis.at(1.0) >= 0.12 - 1e-9
        assert axis.at(high) <= 0.88 + 1e-9
