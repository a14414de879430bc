"""`cifar-deploy train`."""

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cifar_deploy import architectures, cards, disk, store
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
    in_epochs,
    print_card,
    say,
    say_doubtful,
    say_doubts,
)
from cifar_deploy.errors import UserError, few

if TYPE_CHECKING:
    from cifar_deploy.train.loop import Trainer

FEW_STEPS = 500  # in all; of less than FEW_AN_EPOCH, the batch is large for the images
FEW_AN_EPOCH = 10
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
    early = f", {said}" if (said := cards.stopped(card)) else ""
    typer.echo(f"{name}: {_accuracy(card)}{early}, {_seconds(card)} on {card['device']}")
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


def _accuracy(card: disk.Json) -> str:
    """The accuracy of a card in words, with the mean where there are several seeds."""
    test = "test" if card["test_accuracy"] is not None else "holdout"
    images = card["test_images"] or card["data"]["holdout_images"]
    of = f"of {images:,} {'test' if test == 'test' else 'held-out'} images"
    accuracy = card.get(f"{test}_accuracy")
    if accuracy is None:
        return "not tested"
    mean = card.get(f"{test}_accuracy_mean")
    if mean is None:
        return f"{100 * accuracy:.2f} % {of}"
    spread = card[f"{test}_accuracy_std"]
    seeds = len(card["runs"])
    return f"{100 * mean:.2f} ± {100 * spread:.2f} % {of} ({seeds} seeds)"


def _seconds(card: disk.Json) -> str:
    """The time of a card in words: training, and what came before it."""
    wall = card["wall_seconds"]
    said = f"{wall:.0f} s" if wall >= 100 else f"{wall:.2f} s"
    before = [
        f"{what} {card[key]:.1f} s"
        for what, key in (("data", "data_seconds"), ("warm-up", "warmup_seconds"))
        if card.get(key, 0) >= 0.05
    ]
    return said + (f" (before that {', '.join(before)})" if before else "")


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
                say(_plan(trainer))
                doubt()
                drawn = () if found.data.val else (_uneven(trainer), _leaky(trainer))
                told = (*drawn, _unknown(trainer), _few(trainer), _replaced(trainer))
                for line in filter(None, told):
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


def _plan(trainer: "Trainer") -> str:
    """What is about to run, in a line."""
    from cifar_deploy.device import describe

    job, state = trainer.job, trainer.state
    options = job.recipe.train
    begun = f", from step {state.step} on" if state.step else ""
    begun = f", ended after step {state.step}" if job.finish else begun
    return (
        f"{job.network}: {len(trainer.train_split):,} images, {trainer.steps:,} steps in "
        f"{in_epochs(options.epochs)}{begun}, seed {options.seed}, "
        f"{'bf16' if trainer.bf16 else 'fp32'} on {describe(job.device)}; "
        f"checkpoints in {job.folder.path}"
    )


def _uneven(trainer: "Trainer") -> str:
    """What is told of classes that the draw of the held-out images left without any on one side."""
    dataset, said = trainer.job.dataset, []
    if trainer.holdout and (lost := dataset.missing(trainer.holdout)):
        said.append(f"no image of {few(lost)} is held out")
    if trainer.holdout and (lost := dataset.missing(trainer.train_split)):
        said.append(f"all images of {few(lost)} are held out, and none is left to train on")
    if not said:
        return ""
    return f"{'; '.join(said)}: chance drew them from all {len(dataset.train):,} together"


def _leaky(trainer: "Trainer") -> str:
    """What is told of held-out images that are trained on: of one's own there may be copies."""
    from cifar_deploy.data.doubts import worthless
    from cifar_deploy.data.folder import VERIFIED

    if not trainer.holdout or trainer.job.dataset.verified != VERIFIED:
        return ""
    return worthless(trainer.train_split, trainer.holdout, "held-out images")


def _unknown(trainer: "Trainer") -> str:
    """What is told where weights may have been trained on the images held out, and none can say."""
    from cifar_deploy.train.initial import IMAGENET

    start = trainer.start
    if not (trainer.holdout and start) or trainer.state.step or start.origin == IMAGENET:
        return ""
    if start.data.get("sha256"):
        return ""
    return (
        f"what {trainer.job.init} was trained on is not known: if on these images, the accuracy of "
        "those held out is too high"
    )


def _few(trainer: "Trainer") -> str:
    """What is told of a run whose batches are large for its images."""
    if trainer.steps_per_epoch >= FEW_AN_EPOCH or trainer.steps >= FEW_STEPS:
        return ""
    recipe = trainer.job.recipe
    # With Muon --lr is not the filters' rate, and lowering it for small batches did harm.
    rate = "" if recipe.optimizer.name == "muon" else ", and --lr with it,"
    return (
        f"only {trainer.steps:,} steps of {recipe.train.batch_size} images: a smaller "
        f"--batch-size{rate} or more --epochs would train more"
    )


def _replaced(trainer: "Trainer") -> str:
    """What is told of a model in the run's folder that its command would not give again.

    A card is worth it alone: of the published ones not all have their weights beside them.
    """
    folder = trainer.job.folder
    if not folder.card.exists():
        return ""
    what = folder.weights if folder.weights.exists() else folder.card
    try:
        card = cards.card_of(folder)
        data, imported = card["data"], card.get("imported")
        if imported or data["sha256"] != trainer.data_sha256:
            told = f"of {imported['from'] if imported else data['name']}"
        elif _differs(trainer, card):
            length = cards.stopped(card) or f"after {in_epochs(card['epochs'])}"
            told = f"{_accuracy(card)} {length} on {card['device']}"
        else:
            return ""
    except (UserError, KeyError, TypeError):  # nobody's, or damaged
        return ""
    return f"{what}, {told}, is replaced at the end; --out NEW-FOLDER keeps it"


def _differs(trainer: "Trainer", card: disk.Json) -> bool:
    """Whether the run that made `card` was another one, by its recipe, device or beginning."""
    from cifar_deploy.device import describe
    from cifar_deploy.recipe import completed

    start = trainer.start.sha256 if trainer.start else None
    taught = [teacher.to_dict() for teacher in trainer.teachers]
    mine = (trainer.job.recipe.to_dict(), describe(trainer.job.device), start, taught)
    init, there = card.get("init", {}).get("sha256"), card.get("teachers", [])
    same = mine == (completed(card["recipe"]), card["device"], init, there)
    return not same or "stopped" in card


def _command(processes: int) -> str:
    """The command that gives this run again, from its beginning."""
    alone = command(PASSING)
    if processes == 1:
        return alone
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))  # of them, on this machine
    machines = f"--nnodes {processes // here} " if processes > here else ""
    before = f"torchrun {machines}--nproc-per-node {here} -m cifar_deploy"
    return before + alone.removeprefix("cifar-deploy")
