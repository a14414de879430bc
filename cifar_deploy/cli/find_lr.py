"""`cifar-deploy find-lr`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from cifar_deploy import architectures, disk
from cifar_deploy.cli.options import (
    BatchOption,
    DataDirOption,
    DeviceOption,
    InitOption,
    JsonFlag,
    NetworkArgument,
    RecipeOption,
    SetOption,
    Source,
    SourceOption,
    TeacherOption,
    WeightsFileOption,
    by_teachers,
    doing,
    print_json,
    say,
)
from cifar_deploy.cli.train import home

# A rate that is too high takes some steps to show, and the loss is a running mean of 20: with fewer
# steps the rate is far beyond by then.
FEWEST_STEPS = 60


def find_lr(
    network: NetworkArgument,
    low: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 1e-4,
    high: Annotated[float, typer.Option(help="Learning rate of the last step.")] = 10.0,
    steps: Annotated[
        int, typer.Option(help="Training steps from --low to --high.", min=FEWEST_STEPS)
    ] = 200,
    batch_size: BatchOption = None,
    init: InitOption = None,
    weights_file: WeightsFileOption = None,
    teacher: TeacherOption = None,
    device: DeviceOption = "auto",
    data_dir: DataDirOption = None,
    data: SourceOption = Source.auto,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Picture of the curve; default find-lr.png in the folder that `train` writes to."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Suggest a peak learning rate: a range test with its curve as a picture."""
    from cifar_deploy import recipe as recipes

    name = architectures.canonical(network)
    folder = home(name, recipe)
    overrides = [f"train.batch_size={batch_size}"] if batch_size is not None else []
    overrides += [*by_teachers(teacher), *(set_ or [])]
    found = recipes.load(recipes.find(recipe, folder, name), overrides)
    from cifar_deploy.data import find
    from cifar_deploy.device import pick
    from cifar_deploy.train import find_lr as finder
    from cifar_deploy.train.loop import Job
    from cifar_deploy.train.process import prepare

    finder.check(low, high)
    picture = out or folder.finder
    disk.check_place(picture)
    where = pick(device)
    prepare(where)
    job = Job(name, found, find.load(data.value, data_dir), where, folder)
    job = dataclasses.replace(job, init=init, weights_file=weights_file)
    with doing("range test") as told:
        curve = finder.find(job, low, high, steps, told)
    finder.draw(picture, f"{name}, batch of {found.train.batch_size}", curve)
    more, filters = {}, ""
    if found.optimizer.name == "muon":  # its rate moved in proportion
        rate = curve.suggested * found.optimizer.muon_lr / found.optimizer.lr
        more = {"suggested_muon_lr": rate}
        filters = f"; Muon's with it: --lr {curve.suggested:.2g} --set optimizer.muon_lr={rate:.2g}"
    if as_json:
        print_json({**dataclasses.asdict(curve), **more, "picture": str(picture)})
        return
    if curve.falling:
        say(f"the loss was still falling at --high {high:g}: set a higher one")
    typer.echo(
        f"{name}: suggested peak {curve.suggested:.2g} (steepest descent at {curve.steepest:.2g}, "
        f"lowest loss at {curve.lowest:.2g}); the recipe has {found.optimizer.lr:g}"
        f"{filters}\n{picture}"
    )
