"""`cifar-deploy demo`."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from cifar_deploy import exporting, proving, store
from cifar_deploy.cli import train, validate
from cifar_deploy.cli.options import DataDirOption, Source, SourceOption, doing, say
from cifar_deploy.errors import UserError


def demo(
    folder: Annotated[Path, typer.Option(help="Output folder.")] = Path("demo"),
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 8,
    data_dir: DataDirOption = None,
    data: SourceOption = Source.auto,
) -> None:
    """Train the smallest network, export it in fp32 and fp16, and prove both files."""
    from cifar_deploy.data import find

    source = data.value
    if source == "auto" and not find.named(data_dir):
        try:
            find.load()
        except UserError as error:
            say(f"{error}\nGoing on with the generated data set.")
            source = "synthetic"
    model = store.ModelFolder(folder / "simple_cnn")
    with train.only_run(model):
        train.run("simple_cnn", model, [f"train.epochs={epochs}"], source=source, data_dir=data_dir)
    exporting.write_onnx([model], ["fp32", "fp16"], told=say)
    judgements = proving.prove(
        [(model, model.exported())],
        source=source,
        data_dir=data_dir,
        say=say,
        progress=functools.partial(doing, "validating"),
    )
    validate.publish(judgements, folder / "validation.json", [folder / "report.html"])
    if not all(judgement.passed for judgement in judgements):
        raise typer.Exit(1)
