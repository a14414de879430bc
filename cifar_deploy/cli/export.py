"""`cifar-deploy export`."""

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifar_deploy import architectures, store
from cifar_deploy.cli.options import (
    DataDirOption,
    Format,
    JsonFlag,
    Models,
    Precision,
    all_trained,
    print_json,
    say,
    several,
)
from cifar_deploy.engines.options import LARGEST_BATCH, capabilities, hardware
from cifar_deploy.errors import UserError

if TYPE_CHECKING:
    from cifar_deploy.data.dataset import Dataset
    from cifar_deploy.engines.flavour import Flavour
    from cifar_deploy.engines.options import Options
    from cifar_deploy.export.quantise import Calibration

    Engines = tuple[Flavour, str, Options, list[dict[str, Calibration]]]

CAPABILITIES = re.compile(r"\d+\.\d([,\s]+\d+\.\d)*,?")  # of GPUs, as 8.6 or 8.6,8.9


def export(
    models: Models = None,
    format: Annotated[
        list[Format] | None, several(Format, "Both with a comma or repeated. [default: onnx]")
    ] = None,
    precision: Annotated[
        list[Precision] | None,
        several(Precision, "Several with commas or repeated. [default: fp32]"),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="ONNX: a graph of just so many images; else of any number.",
            min=1,
            max=LARGEST_BATCH,
        ),
    ] = None,
    flavour: Annotated[str, typer.Option(help="auto, tensorrt or tensorrt-rtx.")] = "auto",
    batch_profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MIN/OPT/MAX",
            help="Batches it takes; 1/128/1024. Several may be given.",
        ),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(metavar="MIB", help="GPU memory a layer may use. [default: all]")
    ] = None,
    timing_cache_file: Annotated[
        Path | None, typer.Option(help="tensorrt: kept between builds; else in the user's cache.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="tensorrt: for other versions too.")
    ] = False,
    hardware_compatibility: Annotated[
        str | None, typer.Option(help="tensorrt: ampere+ or same-compute-capability.")
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(metavar="X.Y...", help="tensorrt-rtx: targets, as 8.6 8.9 12.0, or 8.6,8.9."),
    ] = None,
    builder_optimization_level: Annotated[
        int | None, typer.Option(help="0 to 5. [default: 3]")
    ] = None,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Leave them to the ONNX file beside it.")
    ] = False,
    export_layer_info: Annotated[
        bool, typer.Option("--export-layer-info", help="Also write the layers as JSON.")
    ] = False,
    tf32: Annotated[bool, typer.Option("--tf32", help="Allow TF32 in fp32 engines.")] = False,
    calibration_images: Annotated[
        int | None, typer.Option(help="int8: so many training images; 512.", min=1)
    ] = None,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE",
            help="int8, fp16: leave this convolution or linear layer of `layers` in fp32.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="int8, fp16: keep layers in fp32 until it loses no more, on training images.",
            min=0.0,
            max=100.0,
        ),
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Export trained models; without a name, all that have weights.

    --format trt builds TensorRT engines from the ONNX files, which it exports first if need be.
    """
    # `--compute-capability 8.6 8.9`: what follows the first arrives among the names.
    versions = [name for name in models or [] if CAPABILITIES.fullmatch(name)]
    if versions and not compute_capability:
        raise UserError(f"{versions[0]} is no model; a compute capability follows its option")
    named = [name for name in models or [] if name not in versions]
    folders = [architectures.folder(m) for m in named] or all_trained()
    formats = format or [Format.onnx]
    precisions = [p.value for p in precision or [Precision.fp32]]
    asked: dict[str, Any] = {
        "workspace": workspace,
        "timing_cache": timing_cache_file,
        "version_compatible": version_compatible,
        "hardware_compatibility": hardware(hardware_compatibility),
        "compute_capabilities": capabilities([*(compute_capability or []), *versions]),
        "level": builder_optimization_level,
        "strip_weights": strip_weights,
        "layer_info": export_layer_info,
        "tf32": tf32,
    }
    quantising = Quantising(
        calibration_images, data_dir, tuple(dict.fromkeys(keep_fp32 or ())), max_drop
    )
    quantising.check(precisions)
    if keep_fp32 and len(folders) > 1:
        raise UserError("--keep-fp32 names layers of one model; export one after the other")
    if batch and Format.onnx not in formats:
        raise UserError(f"--batch is an ONNX file's; an engine's is --batch-profile {batch}")
    engines = None
    if Format.trt in formats:  # what cannot be built is told before anything is written
        engines = _engines(flavour, batch_profile or [], asked, folders, precisions, quantising)
    elif (
        flavour != "auto"
        or batch_profile
        or any(v not in (None, False, ()) for v in asked.values())
    ):
        raise UserError("options of engines were given; they go with --format trt")
    manifests = []
    if Format.onnx in formats:
        manifests += write_onnx(folders, precisions, quantising, batch)
    if engines:
        manifests += _export_engines(folders, precisions, engines)
    if as_json:
        print_json(manifests)


@dataclasses.dataclass(frozen=True)
class Quantising:
    """How int8 files are made: calibrated on how many images (None: 512) of where, but for what.

    And fp16 ones, but for what: that calibrates nothing.
    """

    images: int | None = None
    data_dir: Path | None = None
    keep: tuple[str, ...] = ()
    max_drop: float | None = None  # in points; None: it is not measured

    def check(self, precisions: list[str]) -> None:
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
        path = store.manifest_path(file)
        made = store.read_json(path).get("calibration") if path.exists() else None
        if not isinstance(made, dict):
            return cls(data_dir=data_dir)
        return cls(made.get("images"), data_dir, tuple(made.get("kept_fp32", ())))


def write_onnx(
    folders: list[store.ModelFolder],
    precisions: list[str],
    quantising: Quantising = Quantising(),
    batch: int | None = None,
) -> list[store.Json]:
    for folder in folders:
        store.read_card(folder)  # a missing model is told before anything is written
    calibrations = _calibrations(folders, precisions, quantising, engine=False)
    from cifar_deploy.export.onnx_file import export_onnx

    return [
        _exported(export_onnx(folder, precision, made.get(precision), batch=batch))
        for folder, made in zip(folders, calibrations, strict=True)
        for precision in precisions
    ]


def _calibrations(
    folders: list[store.ModelFolder], precisions: list[str], quantising: Quantising, engine: bool
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
    loaded: dict[tuple[str, Path | None], Dataset] = {}
    calibrated: dict[tuple[str, Path | None], Calibration] = {}
    found: list[dict[str, Calibration]] = []
    for folder in folders:
        made = {"fp16": Calibration.of_none(quantising.keep)} if fp16 else {}
        found.append(made)
        if not int8 and (not fp16 or drop is None):
            continue  # no image is looked at
        trained = weights.load(folder)
        key = find.trained_on(trained.card, None, quantising.data_dir)
        if key not in loaded:
            loaded[key] = find.load(*key)
        loaded[key].expect_classes(folder.name, trained.classes)
        if int8:
            if key not in calibrated:
                count = quantising.images or COUNT
                calibrated[key] = Calibration.of(loaded[key], count, quantising.keep)
            made["int8"] = calibrated[key]
        if drop is not None:
            from cifar_deploy.tuning import within

            for kind, start in made.items():
                made[kind] = within(drop, folder, loaded[key], start, engine, say, kind)
    return found


def _engines(
    flavour: str,
    profiles: list[str],
    asked: dict[str, Any],
    folders: list[store.ModelFolder],
    precisions: list[str],
    quantising: Quantising,
) -> "Engines":
    """Which flavour builds, why that one, with what, and how int8 and fp16 are made.

    Raises UserError for what cannot be done.
    """
    from cifar_deploy.engines import flavour as flavours
    from cifar_deploy.engines.options import Options, Profile, check

    if profiles:
        asked = {**asked, "profiles": tuple(map(Profile.parse, profiles))}
    options = Options(**asked)
    from cifar_deploy.export.engine import cuda_device

    gpu = cuda_device()
    chosen, reason = flavours.choose(flavour, gpu is not None)
    check(options, chosen, gpu is not None)
    for folder in folders:
        store.read_card(folder)
    return chosen, reason, options, _calibrations(folders, precisions, quantising, engine=True)


def _export_engines(
    folders: list[store.ModelFolder], precisions: list[str], engines: "Engines"
) -> list[store.Json]:
    from cifar_deploy.engines.progress import Bars
    from cifar_deploy.export.engine import export_engine

    chosen, reason, options, calibrations = engines
    say(f"{chosen}: {reason}")
    manifests = []
    for folder, made in zip(folders, calibrations, strict=True):
        for precision in precisions:
            with Bars() as bars:
                path = export_engine(folder, precision, chosen, options, bars, made.get(precision))
            manifests.append(_exported(path))
    return manifests


def _exported(path: Path) -> store.Json:
    """Say what was written; its manifest, which has no folder, and the path."""
    manifest = store.read_json(store.manifest_path(path))
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
            said += f", a loss of at most {most:.2f} points on {drop['images']:,} {others}"
            said += f", {len(kept)} of {drop['layers']} layers in fp32{': ' if kept else ''}"
            said += ", ".join(kept)
        elif kept:
            said += f", {', '.join(kept)} in fp32"
    say(said)
    return {**manifest, "path": str(path)}
