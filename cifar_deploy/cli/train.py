"""`cifar-deploy train`."""

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cifar_deploy import architectures, disk, store
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
    command,
    print_card,
    say,
    say_doubtful,
    say_doubts,
)
from cifar_deploy.errors import UserError

# Of a job that torchrun or SLURM started again: how often.
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
PASSING = ("--resume", "--finish", "--json", "--profile")  # no part of what gives a run again


def train(
    network: NetworkArgument,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images; default: the recipe's.")
    ] = None,
    batch_size: BatchOption = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate; default: the recipe's.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Random seed (weights, order, augmentation); default: the recipe's."),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            help="Train so many times, each with another seed, for the mean and the spread; the "
            "weights are those of the first.",
            min=1,
        ),
    ] = 1,
    init: InitOption = None,
    weights_file: WeightsFileOption = None,
    teacher: TeacherOption = None,
    hold_out: Annotated[
        str | None,
        typer.Option(
            metavar="N|val",
            help="Measure accuracy on N training images that are set aside, or on val/ of your "
            "own folder, and not on the test images.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    data_dir: DataDirOption = None,
    data: SourceOption = Source.auto,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output folder; default models/NETWORK, or models/NETWORK-WORD with --recipe WORD."
        ),
    ] = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue from the checkpoint of a run that was stopped."),
    ] = False,
    finish: Annotated[
        bool,
        typer.Option(
            "--finish",
            help="With --resume: end the run at its checkpoint, and write weights and card.",
        ),
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Show where the time of a training step goes, and write trace.json."
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a network: weights, card, curves and log go to models/NETWORK.

    With torchrun --nproc-per-node N -m cifar_deploy train, N processes share every batch.
    """
    if finish and not resume:
        raise UserError("--finish ends a run at its checkpoint: give it with --resume")
    if finish and seeds > 1:
        raise UserError("--finish ends one run: seeds of several lengths have no mean in common")
    flags = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
    overrides = [f"train.{k}={v}" for k, v in flags.items() if v is not None]
    overrides += [f"optimizer.lr={lr}"] if lr is not None else []
    overrides += by_teachers(teacher)
    if hold_out is not None:
        overrides += _held_out(hold_out)
    overrides += set_ or []
    name = architectures.canonical(network)
    folder = store.ModelFolder(out) if out else home(name, recipe)
    # A job that was started again has its first command: it goes on.
    begun = folder.checkpoint.exists() or folder.seeds.exists()
    resume = resume or (begun and any(os.environ.get(v, "0") not in ("", "0") for v in RESTARTS))
    with only_run(folder) as first:
        if first and not resume:
            _keep_unfinished(folder, init)
        card = run(
            *(name, folder, overrides, recipe, device, data.value, data_dir, resume),
            init=init,
            weights_file=weights_file,
            seeds=seeds,
            profile=profile,
            finish=finish,
        )
    if card is None:
        return
    say_doubtful(name, card)
    if as_json:
        print_card(card, folder)
        return
    from cifar_deploy.train.remarks import ended

    typer.echo(f"{name}: {ended(card)}")
    typer.echo(f"{folder.weights}  {folder.card}  {folder.curves}")


def _held_out(by: str) -> list[str]:
    """What `--hold-out by` sets: 0 takes a recipe's hold-out back. Raises UserError."""
    from cifar_deploy.data.folder import VAL

    if by == VAL:
        return ["data.holdout=0", "data.val=true", "data.test=false"]
    if not by.isdecimal():
        raise UserError(f"--hold-out {by}: a number of training images, or {VAL}")
    return [f"data.holdout={by}", "data.val=false", *(["data.test=false"] if int(by) else [])]


def home(name: str, recipe: str | None) -> store.ModelFolder:
    """Where a run writes: a second recipe does not overwrite what the first one made."""
    from cifar_deploy.recipe import is_word

    second = f"-{recipe}" if recipe and is_word(recipe) else ""
    return store.ModelFolder(store.models_root() / f"{name}{second}")


@contextlib.contextmanager
def only_run(folder: store.ModelFolder) -> Iterator[bool]:
    """Let no other run write there; of several processes the first sees to it. Yields if it is."""
    from cifar_deploy.train.ranks import is_first

    first = is_first()
    with disk.only_writer(folder.path) if first else contextlib.nullcontext():
        yield first


def _keep_unfinished(folder: store.ModelFolder, init: str | None) -> None:
    """Raise UserError where a run in the middle would be written over."""
    resume, what = "--resume", "it"
    if folder.seeds.exists():  # until all seeds are done
        resume, what = "--seeds N --resume", f"it and {folder.seeds}"
    for begun in (folder.checkpoint, *sorted(folder.seeds.glob("*/*"))):
        if begun.exists() and not (init and _is(init, begun)):
            raise UserError(
                f"{begun} is of a run that has not ended; go on with {resume}, write elsewhere "
                f"with --out, or remove {what} to begin anew"
            )


def _is(init: str, file: Path) -> bool:
    """Whether `--init init` names this file."""
    from cifar_deploy.train import initial

    return initial.place(init).resolve() == file.resolve()


def run(
    name: str,
    folder: store.ModelFolder,
    overrides: list[str],
    recipe: str | None = None,
    device: str = "auto",
    source: str = "auto",
    data_dir: Path | None = None,
    resume: bool = False,
    init: str | None = None,
    weights_file: Path | None = None,
    seeds: int = 1,
    profile: bool = False,
    finish: bool = False,
) -> disk.Json | None:
    """Train; returns the card, or None in those of several processes that write nothing."""
    from cifar_deploy import recipe as recipes

    found = recipes.load(recipes.find(recipe, folder, name), overrides)
    from cifar_deploy.data import find
    from cifar_deploy.data.progress import Reading
    from cifar_deploy.device import launched, pick
    from cifar_deploy.train import remarks
    from cifar_deploy.train import seeds as several
    from cifar_deploy.train.interrupt import Interrupted
    from cifar_deploy.train.loop import Job, Trainer
    from cifar_deploy.train.process import prepare
    from cifar_deploy.train.progress import Bar
    from cifar_deploy.train.ranks import check_launch, own_device, together

    check_launch()
    where = pick(own_device(device) if launched() else device)
    prepare(where)
    with together(where) as ranks:
        started = time.perf_counter()
        # Only one of a machine's processes downloads.
        with ranks.one_after_the_other(), Reading(not ranks.main) as watch:
            dataset = find.load(source, data_dir, watch=watch)
        job = Job(
            *(name, found, dataset, where, folder, resume, finish),
            *(init, weights_file, ranks, profile),
            command=_command(ranks.world),
            data_seconds=time.perf_counter() - started,
        )

        @functools.cache
        def doubt() -> None:  # all seeds have the same images
            say_doubts(dataset, found.data.val)

        def watching(trainer: Trainer) -> Bar:
            if ranks.main:
                say(remarks.plan(trainer))
                doubt()
                for line in remarks.beforehand(trainer):
                    say(line)
            return Bar(trainer.steps, found.train.epochs, trainer.state.step, not ranks.main)

        try:
            card = several.run(job, seeds, watching)
        except Interrupted as stop:
            if ranks.main:
                end = ", or end the run there with --resume --finish" if seeds == 1 else ""
                say(
                    f"stopped after step {stop.step}; go on with the same command and --resume"
                    f"{end} ({stop.checkpoint})"
                )
            raise typer.Exit(128 + stop.signal) from None
        return card if ranks.main else None


def _command(processes: int) -> str:
    """The command that gives this run again, from its beginning."""
    alone = command(PASSING)
    if processes == 1:
        return alone
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))  # of them, on this machine
    machines = f"--nnodes {processes // here} " if processes > here else ""
    before = f"torchrun {machines}--nproc-per-node {here} -m cifar_deploy"
    return before + alone.removeprefix("cifar-deploy")
