"""`cifar-deploy predict`."""

from pathlib import Path
from typing import Annotated

import typer

from cifar_deploy import store
from cifar_deploy.cli.options import DeviceOption, JsonFlag, TrustFlag, print_json
from cifar_deploy.errors import UserError, disk_errors


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL|FILE", help="What predicts.")],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE|FOLDER...", help="Pictures, or folders of them.")
    ],
    trust: TrustFlag = False,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Classify pictures of any size and format: the top 3 with probabilities."""
    from cifar_deploy.classifier import load, pictures

    images = [path for given in images for path in _pictures(given)]
    pixels = pictures(images)  # a picture that is none is told before a model is loaded
    classifier = load(model, device, trust)
    answers: list[store.Json] = [
        {
            "image": str(path),
            "top": [
                {"class": label, "probability": round(probability, 6)}
                for label, probability in prediction.top(3)
            ],
        }
        for path, prediction in zip(images, classifier.predict(pixels), strict=True)
    ]
    if as_json:
        print_json(answers)
        return
    for answer in answers:
        top = "  ".join(f"{t['class']} {100 * t['probability']:.1f} %" for t in answer["top"])
        typer.echo(f"{answer['image']}: {top}")


def _pictures(path: Path) -> list[Path]:
    """The path itself, or the files in a folder by name, without hidden ones."""
    from cifar_deploy.data.folder import visible

    with disk_errors(path, "read"):
        if not path.is_dir():
            return [path]
        found = [inside for inside in visible(path) if inside.is_file()]
    if not found:
        raise UserError(f"{path} holds no pictures; name a folder that does, or files")
    return found
