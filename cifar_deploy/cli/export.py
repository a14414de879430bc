"""`cifar-deploy export`."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cifar_deploy import architectures, disk, exporting, store
from cifar_deploy.cli.options import (
    ITS_DATA,
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

# Options under a heading of their own on the page of --help.
of_onnx = functools.partial(typer.Option, rich_help_panel="Options of ONNX files")
of_fewer_bits = functools.partial(typer.Option, rich_help_panel="Options of int8 and fp16")
of_engines = functools.partial(typer.Option, rich_help_panel="Options of engines (--format trt)")


def export(
    models: Models = None,
    format: Annotated[
        list[Format] | None,
        several(Format, "What to write: onnx, trt (engines), or both (onnx,trt). [default: onnx]"),
    ] = None,
    precision: Annotated[
        list[Precision] | None,
        several(Precision, "Precisions to export, e.g. fp32,fp16. [default: fp32]"),
    ] = None,
    as_json: JsonFlag = False,
    batch: Annotated[
        int | None,
        of_onnx(help="Batch size that the file takes; default: any.", min=1, max=LARGEST_BATCH),
    ] = None,
    calibration_images: Annotated[
        int | None,
        of_fewer_bits(
            help="int8: number of training images to calibrate on. [default: 512]", min=1
        ),
    ] = None,
    keep_fp32: Annotated[
        list[str] | None,
        of_fewer_bits(
            metavar="NODE",
            help="Keep this convolution or linear layer in fp32, by its name in `cifar-deploy "
            "layers`; may be repeated.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        of_fewer_bits(
            metavar="POINTS",
            help="Keep as many layers in fp32 as it takes to lose no more percentage points of "
            "accuracy, on training images.",
            min=0.0,
            max=100.0,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        of_fewer_bits(help=f"Folder of the data set; default: {ITS_DATA}."),
    ] = None,
    flavour: Annotated[
        str,
        of_engines(
            help="Library that builds: tensorrt, tensorrt-rtx (TensorRT for RTX), or auto: "
            "tensorrt where it is installed and there is a GPU, else tensorrt-rtx."
        ),
    ] = "auto",
    batch_profile: Annotated[
        list[str] | None,
        of_engines(
            metavar="MIN/OPT/MAX",
            help="Batch sizes of the engine: smallest/tuned for/largest; default 1/128/1024; may "
            "be repeated.",
        ),
    ] = None,
    workspace: Annotated[
        int | None,
        of_engines(metavar="MIB", help="MiB of GPU memory that a layer may use. [default: all]"),
    ] = None,
    timing_cache_file: Annotated[
        Path | None,
        of_engines(help="tensorrt: file of measured layer times; default: in the user's cache."),
    ] = None,
    version_compatible: Annotated[
        bool,
        of_engines(
            "--version-compatible",
            help="tensorrt: let later versions of TensorRT run the engine, too.",
        ),
    ] = False,
    hardware_compatibility: Annotated[
        str | None,
        of_engines(
            metavar="LEVEL",
            help="tensorrt: let other GPUs run the engine, too: ampere+ (Ampere and later) or "
            "same-compute-capability.",
        ),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        of_engines(
            metavar="X.Y...",
            help="tensorrt-rtx: compute capabilities of the GPUs to build for, as 8.6 8.9 12.0, or "
            "8.6,8.9; default: the library's.",
        ),
    ] = None,
    builder_optimization_level: Annotated[
        int | None,
        of_engines(
            metavar="0..5", help="How hard to optimise; more takes longer to build. [default: 3]"
        ),
    ] = None,
    strip_weights: Annotated[
        bool,
        of_engines(
            "--strip-weights",
            help="Build without weights; they are read from the ONNX file beside the engine.",
        ),
    ] = False,
    export_layer_info: Annotated[
        bool,
        of_engines(
            "--export-layer-info", help="Also write the engine's layers to a JSON file beside it."
        ),
    ] = False,
    tf32: Annotated[
        bool,
        of_engines("--tf32", help="Let fp32 layers round to TF32: faster, less exact."),
    ] = False,
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
