"""`cifar-deploy predict`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cifar_deploy import disk
from cifar_deploy.cli.options import (
    DeviceOption,
    JsonFlag,
    OnnxBy,
    TrustFlag,
    csv_option,
    csv_text,
    is_stdout,
    print_json,
    say,
)
from cifar_deploy.errors import UserError, disk_errors, few

if TYPE_CHECKING:
    from cifar_deploy.data.dataset import Images


def predict(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE|grpc://...",
            help="Trained model, exported file, C++ package, or what a server has, as "
            "grpc://localhost:8001/MODEL.",
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE|FOLDER", help="Pictures, or folders that hold some at any depth."
        ),
    ],
    top: Annotated[int, typer.Option(help="How many of the likeliest classes to show.", min=1)] = 3,
    runtime: Annotated[
        OnnxBy | None,
        typer.Option(help="What runs an ONNX file; openvino on a CPU. [default: onnxruntime]"),
    ] = None,
    trust: TrustFlag = False,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    csv_file: Annotated[Path | None, csv_option("--csv", "a line for each image")] = None,
) -> None:
    """Classify pictures of any size and format: the likeliest classes with probabilities.

    Exit status 1 if one in a folder could not be read; the others are classified, and --json
    and --csv tell the `error` of that one.
    """
    from cifar_deploy.classifier import load

    if as_json and is_stdout(csv_file):
        raise UserError("--json and --csv - both print to standard output; write --csv FILE.csv")
    read = [one for given in images for one in _read(given)]  # before a model is loaded
    classifier = load(model, device, trust, runtime)
    predictions = iter(classifier.predict([i for _, i in read if not isinstance(i, UserError)]))
    answers: list[disk.Json] = []
    for path, image in read:
        if isinstance(image, UserError):
            answers.append({"image": str(path), "error": str(image)})
            continue
        likeliest = [
            {"class": label, "probability": round(probability, 6)}
            for label, probability in next(predictions).top(top)
        ]
        answers.append({"image": str(path), "top": likeliest})
    lines = csv_text(_lines(answers, min(top, len(classifier.classes)))) if csv_file else ""
    try:
        if as_json:
            print_json(answers)
        elif is_stdout(csv_file):
            typer.echo(lines, nl=False)
        else:
            _print(answers)
    finally:  # whatever standard output refuses
        if csv_file and not is_stdout(csv_file):
            disk.write_text(csv_file, lines)
    if any("error" in answer for answer in answers):
        raise typer.Exit(1)


def _print(answers: Sequence[disk.Json]) -> None:
    for answer in answers:
        if "top" in answer:  # the others have been told
            ranks = (f"{t['class']} {100 * t['probability']:.1f} %" for t in answer["top"])
            typer.echo(f"{answer['image']}: {'  '.join(ranks)}")


def _lines(answers: Sequence[disk.Json], count: int) -> Iterator[list[str | float]]:
    """A heading, then what the JSON tells of each image, with the `count` likeliest classes."""
    ranks = (f"{what}_{i}" for i in range(1, count + 1) for what in ("class", "probability"))
    yield ["image", *ranks, "error"]
    for answer in answers:
        found = [cell for one in answer.get("top", ()) for cell in one.values()]
        unknown = [""] * (2 * count - len(found))
        yield [answer["image"], *found, *unknown, answer.get("error", "")]


def _read(given: Path) -> "list[tuple[Path, Images | UserError]]":
    """What is read of a path. Of a folder what cannot be read is told, and why it cannot.

    Raises UserError for a file that cannot be read, and for a folder where none can.
    """
    from cifar_deploy.classifier import pictures

    found: list[tuple[Path, Images | UserError]] = []
    for path in _pictures(given):
        try:
            found.append((path, pictures(path)))
        except UserError as error:
            found.append((path, error))
    broken = [image for _, image in found if isinstance(image, UserError)]
    if len(broken) == len(found):
        raise broken[0]
    for reason in broken:
        say(f"left out: {reason}")
    return found


def _pictures(path: Path) -> list[Path]:
    """The path itself, or the pictures in a folder and its folders, by name, without other kinds.

    Hidden ones are left out, too.
    """
    from cifar_deploy.data.image import may_be_image

    with disk_errors(path, "read"):
        if not path.is_dir():
            return [path]
        inside = list(_files(path))
    found: list[Path] = []
    others: list[Path] = []
    for one in inside:
        (found if may_be_image(one) else others).append(one)
    if not found:
        raise UserError(f"{path} holds no pictures; name a folder that does, or files")
    if others:
        names = [one.relative_to(path) for one in others]
        say(f"{path}: {few(names, 1)} left out: no pictures by their names")
    return found


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files in a folder and its folders, by name, without hidden ones."""
    from cifar_deploy.data.folder import visible

    here = folder.resolve()
    if here in above:  # a link leads back
        return
    for one in visible(folder):
        if one.is_dir():
            yield from _files(one, (*above, here))
        elif one.is_file():
            yield one
