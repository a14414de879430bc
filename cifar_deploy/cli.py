"""The command line: parse, call, print. Nothing heavy is imported before a command needs it."""

import dataclasses
import json
import os
import shlex
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifar_deploy import __version__, architectures, store
from cifar_deploy.errors import OwnError, UserError

if TYPE_CHECKING:
    from cifar_deploy.data.dataset import Dataset
    from cifar_deploy.validate.judge import Judgement

app = typer.Typer(
    name="cifar-deploy",
    help="Train image classifiers, export them, and prove that the exported file is as good.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Source(StrEnum):
    """Where images come from."""

    auto = "auto"
    synthetic = "synthetic"


class Format(StrEnum):
    """What to export to."""

    onnx = "onnx"


class Precision(StrEnum):
    """The arithmetic inside an exported graph."""

    fp32 = "fp32"
    fp16 = "fp16"


DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option(help="Folder with the data set; else $CIFAR_DEPLOY_DATA, else data/."),
]
SourceOption = Annotated[Source, typer.Option("--data", help="auto, or the generated set.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Models = Annotated[
    list[str] | None, typer.Argument(metavar="[MODEL]...", help="Names or model folders.")
]


def main() -> None:
    """Run the command line; a user's error is one or two lines on standard error and status 2."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    # Large pages for large tensors: training on a CPU spends less time on page faults.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        app()
    except UserError as error:
        if debug:
            raise
        # Among torchrun's processes one speaks for all, and who alone has an error for itself.
        local = os.environ.get("LOCAL_RANK", "0")
        if local == "0" or isinstance(error, OwnError):
            who = "" if local == "0" else f"process {os.environ.get('RANK', local)}: "
            print(f"{who}error: {error}", file=sys.stderr)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    pass  # --debug is taken by `main`


def _folder(model: str) -> store.ModelFolder:
    """The folder of a model given by name, alias or path. Raises UserError for an unknown name."""
    if "/" in model or Path(model, store.CARD).is_file():
        return store.ModelFolder(Path(model))
    if (second := store.ModelFolder(store.models_root() / model)).card.is_file():
        return second  # custom_resnet-speed, say
    return store.ModelFolder(store.models_root() / architectures.canonical(model))


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _say(text: str) -> None:
    typer.echo(text, err=True)


# --- train --------------------------------------------------------------------------------------


BatchOption = Annotated[int | None, typer.Option(help="Images a step, of all processes.")]
RecipeOption = Annotated[
    str | None, typer.Option(help="Another recipe: a file, or a word such as speed.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override the recipe."),
]
InitOption = Annotated[
    str | None, typer.Option(help="Weights to begin with: imagenet, a model folder or a file.")
]
WeightsFileOption = Annotated[
    Path | None, typer.Option(help="torchvision's weights for --init imagenet, else downloaded.")
]


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="The network; `cifar-deploy models` lists them.")],
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: BatchOption = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and augmentation.")] = None,
    seeds: Annotated[
        int, typer.Option(help="Train with so many seeds; the weights are the first one's.", min=1)
    ] = 1,
    init: InitOption = None,
    weights_file: WeightsFileOption = None,
    hold_out: Annotated[
        int | None,
        typer.Option(help="Judge by so many training images; the test images are not looked at."),
    ] = None,
    device: DeviceOption = "auto",
    data_dir: DataDirOption = None,
    data: SourceOption = Source.auto,
    out: Annotated[Path | None, typer.Option(help="Folder to write; else models/MODEL.")] = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where a step's time goes; write a trace.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a network: weights, card, curves and log go to models/MODEL.

    With torchrun --nproc-per-node N -m cifar_deploy train, N processes share every batch.
    """
    flags = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
    overrides = [f"train.{k}={v}" for k, v in flags.items() if v is not None]
    overrides += [f"optimizer.lr={lr}"] if lr is not None else []
    if hold_out is not None:
        overrides += [f"data.holdout={hold_out}", "data.test=false"]
    overrides += set_ or []
    name = architectures.canonical(model)
    folder = store.ModelFolder(out) if out else _home(name, recipe)
    card = _train(
        *(name, folder, overrides, recipe, device, data.value, data_dir, resume),
        init=init,
        weights_file=weights_file,
        seeds=seeds,
        profile=profile,
    )
    if card is None:
        return
    if as_json:
        _print_json(card)
        return
    typer.echo(f"{name}: {_accuracy(card)}, {_seconds(card)} on {card['device']}")
    typer.echo(f"{folder.weights}  {folder.card}  {folder.curves}")


def _home(name: str, recipe: str | None) -> store.ModelFolder:
    """Where a run writes: a second recipe does not overwrite what the first one made."""
    from cifar_deploy.recipe import is_word

    second = f"-{recipe}" if recipe and is_word(recipe) else ""
    return store.ModelFolder(store.models_root() / f"{name}{second}")


def _accuracy(card: store.Json) -> str:
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


def _seconds(card: store.Json) -> str:
    """The time of a card in words: training, and what came before it."""
    wall = card["wall_seconds"]
    said = f"{wall:.0f} s" if wall >= 100 else f"{wall:.2f} s"
    before = [
        f"{what} {card[key]:.1f} s"
        for what, key in (("data", "data_seconds"), ("warm-up", "warmup_seconds"))
        if card.get(key, 0) >= 0.05
    ]
    return said + (f" (before that {', '.join(before)})" if before else "")


def _train(
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
) -> store.Json | None:
    """Train; returns the card, or None in those of several processes that write nothing."""
    from cifar_deploy import recipe as recipes

    found = recipes.load(recipes.find(recipe, folder, name), overrides)
    from cifar_deploy.data import find
    from cifar_deploy.device import pick
    from cifar_deploy.train import seeds as several
    from cifar_deploy.train.loop import Interrupted, Job, Trainer
    from cifar_deploy.train.progress import Bar
    from cifar_deploy.train.ranks import launched, own_device, together

    where = pick(own_device(device) if launched() else device)
    with together(where) as ranks:
        started = time.perf_counter()
        with ranks.one_after_the_other():  # only one of a machine's processes downloads
            dataset = find.load(source, data_dir)
        job = Job(
            *(name, found, dataset, where, folder, resume, init, weights_file, ranks, profile),
            command=_command(ranks.world),
            data_seconds=time.perf_counter() - started,
        )

        def watching(trainer: Trainer) -> Bar:
            return Bar(trainer.steps, found.train.epochs, trainer.state.step, not ranks.main)

        try:
            card = several.run(job, seeds, watching)
        except Interrupted as stop:
            if ranks.main:
                _say(
                    f"stopped after step {stop.step}; go on with the same command and --resume "
                    f"({folder.checkpoint})"
                )
            raise typer.Exit(128 + stop.signal) from None
        return card if ranks.main else None


def _command(processes: int) -> str:
    """The command that gives this run again, from its beginning."""
    arguments = [a for a in sys.argv[1:] if a not in ("--resume", "--json", "--profile")]
    before = f"torchrun --nproc-per-node {processes} -m cifar_deploy"
    return f"{before if processes > 1 else 'cifar-deploy'} {shlex.join(arguments)}"


@app.command("find-lr")
def find_lr(
    model: Annotated[str, typer.Argument(help="The network.")],
    low: Annotated[float, typer.Option(help="The first learning rate.")] = 1e-4,
    high: Annotated[float, typer.Option(help="The last one.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Steps between them.", min=20)] = 200,
    batch_size: BatchOption = None,
    init: InitOption = None,
    weights_file: WeightsFileOption = None,
    device: DeviceOption = "auto",
    data_dir: DataDirOption = None,
    data: SourceOption = Source.auto,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="The picture; else models/MODEL/find-lr.png.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Suggest a peak learning rate: a range test with its curve as a picture."""
    from cifar_deploy import recipe as recipes

    name = architectures.canonical(model)
    folder = _home(name, recipe)
    overrides = [f"train.batch_size={batch_size}"] if batch_size is not None else []
    found = recipes.load(recipes.find(recipe, folder, name), overrides + (set_ or []))
    from cifar_deploy.data import find
    from cifar_deploy.device import pick
    from cifar_deploy.train import find_lr as finder
    from cifar_deploy.train.loop import Job

    where = pick(device)
    job = Job(name, found, find.load(data.value, data_dir), where, folder)
    job = dataclasses.replace(job, init=init, weights_file=weights_file)
    curve = finder.find(job, low, high, steps)
    picture = out or folder.finder
    finder.draw(picture, f"{name}, batch of {found.train.batch_size}", curve)
    if as_json:
        _print_json({**curve.to_dict(), "picture": str(picture)})
        return
    typer.echo(
        f"{name}: suggested peak {curve.suggested:.2g} (steepest descent at {curve.steepest:.2g}, "
        f"lowest loss at {curve.lowest:.2g}); the recipe has {found.optimizer.lr:g}\n{picture}"
    )


# --- export -------------------------------------------------------------------------------------


@app.command()
def export(
    models: Models = None,
    format: Annotated[Format, typer.Option(help="The format.")] = Format.onnx,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="fp32 (default), fp16, or both: give it twice.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Export trained models; without a name, all that have weights."""
    folders = [_folder(m) for m in models or []] or store.trained_models()
    if not folders:
        raise UserError(
            f"nothing in {store.models_root()}/ is trained; run: cifar-deploy train MODEL"
        )
    manifests = _export(folders, [p.value for p in precision or [Precision.fp32]])
    if as_json:
        _print_json(manifests)


def _export(folders: list[store.ModelFolder], precisions: list[str]) -> list[store.Json]:
    for folder in folders:
        store.read_card(folder)  # a missing model is told before anything is written
    from cifar_deploy.export.onnx_file import export_onnx

    manifests = []
    for folder in folders:
        for precision in precisions:
            path = export_onnx(folder, precision)
            manifest = store.read_json(store.manifest_path(path))
            _say(f"{path}  {manifest['bytes'] / 1e6:.1f} MB")
            manifests.append(manifest)
    return manifests


# --- validate -----------------------------------------------------------------------------------


@app.command()
def validate(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL|FILE]...", help="Models, or files with --reference."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Judge files against this model.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Margin in points; by default fp32 0.05, fp16 0.10.", min=0.0, max=100.0),
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Only the first so many test images.", min=1)
    ] = None,
    latency: Annotated[bool, typer.Option(help="Measure latency.")] = True,
    device: DeviceOption = "auto",
    data_dir: DataDirOption = None,
    data: Annotated[
        Source | None, typer.Option(help="By default what the model was trained on.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write JSON here; - prints it.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="The page; else report.html among the models.")
    ] = None,
) -> None:
    """Prove that exported files are as accurate as the trained network, and time them.

    Exit status 1 unless every file passes.
    """
    judgements = _validate(
        _targets(targets or [], reference),
        max_drop=max_drop,
        images=images,
        latency=latency,
        device=device,
        source=data.value if data else None,
        data_dir=data_dir,
    )
    _publish(judgements, json_file, report or store.models_root() / "report.html")
    if not all(judgement.passed for judgement in judgements):
        raise typer.Exit(1)


def _targets(
    targets: list[str], reference: str | None
) -> list[tuple[store.ModelFolder, list[Path]]]:
    """Folders to judge, each with its files. A lone file is judged with its folder's model."""
    files = [Path(t) for t in targets if Path(t).is_file() or Path(t).suffix == ".onnx"]
    named = [_folder(t) for t in targets if Path(t) not in files]
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{missing[0]} does not exist; run: cifar-deploy export MODEL")
    if files:
        if named:
            raise UserError("name models or files, not both; a file's model goes to --reference")
        owner = _folder(reference) if reference else store.ModelFolder(files[0].parent)
        if not reference and any(f.parent != owner.path or not owner.card.exists() for f in files):
            raise UserError(f"{files[0]} has no trained model beside it; name one with --reference")
        return [(owner, files)]
    if reference:
        raise UserError("--reference goes with files; a model's own files need none")
    if not named:
        named = [folder for folder in store.trained_models() if folder.exported()]
    for folder in named:
        store.read_card(folder)
        if not folder.exported():
            raise UserError(
                f"{folder.path} has no exported file; run: cifar-deploy export {folder.name}"
            )
    if not named:
        raise UserError(
            f"no exported model in {store.models_root()}/; run: cifar-deploy train MODEL, then "
            "cifar-deploy export"
        )
    return [(folder, folder.exported()) for folder in named]


def _validate(
    work: list[tuple[store.ModelFolder, list[Path]]],
    *,
    max_drop: float | None = None,
    images: int | None = None,
    latency: bool = True,
    device: str = "auto",
    source: str | None = None,
    data_dir: Path | None = None,
) -> "list[Judgement]":
    from rich.console import Console

    from cifar_deploy.architectures import weights
    from cifar_deploy.data import find
    from cifar_deploy.device import pick
    from cifar_deploy.runtimes.load import check_file
    from cifar_deploy.validate.judge import Options, judge

    where = pick(device)
    for folder, files in work:  # what is damaged is told before anything runs
        exported_from = store.read_card(folder)["weights"]["sha256"]
        for file in files:
            check_file(file, exported_from if file.parent == folder.path else None)
    options = Options(max_drop, 1.0 if latency else 0.0)
    loaded: dict[str, Dataset] = {}
    judgements = []
    with Console(stderr=True).status("validating") as status:
        for folder, files in work:
            trained = weights.load(folder)
            trained_on = trained.card["data"]["name"]
            wanted = source or ("synthetic" if trained_on == "synthetic" else "auto")
            place, origin = data_dir, trained.card["data"].get("origin")
            if origin and not source and not find.named(data_dir) and Path(origin).is_dir():
                place = Path(origin)  # a model of one's own images is judged by them
            key = f"{wanted} {place}"
            if key not in loaded:
                loaded[key] = find.load(wanted, place)
            judgements.append(
                judge(trained, files, loaded[key], where, options, images, status.update)
            )
    return judgements


def _publish(judgements: "list[Judgement]", json_file: Path | None, page: Path) -> None:
    """Print the table, write the page and, where asked for, the JSON."""
    from rich.console import Console

    from cifar_deploy.validate import report, table
    from cifar_deploy.validate.judge import to_json

    value = {
        "command": " ".join(["cifar-deploy", *sys.argv[1:]]),
        "models": [to_json(judgement) for judgement in judgements],
    }
    report.write(page, judgements)
    if json_file and str(json_file) == "-":
        _print_json(value)
        return
    if json_file:
        store.write_json(json_file, value)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table.table(judgements))
    for line in table.notes(judgements):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)


# --- the rest -----------------------------------------------------------------------------------


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="Print this network's layers.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What networks there are, what is trained and what is exported; or one network's layers."""
    if name:
        from cifar_deploy.architectures.summary import layers, text

        network = architectures.canonical(name)
        if as_json:
            _print_json(layers(network))
        else:
            typer.echo(text(network))
        return
    from cifar_deploy.architectures.summary import overview

    entries = overview()
    if as_json:
        _print_json(entries)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("network", "alias", "parameters", "trained: test top-1", "time", "exported"):
        table.add_column(heading, justify="right" if heading == "parameters" else "left")
    for entry in entries:
        table.add_row(
            entry["network"],
            ", ".join(entry["aliases"]),
            f"{entry['parameters']:,}",
            _top1(entry),
            f"{entry['wall_seconds']:,.0f} s" if entry["wall_seconds"] is not None else "-",
            ", ".join(entry["exported"]) or "-",
        )
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
    for entry in entries:
        if entry["command"]:
            typer.echo(f"{entry['network']}: {entry['command']}, on {entry['device']}")


def _top1(entry: store.Json) -> str:
    """Accuracy, spread and length of training, as a cell."""
    accuracy = entry["test_accuracy"]
    if accuracy is None:
        return "-"
    length = f"{entry['epochs']} epochs"
    if entry["seeds"] == 1:
        return f"{100 * accuracy:.2f} % ({length}, 1 seed)"
    mean, spread = (100 * entry[f"test_accuracy_{key}"] for key in ("mean", "std"))
    return f"{mean:.2f} ± {spread:.2f} % ({length}, {entry['seeds']} seeds)"


@app.command("data")
def data_command(
    preview: Annotated[
        Path | None, typer.Option(help="Write a PNG of images before and after augmentation.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Preview with this network's augmentation.")
    ] = None,
    data_dir: DataDirOption = None,
    data: SourceOption = Source.auto,
    as_json: JsonFlag = False,
) -> None:
    """Say what data set was found: counts, checksums, class balance, mean and std."""
    from cifar_deploy import recipe as recipes
    from cifar_deploy.data import find

    folder = _folder(model) if model else None
    recipe = recipes.load(recipes.recipe_path(folder, folder.name) if folder else None)
    dataset = find.load(data.value, data_dir)
    facts = dataset.describe()
    if preview:
        from cifar_deploy.data.preview import preview as draw

        draw(dataset, recipe.augment, preview)
        facts["preview"] = str(preview)
    if as_json:
        _print_json(facts)
        return
    for key in ("name", "origin", "verified", "sha256"):
        typer.echo(f"{key:<10}{facts[key]}")
    for split in ("train", "test"):
        counts = ", ".join(f"{k} {v:,}" for k, v in facts[split]["per_class"].items())
        typer.echo(f"{split:<10}{facts[split]['images']:,} images: {counts}")
    typer.echo(f"{'mean':<10}{facts['mean']}\n{'std':<10}{facts['std']}")
    if preview:
        typer.echo(f"{'preview':<10}{preview}")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL|FILE", help="What predicts.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.")],
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Classify pictures of any size and format: the top 3 with probabilities."""
    import numpy as np

    from cifar_deploy.data.image import read_image

    pixels = np.stack([read_image(path) for path in images])
    from cifar_deploy.device import pick
    from cifar_deploy.runtimes.load import open_file, open_model

    where = pick(device)
    if Path(model).suffix == ".onnx" or Path(model).is_file():
        runtime, classes = open_file(Path(model), where)
    else:
        runtime, classes = open_model(_folder(model), where)
    logits = runtime.logits(pixels)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    answers: list[store.Json] = [
        {
            "image": str(path),
            "top": [
                {"class": classes[i], "probability": round(float(row[i]), 6)}
                for i in np.argsort(-row, kind="stable")[:3]
            ],
        }
        for path, row in zip(images, shares, strict=True)
    ]
    if as_json:
        _print_json(answers)
        return
    for answer in answers:
        top = "  ".join(f"{t['class']} {100 * t['probability']:.1f} %" for t in answer["top"])
        typer.echo(f"{answer['image']}: {top}")


@app.command()
def doctor(as_json: JsonFlag = False) -> None:
    """Versions, GPU and driver, and which formats and runtimes work here, and why not."""
    from cifar_deploy.doctor import examine

    facts = examine()
    if as_json:
        _print_json(facts)
        return
    for name, version in facts["versions"].items():
        typer.echo(f"{name:<18}{version}")
    for key in ("platform", "cpu", "gpu", "driver"):
        typer.echo(f"{key:<18}{facts[key]}")
    for check in facts["checks"]:
        mark = "works" if check["works"] else "does not work"
        typer.echo(f"{check['name']:<18}{mark}: {check['detail']}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("demo"),
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
            _say(f"{error}\nGoing on with the generated data set.")
            source = "synthetic"
    model = store.ModelFolder(folder / "simple_cnn")
    _train("simple_cnn", model, [f"train.epochs={epochs}"], source=source, data_dir=data_dir)
    _export([model], ["fp32", "fp16"])
    judgements = _validate([(model, model.exported())], source=source, data_dir=data_dir)
    _publish(judgements, folder / "validation.json", folder / "report.html")
    if not all(judgement.passed for judgement in judgements):
        raise typer.Exit(1)
