"""Exporting from Python, `export_model`, and what the command `export` is made of."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cifar_deploy import architectures
from cifar_deploy.cards import read_card
from cifar_deploy.disk import Json, read_json
from cifar_deploy.engines.flavour import AUTO
from cifar_deploy.engines.options import LARGEST_BATCH, Options
from cifar_deploy.errors import UserError, check_range, points
from cifar_deploy.kind import Format, Precision, members
from cifar_deploy.store import ModelFolder, manifest_path

if TYPE_CHECKING:
    from cifar_deploy.engines.build import Watch
    from cifar_deploy.export.quantise import Calibration

Told: TypeAlias = Callable[[str], None]  # gets a line of what is done
# Around the build of an engine: who is told how it goes on.
Bars: TypeAlias = "Callable[[], AbstractContextManager[Watch | None]]"

log = logging.getLogger(__name__)


def export_model(
    model: str | PathLike[str],
    format: str | Iterable[str] = "onnx",
    precision: str | Iterable[str] = "fp32",
    *,
    batch: int | None = None,
    flavour: str = AUTO,
    options: Options | None = None,
    calibration_images: int | None = None,
    keep_fp32: str | Iterable[str] = (),
    max_drop: float | None = None,
    data_dir: str | PathLike[str] | None = None,
) -> list[Path]:
    """Export a trained model, by its name, alias or folder; returns the files, in its folder.

    It is not called `export`, which is a subpackage: whoever imports that has it under this name.

    `format` is "onnx", "trt" or both, `precision` "fp32", "fp16", "int8" or several of them: a file
    of each, all of a format together. `batch` makes ONNX graphs of just so many images. Engines
    are built by `flavour`, "auto", "tensorrt" or "tensorrt-rtx", with `options`. int8 is calibrated
    on `calibration_images` training images (512). `keep_fp32` names layers that stay in fp32 in
    int8 and fp16; `max_drop` has as many stay as it takes to lose no more percentage points, on
    training images. Those are of the data set that the model was trained on, or in `data_dir`.

    Nothing is printed; lines on what is done go to the logger "cifar_deploy.exporting" (INFO).
    Raises UserError for what cannot be exported so, before anything is written unless only the
    build of an engine tells; its text names arguments as `cifar-deploy export` does. What was there
    of the same name is replaced.
    """
    check_range("batch", batch, 1, LARGEST_BATCH, whole=True)
    check_range("calibration_images", calibration_images, 1, whole=True)
    check_range("max_drop", max_drop, 0, 100)
    if not isinstance(keep_fp32, Iterable):
        raise UserError(f"keep_fp32 {keep_fp32!r}: it is a word or several")
    keep = (keep_fp32,) if isinstance(keep_fp32, str) else tuple(keep_fp32)
    if not all(isinstance(name, str) for name in keep):
        raise UserError(f"keep_fp32 {keep!r}: it is names of layers")
    if not isinstance(options, Options | None):
        raise UserError(f"options {options!r}: they are cifar_deploy.engines.options.Options")
    place = Path(data_dir) if data_dir else None
    return export(
        [architectures.folder(architectures.named(model))],
        members(Format, "format", format),
        [one.value for one in members(Precision, "precision", precision)],
        Quantising(calibration_images, place, tuple(dict.fromkeys(keep)), max_drop),
        batch,
        flavour,
        options,
    )


@dataclass(frozen=True)
class Quantising:
    """How int8 files are made: calibrated on how many images (None: 512) of where, but for what.

    And fp16 ones, but for what: that calibrates nothing.
    """

    images: int | None = None
    data_dir: Path | None = None
    keep: tuple[str, ...] = ()
    max_drop: float | None = None  # in points; None: it is not measured

    def check(self, precisions: Sequence[str]) -> None:
        """Raise UserError for what none of the `precisions` can use."""
        if Precision.int8 in precisions:
            return
        if (self.keep or self.max_drop is not None) and Precision.fp16 not in precisions:
            raise UserError("--keep-fp32 and --max-drop go with --precision int8 or fp16")
        if self.images or (self.data_dir and self.max_drop is None):
            raise UserError(
                "--calibration-images and, without --max-drop, --data-dir go with --precision int8"
            )

    @classmethod
    def again(cls, file: Path, data_dir: Path | None) -> "Quantising":
        """As `file` was, where its manifest stands and tells: it is made anew of other weights."""
        path = manifest_path(file)
        made = read_json(path).get("calibration") if path.exists() else None
        if not isinstance(made, dict):
            return cls(data_dir=data_dir)
        return cls(made.get("images"), data_dir, tuple(made.get("kept_fp32", ())))


def export(
    folders: Sequence[ModelFolder],
    formats: Sequence[str],
    precisions: Sequence[str],
    quantising: Quantising = Quantising(),
    batch: int | None = None,
    flavour: str = AUTO,
    options: Options | None = None,
    told: Told = log.info,
    bars: Bars = contextlib.nullcontext,
) -> list[Path]:
    """Export the models in `folders` as `export_model` does one, and return all files.

    `options` are those of engines, None where none was given. Each file is `told` when it is there.
    """
    quantising.check(precisions)
    if quantising.keep and len(folders) > 1:
        raise UserError("--keep-fp32 names layers of one model; export one after the other")
    if batch and Format.onnx not in formats:
        raise UserError(f"--batch is an ONNX file's; an engine's is --batch-profile {batch}")
    if Format.trt not in formats and (flavour != AUTO or options is not None):
        raise UserError("options of engines were given; they go with --format trt")
    build = None
    if Format.trt in formats:  # what cannot be built is told before anything is written
        build = _engines(folders, precisions, quantising, flavour, options or Options(), told, bars)
    files = []
    if Format.onnx in formats:
        files += write_onnx(folders, precisions, quantising, batch, told)
    if build:
        files += build()
    return files


def write_onnx(
    folders: Sequence[ModelFolder],
    precisions: Sequence[str],
    quantising: Quantising = Quantising(),
    batch: int | None = None,
    told: Told = log.info,
) -> list[Path]:
    """The ONNX files of the models, of any batch or of `batch`. Raises UserError as `export` does.

    What of `quantising` none of the `precisions` can use is left aside.
    """
    for folder in folders:
        read_card(folder)  # a missing model is told before anything is written
    calibrations = _calibrations(folders, precisions, quantising, False, told)
    from cifar_deploy.export.onnx_file import Graphs, export_onnx

    files = []
    for folder, made in zip(folders, calibrations, strict=True):
        graphs: Graphs = {}  # of one model at a time, for the memory
        for precision in precisions:
            calibration = made.get(precision)
            path = export_onnx(folder, precision, calibration, batch=batch, graphs=graphs)
            files.append(path)
            told(_line(path))
    return files


def _calibrations(
    folders: Sequence[ModelFolder],
    precisions: Sequence[str],
    quantising: Quantising,
    engine: bool,
    told: Told,
) -> "list[dict[str, Calibration]]":
    """By precision, what the models' int8 and fp16 files are made with.

    int8 is calibrated on images that the model was trained on. Which layers stay in fp32 is found
    out here where a loss is asked for: before anything is written.
    """
    from cifar_deploy.architectures import weights
    from cifar_deploy.data import find
    from cifar_deploy.export.quantise import COUNT, Calibration

    int8, fp16 = Precision.int8 in precisions, Precision.fp16 in precisions
    drop = quantising.max_drop
    data_of = find.of_models(None, quantising.data_dir)
    calibrated: dict[str, Calibration] = {}  # by the data set
    found: list[dict[str, Calibration]] = []
    for folder in folders:
        made = {"fp16": Calibration.of_none(quantising.keep)} if fp16 else {}
        found.append(made)
        if not int8 and (not fp16 or drop is None):
            continue  # no image is looked at
        trained = weights.load(folder)
        dataset = data_of(folder.name, trained.card)
        dataset.expect_classes(folder.name, trained.classes)  # which the card need not have
        if int8:
            if dataset.origin not in calibrated:
                count = quantising.images or COUNT
                calibrated[dataset.origin] = Calibration.of(dataset, count, quantising.keep)
            made["int8"] = calibrated[dataset.origin]
        if drop is not None:
            from cifar_deploy.tuning import within

            for kind, start in made.items():
                made[kind] = within(drop, folder, dataset, start, engine, told, kind)
    return found


def _engines(
    folders: Sequence[ModelFolder],
    precisions: Sequence[str],
    quantising: Quantising,
    flavour: str,
    options: Options,
    told: Told,
    bars: Bars,
) -> Callable[[], list[Path]]:
    """What builds the engines, when all that can be known before is known and looked at.

    Which flavour builds, and how int8 and fp16 are made. Raises UserError for what cannot be done.
    """
    from cifar_deploy.engines import flavour as flavours
    from cifar_deploy.engines.options import check
    from cifar_deploy.export.engine import cuda_device, export_engine
    from cifar_deploy.export.onnx_file import Graphs

    gpu = cuda_device()
    chosen, reason = flavours.choose(flavour, gpu is not None)
    check(options, chosen, gpu is not None)
    for folder in folders:
        read_card(folder)
    calibrations = _calibrations(folders, precisions, quantising, True, told)

    def build() -> list[Path]:
        told(f"{chosen}: {reason}")
        files = []
        for folder, made in zip(folders, calibrations, strict=True):
            graphs: Graphs = {}
            for precision in precisions:
                with bars() as watch:
                    path = export_engine(
                        folder, precision, chosen, options, watch, made.get(precision), graphs
                    )
                files.append(path)
                told(_line(path))
        return files

    return build


def _line(path: Path) -> str:
    """What is said of a file that was written."""
    manifest: Json = read_json(manifest_path(path))
    said = f"{path}  {manifest['bytes'] / 1e6:.1f} MB"
    if "build_seconds" in manifest:
        said += f", built in {manifest['build_seconds']:.1f} s"
    if calibration := manifest.get("calibration"):
        others = "training images"
        if "images" in calibration:
            images = f"{calibration['images']:,} training images"
            said += f", calibrated on {images} of {calibration['data']}"
            others = "others"
        kept = calibration.get("kept_fp32", [])
        if drop := calibration.get("drop"):
            most = drop["upper_bound_of_loss_points"]
            said += (
                f", a loss of at most {points(most / 100, 2)} points on {drop['images']:,} {others}"
            )
            said += f", {len(kept)} of {drop['layers']} layers in fp32{': ' if kept else ''}"
            said += ", ".join(kept)
        elif kept:
            said += f", {', '.join(kept)} in fp32"
    return said
