"""The report: one page that needs nothing but itself."""

import base64
import datetime
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from cifar_deploy.data.dataset import Images, Split
from cifar_deploy.disk import now, write_text
from cifar_deploy.validate import svg, table
from cifar_deploy.validate.judgement import Counts, Judged, Judgement

TEMPLATE = "report.html.j2"
MOST_IMAGES = 48  # shown a file
MOST_CLASSES = 50  # that are shown one by one, their confusion as a matrix: the square grows
MOST_PAIRS = 50  # confusions that are listed of more
STYLES = 10  # colours of the style sheet, s0 the reference's
LEAST_ACCURACIES = 1.0  # points that the axis of accuracies spans at least
LEAST_DIFFERENCES = 0.5  # points to either side that the bars' scale reaches at least


@dataclass(frozen=True)
class Cell:
    """One number of a confusion matrix: text, kind (CSS class) and strength of its colour."""

    text: str
    style: str
    strength: float


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: true classes by answers. Without rows where no cell differs."""

    name: str
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Pairs:
    """What is listed in a matrix's place: true class, answer and number of images, a row each."""

    name: str
    rows: Sequence[tuple[str, str, str]]
    count: int  # of all pairs, where not all are listed


@dataclass(frozen=True)
class Picture:
    """An image and the answers to it, of the reference and of a file, or of the reference alone."""

    index: int
    file: str | None
    uri: str
    truth: str
    reference: str
    answer: str | None = None  # the file's
    share: str = ""  # the probability of the reference's, where it stands alone


@dataclass(frozen=True)
class Gallery:
    """What is shown of a file's disagreements, or the reference's mistakes; how many there are."""

    name: str
    count: int
    pictures: Sequence[Picture]


def write(path: Path, judgements: Sequence[Judgement]) -> None:
    """Write the page about `judgements`, at least one, to `path`.

    Raises UserError where the disk refuses.
    """
    write_text(path, render(judgements, now()))


def render(judgements: Sequence[Judgement], time: datetime.datetime) -> str:
    """The page's HTML. `time` is when the judging was done, in UTC."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    verdicts = [row.verdict for judgement in judgements for row in judgement.rows[1:]]
    verdicts += [file.verdict for judgement in judgements for file in judgement.unusable]
    styles = _styles(judgements)
    return environment.get_template(TEMPLATE).render(
        verdicts={verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        files=len(verdicts),
        facts=judgements[0].facts,
        sets=list(dict.fromkeys(_data(judgement) for judgement in judgements)),
        time=time,
        table=table,
        most_classes=MOST_CLASSES,
        judgements=judgements,
        remarks=table.remarks(judgements),
        legend=styles,
        latency=_latency(judgements, styles),
        larger=[
            judgement.label(row.file)
            for judgement in judgements
            for row in judgement.rows
            if row.speed and row.speed.smallest.batch > 1
        ],
        sweeps=_sweeps(judgements, styles),
        models=[_model(judgement, styles) for judgement in judgements],
    )


def _data(judgement: Judgement) -> tuple[str, str]:
    """What it was judged on, in words, and the SHA-256 of its pixels."""
    data = judgement.facts["data"]
    return f"{data['name']}, {data['images']:,} test images ({data['verified']})", data["sha256"]


def _label(judgement: Judgement, row: Judged) -> str:
    """A row's name in a chart: `fp16.onnx` of `resnet18.fp16.onnx`, or the reference."""
    if row.comparison is None:
        return judgement.reference
    return judgement.label(row.file).removeprefix(f"{judgement.model}.")


def _styles(judgements: Sequence[Judgement]) -> dict[str, str]:
    """The CSS class of each name in the charts, the same in all of them; the first has s0."""
    names = [_label(judgement, row) for judgement in judgements for row in judgement.rows]
    return {
        name: f"s{1 + (i - 1) % (STYLES - 1) if i else 0}"
        for i, name in enumerate(dict.fromkeys(names))
    }


# --- charts -------------------------------------------------------------------------------------


def _latency(judgements: Sequence[Judgement], styles: dict[str, str]) -> Markup | None:
    """Accuracy in % against latency in ms; None where it was not measured."""
    groups = []
    for judgement in judgements:
        marks = []
        for row in judgement.rows:
            if row.speed and row.speed.smallest.batch == 1:
                name = _label(judgement, row)
                latency, accuracy = row.speed.smallest.latency.p50, 100 * row.accuracy
                title = f"{judgement.model} {name}: {accuracy:.2f} %, {table.milliseconds(latency)}"
                marks.append((name, svg.Mark(latency, accuracy, styles[name], title)))
        if len(judgements) == 1:  # the model is clear: name the files
            groups += [svg.Series(name, styles[name], [mark]) for name, mark in marks]
        elif marks:
            groups.append(svg.Series(judgement.model, "", [mark for _, mark in marks]))
    points = [mark for group in groups for mark in group.marks]
    if not points:
        return None
    return svg.scatter(
        groups,
        svg.log_axis([point.x for point in points], ends=0.12),
        svg.linear_axis([point.y for point in points], LEAST_ACCURACIES),
        height=280 if len(judgements) == 1 else 400,
        caption="Accuracy against latency at batch 1",
    )


def _sweeps(judgements: Sequence[Judgement], styles: dict[str, str]) -> list[tuple[str, Markup]]:
    """A chart a model, all with the same axes: images a second over the batch size."""
    sweeps = [
        (judgement, [(row, row.speed.sweep) for row in judgement.rows if row.speed])
        for judgement in judgements
    ]
    timings = [timing for _, rows in sweeps for _, sweep in rows for timing in sweep]
    if not timings:
        return []
    batches = sorted({timing.batch for timing in timings})
    x = svg.Axis(1, max(*batches, 2), {batch: str(batch) for batch in batches}, log=True)
    y = svg.log_axis([timing.images_per_second for timing in timings])
    charts = []
    for judgement, rows in sweeps:
        lines = []
        for row, sweep in rows:
            name = _label(judgement, row)
            marks = [
                svg.Mark(
                    timing.batch,
                    timing.images_per_second,
                    styles[name],
                    f"{name}, batch {timing.batch}: {timing.images_per_second:,.0f} images/s "
                    f"({table.milliseconds(timing.latency.p50)} a call)",
                )
                for timing in sweep
            ]
            lines.append(svg.Series(name, styles[name], marks))
        caption = f"Images a second over the batch size, {judgement.model}"
        charts.append((judgement.model, svg.lines(lines, x, y, 200, caption)))
    return charts


# --- a model's section --------------------------------------------------------------------------


def _model(judgement: Judgement, styles: dict[str, str]) -> dict[str, Any]:
    files = judgement.rows[1:]
    many = len(judgement.classes) > MOST_CLASSES
    return {
        "name": judgement.model,
        "judgement": judgement,
        "files": [(_label(judgement, row), row, table.evidence(judgement, row)) for row in files],
        "legend": {name: styles[name] for name in (_label(judgement, row) for row in files)},
        "classes": judgement.classes,
        "room": svg.room(judgement.classes),
        "bars": _class_differences(judgement, styles) if files else None,
        "matrices": [] if many else list(_matrices(judgement)),
        "pairs": list(_pairs(judgement)) if many else [],
        "worst": _worst(judgement) if many else [],
        "mistakes": _mistakes(judgement),
        "galleries": [_gallery(judgement, row) for row in files],
    }


def _class_differences(judgement: Judgement, styles: dict[str, str]) -> Markup:
    """Accuracy of every file less the reference's, in points, class by class.

    Of many classes those that differ most.
    """
    labels = judgement.split.labels
    reference = judgement.rows[0].predictions
    groups = []
    for index, name in enumerate(judgement.classes):
        mine = labels == index
        count = int(mine.sum())
        bars = []
        for row in judgement.rows[1:]:
            label = _label(judgement, row)
            right, before = (int((p[mine] == index).sum()) for p in (row.predictions, reference))
            points = 100 * (right - before) / count if count else None
            title = f"{label}: {right} of {count:,} {name} right, the reference {before}"
            bars.append(svg.Bar(points, styles[label], title))
        groups.append((name, bars))
    if len(groups) > MOST_CLASSES:
        groups.sort(key=lambda group: -max(abs(bar.value or 0) for bar in group[1]))
        del groups[MOST_CLASSES:]
    caption = f"Accuracy difference by class, {judgement.model}"
    return svg.bars(groups, LEAST_DIFFERENCES, caption)


def _matrices(judgement: Judgement) -> Iterator[Matrix]:
    """The reference's confusion matrix, then for each file what it adds to each cell."""
    reference = judgement.confusion(judgement.rows[0])
    wrong = ~np.eye(len(reference), dtype=bool)
    largest = max(int(reference[wrong].max(initial=0)), 1)
    yield Matrix(judgement.reference, _named(judgement, _absolute(reference, largest)))
    for row in judgement.rows[1:]:
        change = judgement.confusion(row) - reference
        rows = _named(judgement, _changes(change)) if change.any() else []
        yield Matrix(_label(judgement, row), rows)


def _pairs(judgement: Judgement) -> Iterator[Pairs]:
    """The reference's most frequent confusions, then where each file differs most in them."""
    reference = judgement.confusion(judgement.rows[0])
    yield _listed(judgement, judgement.reference, reference, "{:,}".format)
    for row in judgement.rows[1:]:
        change = judgement.confusion(row) - reference
        yield _listed(judgement, _label(judgement, row), change, lambda n: svg.signed(n, 0))


def _listed(
    judgement: Judgement, name: str, counts: Counts, written: Callable[[int], str]
) -> Pairs:
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    largest = np.argsort(-abs(wrong), axis=None, kind="stable")[:MOST_PAIRS]
    classes = judgement.classes
    rows = [
        (classes[truth], classes[answer], written(int(wrong[truth, answer])))
        for truth, answer in zip(*np.unravel_index(largest, wrong.shape), strict=True)
        if wrong[truth, answer]
    ]
    return Pairs(name, rows, int(np.count_nonzero(wrong)))


def _worst(judgement: Judgement) -> list[tuple[str, int, int]]:
    """The classes of which the reference gets least right: name, right answers, images."""
    counts = judgement.tally(judgement.rows[0])
    lost = [(name, good, images) for name, (good, images) in counts.items() if good < images]
    return sorted(lost, key=lambda one: one[1] / one[2])[:MOST_CLASSES]


def _named(
    judgement: Judgement, rows: Iterator[list[Cell]]
) -> Sequence[tuple[str, Sequence[Cell]]]:
    return list(zip(judgement.classes, rows, strict=True))


def _absolute(counts: Counts, largest_error: int) -> Iterator[list[Cell]]:
    for i, row in enumerate(counts.tolist()):
        total = max(sum(row), 1)
        yield [
            Cell(str(n), "good", n / total)
            if i == j
            else Cell(str(n) if n else "", "bad", (n / largest_error) ** 0.5)
            for j, n in enumerate(row)
        ]


def _changes(change: Counts) -> Iterator[list[Cell]]:
    largest = int(abs(change).max())
    for i, row in enumerate(change.tolist()):
        yield [
            Cell(
                svg.signed(n, 0) if n else "",
                # More right answers are good, and fewer wrong ones.
                "good" if (n > 0) == (i == j) else "bad",
                (abs(n) / largest) ** 0.5,
            )
            for j, n in enumerate(row)
        ]


def _mistakes(judgement: Judgement) -> Gallery:
    count = int((judgement.rows[0].predictions != judgement.split.labels).sum())
    pictures = [
        Picture(
            index=mistake.index,
            file=mistake.file,
            uri=_png(judgement.split.images[mistake.index]),
            truth=mistake.truth,
            reference=mistake.answer,
            share=f"{100 * mistake.probability:.2f} %",
        )
        for mistake in judgement.mistakes
    ]
    return Gallery(judgement.reference, count, pictures)


def _gallery(judgement: Judgement, row: Judged) -> Gallery:
    indices = judgement.disagreements(row)
    split: Split = judgement.split
    names = judgement.classes
    pictures = [
        Picture(
            index=i,
            file=split.file(i),
            uri=_png(split.images[i]),
            truth=names[split.labels[i]],
            reference=names[judgement.rows[0].predictions[i]],
            answer=names[row.predictions[i]],
        )
        for i in indices[:MOST_IMAGES].tolist()
    ]
    return Gallery(_label(judgement, row), len(indices), pictures)


def _png(image: Images) -> str:
    """`image`, uint8 [32, 32, 3], as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
