"""Judge every exported file of a model against its PyTorch fp32 reference."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cifar_deploy import device as machine
from cifar_deploy.architectures.weights import Trained
from cifar_deploy.data.cifar10 import is_release
from cifar_deploy.data.dataset import Dataset, Split
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes.load import ONNXRUNTIME, open_runtime
from cifar_deploy.runtimes.onnx_interface import Pixels
from cifar_deploy.runtimes.protocol import Logits, Runtime
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.store import Json
from cifar_deploy.validate.latency import Speed, measure
from cifar_deploy.validate.noninferiority import PASS, Comparison, compare
from cifar_deploy.watch import Watch

# Percentage points of accuracy that a file of this precision may lose.
MARGINS = {"fp32": 0.05, "fp16": 0.10, "int8": 0.50}
REFERENCE = "REFERENCE"
UNUSABLE = "UNUSABLE"

Say = Callable[[str], None]  # told what is being done, for the progress line


@dataclass(frozen=True)
class Options:
    """How to judge. `max_drop` in percentage points (None: by precision)."""

    max_drop: float | None = None
    seconds: float = 1.0  # of timing a batch size; 0 leaves latency out
    trust: bool = False  # run engines without a matching manifest
    # For files that normalise nothing themselves; None: the reference's mean and std.
    mean: list[float] | None = None
    std: list[float] | None = None
    onnx: str = ONNXRUNTIME  # what runs ONNX files


@dataclass(frozen=True)
class Judged:
    """One row of the table: the reference, or a file."""

    file: str
    runtime: str
    provider: str
    device: str
    precision: str
    bytes: int
    logits: Logits
    predictions: npt.NDArray[np.int64]  # [n], top-1
    accuracy: float
    comparison: Comparison | None  # None: the reference
    agreement: float  # share of images with the reference's top-1
    largest_difference: float  # of a logit, from the reference's
    speed: Speed | None
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
    """A file that could not be run here, and why."""

    file: str
    reason: str
    verdict: str = UNUSABLE


@dataclass(frozen=True)
class Judgement:
    """All that was found out about one model. `split` is what it was judged on."""

    model: str
    classes: tuple[str, ...]
    split: Split
    rows: tuple[Judged, ...]  # the reference first
    unusable: tuple[Unusable, ...]
    facts: Json  # data, device, threads, versions

    @property
    def passed(self) -> bool:
        """Whether there were files, and every one of them passed."""
        files = self.rows[1:]
        return bool(files) and not self.unusable and all(row.verdict == PASS for row in files)

    def label(self, file: str) -> str:
        """A file's name, with as much of its path as tells it from the others."""
        files = {row.file for row in self.rows[1:]} | {lost.file for lost in self.unusable}
        mine = Path(file).parts
        for count in range(1, len(mine)):
            if sum(Path(other).parts[-count:] == mine[-count:] for other in files) == 1:
                return "/".join(mine[-count:])
        return file

    @property
    def disagreements(self) -> dict[str, npt.NDArray[np.int64]]:
        """For each file the indices of the images on which its top-1 is not the reference's."""
        reference = self.rows[0].predictions
        return {row.file: np.flatnonzero(row.predictions != reference) for row in self.rows[1:]}


def judge(
    trained: Trained,
    files: Sequence[Path],
    dataset: Dataset,
    device: torch.device,
    options: Options,
    images: int | None = None,
    say: Say = lambda _: None,
    model: str = "",
) -> Judgement:
    """Run the reference and every file over the test set, or its first `images`.

    `model` is how to call it where that is not the network's name. A file that this machine cannot
    run becomes an `Unusable` row and the rest is still judged. Raises UserError where the data set
    has other classes than the model.
    """
    model = model or trained.name
    dataset.expect_classes(model, trained.classes)
    split = dataset.test.first(images) if images else dataset.test
    say(f"{model}: PyTorch fp32 over {len(split):,} images")
    weights_bytes = int(trained.card["weights"]["bytes"])
    pixels = Pixels(options.mean or trained.mean, options.std or trained.std)
    with Watch(device) as watch:
        runtime: Runtime = PyTorch(trained, device)
        reference = _row("PyTorch (reference)", runtime, weights_bytes, split, None, options)
        rows = [reference]
        unusable = []
        for file in files:
            say(f"{file.name} over {len(split):,} images")
            try:
                runtime = open_runtime(
                    file, device, options.trust, pixels=pixels, onnx=options.onnx
                )
                size = file.stat().st_size
                rows.append(_row(str(file), runtime, size, split, reference, options))
            except UserError as error:
                unusable.append(Unusable(str(file), str(error).removeprefix(f"{file}: ")))
    sha256, seen = dataset.sha256(), trained.card["data"]
    same = sha256 == seen["sha256"]
    releases = is_release(dataset.verified) and is_release(str(seen.get("verified")))
    return Judgement(
        model=model,
        classes=trained.classes,
        split=split,
        rows=tuple(rows),
        unusable=tuple(unusable),
        facts={
            "data": {
                "name": dataset.name,
                "verified": dataset.verified,
                "sha256": sha256,
                "same_as_training": same,
                "test_set_of_training": same or releases,
                "images": len(split),
            },
            "weights_sha256": trained.card["weights"]["sha256"],
            "device": machine.describe(device),
            "threads": torch.get_num_threads(),
            "versions": machine.versions(),
            "remarks": watch.remarks() if options.seconds else [],  # what disturbed the times
        },
    )


def unanswered(logits: Logits) -> int:
    """For how many images a logit is NaN or infinity, of which no top-1 can be taken.

    Minus infinity is a class that is ruled out, as a log-softmax in fp16 may say.
    """
    return int((np.isnan(logits) | np.isposinf(logits)).any(1).sum())


def _row(
    file: str,
    runtime: Runtime,
    size: int,
    split: Split,
    reference: Judged | None,
    options: Options,
) -> Judged:
    logits = runtime.logits(split.images)
    reference_logits = reference.logits if reference else logits
    if len(logits) != len(split):
        raise UserError(
            f"{file} gives {len(logits):,} answers for {len(split):,} images; export it with an "
            "open batch, or one that is fixed throughout"
        )
    if lost := unanswered(logits):
        raise UserError(
            f"{file} has no number for an answer to {lost:,} of {len(split):,} images (NaN or "
            "infinity): its weights, or the mean and std, are too large or too small"
        )
    if logits.shape != reference_logits.shape:
        raise UserError(
            f"{file} answers with {logits.shape[1]} classes, the reference with "
            f"{reference_logits.shape[1]}: it is another model's"
        )
    predictions = logits.argmax(1)
    right = predictions == split.labels
    comparison = None
    if reference:
        margin = options.max_drop
        if margin is None:
            margin = MARGINS.get(runtime.precision, MARGINS["fp16"])
        comparison = compare(reference.predictions == split.labels, right, margin / 100)
    return Judged(
        file=file,
        runtime=runtime.runtime,
        provider=runtime.provider,
        device=runtime.device,
        precision=runtime.precision,
        bytes=size,
        logits=logits,
        predictions=predictions,
        accuracy=float(right.mean()),
        comparison=comparison,
        agreement=float((predictions == reference_logits.argmax(1)).mean()),
        largest_difference=float(np.abs(logits - reference_logits).max()),
        speed=measure(runtime, split.images, options.seconds) if options.seconds else None,
        addition=runtime.addition,
    )


def to_json(judgement: Judgement) -> Json:
    """What a program reads: accuracies as shares, bounds and margins in percentage points."""
    rows: list[Json] = []
    for row in judgement.rows:
        entry: Json = {
            "file": row.file,
            "runtime": row.runtime,
            "provider": row.provider,
            "device": row.device,
            "precision": row.precision,
            "bytes": row.bytes,
            "accuracy": row.accuracy,
            "verdict": row.verdict,
        }
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
        if row.speed:
            entry["latency"] = [asdict(timing) for timing in row.speed.sweep]
        rows.append(entry)
    rows += [{"file": u.file, "verdict": u.verdict, "reason": u.reason} for u in judgement.unusable]
    return {
        "model": judgement.model,
        "passed": judgement.passed,
        **judgement.facts,
        "rows": rows,
    }
