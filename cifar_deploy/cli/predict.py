"""`cifar-deploy predict`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cifar_deploy import store
from cifar_deploy.cli.options import DeviceOption, JsonFlag, OnnxBy, TrustFlag, print_json, say
from cifar_deploy.errors import UserError, disk_errors

if TYPE_CHECKING:
    from cifar_deploy.data.dataset import Images


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL|FILE|grpc://...", help="What predicts.")],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE|FOLDER...", help="Pictures, or folders of them.")
    ],
    top: Annotated[int, typer.Option(help="So many of the likeliest classes.", min=1)] = 3,
    runtime: Annotated[
        OnnxBy | None, typer.Option(help="What runs an ONNX file. [default: onnxruntime]")
    ] = None,
    trust: TrustFlag = False,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Classify pictures of any size and format: the likeliest classes with probabilities.

    Exit status 1 if one in a folder could not be read; the others are classified.
    """
    from cifar_deploy.classifier import load

    read = [_read(given) for given in images]  # before a model is loaded
    paths = [path for found, _ in read for path in found]
    pixels = [image for found, _ in read for image in found.values()]
    classifier = load(model, device, trust, runtime)
    answers: list[store.Json] = [
        {
            "image": str(path),
            "top": [
                {"class": label, "probability": round(probability, 6)}
                for label, probability in prediction.top(top)
            ],
        }
        for path, prediction in zip(paths, classifier.predict(pixels), strict=True)
    ]
    if as_json:
        print_json(answers)
    else:
        for answer in answers:
            said = "  ".join(f"{t['class']} {100 * t['probability']:.1f} %" for t in answer["top"])
            typer.echo(f"{answer['image']}: {said}")
    if any(broken for _, broken in read):
        raise typer.Exit(1)


def _read(given: Path) -> "tuple[dict[Path, Images], bool]":
    """What is read of a path, and whether a folder holds some that cannot be, which are told.

    Raises UserError for a file that cannot be read, and for a folder where none can.
    """
    from cifar_deploy.classifier import pictures

    found: dict[Path, Images] = {}
    broken: list[UserError] = []
    for path in _pictures(given):
        try:
            found[path] = pictures(path)
        except UserError as error:
            broken.append(error)
    if not found:
        raise broken[0]
    for reason in broken:
        say(f"left out: {reason}")
    return found, bool(broken)


def _pictures(path: Path) -> list[Path]:
    """The path itself, or a folder's pictures by name, without hidden files and other kinds."""
    from cifar_deploy.data.folder import visible
    from cifar_deploy.data.image import may_be_image

    with disk_errors(path, "read"):
        if not path.is_dir():
            return [path]
        inside = [one for one in visible(path) if one.is_file()]
    found: list[Path] = []
    others: list[Path] = []
    for one in inside:
        (found if may_be_image(one) else others).append(one)
    if not found:
        raise UserError(f"{path} holds no pictures; name a folder that does, or files")
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        say(f"{path}: {others[0].name}{more} left out: no pictures by their names")
    return found
