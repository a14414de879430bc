"""`cifar-deploy validate`."""

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cifar_deploy import address, disk, proving, store
from cifar_deploy.address import Address
from cifar_deploy.cli.options import (
    DeviceOption,
    FormatOption,
    ItsDataDirOption,
    ItsSourceOption,
    JsonFileOption,
    MeanOption,
    OnnxBy,
    PrecisionOption,
    StdOption,
    ThreadsOption,
    TrustFlag,
    command,
    csv_option,
    csv_text,
    doing,
    is_stdout,
    per_channel,
    say,
    several,
    show,
)
from cifar_deploy.errors import UserError
from cifar_deploy.kind import Kind

if TYPE_CHECKING:
    from cifar_deploy.validate.judgement import Judgement


def validate(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL|FILE|grpc://...",
            help="Models (default: all that have files), exported files, or what a server has, as "
            "grpc://localhost:8001/MODEL.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|FILE",
            help="Judge files against this model or ONNX file; default: the model beside them.",
        ),
    ] = None,
    format: FormatOption = None,
    precision: PrecisionOption = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Percentage points of accuracy that a file may lose; default: fp32 0.05, fp16 "
            "0.10, int8 0.50.",
            min=0.0,
            max=100.0,
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(help="Use only so many test images, the first ones; default: all.", min=1),
    ] = None,
    mean: MeanOption = None,
    std: StdOption = None,
    runtime: Annotated[
        list[OnnxBy] | None,
        several(
            OnnxBy,
            "What runs ONNX files: onnxruntime, or openvino on a CPU. [default: onnxruntime]",
        ),
    ] = None,
    latency: Annotated[bool, typer.Option(help="Measure latency and throughput, too.")] = True,
    trust: TrustFlag = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    data_dir: ItsDataDirOption = None,
    data: ItsSourceOption = None,
    json_file: JsonFileOption = None,
    answers: Annotated[
        Path | None,
        csv_option("--answers", "what the reference and each file answer to every image"),
    ] = None,
    mistakes: Annotated[
        int | None,
        typer.Option(
            help="How many mistakes of the reference to show in the report and the JSON. "
            "[default: 24]",
            min=1,
            max=1000,  # the page holds their pictures
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="HTML report; default models/report.html, or for some files or images only "
            "report.html in each model's folder."
        ),
    ] = None,
) -> None:
    """Prove that exported files are as accurate as the trained network, and time them.

    It judges what a server answers in the same way.

    Exit status 1 unless every file passes; 2 where one or a model is damaged, or a file is of
    other weights than the model has now: the rest is still judged.
    """
    kind = Kind(tuple(format or ()), tuple(precision or ()))
    work = proving.work_of(targets or [], reference, kind)
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
        disk.check_place(page)
    judgements = proving.prove(
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
        say=say,
        progress=functools.partial(doing, "validating"),
    )
    judged = {judgement.model for judgement in judgements}
    pages = [page for (owner, _), page in zip(work, pages, strict=True) if owner.name in judged]
    publish(judgements, json_file, pages, answers)
    from cifar_deploy.validate.noninferiority import PASS

    if is_stdout(json_file):  # else the table tells
        for judgement in judgements:
            for row in judgement.rows[1:]:
                if row.verdict != PASS:
                    say(f"{row.file}: {row.verdict}")
            for lost in judgement.unusable:
                if not lost.unfit:  # that was said
                    say(f"{lost.file}: {lost.reason}")
    unfit = any(lost.unfit for judgement in judgements for lost in judgement.unusable)
    if unfit or len(judgements) < len(work):  # a model was
        raise typer.Exit(2)
    if not all(judgement.passed for judgement in judgements):
        raise typer.Exit(1)


def _place(owner: store.ModelFolder | Path, files: Sequence[Path | Address]) -> Path:
    """The folder of what files are judged against: their model's, or else their own."""
    if not isinstance(owner, Path):
        return owner.path
    return next((file.parent for file in files if isinstance(file, Path)), owner.parent)


def publish(
    judgements: "list[Judgement]",
    json_file: Path | None,
    pages: Sequence[Path],
    answers: Path | None = None,
) -> None:
    """Print the table, write the page of each judgement and, where asked for, JSON and `answers`.

    Judgements whose pages are the same stand on it together. `answers` are of one judgement.
    """
    from cifar_deploy.validate import judgement, report, table

    value = {
        "command": command(),
        "models": [judgement.to_json(one) for one in judgements],
    }
    notes = table.notes(judgements)
    lines = csv_text(judgement.answers(judgements[0])) if answers else None
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
    disk.write_text(file, lines)
    notes.append(f"answers: {file}")
