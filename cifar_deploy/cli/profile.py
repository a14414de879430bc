"""`cifar-deploy profile`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifar_deploy.cli.options import (
    JsonFileOption,
    OnnxBy,
    command,
    doing,
    show,
)
from cifar_deploy.engines.options import LARGEST_BATCH
from cifar_deploy.errors import UserError
from cifar_deploy.kind import SUFFIXES, Format
from cifar_deploy.terminal import sheet

if TYPE_CHECKING:
    from cifar_deploy.benchmark.profile import Profile

MUCH = 0.2  # of the time: what is marked


def profile(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="ONNX file to run.")],
    batch: Annotated[int, typer.Option(help="Images per call.", min=1, max=LARGEST_BATCH)] = 1,
    runtime: Annotated[OnnxBy, typer.Option(help="What runs the file.")] = OnnxBy.onnxruntime,
    seconds: Annotated[float, typer.Option(help="Seconds to measure.", min=0.0, max=60.0)] = 1.0,
    json_file: JsonFileOption = None,
) -> None:
    """Show where the time of an ONNX file goes: what every layer takes, on a CPU."""
    if file.suffix != SUFFIXES[Format.onnx]:
        way = "name one, as models/cnn9/cnn9.fp32.onnx"
        if file.suffix == SUFFIXES[Format.trt]:
            way = (
                "of an engine `export --format trt --export-layer-info` tells the layers, and "
                "trtexec --dumpProfile their times"
            )
        raise UserError(f"{file} is no ONNX file; {way}")
    from cifar_deploy import device as machine
    from cifar_deploy.benchmark.profile import CPU
    from cifar_deploy.benchmark.profile import profile as measure
    from cifar_deploy.runtimes.load import check_file
    from cifar_deploy.watch import Watch

    check_file(file)
    with doing(f"running {file}"), Watch(CPU) as watch:
        found = measure(file, runtime.value, batch, seconds)
        remarks = watch.remarks()
    if found.addition:
        remarks.insert(0, f"{file.name} {found.addition}, and timed with it: layers of the table")
    value = {
        "command": command(),
        "file": str(file),
        "device": machine.describe(CPU),
        "versions": machine.versions(),
        "remarks": remarks,
        **dataclasses.asdict(found),
    }
    show(_table(found), [*_notes(found, machine.describe(CPU)), *remarks], value, json_file, 120)


def _notes(found: "Profile", device: str) -> list[str]:
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in found.operators().items())
    layers = sum(layer.ms for layer in found.layers)
    counted = ""
    if _has_kernels(found):
        counted = " OpenVINO counts a layer's whole microseconds, and tells their mean."
    return [
        f"{found.runtime}, {device}; batch {found.batch}, medians of {found.runs:,} runs. All "
        f"layers {layers:.3f} ms, a whole run {found.ms:.3f} ms while it is profiled.{counted}",
        f"By operator: {shares}.",
    ]


def _has_kernels(found: "Profile") -> bool:
    """Whether it is OpenVINO's, which tells them."""
    return any(layer.kernel for layer in found.layers)


def _table(found: "Profile") -> Any:
    from rich.text import Text

    kernels = _has_kernels(found)
    numbers = ("ms", "%")
    table = sheet(("layer", "operator", *(["kernel"] if kernels else []), *numbers), numbers)
    for layer in found.layers:
        texts = [layer.name, layer.operator, *([layer.kernel] if kernels else [])]
        share = Text(f"{100 * layer.share:.1f}", "red" if layer.share >= MUCH else "")
        table.add_row(*map(Text, texts), f"{layer.ms:.3f}", share)
    return table
