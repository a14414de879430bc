"""The table that `validate` prints, and the words under it. The report has the same cells."""

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from cifar_deploy.data.cifar10 import is_release
from cifar_deploy.data.doubts import doubtful
from cifar_deploy.errors import UserError, points
from cifar_deploy.runtimes import onnx_interface
from cifar_deploy.runtimes.protocol import unversioned
from cifar_deploy.terminal import sheet
from cifar_deploy.validate.judgement import PYTORCH, UNUSABLE, Judged, Judgement, Unusable
from cifar_deploy.validate.layers import exact_beside
from cifar_deploy.validate.noninferiority import FAIL, INCONCLUSIVE, PASS, worst_class

# A logit that differs by as much changes a probability by up to 2.5 points.
OTHER_LOGITS = 0.1
# What computed, by the name of its package and by a row's `runtime`.
LIBRARIES = {
    "torch": "PyTorch",
    "onnxruntime-gpu": "ONNX Runtime",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
PERCENTAGE = re.compile(r"(\d+) %")
COLOURS = {PASS: "green", FAIL: "red", INCONCLUSIVE: "yellow", UNUSABLE: "red"}
# Columns at the left; then the numbers, then the verdict. Breaks keep the columns narrow.
TEXTS = ("file", "runtime,\nprovider")
NUMBERS = (
    "top-1\n%",
    "diff",
    "same\ntop-1 %",
    "max logit\ndiff",
    "p50\nms",
    "p99\nms",
    "images/s\n(batch)",
)
HEADINGS = (*TEXTS, *NUMBERS, "verdict")


def table(judgements: Sequence[Judgement]) -> Table:
    """One table over all models, the reference of each above its files."""
    result = sheet(HEADINGS, NUMBERS, HEADINGS[-1:], narrow=True)
    for judgement in judgements:
        rows: list[Judged | Unusable] = [*judgement.rows, *judgement.unusable]
        for row in rows:
            *said, verdict = cells(judgement, row)
            # Text, since a file's name may hold what rich takes for markup.
            result.add_row(*map(Text, said), Text(verdict, COLOURS.get(verdict, "")))
        result.add_section()
    return result


def notes(judgements: Sequence[Judgement]) -> list[str]:
    """What stands under the table: the conditions, and the remarks."""
    facts = judgements[0].facts
    versions = facts["versions"]
    ran = {unversioned(row.runtime) for judgement in judgements for row in judgement.rows}
    libraries = ", ".join(
        f"{name} {versions[name]}"
        for name, title in LIBRARIES.items()
        if name in versions and title in ran
    )
    sets = dict.fromkeys(
        f"{data['images']:,} test images of {data['name']}"
        for data in (judgement.facts["data"] for judgement in judgements)
    )
    conditions = (
        f"{', '.join(sets)}; {facts['device']}; {libraries}. "
        f"{latency_terms(judgements)}diff in points."
    )
    return [conditions, *remarks(judgements)]


def latency_terms(judgements: Sequence[Judgement]) -> str:
    """A sentence on what p50 and p99 are, and a blank; nothing where there is no latency."""
    rows = (row for judgement in judgements for row in judgement.rows)
    batches = {row.speed.smallest.batch for row in rows if row.speed}
    if not batches:
        return ""
    batch = "batch 1" if 1 in batches else "the batch in brackets"
    return f"p50, p99: latency of {batch}, copies to and from the device included. "


def remarks(judgements: Sequence[Judgement]) -> list[str]:
    """A line for every verdict but PASS, for other logits, other data, and for what disturbed."""
    lines = []
    for judgement in judgements:
        lines += _best(judgement)
        if judgement.facts["data"]["same_as_training"] is False:
            lines.append(_other_images(judgement))
        if judgement.strayed is not None:
            lines.append(
                f"{judgement.model} gets {100 * judgement.rows[0].accuracy:.2f} % of the test "
                f"images here, and got {100 * judgement.strayed:.2f} % when its training ended "
                "(card.json): its code has changed since. To be as good as that proves nothing; "
                "train it again."
            )
        if said := doubtful(judgement.tally(judgement.rows[0])):
            lines.append(f"{judgement.model}: {said}.")
        if said := judgement.rows[0].addition:
            lines.append(f"{judgement.reference} {said}.")
        lines += [f"{judgement.label(r.file)}: {r.untimed}." for r in judgement.rows if r.untimed]
        for row in judgement.rows[1:]:
            if row.addition:
                lines.append(f"{judgement.label(row.file)} {row.addition}.")
            if row.verdict != PASS:
                said = evidence(judgement, row)
                lines.append(f"{judgement.label(row.file)}: {row.verdict}: {said}")
                # No more images would help, or there are none.
                settled = row.verdict == FAIL or judgement.facts["data"]["whole_test_set"]
                lost = row.comparison is not None and row.comparison.lost > 0
                if settled and lost and (command := _layers(judgement, row)):
                    lines[-1] += f"; `{command}` shows where"
            elif row.largest_difference > OTHER_LOGITS and row.precision != "int8":
                others = "its classes are the reference's"
                if row.agreement < 1:
                    others = f"it answers {100 * (1 - row.agreement):.2g} % of the images otherwise"
                lines.append(
                    f"{judgement.label(row.file)}: {others}, its logits differ by up to "
                    f"{row.largest_difference:.2g}: its probabilities are not the reference's."
                )
            if row.verdict != FAIL:
                lines += _worst_class(judgement, row)
        lines += [f"{judgement.label(lost.file)}: {lost.reason}" for lost in judgement.unusable]
    if any(
        row.normalised and not judgement.normalised_as_said
        for judgement in judgements
        for row in judgement.rows
    ):
        lines.append("Use --mean and --std for another normalisation.")
    return lines + _disturbed(judgements)


def _disturbed(judgements: Sequence[Judgement]) -> list[str]:
    """What disturbed the times: once for several models, which differ in percentages alone."""
    found: dict[str, list[str]] = {}
    for judgement in judgements:
        for said in judgement.facts["remarks"]:
            found.setdefault(PERCENTAGE.sub("", said), []).append(said)
    lines = []
    for alike in found.values():
        most = max(alike, key=lambda said: [int(n) for n in PERCENTAGE.findall(said)])
        lines.append(f"{most}, with one of the models." if len(set(alike)) > 1 else f"{most}.")
    return lines


def _other_images(judgement: Judgement) -> str:
    """What it means that the images are not all those of the training."""
    data = judgement.facts["data"]
    if not data["test_set_of_training"]:
        return (
            f"{judgement.model}: the images are not those it was trained on: it may have seen some "
            "of these test images, and its accuracy here may be too high."
        )
    if is_release(data["verified"]):
        return f"{judgement.model} was trained on another copy of the data (sha256)."
    return f"{judgement.model} was trained on other training images, and has these test images."


def _best(judgement: Judgement) -> list[str]:
    """Which of several proved files is the quickest, and which the smallest."""
    proved = [row for row in judgement.rows if row.verdict == PASS]
    speeds = [(judgement.label(row.file), row.speed) for row in proved if row.speed]
    if len(speeds) < 2:
        return []
    # Of those that take the smallest batch.
    quick, least = min(speeds, key=lambda one: (one[1].smallest.batch, one[1].smallest.latency.p50))
    many, most = max(speeds, key=lambda one: one[1].best.images_per_second)
    sizes = [(row.bytes, judgement.label(row.file)) for row in proved if row.bytes is not None]
    latency = f"{milliseconds(least.smallest.latency.p50)} of batch {least.smallest.batch}"
    images = f"{most.best.images_per_second:,.0f} in batches of {most.best.batch}"
    firsts = {quick: [f"the lowest latency, {latency}"]}  # by file: one may be several
    firsts.setdefault(many, []).append(f"the most images/s within 2 %, {images}")
    if sizes:
        size, small = min(sizes)
        firsts.setdefault(small, []).append(f"the fewest bytes, {size / 1e6:.3g} MB")
    said = (
        f"{file} has {', '.join(those[:-1])}{', and ' if those[:-1] else ''}{those[-1]}"
        for file, those in firsts.items()
    )
    return [f"Of the proved files {'; '.join(said)}."]


def milliseconds(value: float) -> str:
    """Three digits of a time that count, from 100 ms on all before the point."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _worst_class(judgement: Judgement, row: Judged) -> list[str]:
    """The class that a file loses most of, where it is more than all are allowed."""
    assert row.comparison
    labels, classes = judgement.split.labels, judgement.classes
    rights = (judgement.rows[0].predictions == labels, row.predictions == labels)
    worst = worst_class(*rights, labels, len(classes), row.comparison.margin)
    if not worst:
        return []
    lost = 100 * (worst.lost - worst.gained) / worst.images
    return [
        f"{judgement.label(row.file)} loses most in one class: {lost:.3g} points of "
        f"{worst.images:,} {classes[worst.label]} images ({worst.lost:,} lost, {worst.gained:,} "
        "gained)."
    ]


def _layers(judgement: Judgement, row: Judged) -> str:
    """The command that shows a file's layers; nothing where they cannot be compared."""
    file, reference = Path(row.file), Path(judgement.rows[0].file)
    if file.suffix != ".onnx":
        return ""
    try:
        if reference.suffix == ".onnx":
            if _of_two_networks(file, reference):  # no layer in common
                return ""
            return shlex.join(["cifar-deploy", "layers", row.file, "--reference", str(reference)])
        exact_beside(file)
    except UserError:
        return ""
    return shlex.join(["cifar-deploy", "layers", row.file])


def _of_two_networks(*files: Path) -> bool:
    """Whether ONNX files name different networks; another program's names none."""
    facts = [onnx_interface.inspect(file, foreign=True) for file in files]
    return len({fact["metadata"].get("network") for fact in facts} - {None}) > 1


def evidence(judgement: Judgement, row: Judged) -> str:
    """What a file's verdict rests on."""
    comparison = row.comparison
    assert comparison
    images = "image" if comparison.lost == 1 else "images"
    said = (
        f"{comparison.lost:,} {images} lost and {comparison.gained:,} gained; "
        f"the loss is at most {points(comparison.upper, 3)} points (95 %), "
        f"the margin {100 * comparison.margin:g}"
    )
    whole = judgement.facts["data"]["whole_test_set"]
    if comparison.images_needed:
        said += f"; {comparison.images_needed:,} images would tell"
        if comparison.lost or comparison.gained:  # else there is no chance in it
            said += " every second time"
        if whole:
            said += f", and there are {comparison.images:,}"
    within = comparison.lost - comparison.gained <= comparison.margin * comparison.images
    if whole and within and comparison.verdict == INCONCLUSIVE:  # no more images are to be had
        said += f"; it would pass with --max-drop {float(points(comparison.upper, 2)):g}"
    return said


def cells(judgement: Judgement, row: Judged | Unusable) -> list[str]:
    """The texts of one row, one for each of HEADINGS."""
    if isinstance(row, Unusable):
        return [judgement.label(row.file), *[""] * (1 + len(NUMBERS)), row.verdict]
    name = judgement.label(row.file)
    if not row.comparison:
        whose = judgement.model if row.file == PYTORCH else name
        name = f"{whose} ({row.precision})"
    # An image more or less is to be seen, also of more than 10,000.
    digits = max(2, math.ceil(math.log10(len(row.predictions))) - 2)
    compared = ["", "", ""]
    if row.comparison:
        compared = [
            f"{100 * row.comparison.difference:+.{digits}f}",
            f"{100 * row.agreement:.{digits}f}",
            f"{row.largest_difference:.2g}",
        ]
    timed = ["", "", ""]
    if row.speed:
        smallest, best = row.speed.smallest, row.speed.best
        places = 2 if smallest.latency.p50 >= 0.1 else 3  # a GPU's microseconds
        of = "" if smallest.batch == 1 else f" ({smallest.batch})"
        timed = [
            f"{smallest.latency.p50:.{places}f}{of}",
            f"{smallest.latency.p99:.{places}f}{of}",
            f"{best.images_per_second:,.0f} ({best.batch})",
        ]
    return [
        name,
        f"{row.runtime},\n{row.provider}",
        f"{100 * row.accuracy:.{digits}f}",
        *compared,
        *timed,
        row.verdict,
    ]
