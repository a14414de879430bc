"""`cifar-deploy validate`."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cifar_deploy import address, architectures, store
from cifar_deploy.address import Address
from cifar_deploy.cli.options import (
    SUFFIXES,
    DataDirOption,
    DeviceOption,
    Format,
    FormatOption,
    JsonFileOption,
    Kind,
    MeanOption,
    OnnxBy,
    PrecisionOption,
    Source,
    StdOption,
    ThreadsOption,
    TrustFlag,
    csv_option,
    csv_text,
    doing,
    is_stdout,
    per_channel,
    say,
    say_doubts,
    several,
    show,
)
from cifar_deploy.errors import UserError

if TYPE_CHECKING:
    from cifar_deploy.data.dataset import Dataset
    from cifar_deploy.validate.judge import Judgement

# What files, or served models, are judged against, and these.
Work = tuple[store.ModelFolder | Path, Sequence[Path | Address]]


def validate(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL|FILE|grpc://...",
            help="Models, or files: of the model beside them, or with --reference; or what a "
            "server answers, as grpc://localhost:8001/MODEL.",
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="MODEL|FILE", help="Judge files against this one.")
    ] = None,
    format: FormatOption = None,
    precision: PrecisionOption = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Margin in points; by default fp32 0.05, fp16 0.10, int8 0.50.", min=0.0, max=100.0
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Only the first so many test images.", min=1)
    ] = None,
    mean: MeanOption = None,
    std: StdOption = None,
    runtime: Annotated[
        list[OnnxBy] | None,
        several(OnnxBy, "What runs ONNX files; openvino on a CPU. [default: onnxruntime]"),
    ] = None,
    latency: Annotated[bool, typer.Option(help="Measure latency.")] = True,
    trust: TrustFlag = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    data_dir: DataDirOption = None,
    data: Annotated[
        Source | None, typer.Option(help="By default what the model was trained on.")
    ] = None,
    json_file: JsonFileOption = None,
    answers: Annotated[
        Path | None,
        csv_option("--answers", "The answers to each image, the reference's and the files'"),
    ] = None,
    mistakes: Annotated[
        int | None,
        typer.Option(
            help="So many mistakes of the reference, on the page and in the JSON. [default: 24]",
            min=1,
            max=1000,  # the page holds their pictures
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="The page; else report.html among the models, or, of some files or images, in "
            "each model's folder."
        ),
    ] = None,
) -> None:
    """Prove that exported files are as accurate as the trained network, and time them.

    So is what a server answers.

    Exit status 1 unless every file passes; 2 where one is damaged, or of other weights than the
    model has now: the rest is still judged.
    """
    kind = Kind(tuple(format or ()), tuple(precision or ()))
    work = _targets(targets or [], reference, kind)
    if len(runtime or []) > 1:
        raise UserError("validate takes one --runtime: a proof is of one; run it once for each")
    if is_stdout(json_file) and is_stdout(answers):
        raise UserError(
            "--json - and --answers - both print to standard output; name a file for one"
        )
    if answers and len(work) > 1:
        models = ", ".join(owner.name for owner, _ in work)
        raise UserError(f"--answers is of one model; name one of: {models}")
    # The page of whole models is not written over by one of a few files or images.
    lone = any(Path(target).is_file() or address.read(target) for target in targets or [])
    part = lone or kind.chosen or images is not None
    places = [_place(owner, files) if part else store.models_root() for owner, files in work]
    pages = [report or place / "report.html" for place in places]
    for page in pages:
        store.check_place(page)
    judgements = prove(
        work,
        max_drop=max_drop,
        images=images,
        mean=per_channel(mean, "--mean"),
        std=per_channel(std, "--std", positive=True),
        onnx=(runtime or [OnnxBy.onnxruntime])[0].value,
        latency=latency,
        trust=trust,
        device=device,
        threads=threads,
        source=data.value if data else None,
        data_dir=data_dir,
        mistakes=mistakes,
    )
    publish(judgements, json_file, pages, answers)
    if any(lost.unfit for judgement in judgements for lost in judgement.unusable):
        raise typer.Exit(2)
    if not all(judgement.passed for judgement in judgements):
        raise typer.Exit(1)


def _targets(targets: list[str], reference: str | None, kind: Kind) -> list[Work]:
    """Models to judge, each with its files. A lone file is judged with its folder's model.

    What is served is judged with the model of its name. With a file as `reference` it stands in
    the model's place.
    """
    served = {t: found for t in targets if (found := address.read(t))}
    paths = [Path(t) for t in targets if t not in served]
    files = [path for path in paths if path.is_file() or path.suffix in store.EXPORTED]
    named = [architectures.folder(t) for t in targets if t not in served and Path(t) not in files]
    kind.of_models([*files, *served.values()])
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{missing[0]} does not exist; run: cifar-deploy export MODEL")
    if files or served:
        if named:
            raise UserError("name models or files, not both; a file's model goes to --reference")
        judged: list[Path | Address] = [*files, *served.values()]
        if reference and Path(reference).suffix == SUFFIXES[Format.onnx]:
            return [(Path(reference), judged)]
        if reference and Path(reference).suffix == SUFFIXES[Format.trt]:
            raise UserError(f"{reference} is an engine; --reference takes a model or an ONNX file")
        if reference:
            owner = architectures.folder(reference)
        elif files:
            owner = store.ModelFolder(files[0].parent)
        else:
            owner = architectures.folder(next(iter(served.values())).model)
        if not reference:
            for file in files:
                if not store.ModelFolder(file.parent).card.exists():
                    raise UserError(f"{file} has no trained model beside it; name one: --reference")
                if not _beside(file, owner):
                    raise UserError(
                        f"{files[0]} and {file} are of two models; validate one after the other, "
                        "or name the one to judge both by with --reference"
                    )
            for text, one in served.items():
                if one.model != owner.name:
                    raise UserError(
                        f"{text} is not called {owner.name}; name the model to judge it by with "
                        "--reference"
                    )
        return [(owner, judged)]
    if reference:
        raise UserError("--reference goes with files; a model's own files need none")
    named = named or kind.trained()
    for folder in named:
        store.read_card(folder)
    return [(folder, kind.needed(folder)) for folder in named]


def _place(owner: store.ModelFolder | Path, files: Sequence[Path | Address]) -> Path:
    """The folder of what files are judged against: their model's, or else their own."""
    if not isinstance(owner, Path):
        return owner.path
    return next((file.parent for file in files if isinstance(file, Path)), owner.parent)


def _beside(file: Path, owner: store.ModelFolder | Path) -> bool:
    """Whether `file` stands in the folder of the model that it is judged against."""
    return not isinstance(owner, Path) and file.parent.resolve() == owner.path.resolve()


def prove(
    work: Sequence[Work],
    *,
    max_drop: float | None = None,
    images: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    onnx: str = OnnxBy.onnxruntime.value,
    latency: bool = True,
    trust: bool = False,
    device: str = "auto",
    threads: int | None = None,
    source: str | None = None,
    data_dir: Path | None = None,
    mistakes: int | None = None,
) -> "list[Judgement]":
    from cifar_deploy.architectures import weights
    from cifar_deploy.data import find
    from cifar_deploy.device import pick
    from cifar_deploy.runtimes.load import check_file
    from cifar_deploy.validate import proof
    from cifar_deploy.validate.judge import MISTAKES, Options, Reference, judge

    where = pick(device, threads)
    own: dict[Path, str] = {}  # files beside the weights they came from, and their sha256
    unfit: dict[Path, UserError] = {}  # damaged, or of other weights
    checked: dict[Path, str] = {}  # the weights of each model, by its folder
    for owner, files in work:  # what is damaged is told before anything runs
        exported_from = None
        if isinstance(owner, Path):
            check_file(owner)
        else:
            exported_from = store.read_card(owner)["weights"]["sha256"]
            checked[owner.path] = exported_from
        for file in files:
            if isinstance(file, Address):
                continue
            try:
                check_file(file, exported_from if _beside(file, owner) else None, trust)
                if _beside(file, owner):
                    own[file] = store.sha256_of(file)
            except UserError as error:
                unfit[file] = error
    if unfit and all(file in unfit for _, files in work for file in files):
        raise next(iter(unfit.values()))  # nothing is left to judge
    for reason in unfit.values():
        say(f"error: {reason}")
    seconds = 1.0 if latency else 0.0
    options = Options(max_drop, seconds, trust, mean, std, onnx, mistakes or MISTAKES)
    loaded: dict[tuple[str, Path | None], Dataset] = {}

    def data_of(key: tuple[str, Path | None]) -> "Dataset":
        if key not in loaded:
            loaded[key] = find.load(*key)
            say_doubts(loaded[key])
        return loaded[key]

    judgements = []
    with doing("validating") as told:
        references = []
        for owner, _ in work:
            if isinstance(owner, Path):
                dataset = data_of((source or "auto", data_dir))
                reference = Reference.of_file(owner, dataset)
            else:
                trained = weights.load(owner)
                if trained.card["weights"]["sha256"] != checked[owner.path]:
                    raise UserError(
                        f"{owner.weights} was replaced since its files were checked; export them "
                        "again"
                    )
                dataset = data_of(find.trained_on(trained.card, source, data_dir))
                reference = Reference.of_model(trained, owner.name)
            dataset.expect_classes(reference.model, reference.classes)
            references.append((reference, dataset))
        for (_, files), (reference, dataset) in zip(work, references, strict=True):
            judgement = judge(reference, files, dataset, where, options, images, told, unfit)
            judgements.append(judgement)
            refused = ""
            if reference.data and not judgement.facts["data"]["test_set_of_training"]:
                refused = dataset.changed(reference.model, reference.data)
                refused = refused or f"{reference.model} was trained on other data"
            elif judgement.strayed is not None:
                refused = f"{reference.model} is not what its card says"
            try:
                proof.write(judgement, own)
            except UserError as error:  # the verdict is still to be shown
                refused = str(error)
            if refused:
                say(f"no proof was left beside the files: {refused}")
            for row in judgement.rows[1:]:
                if row.addition and Path(row.file) in own:
                    say(f"no proof was left beside {row.file}: it is no deployment graph by itself")
    if (mean or std) and not any(row.normalised for one in judgements for row in one.rows):
        say("--mean and --std changed nothing: no file here leaves the normalisation to others")
    return judgements


def publish(
    judgements: "list[Judgement]",
    json_file: Path | None,
    pages: Sequence[Path],
    answers: Path | None = None,
) -> None:
    """Print the table, write the page of each judgement and, where asked for, JSON and `answers`.

    Judgements whose pages are the same stand on it together. `answers` are of one judgement.
    """
    from cifar_deploy.validate import judge, report, table

    value = {
        "command": " ".join(["cifar-deploy", *sys.argv[1:]]),
        "models": [judge.to_json(judgement) for judgement in judgements],
    }
    notes = table.notes(judgements)
    lines = csv_text(judge.answers(judgements[0])) if answers else None
    alone = lines if is_stdout(answers) else None
    # Whatever one disk refuses, the other files are written and the table is shown, at last.
    with contextlib.ExitStack() as rest:
        rest.callback(show, table.table(judgements), notes, value, json_file, 140, alone)
        if answers and lines and not alone:
            rest.callback(_write_answers, answers, lines, notes)
        for page in dict.fromkeys(pages):
            report.write(page, [judgements[i] for i, one in enumerate(pages) if one == page])
            notes.append(f"report: {page}")


def _write_answers(file: Path, lines: str, notes: list[str]) -> None:
    store.write_text(file, lines)
    notes.append(f"answers: {file}")
