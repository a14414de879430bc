"""`cifar-deploy layers`."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifar_deploy import cards, store
from cifar_deploy.cli.options import (
    ItsDataDirOption,
    ItsSourceOption,
    JsonFileOption,
    MeanOption,
    Source,
    StdOption,
    command,
    doing,
    per_channel,
    show,
)
from cifar_deploy.errors import UserError
from cifar_deploy.kind import SUFFIXES, Format
from cifar_deploy.terminal import sheet

if TYPE_CHECKING:
    from cifar_deploy.data.dataset import Dataset
    from cifar_deploy.validate.layers import Layer

MUCH = 6.0  # dB, a bit: what is marked


def layers(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="ONNX file in int8 or fp16.")],
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File to compare with; default: the fp32 file beside it."
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(help="Number of training images to compare on.", min=1)
    ] = 256,
    mean: MeanOption = None,
    std: StdOption = None,
    data_dir: ItsDataDirOption = None,
    data: ItsSourceOption = None,
    json_file: JsonFileOption = None,
) -> None:
    """Show which layers of an ONNX file lose accuracy: the noise in each, against the fp32 file.

    `export --precision int8 --keep-fp32 NODE` leaves a convolution or linear layer in fp32, and so
    it does in fp16.
    """
    from cifar_deploy.runtimes.half import LARGEST
    from cifar_deploy.runtimes.onnx_interface import Pixels
    from cifar_deploy.validate.layers import compare, exact_beside

    given = (per_channel(mean, "--mean"), per_channel(std, "--std", positive=True))
    folder = store.ModelFolder(file.parent)
    made_from = None
    if not reference and folder.card.exists():
        made_from = cards.read_card(folder)["weights"]["sha256"]
    _check(file, made_from)
    exact = reference or exact_beside(file)
    _check(exact, made_from)
    with doing("reading") as told:
        dataset, normal = _dataset(folder, data, data_dir)
        pixels = Pixels(given[0] or normal[0], given[1] or normal[1])
        chosen = dataset.train.spread(images).images
        told(f"{file} and {exact} over {len(chosen):,} images")
        found, count = compare(exact, file, chosen, pixels)
    value = {
        "command": command(),
        "file": str(file),
        "reference": str(exact),
        "data": dataset.name,
        "images": count,
        "layers": [
            # JSON has no infinity, and no word for what is no number.
            {k: None if _infinite(v) else v for k, v in dataclasses.asdict(layer).items()}
            | {"state": _state(layer.snr)}
            for layer in found
        ],
    }
    note = (
        f"SNR: power of what {exact.name} gives over that of the difference, {count:,} training "
        f"images of {dataset.name}; lost: how much lower that is than the noisiest of what the "
        "layer takes."
    )
    if any(layer.snr is None for layer in found):
        note += (
            " Not there: no tensor of that name and shape, as of a layer that is one with the next."
        )
    lost = [layer.node for layer in found if _state(layer.snr) == "no number"]
    if lost:
        note += (
            f" No number: {lost[0]} is the first to give NaN or infinity. What is beyond "
            f"{LARGEST:,}, where fp16 ends, wants its layer in fp32 and the next one: `export "
            "--keep-fp32`, or --max-drop, which finds out."
        )
    show(_table(found), [note], value, json_file, 100)


def _check(path: Path, made_from: str | None) -> None:
    """Raise UserError for what is no whole ONNX file, or was exported from other weights."""
    from cifar_deploy.runtimes.load import check_file

    if path.suffix != SUFFIXES[Format.onnx]:
        raise UserError(f"{path} is no ONNX file; name one, as models/cnn9/cnn9.int8.onnx")
    check_file(path, made_from)


def _dataset(
    folder: store.ModelFolder, source: Source | None, data_dir: Path | None
) -> "tuple[Dataset, tuple[list[float], list[float]]]":
    """The images, those that the model was trained on by default, and their mean and std for it.

    Raises UserError where the model knows other classes.
    """
    from cifar_deploy.data import find

    card = cards.card_of(folder)
    data = card.get("data", {})
    dataset = find.of_models(source.value if source else None, data_dir)(folder.name, card)
    normal = dataset.normalisation
    return dataset, (data.get("mean") or normal[0], data.get("std") or normal[1])


def _infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _state(snr: float | None) -> str:
    """What is said of a ratio in place of a number; "noisy": nothing, it is one."""
    if snr is None:
        return "not there"
    if math.isnan(snr):
        return "no number"
    return {math.inf: "exact", -math.inf: "all noise"}.get(snr, "noisy")


def _table(found: "list[Layer]") -> Any:
    from rich.text import Text

    numbers = ("SNR, dB", "lost, dB")
    table = sheet(("layer", "operator", *numbers), numbers)
    for layer in found:
        # Rounded first: -0.0 is told as 0.0.
        lost = "" if layer.lost is None else f"{round(layer.lost, 1) + 0.0:.1f}"
        state = _state(layer.snr)
        snr = f"{layer.snr:.1f}" if state == "noisy" else state
        much = layer.lost is not None and layer.lost >= MUCH
        table.add_row(
            *map(Text, (layer.node, layer.operator, snr)), Text(lost, "red" if much else "")
        )
    return table
