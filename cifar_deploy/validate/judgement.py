"""What judging found of files: a row each, and of their model everything that is told of it."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cifar_deploy.data.dataset import Split, balance, tally
from cifar_deploy.disk import Json
from cifar_deploy.runtimes.protocol import Logits
from cifar_deploy.validate.latency import Speed
from cifar_deploy.validate.noninferiority import PASS, Comparison

REFERENCE = "REFERENCE"
PYTORCH = "PyTorch (reference)"  # stands for a file where a model is the reference
UNUSABLE = "UNUSABLE"
MISTAKES = 24  # of a reference that are named, at most, unless another number is asked for
CONFUSED = 200  # classes of which the JSON has the confusion, at most: the square grows

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Judged:
    """One row of the table: the reference, or a file."""

    file: str
    runtime: str
    provider: str
    device: str
    precision: str
    bytes: int | None  # None: of a served model nobody knows
    logits: Logits
    predictions: npt.NDArray[np.int64]  # [n], top-1
    accuracy: float
    comparison: Comparison | None  # None: the reference
    agreement: float  # share of images with the reference's top-1
    largest_difference: float  # of a logit, from the reference's
    speed: Speed | None
    card: Json | None = None  # clocks, temperature, power while it was timed, where watched
    untimed: str = ""  # which batches were not timed because one was refused, and why
    addition: str = ""  # what was put around a file with another program's interface

    @property
    def normalised(self) -> bool:
        """Whether the pixels were normalised before the file, which does not do it itself."""
        return " and std " in self.addition

    @property
    def verdict(self) -> str:
        """PASS, FAIL or INCONCLUSIVE; REFERENCE for the reference itself."""
        return self.comparison.verdict if self.comparison else REFERENCE


@dataclass(frozen=True)
class Unusable:
    """A file that could not be run here, and why; None for what is not known of it.

    `ran`: it did, and gave no answers. `unfit`: it was not tried, since it is damaged, or was
    exported from other weights.
    """

    file: str
    reason: str
    ran: bool = False
    unfit: bool = False
    runtime: str | None = None  # of an engine that was not opened, what built it
    precision: str | None = None
    bytes: int | None = None
    verdict: str = UNUSABLE


@dataclass(frozen=True)
class Mistake:
    """A test image that the reference takes for another class, and with which probability."""

    index: int
    file: str | None  # in its folder of the test set, where it has a file of its own
    truth: str
    answer: str
    probability: float  # the softmax of its logits


@dataclass(frozen=True)
class Judgement:
    """All that was found out about one model. `split` is what it was judged on."""

    model: str
    classes: tuple[str, ...]
    split: Split
    rows: tuple[Judged, ...]  # the reference first
    unusable: tuple[Unusable, ...]
    facts: Json  # data, device, threads, versions
    strayed: float | None = None  # what the card says, where the reference is not as accurate here
    named: int = MISTAKES  # of the reference's mistakes, at most
    normalised_as_said: bool = False  # by --mean or --std

    @property
    def passed(self) -> bool:
        """Whether there were files, and every one of them passed, by a reference that is sound."""
        files = self.rows[1:]
        sound = not self.unusable and self.strayed is None
        return bool(files) and sound and all(row.verdict == PASS for row in files)

    @property
    def reference(self) -> str:
        """What the files are judged against: PyTorch, or the label of a file."""
        first = self.rows[0].file
        return "PyTorch" if first == PYTORCH else self.label(first)

    def label(self, file: str) -> str:
        """A file's name, with as much of its path as tells it from the others; an address."""
        if "://" in file:
            return file
        files = {row.file for row in self.rows} | {lost.file for lost in self.unusable}
        mine = Path(file).parts
        for count in range(1, len(mine)):
            if sum(Path(other).parts[-count:] == mine[-count:] for other in files) == 1:
                return "/".join(mine[-count:])
        return file

    def tally(self, row: Judged) -> dict[str, list[int]]:
        """Of each class how many images `row` answers right, and how many there are."""
        labels = self.split.labels
        return tally(self.classes, labels, labels[row.predictions == labels])

    def confusion(self, row: Judged) -> Counts:
        """How often `row` gave each true class each answer, int64 [truth, answer]."""
        classes = len(self.classes)
        pairs = self.split.labels * classes + row.predictions
        return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)

    def disagreements(self, row: Judged) -> npt.NDArray[np.int64]:
        """The indices of the images on which `row`'s top-1 is not the reference's."""
        return np.flatnonzero(row.predictions != self.rows[0].predictions)

    @property
    def mistakes(self) -> list[Mistake]:
        """Of the reference's wrong answers the `named` most certain, the most certain first."""
        answers, labels = self.rows[0].predictions, self.split.labels
        wrong = np.flatnonzero(answers != labels)
        # Large numbers for infinities: all classes may be ruled out.
        logits = np.nan_to_num(self.rows[0].logits[wrong].astype(np.float64))
        shares = 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)
        surest = np.argsort(-shares, kind="stable")[: self.named]
        return [
            Mistake(i, self.split.file(i), self.classes[labels[i]], self.classes[answers[i]], share)
            for i, share in zip(wrong[surest].tolist(), shares[surest].tolist(), strict=True)
        ]


def answers(judgement: Judgement) -> Iterator[list[str | int]]:
    """A heading, then a line for each image that was judged: its place in the test set from 0 on,
    its file there ("" where it has none of its own), the true class, and the answers of the
    reference and of each file, as classes. A file that could not be run has no column.
    """
    split, names = judgement.split, judgement.classes
    yield ["index", "file", "truth", "reference", *(row.file for row in judgement.rows[1:])]
    columns = [split.labels.tolist(), *(row.predictions.tolist() for row in judgement.rows)]
    for index, given in enumerate(zip(*columns, strict=True)):
        yield [index, split.file(index) or "", *(names[i] for i in given)]


def to_json(judgement: Judgement) -> Json:
    """What a program reads: accuracies as shares, bounds and margins in percentage points.

    `confusion` is by classes in the order of `classes`, and left out of more than CONFUSED.
    """
    rows: list[Json] = []
    for row in judgement.rows:
        classes = judgement.tally(row)
        entry: Json = {
            "file": row.file,
            "runtime": row.runtime,
            "provider": row.provider,
            "device": row.device,
            "precision": row.precision,
            "bytes": row.bytes,
            "accuracy": row.accuracy,
            "classes": classes,
            **balance(classes),
            "verdict": row.verdict,
        }
        if len(judgement.classes) <= CONFUSED:
            entry["confusion"] = judgement.confusion(row).tolist()
        if comparison := row.comparison:
            entry |= {
                "difference_points": 100 * comparison.difference,
                "upper_bound_of_loss_points": 100 * comparison.upper,
                "margin_points": 100 * comparison.margin,
                "lost": comparison.lost,
                "gained": comparison.gained,
                "same_top1": row.agreement,
                # JSON has no infinity: null where a logit is not finite.
                "largest_logit_difference": (
                    row.largest_difference if math.isfinite(row.largest_difference) else None
                ),
            }
            if comparison.images_needed:
                entry["images_needed"] = comparison.images_needed
        if row.addition:
            entry["addition"] = row.addition
        if row.card:
            entry["card"] = row.card
        if row.untimed:
            entry["untimed"] = row.untimed
        if row.speed:
            entry["latency"] = [asdict(timing) for timing in row.speed.sweep]
        rows.append(entry)
    rows += [
        {
            "file": lost.file,
            "runtime": lost.runtime,
            "precision": lost.precision,
            "bytes": lost.bytes,
            "verdict": lost.verdict,
            "reason": lost.reason,
        }
        for lost in judgement.unusable
    ]
    return {
        "model": judgement.model,
        "passed": judgement.passed,
        **({} if judgement.strayed is None else {"card_accuracy": judgement.strayed}),
        **judgement.facts,
        "rows": rows,
        "mistakes": [asdict(mistake) for mistake in judgement.mistakes],
    }
