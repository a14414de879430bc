"""The table that `validate` prints."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cifar_deploy.validate.judge import UNUSABLE, Judged, Judgement
from cifar_deploy.validate.noninferiority import FAIL, INCONCLUSIVE, PASS

if TYPE_CHECKING:
    from rich.table import Table

COLOURS = {PASS: "green", FAIL: "red", INCONCLUSIVE: "yellow", UNUSABLE: "red"}


def table(judgements: Sequence[Judgement]) -> "Table":
    """One table over all models, the reference of each above its files."""
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("file", overflow="fold")
    result.add_column("runtime, provider")
    for heading in (
        "top-1 %",
        "diff",
        "same top-1 %",
        "max logit diff",
        "p50 ms",
        "p99 ms",
        "images/s (batch)",
    ):
        result.add_column(heading, justify="right")
    result.add_column("verdict")
    for judgement in judgements:
        for row in judgement.rows:
            result.add_row(*_cells(judgement, row))
        for file in judgement.unusable:
            result.add_row(_short(file.file), *[""] * 8, _coloured(file.verdict))
        result.add_section()
    return result


def notes(judgements: Sequence[Judgement]) -> list[str]:
    """What stands under the table: the conditions, and a line for every verdict but PASS."""
    first = judgements[0]
    versions = first.facts["versions"]
    libraries = ", ".join(
        f"{name} {versions[name]}"
        for name in ("torch", "onnxruntime-gpu", "onnxruntime")
        if name in versions
    )
    lines = [
        f"{first.facts['data']['images']:,} test images of {first.facts['data']['name']}; "
        f"{first.facts['device']}; {libraries}. "
        "p50, p99: batch 1, input on the device. diff in points."
    ]
    for judgement in judgements:
        if not judgement.facts["data"]["same_as_training"]:
            lines.append(f"{judgement.model} was trained on another copy of the data (sha256).")
        for row in judgement.rows[1:]:
            if row.comparison and row.verdict != PASS:
                lines.append(f"{_short(row.file)}: {_why(row)}")
        lines += [f"{_short(file.file)}: {file.reason}" for file in judgement.unusable]
    return lines


def _why(row: Judged) -> str:
    comparison = row.comparison
    assert comparison
    said = (
        f"{row.verdict}: {comparison.lost} images lost and {comparison.gained} gained; the loss is "
        f"at most {100 * comparison.upper:.3f} points (95 %), "
        f"the margin {100 * comparison.margin:g}"
    )
    if comparison.images_needed:
        said += f"; {comparison.images_needed:,} images would tell"
    return said


def _short(file: str) -> str:
    return file.rpartition("/")[2]


def _coloured(verdict: str) -> str:
    colour = COLOURS.get(verdict)
    return f"[{colour}]{verdict}[/]" if colour else verdict


def _cells(judgement: Judgement, row: Judged) -> list[str]:
    name = _short(row.file) if row.comparison else f"{judgement.model} ({row.precision})"
    compared = ["", "", ""]
    if row.comparison:
        compared = [
            f"{100 * row.comparison.difference:+.2f}",
            f"{100 * row.agreement:.2f}",
            f"{row.largest_difference:.2g}",
        ]
    timed = ["", "", ""]
    if row.speed:
        single, best = row.speed.single, row.speed.best
        timed = [
            f"{single.p50:.2f}",
            f"{single.p99:.2f}",
            f"{best.images_per_second:,.0f} ({best.batch})",
        ]
    return [
        name,
        f"{row.runtime}, {row.provider}",
        f"{100 * row.accuracy:.2f}",
        *compared,
        *timed,
        _coloured(row.verdict),
    ]
