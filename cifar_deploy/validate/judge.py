"""Judge exported files against a reference: their model in PyTorch fp32, or another file."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cifar_deploy import device as machine
from cifar_deploy.address import Address
from cifar_deploy.architectures.weights import Trained
from cifar_deploy.data.cifar10 import is_release
from cifar_deploy.data.dataset import Dataset, Labels, Split
from cifar_deploy.disk import Json, read_json, sha256_of
from cifar_deploy.engines import flavour
from cifar_deploy.engines import manifest as engine_manifest
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes import onnx_interface
from cifar_deploy.runtimes.load import ONNXRUNTIME, open_runtime
from cifar_deploy.runtimes.onnx_interface import Pixels
from cifar_deploy.runtimes.protocol import REMOTE, Logits, Runtime, in_batches, unanswered
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.runtimes.served import Served
from cifar_deploy.store import manifest_path
from cifar_deploy.validate.judgement import MISTAKES, PYTORCH, Judged, Judgement, Unusable
from cifar_deploy.validate.latency import measure
from cifar_deploy.validate.layers import in_half
from cifar_deploy.validate.noninferiority import FAIL, compare
from cifar_deploy.watch import Watch, describe, summary

# Percentage points of accuracy that a file of this precision may lose.
MARGINS = {"fp32": 0.05, "fp16": 0.10, "int8": 0.50}
HALF = 128  # images on which a CPU computes fp16 as a GPU does
HALF_LOSS = 2.0  # points: so few images do not tell what is less
ALONE = 32  # images that are also run in the smallest batches that a file takes
# Of the largest logit: kernels for another batch round otherwise, by less.
OTHERWISE = 0.05
STRAYED = 0.2  # points between a reference and its card, whose device rounded otherwise

Say = Callable[[str], None]  # told what is being done, for the progress line


class NoAnswer(UserError):
    """A file ran, and what it gave cannot be taken for answers to the images."""


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
    mistakes: int = MISTAKES  # of the reference that are named, at most


@dataclass(frozen=True)
class Reference:
    """What files are judged against: a trained model, or an ONNX file where there is none."""

    model: str  # how it is called
    file: str  # in the table's first row
    bytes: int
    classes: tuple[str, ...]
    mean: list[float]
    std: list[float]
    data: Json  # what it was trained on: sha256, verified; empty where nobody knows
    facts: Json  # the sha256 of its weights, or of the file
    accuracy: float | None  # on the test images when its training ended; None where nobody knows
    open: Callable[[torch.device, Pixels, str], Runtime]

    @classmethod
    def of_model(cls, trained: Trained, model: str = "") -> "Reference":
        """A trained model, in PyTorch fp32. `model` is its name where that is not the network's."""
        stored = trained.card["weights"]
        return cls(
            model=model or trained.name,
            file=PYTORCH,
            bytes=stored["bytes"],
            classes=trained.classes,
            mean=trained.mean,
            std=trained.std,
            data=trained.card.get("data", {}),
            facts={"weights_sha256": stored["sha256"]},
            accuracy=trained.card.get("test_accuracy"),
            open=lambda device, pixels, onnx: PyTorch(trained, device),
        )

    @classmethod
    def of_file(cls, path: Path, dataset: Dataset) -> "Reference":
        """An ONNX file for the images of `dataset`.

        What it does not say itself is the data set's: the classes in the order that they have
        there, and how pixels are normalised. Raises UserError as `onnx_interface.inspect` does, and
        for another number of classes.
        """
        facts = onnx_interface.inspect(path, foreign=True)
        classes = tuple(onnx_interface.class_names(facts) or dataset.classes)
        if len(classes) != (count := facts["outputs"][0]["shape"][-1]):
            raise UserError(
                f"{path} answers with {count} classes, and {dataset.origin} has "
                f"{len(dataset.classes)}; name its images with --data-dir"
            )
        mean, std = dataset.normalisation
        return cls(
            model=path.name,
            file=str(path),
            bytes=path.stat().st_size,
            classes=classes,
            mean=mean,
            std=std,
            data={},
            facts={"reference_sha256": sha256_of(path)},
            accuracy=None,
            open=lambda device, pixels, onnx: open_runtime(path, device, pixels=pixels, onnx=onnx),
        )


def judge(
    reference: Reference,
    files: Sequence[Path | Address],
    dataset: Dataset,
    device: torch.device,
    options: Options,
    images: int | None = None,
    say: Say = lambda _: None,
    unfit: Mapping[Path, UserError] | None = None,
) -> Judgement:
    """Run the reference and every file, or served model, over the test set, or its first `images`.

    A file that this machine cannot run becomes an `Unusable` row and the rest is still judged; so
    does one of `files` that `unfit` names, with the reason, and it is not tried.
    Raises UserError where the data set has other classes than the reference, and where that itself
    cannot run.
    """
    dataset.expect_classes(reference.model, reference.classes)
    split = dataset.test.first(images) if images else dataset.test
    say(f"{reference.model}: the reference over {len(split):,} images")
    pixels = Pixels(options.mean or reference.mean, options.std or reference.std)
    with Watch(device) as watch:
        runtime = reference.open(device, pixels, options.onnx)
        first = _row(reference.file, runtime, reference.bytes, split, None, options, watch)
        rows = [first]
        unusable = []
        for file in files:
            if isinstance(file, Path) and unfit and file in unfit:
                unusable.append(_unusable(file, unfit[file], None, unfit=True))
                continue
            say(f"{file.name} over {len(split):,} images")
            opened: Runtime | None = None
            try:
                opened = open_runtime(file, device, options.trust, pixels=pixels, onnx=options.onnx)
                if isinstance(opened, Served):
                    opened.expect(reference.classes, reference.facts.get("weights_sha256"))
                size = None if isinstance(file, Address) else file.stat().st_size
                if isinstance(file, Path) and opened.precision == "fp16" and opened.device == "cpu":
                    _check_half(file, split.first(HALF), first.predictions, options, pixels)
                rows.append(_row(str(file), opened, size, split, first, options, watch))
            except UserError as error:
                unusable.append(_unusable(file, error, opened))
    sha256, seen = dataset.sha256, reference.data
    same = sha256 == seen["sha256"] if "sha256" in seen else None
    # Of the images, those that judge: who adds a training image has them still.
    tested = dataset.same_test(seen)
    releases = is_release(dataset.verified) and is_release(str(seen.get("verified")))
    of_training, whole = bool(tested or releases), len(split) == len(dataset.test)
    then = reference.accuracy if of_training and whole else None
    return Judgement(
        model=reference.model,
        classes=reference.classes,
        split=split,
        rows=tuple(rows),
        unusable=tuple(unusable),
        facts={
            "data": {
                "name": dataset.name,
                "verified": dataset.verified,
                "sha256": sha256,
                "test_sha256": dataset.test_sha256,
                "test_set_sha256": dataset.test.set_sha256,
                "same_as_training": same,
                "test_set_of_training": of_training,
                "images": len(split),
                "whole_test_set": whole,
            },
            **reference.facts,
            **describe(device, watch),
            "threads": torch.get_num_threads(),
            "versions": machine.versions(),
            "remarks": watch.remarks() if options.seconds else [],  # what disturbed the times
        },
        strayed=then if then and abs(first.accuracy - then) > STRAYED / 100 else None,
        named=options.mistakes,
        normalised_as_said=bool(options.mean or options.std),
    )


def _unusable(
    file: Path | Address, error: UserError, opened: Runtime | None, unfit: bool = False
) -> Unusable:
    """The row of what could not be run, with what it said where it could be `opened`."""
    runtime, precision, size = None, None, None
    if isinstance(file, Path):
        runtime, precision = _said(file)
        with contextlib.suppress(OSError):
            size = file.stat().st_size
    if opened:
        runtime, precision = opened.runtime, opened.precision
    return Unusable(
        file=str(file),
        reason=str(error).removeprefix(f"{file}: "),
        ran=isinstance(error, NoAnswer),
        unfit=unfit,
        runtime=runtime,
        precision=precision,
        bytes=size,
    )


def _said(file: Path) -> tuple[str | None, str | None]:
    """What built an engine, and a file's precision: by its manifest, or else by an ONNX file."""
    manifest: Json = {}
    with contextlib.suppress(UserError):  # there is none, or no whole one
        manifest = read_json(manifest_path(file))
    runtime, precision = None, manifest.get("precision")
    if manifest.get("flavour") in flavour.NAMES:
        runtime = engine_manifest.library(manifest)
    if not precision and file.suffix == ".onnx":
        with contextlib.suppress(UserError):
            precision = onnx_interface.inspect(file, foreign=True)["precision"]
    return runtime, str(precision) if precision else None


def _row(
    file: str,
    runtime: Runtime,
    size: int | None,
    split: Split,
    reference: Judged | None,
    options: Options,
    watch: Watch,
) -> Judged:
    logits = runtime.logits(split.images)
    reference_logits = reference.logits if reference else logits
    if len(logits) != len(split):
        raise NoAnswer(
            f"{file} gives {len(logits):,} answers for {len(split):,} images; export it with an "
            "open batch, or one that is fixed throughout"
        )
    if lost := int(unanswered(logits).sum()):
        way = ""
        if runtime.precision == "fp16":
            way = "; `export --precision fp16 --max-drop 0.1` keeps layers in fp32 that need it"
        raise NoAnswer(
            f"{file} has no number for an answer to {lost:,} of {len(split):,} images (NaN or "
            f"infinity): its weights, or the mean and std, are too large or too small{way}"
        )
    if logits.shape != reference_logits.shape:
        raise NoAnswer(
            f"{file} answers with {logits.shape[1]} classes, the reference with "
            f"{reference_logits.shape[1]}: it is another model's"
        )
    _check_batches(file, runtime, split, logits)
    predictions = logits.argmax(1)
    right = predictions == split.labels
    comparison = None
    if reference:
        margin = options.max_drop
        if margin is None:
            margin = MARGINS.get(runtime.precision, MARGINS["fp16"])
        comparison = compare(reference.predictions == split.labels, right, margin / 100)
    speed, untimed, begin = None, "", time.perf_counter()
    if options.seconds:
        speed, untimed = measure(runtime, split.images, options.seconds)
    watched = speed and runtime.device != REMOTE  # what a server computes on is not
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
        largest_difference=_largest_difference(logits, reference_logits),
        speed=speed,
        card=summary(watch.samples, [(begin, time.perf_counter())]) if watched else None,
        untimed=untimed,
        addition=runtime.addition,
    )


def _largest_difference(logits: Logits, others: Logits) -> float:
    """Of two runtimes' answers, float32 [n, classes]; both may rule a class out with -inf."""
    with np.errstate(invalid="ignore"):
        return float(np.where(logits == others, 0, np.abs(logits - others)).max())


def _check_half(
    file: Path, split: Split, reference: Labels, options: Options, pixels: Pixels
) -> None:
    """Raise NoAnswer where fp16 does not hold what a file computes: a CPU does not show it.

    Numbers beyond its range are infinite, those below it nothing. `reference` are its answers.
    """
    logits = in_half(file, split.images, pixels)
    if logits is None:
        return
    on_a_gpu = (
        "where fp16 is computed as such, on a GPU; here it is not, which hides it. `export "
        "--precision fp16 --max-drop 0.1` keeps layers in fp32 that need it"
    )
    count = len(logits)
    if lost := int(unanswered(logits).sum()):
        raise NoAnswer(
            f"{file} has no number for an answer to {lost:,} of {count:,} images {on_a_gpu}"
        )
    labels = split.labels[:count]
    right = logits.argmax(1) == labels
    margin = max(HALF_LOSS, options.max_drop or 0) / 100
    found = compare(reference[:count] == labels, right, margin)
    if found.verdict == FAIL:
        raise NoAnswer(
            f"{file} gets {right.sum():,} of {count:,} images right, and the reference "
            f"{right.sum() + found.lost - found.gained:,}, {on_a_gpu}"
        )


def _check_batches(file: str, runtime: Runtime, split: Split, logits: Logits) -> None:
    """Raise NoAnswer where an image's answer is another one in a smaller batch.

    So it is where a batch norm still takes its batch's statistics, and applications send single
    images. Each of a file's ranges of batches, as those of an engine's optimization profiles are,
    has kernels of its own, and is run at its smallest.
    """
    allowed = OTHERWISE * np.abs(logits[np.isfinite(logits)]).max(initial=0.0)
    for sizes in runtime.batches:
        size = sizes[0]
        few = split.images[: max(ALONE, size)]
        smaller = in_batches(runtime.logits, few, (range(size, size + 1),))
        with np.errstate(invalid="ignore"):  # a class that is ruled out in both
            apart = np.abs(smaller - logits[: len(few)])
        if (apart > allowed).any():
            raise NoAnswer(
                f"{file} answers otherwise in batches of {size}, by up to {np.nanmax(apart):.2g} "
                "in a logit: what it says of an image must not depend on the others; export it in "
                "eval mode"
            )
