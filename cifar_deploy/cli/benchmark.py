"""`cifar-deploy benchmark`."""

import math
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cifar_deploy import cards, store
from cifar_deploy.cli.options import (
    ITS_DATA,
    DeviceOption,
    FormatOption,
    JsonFileOption,
    OnnxBy,
    PrecisionOption,
    Source,
    ThreadsOption,
    TrustFlag,
    command,
    doing,
    is_stdout,
    say,
    several,
    show,
)
from cifar_deploy.engines.options import LARGEST_BATCH
from cifar_deploy.errors import UserError
from cifar_deploy.kind import Format, Kind
from cifar_deploy.measuring import Contest, Work, check_some, measure, usual_in_flight

if TYPE_CHECKING:
    from cifar_deploy.benchmark.contenders import Failure
    from cifar_deploy.data.dataset import Split


OFFLINE_BATCH = 256
MAX_SLOWDOWN = 10.0  # percent
WIDTH, SCENARIO_WIDTH = 180, 160  # columns of a table where there is no terminal


class Scenario(StrEnum):
    """MLPerf's scenarios."""

    SingleStream = "SingleStream"
    Offline = "Offline"


def benchmark(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL|FILE|grpc://...",
            help="Models (default: all), exported files, or what a server has, as "
            "grpc://localhost:8001/MODEL.",
        ),
    ] = None,
    format: FormatOption = None,
    precision: PrecisionOption = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N[,N...]",
            help="Batch sizes to measure. [default: 1,8,32,128,256,1024; --scenario Offline: 256]",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Seconds to measure each file and batch.", min=0.0)
    ] = 1.0,
    in_flight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N[,N...]",
            help="Batches that run at once for the throughput, as 1,2,4; 0: leave that out. "
            "[default: 4 on a GPU, 2 on a CPU]",
        ),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Measure PyTorch with torch.compile, too. [default: on a GPU]",
        ),
    ] = None,
    runtime: Annotated[
        list[OnnxBy] | None,
        several(
            OnnxBy,
            "What runs ONNX files: onnxruntime, openvino on a CPU, or both with a comma. "
            "[default: onnxruntime]",
        ),
    ] = None,
    scenario: Annotated[
        Scenario | None,
        typer.Option(
            help="Let MLPerf's LoadGen measure instead: single images one after another, or "
            "batches."
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            help="--scenario: use only so many test images, the first ones; default: all.", min=1
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="--scenario: folder for LoadGen's logs; default models/mlperf."),
    ] = None,
    trust: TrustFlag = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    data_dir: Annotated[
        Path | None, typer.Option(help=f"--scenario: folder of the data set; default: {ITS_DATA}.")
    ] = None,
    data: Annotated[
        Source | None,
        typer.Option(
            help="--scenario: data set of the test images, auto or synthetic; default: what the "
            "model was trained on."
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", help="Compare with an earlier --json file of this machine."
        ),
    ] = None,
    max_slowdown: Annotated[
        float | None,
        typer.Option(
            help="Percent that a median latency may be over the --baseline's, else exit status 1. "
            "[default: 10]",
            min=0,
        ),
    ] = None,
    max_latency: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Milliseconds that the p99 latency of every batch may take, else exit status 1.",
        ),
    ] = None,
    json_file: JsonFileOption = None,
) -> None:
    """Measure latency and throughput of PyTorch and exported files side by side.

    Exit status 1 if something could not be measured (but for a model's engines where no GPU is),
    or is slower than --baseline or --max-latency allows.
    """
    loadgens = {"--images": images, "--out": out, "--data": data, "--data-dir": data_dir}
    if given := [] if scenario else [name for name, value in loadgens.items() if value is not None]:
        raise UserError(f"{given[0]} goes with --scenario; speed alone needs no test images")
    sizes = _batches(batch or [])
    counts = _at_once(in_flight or [])
    if scenario and len(counts) > 1:
        raise UserError("--scenario takes one --in-flight; run it once for each")
    if scenario and len(sizes) > (scenario is Scenario.Offline):
        takes = "one --batch" if scenario is Scenario.Offline else "single images, no --batch"
        raise UserError(f"--scenario {scenario.value} takes {takes}")
    offline = sizes[0] if sizes else OFFLINE_BATCH
    kind = Kind(tuple(format or ()), tuple(precision or ()))
    contest = Contest.of(targets or [], kind)
    if baseline and scenario:
        raise UserError("--baseline compares what is measured without --scenario")
    if max_slowdown is not None and not baseline:
        raise UserError("--max-slowdown goes with --baseline")
    if baseline and json_file and baseline.resolve() == json_file.resolve():
        raise UserError(f"--json {json_file} would replace the baseline; name another file")
    for option, value_given in (("--max-slowdown", max_slowdown), ("--seconds", seconds)):
        if value_given is not None and not math.isfinite(value_given):
            raise UserError(f"{option} {value_given}: a number that ends")
    if max_latency is not None and scenario:
        raise UserError("--max-latency judges what is measured without --scenario")
    if max_latency is not None and not 0 < max_latency < math.inf:
        raise UserError(f"--max-latency {max_latency:g}: milliseconds, more than 0")
    from cifar_deploy.benchmark import baseline as earlier
    from cifar_deploy.benchmark import mlperf, sweep, table
    from cifar_deploy.device import describe, pick

    where = pick(device, threads)
    before = earlier.read(baseline, describe(where)) if baseline else None
    worse, over, under = False, list[str](), list[str]()  # what --baseline says
    if scenario:
        if len(runtime or []) > 1:
            raise UserError("--scenario takes one --runtime; run it once for each")
        mlperf.loadgen()  # where it is missing, that is told first
    ended: UserError | KeyboardInterrupt | None = None
    with doing("opening") as told:
        onnx = [by.value for by in runtime or [OnnxBy.onnxruntime]]
        if scenario:
            folders = [folder for folder, *_ in contest.work]
            at_once, *_ = counts or usual_in_flight(where)
            failures: list[Failure] = []
            ran = mlperf.run_all(
                # LoadGen's accuracy depends on how pixels are normalised: no foreign interface.
                contest.opened(where, compiled, trust, None, onnx, failures),
                _test_images(folders, data.value if data else None, data_dir, images),
                mlperf.Settings(scenario.value, seconds, offline, max(at_once, 1)),
                out or store.models_root() / "mlperf",
                where,
                told,
            )
            ran.failures[:0] = failures
            check_some(bool(ran.results or len(ran.failures) > len(failures)), ran.failures)
            ran.remarks += contest.said
            shown = table.scenario_table(ran.results)
            said, value = table.scenario_notes(ran), mlperf.to_json(ran, command())
            failures, ended = ran.failures, ran.ended
        else:
            result = measure(
                contest,
                where,
                batches=sizes,
                seconds=seconds,
                in_flight=counts or None,
                compiled=compiled,
                onnx=onnx,
                trust=trust,
                told=told,
            )
            shown = table.table(result.rows)
            said, value = table.notes(result), sweep.to_json(result, command())
            failures, ended = result.failures, result.ended
            if before:
                changes = earlier.changes(before, result.rows)
                limit = MAX_SLOWDOWN if max_slowdown is None else max_slowdown
                lost = earlier.missing(before, result.rows)
                decisive = earlier.changes(before, sweep.judged(result.rows))
                late = earlier.slower(decisive, limit)
                under += earlier.notes(before, changes, late, lost)
                if changes and not decisive:
                    under.append(f"No file that was measured here is in {baseline}.")
                value["baseline"] = earlier.to_json(before, changes, limit, lost)
                # A comparison with nothing is none that went well.
                worse = not decisive or bool(late)
            if max_latency is not None:
                value["max_latency_ms"] = max_latency
                over += sweep.slower_than(sweep.judged(result.rows), max_latency)
    show(shown, said + under, value, json_file, SCENARIO_WIDTH if scenario else WIDTH)
    for line in over:
        say(line)
    if is_stdout(json_file):  # else it stands under the table
        for line in (*under, *(f"{lost.model}, {lost.name}: {lost.reason}" for lost in failures)):
            say(line)
    if ended:
        raise ended
    # Engines that come with a model are told where there is no GPU, and are no failure.
    named = Format.trt in kind.formats
    if worse or over or any(named or not _waits(contest.work, failure) for failure in failures):
        raise typer.Exit(1)


def _waits(work: list[Work], failure: "Failure") -> bool:
    """Whether what failed is an engine of a model, itself not named, that only lacks a GPU."""
    from cifar_deploy.engines.manifest import NO_GPU

    found = [
        whole
        for folder, files, whole in work
        if folder.name == failure.model and failure.name in [file.name for file in files]
    ]
    return failure.reason.endswith(NO_GPU) and all(found)


def _batches(texts: list[str]) -> tuple[int, ...]:
    """The batch sizes, each option's one or several with commas between. Raises UserError."""
    parts = [part for text in texts for part in text.split(",")]
    for part in parts:
        if not re.fullmatch(r"0*[1-9]\d*", part):
            raise UserError(f"--batch {part}: images a call, 1 or more, as 8 or 1,8,32")
        if int(part) > LARGEST_BATCH:
            raise UserError(f"--batch {part}: a batch over {LARGEST_BATCH:,} is no batch")
    return tuple(dict.fromkeys(map(int, parts)))


def _at_once(texts: list[str]) -> tuple[int, ...]:
    """The batches in flight, given as the batch sizes are, or a 0 alone. Raises UserError."""
    parts = [part for text in texts for part in text.split(",")]
    for part in parts:
        if not re.fullmatch(r"[0-9]{1,4}", part) or (not int(part) and len(parts) > 1):
            raise UserError(
                f"--in-flight {part}: batches at once, 1 to 9999, as 4 or 1,2,4; 0 alone for none"
            )
    return tuple(dict.fromkeys(map(int, parts)))


def _test_images(
    folders: list[store.ModelFolder],
    source: str | None,
    data_dir: Path | None,
    images: int | None,
) -> "dict[str, Split]":
    """For each model the test images of the data it was trained on, or of `source`."""
    from cifar_deploy.data import find

    data_of = find.of_models(source, data_dir)
    splits = {}
    for folder in folders:
        card = cards.read_card(folder) if folder.card.exists() else {}
        test = data_of(folder.name, card).test
        splits[folder.name] = test.first(images) if images else test
    return splits
