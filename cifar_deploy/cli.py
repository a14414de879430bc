"""The command line: parse, call, print. Nothing heavy is imported before a command needs it."""

import dataclasses
import json
import os
import re
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
    from cifar_deploy.data.dataset import Dataset, Split
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
    trt = "trt"


class Precision(StrEnum):
    """The arithmetic inside an exported graph."""

    fp32 = "fp32"
    fp16 = "fp16"


class Target(StrEnum):
    """Who takes the package."""

    cpp = "cpp"
    triton = "triton"


CAPABILITY = re.compile(r"\d+\.\d")  # of a GPU, as 8.6

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option(help="Folder with the data set; else $CIFAR_DEPLOY_DATA, else data/."),
]
SourceOption = Annotated[Source, typer.Option("--data", help="auto, or the generated set.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TrustFlag = Annotated[
    bool, typer.Option("--trust", help="Load engines without a matching manifest: they are code.")
]
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


_folder = architectures.folder


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
    flavour: Annotated[str, typer.Option(help="auto, tensorrt or tensorrt-rtx.")] = "auto",
    batch_profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MIN/OPT/MAX",
            help="Batches it takes; 1/128/1024. Several may be given.",
        ),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(metavar="MIB", help="GPU memory a layer may use.")
    ] = None,
    timing_cache_file: Annotated[
        Path | None, typer.Option(help="tensorrt: kept between builds; else in the user's cache.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="tensorrt: for other versions too.")
    ] = False,
    hardware_compatibility: Annotated[
        str | None, typer.Option(help="tensorrt: ampere+ or same-compute-capability.")
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(metavar="X.Y...", help="tensorrt-rtx: targets, as 8.6 8.9 12.0."),
    ] = None,
    builder_optimization_level: Annotated[int | None, typer.Option(help="0 to 5.")] = None,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Leave them to the ONNX file beside it.")
    ] = False,
    export_layer_info: Annotated[
        bool, typer.Option("--export-layer-info", help="Also write the layers as JSON.")
    ] = False,
    tf32: Annotated[bool, typer.Option("--tf32", help="Allow TF32 in fp32 engines.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Export trained models; without a name, all that have weights.

    --format trt builds TensorRT engines from the ONNX files, which it exports first if need be.
    """
    # `--compute-capability 8.6 8.9`: what follows the first arrives among the names.
    versions = [name for name in models or [] if CAPABILITY.fullmatch(name)]
    if versions and not compute_capability:
        raise UserError(f"{versions[0]} is no model; a compute capability follows its option")
    named = [name for name in models or [] if name not in versions]
    folders = [_folder(m) for m in named] or store.trained_models()
    if not folders:
        raise UserError(
            f"nothing in {store.models_root()}/ is trained; run: cifar-deploy train MODEL"
        )
    precisions = [p.value for p in precision or [Precision.fp32]]
    asked: dict[str, Any] = {
        "workspace": workspace,
        "timing_cache": timing_cache_file,
        "version_compatible": version_compatible,
        "hardware_compatibility": hardware_compatibility,
        "compute_capabilities": tuple(dict.fromkeys([*(compute_capability or []), *versions])),
        "level": builder_optimization_level,
        "strip_weights": strip_weights,
        "layer_info": export_layer_info,
        "tf32": tf32,
    }
    if format is Format.trt:
        manifests = _export_engines(folders, precisions, flavour, batch_profile or [], asked)
    elif (
        flavour != "auto"
        or batch_profile
        or any(v not in (None, False, ()) for v in asked.values())
    ):
        raise UserError("options of engines were given; they go with --format trt")
    else:
        manifests = _export(folders, precisions)
    if as_json:
        _print_json(manifests)


def _export(folders: list[store.ModelFolder], precisions: list[str]) -> list[store.Json]:
    for folder in folders:
        store.read_card(folder)  # a missing model is told before anything is written
    from cifar_deploy.export.onnx_file import export_onnx

    return [
        _exported(export_onnx(folder, precision)) for folder in folders for precision in precisions
    ]


def _export_engines(
    folders: list[store.ModelFolder],
    precisions: list[str],
    flavour: str,
    profiles: list[str],
    asked: dict[str, Any],
) -> list[store.Json]:
    from cifar_deploy.engines import flavour as flavours
    from cifar_deploy.engines.options import Options, Profile, check

    if profiles:
        asked = {**asked, "profiles": tuple(map(Profile.parse, profiles))}
    options = Options(**asked)
    from cifar_deploy.engines.progress import Bars
    from cifar_deploy.export.engine import cuda_device, export_engine

    gpu = cuda_device()
    chosen, reason = flavours.choose(flavour, gpu is not None)
    check(options, chosen, gpu is not None)
    for folder in folders:
        store.read_card(folder)
    _say(f"{chosen}: {reason}")
    manifests = []
    for folder in folders:
        for precision in precisions:
            with Bars() as bars:
                path = export_engine(folder, precision, chosen, options, bars)
            manifests.append(_exported(path))
    return manifests


def _exported(path: Path) -> store.Json:
    """Say what was written; its manifest."""
    manifest = store.read_json(store.manifest_path(path))
    took = f", built in {manifest['build_seconds']:.1f} s" if "build_seconds" in manifest else ""
    _say(f"{path}  {manifest['bytes'] / 1e6:.1f} MB{took}")
    return manifest


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
    trust: TrustFlag = False,
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
        trust=trust,
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
    files = [Path(t) for t in targets if Path(t).is_file() or Path(t).suffix in store.EXPORTED]
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
    trust: bool = False,
    device: str = "auto",
    source: str | None = None,
    data_dir: Path | None = None,
) -> "list[Judgement]":
    from rich.console import Console

    from cifar_deploy.architectures import weights
    from cifar_deploy.data import find
    from cifar_deploy.device import pick
    from cifar_deploy.runtimes.load import check_file
    from cifar_deploy.validate import proof
    from cifar_deploy.validate.judge import Options, judge

    where = pick(device)
    own: dict[Path, str] = {}  # files beside the weights they came from, and their sha256
    for folder, files in work:  # what is damaged is told before anything runs
        exported_from = store.read_card(folder)["weights"]["sha256"]
        for file in files:
            check_file(file, exported_from if file.parent == folder.path else None, trust)
            if file.parent == folder.path:
                own[file] = store.sha256_of(file)
    options = Options(max_drop, 1.0 if latency else 0.0, trust)
    loaded: dict[tuple[str, Path | None], Dataset] = {}
    judgements = []
    with Console(stderr=True).status("validating") as status:
        for folder, files in work:
            trained = weights.load(folder)
            key = find.trained_on(trained.card, source, data_dir)
            if key not in loaded:
                loaded[key] = find.load(*key)
            judgements.append(
                judge(trained, files, loaded[key], where, options, images, status.update)
            )
            try:
                proof.write(judgements[-1], own, len(loaded[key].test))
            except UserError as error:  # the verdict is still to be shown
                _say(f"no proof was left beside the files: {error}")
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


# --- package ------------------------------------------------------------------------------------


@app.command()
def package(
    model: Annotated[str, typer.Argument(help="A trained model.")],
    target: Annotated[
        Target, typer.Option(help="cpp: for a C++ program; triton: for Triton Inference Server.")
    ] = Target.cpp,
    format: Annotated[Format, typer.Option(help="ONNX, or an engine.")] = Format.onnx,
    precision: Annotated[Precision, typer.Option(help="Of the exported file.")] = Precision.fp32,
    flavour: Annotated[str, typer.Option(help="auto, tensorrt or tensorrt-rtx.")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder, or a file ending in .tar.gz; else MODEL-package, MODEL-triton."),
    ] = None,
    unproved: Annotated[
        bool, typer.Option("--unproved", help="Also a file that validate gave no PASS.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a package that is there.")
    ] = False,
    data_dir: DataDirOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write what a machine without Python needs to run a proved file: a folder or a .tar.gz.

    The file is exported first where it is missing or older than the weights.
    """
    folder = _folder(model)
    name = f"{folder.name}-{'package' if target is Target.cpp else target.value}"
    place = out or Path(name)
    from cifar_deploy.package import write

    write.check_target(place, force)
    card = store.read_card(folder)
    if flavour != "auto" and format is Format.onnx:
        raise UserError("--flavour is an engine's; it goes with --format trt")
    from cifar_deploy.package import cpp, source, triton

    if format is Format.onnx and source.is_stale(folder, precision.value):
        _export([folder], [precision.value])
    found = source.find(folder, format.value, precision.value, flavour)
    if not unproved:
        source.require_proof(found)
    if target is Target.triton:
        contents = triton.contents(found)
    else:
        from cifar_deploy.data import find
        from cifar_deploy.package import vectors

        dataset = find.load(*find.trained_on(card, None, data_dir))
        contents = cpp.contents(found, vectors.make(found, dataset))
    write.write(contents, place, name)
    if as_json:
        _print_json(
            {
                "package": str(place),
                "target": target.value,
                "file": str(found.path),
                "sha256": found.sha256,
                "proved": found.proved,
                "contents": sorted(contents),
            }
        )
        return
    _say(
        f"{place}  {sum(map(len, contents.values())) / 1e6:.1f} MB, "
        f"{len(contents)} files{'' if found.proved else ', NOT PROVED'}"
    )


# --- benchmark ----------------------------------------------------------------------------------


class Scenario(StrEnum):
    """MLPerf's scenarios."""

    SingleStream = "SingleStream"
    Offline = "Offline"


@app.command()
def benchmark(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL|FILE]...", help="Models, or files.")
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(help="Images a call; may be repeated. [default: 1 8 32 128 256 1024]", min=1),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Of measuring, for each file and batch.", min=0.0)
    ] = 1.0,
    in_flight: Annotated[
        int | None, typer.Option(help="Batches at once; 0: none. [default: 4, CPU 2]", min=0)
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Also torch.compile. [default: on a GPU]"),
    ] = None,
    scenario: Annotated[
        Scenario | None, typer.Option(help="Let MLPerf's LoadGen drive instead.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="LoadGen: only the first so many test images.", min=1)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="LoadGen: its logs go here; else mlperf among the models.")
    ] = None,
    trust: TrustFlag = False,
    device: DeviceOption = "auto",
    data_dir: DataDirOption = None,
    data: Annotated[
        Source | None, typer.Option(help="LoadGen: by default what the model was trained on.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write JSON here; - prints it.")
    ] = None,
) -> None:
    """Measure latency and throughput of PyTorch and exported files side by side.

    Exit status 1 if something could not be measured.
    """
    from rich.console import Console

    work = _contestants(targets or [])
    from cifar_deploy.benchmark import mlperf, sweep, table
    from cifar_deploy.device import pick
    from cifar_deploy.timing import BATCHES

    where = pick(device)
    on_gpu = where.type == "cuda"
    at_once = (4 if on_gpu else 2) if in_flight is None else in_flight
    command = " ".join(["cifar-deploy", *sys.argv[1:]])
    if scenario:
        mlperf.loadgen()  # where it is missing, that is told first
    with Console(stderr=True).status("opening") as status:
        with_compile = on_gpu if compiled is None else compiled
        entered, failures = sweep.contenders(work, where, with_compile, trust)
        if scenario:
            folders = [folder for folder, *_ in work]
            ran = mlperf.run_all(
                entered,
                _test_images(folders, data.value if data else None, data_dir, images),
                mlperf.Settings(scenario.value, seconds, max(batch or [256]), max(at_once, 1)),
                out or store.models_root() / "mlperf",
                where,
                status.update,
            )
            ran.failures[:0] = failures
            shown = table.scenario_table(ran.results)
            said, value = table.scenario_notes(ran), mlperf.to_json(ran, command)
            failures = ran.failures
        else:
            settings = sweep.Settings(tuple(batch or BATCHES), seconds, at_once)
            result = sweep.run(entered, settings, where, status.update)
            result.failures[:0] = failures
            shown = table.table(result.rows)
            said, value = table.notes(result), sweep.to_json(result, command)
            failures = result.failures
    _show(shown, said, value, json_file)
    if failures:
        raise typer.Exit(1)


def _test_images(
    folders: list[store.ModelFolder],
    source: str | None,
    data_dir: Path | None,
    images: int | None,
) -> "dict[str, Split]":
    """For each model the test images of the data it was trained on, or of `source`."""
    from cifar_deploy.data import find

    loaded: dict[tuple[str, Path | None], Split] = {}
    splits = {}
    for folder in folders:
        key = (source or "auto", data_dir)
        if folder.card.exists():
            key = find.trained_on(store.read_card(folder), source, data_dir)
        if key not in loaded:
            test = find.load(*key).test
            loaded[key] = test.first(images) if images else test
        splits[folder.name] = loaded[key]
    return splits


def _contestants(targets: list[str]) -> "list[tuple[store.ModelFolder, list[Path], bool]]":
    """Models with their files and PyTorch, files alone; without a name, all trained models."""
    files = [Path(t) for t in targets if Path(t).is_file()]
    folders = [_folder(t) for t in targets if Path(t) not in files]
    for folder in folders:
        if Path(folder.name).suffix and not folder.path.is_dir():
            raise UserError(f"{folder.path} does not exist; run: cifar-deploy export MODEL")
    if not targets:
        folders = store.trained_models()
    if not folders and not files:
        raise UserError(
            f"nothing in {store.models_root()}/ is trained; run: cifar-deploy train MODEL"
        )
    for folder in folders:
        store.read_card(folder)
    return [(folder, folder.exported(), True) for folder in folders] + [
        (store.ModelFolder(file.absolute().parent), [file], False) for file in files
    ]


def _show(table: Any, notes: list[str], value: Any, json_file: Path | None) -> None:
    """Print a table with its notes, and write the JSON; or print the JSON alone."""
    from rich.console import Console

    if json_file and str(json_file) == "-":
        _print_json(value)
        return
    if json_file:
        store.write_json(json_file, value)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
    for line in notes:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


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
    trust: TrustFlag = False,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Classify pictures of any size and format: the top 3 with probabilities."""
    from cifar_deploy.classifier import load, pictures

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
