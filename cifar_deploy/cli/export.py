"""`cifar-deploy export`."""

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cifar_deploy import architectures, disk, exporting, store
from cifar_deploy.cli.options import (
    ItsDataDirOption,
    JsonFlag,
    Models,
    print_json,
    say,
    several,
)
from cifar_deploy.engines.options import LARGEST_BATCH, Options, Profile, capabilities, hardware
from cifar_deploy.errors import UserError
from cifar_deploy.exporting import Quantising
from cifar_deploy.kind import Format, Precision

if TYPE_CHECKING:
    from cifar_deploy.engines.progress import Bars

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
    data_dir: ItsDataDirOption = None,
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
    folders = [architectures.folder(m) for m in named] or store.all_trained()
    formats = format or [Format.onnx]
    precisions = [p.value for p in precision or [Precision.fp32]]
    options = Options(
        workspace=workspace,
        timing_cache=timing_cache_file,
        version_compatible=version_compatible,
        hardware_compatibility=hardware(hardware_compatibility),
        compute_capabilities=capabilities([*(compute_capability or []), *versions]),
        level=builder_optimization_level,
        strip_weights=strip_weights,
        layer_info=export_layer_info,
        tf32=tf32,
    )
    given = batch_profile or options != Options()
    if batch_profile and Format.trt in formats:
        profiles = tuple(map(Profile.parse, batch_profile))
        options = dataclasses.replace(options, profiles=profiles)
    files = exporting.export(
        folders,
        formats,
        precisions,
        Quantising(calibration_images, data_dir, tuple(dict.fromkeys(keep_fp32 or ())), max_drop),
        batch,
        flavour,
        options if given or Format.trt in formats else None,
        say,
        _bars,
    )
    if as_json:  # a manifest has no folder
        manifests = [(file, disk.read_json(store.manifest_path(file))) for file in files]
        print_json([{**manifest, "path": str(file)} for file, manifest in manifests])


def _bars() -> "Bars":
    from cifar_deploy.engines.progress import Bars

    return Bars()
