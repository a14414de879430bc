"""`cifar-deploy data`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from cifar_deploy import architectures, disk
from cifar_deploy.cli.options import (
    DataDirOption,
    JsonFlag,
    SetOption,
    Source,
    SourceOption,
    print_json,
    say,
    say_doubts,
)
from cifar_deploy.errors import UserError


def data(
    preview: Annotated[
        Path | None,
        typer.Option(help="Write a picture (PNG) of images before and after augmentation."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NETWORK|MODEL", help="--preview: augment as this one's recipe says."),
    ] = None,
    set_: SetOption = None,
    split: Annotated[
        Path | None,
        typer.Option(
            help="Make a data set in this new folder from the class folders in --data-dir: a "
            "fifth of each class is for testing."
        ),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the test images to this file, for `classify --evaluate` of a C++ package.",
        ),
    ] = None,
    data_dir: DataDirOption = None,
    source: SourceOption = Source.auto,
    as_json: JsonFlag = False,
) -> None:
    """Say what data set was found: counts, checksums, class balance, mean and std."""
    from cifar_deploy import recipe as recipes
    from cifar_deploy.data import find
    from cifar_deploy.data.doubts import of_val
    from cifar_deploy.data.progress import Reading

    path = None
    if model:  # a trained model knows its network, whatever it is called
        network = architectures.network_of(model)
        path = recipes.recipe_path(architectures.folder(model), network)
    recipe = recipes.load(path, set_ or [])
    for place in filter(None, (preview, records)):
        disk.check_place(place)
    if split:
        from cifar_deploy.data.split import split as make

        if data_dir is None:
            raise UserError("--split needs --data-dir, the folder with a folder for each class")
        make(data_dir, split)
        data_dir = split
    with Reading() as watch:
        dataset = find.load(source.value, data_dir, watch=watch)
    say_doubts(dataset)
    try:
        if dataset.val and (line := of_val(dataset, dataset.val())):
            say(line)
    except UserError as error:
        say(f"val/ is of no use so: {error}")
        dataset = dataclasses.replace(dataset, val=None)
    facts = dataset.describe()
    if preview:
        from cifar_deploy.data.preview import preview as draw

        draw(dataset, recipe.augment, preview)
        facts["preview"] = str(preview)
    if records:
        from cifar_deploy.data.records import write_records

        write_records(dataset.test, records)
        facts["records"] = str(records)
    if as_json:
        print_json(facts)
        return
    for key in ("name", "origin", "verified", "sha256"):
        typer.echo(f"{key:<10}{facts[key]}")
    for part in filter(facts.get, ("train", "test", "val")):
        counts = ", ".join(f"{k} {v:,}" for k, v in facts[part]["per_class"].items())
        typer.echo(f"{part:<10}{facts[part]['images']:,} images: {counts}")
    typer.echo(f"{'mean':<10}{facts['mean']}\n{'std':<10}{facts['std']}")
    for key in ("preview", "records"):
        if key in facts:
            typer.echo(f"{key:<10}{facts[key]}")
