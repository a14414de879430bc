"""MLPerf's scenarios SingleStream and Offline, driven by MLPerf's own LoadGen.

LoadGen asks for samples and keeps the clock; here they are only computed. Each scenario runs twice:
in performance mode, and in accuracy mode over every image, whose answers LoadGen logs. The rules
are MLPerf's but for the duration, so these are no MLPerf submissions.
https://github.com/mlcommons/inference/tree/master/loadgen
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cifar_deploy import device as machine
from cifar_deploy.benchmark.contenders import (
    Contender,
    Failure,
    Who,
    are_remote,
    failure,
    left_out,
    not_taken,
)
from cifar_deploy.benchmark.flight import slots
from cifar_deploy.benchmark.sweep import UNFINISHED, Say, conditions, let_go, remarks
from cifar_deploy.data.dataset import Split
from cifar_deploy.disk import Json
from cifar_deploy.errors import UserError, disk_errors
from cifar_deploy.runtimes.load import OPENVINO
from cifar_deploy.runtimes.protocol import takes, unversioned
from cifar_deploy.signals import held
from cifar_deploy.watch import Watch

SINGLE_STREAM, OFFLINE = "SingleStream", "Offline"
FEWEST_QUERIES = 64  # LoadGen's early stopping gives no 90th percentile from fewer
TRIAL_SECONDS = 0.5  # of measuring what LoadGen has to be told to expect
# LoadGen makes its queries before it begins: Offline one of 1.1 times the expected rate,
# SingleStream some for twice that rate. With a rate guessed too low it ends early.
HEADROOM = {OFFLINE: 1.3, SINGLE_STREAM: 2.0}
OFFLINE_QUERY = 1.1  # of the samples that the expected rate makes in the time: so many are made
SAMPLE_BYTES = 250  # that LoadGen and its Python module hold for each


@dataclass(frozen=True)
class Result:
    """What LoadGen found of one file in one scenario."""

    who: Who
    scenario: str
    valid: bool
    why_invalid: str
    p90_ms: float | None  # SingleStream: the 90th percentile of the latency
    early_stopping_p90_ms: float | None  # MLPerf's metric: an upper estimate of it
    images_per_second: float  # Offline's metric
    queries: int
    accuracy: float  # share of the images, from LoadGen's accuracy log
    images: int
    batch: int  # Offline's; no larger than the images are many
    in_flight: int  # of them at once; elsewhere than on a GPU one after another
    loadgen: str
    logs: str


@dataclass(frozen=True)
class Settings:
    """How LoadGen drives. `seconds` is its minimum duration; the rest is Offline's."""

    scenario: str
    seconds: float
    batch: int
    in_flight: int


@dataclass
class Runs:
    """All that LoadGen found; `ended` is what made it end early."""

    settings: Settings
    facts: Json
    results: list[Result] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    ended: UserError | KeyboardInterrupt | None = None


def loadgen() -> Any:
    """MLPerf's module. Raises UserError, naming the extra, where it is not installed."""
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise UserError(
            f"--scenario needs MLPerf's LoadGen ({error}); run: pip install 'cifar-deploy[loadgen]'"
        ) from None
    return mlperf_loadgen


def run_all(
    models: Iterable[Sequence[Contender]],
    splits: Mapping[str, Split],
    settings: Settings,
    out: Path,
    device: torch.device,
    say: Say = lambda _: None,
) -> Runs:
    """Every contender over the test images of its model in `splits`, one after another.

    Those of one model are let go before the next ones are asked for, as in `sweep.run`.
    LoadGen's logs go to `out`/<model>/<name>/`place`. A GPU that fails, or Ctrl-C, is left in the
    answer's `ended`, with what was found before. Raises UserError where LoadGen is missing, where
    the disk refuses, and where the GPU fails before anything was found.
    """
    remote: list[bool] = []
    with Watch(device) as watch:
        runs = Runs(settings, conditions(device, watch))
        try:
            for mine in models:
                remote += are_remote(mine)
                for contender in mine:
                    split, name = splits[contender.model], contender.name.replace(" ", "-")
                    batch, _ = _sizes(settings, split, contender)
                    if said := left_out([contender], [batch]):
                        runs.remarks += said
                        continue
                    folder = out / contender.model / name / place(contender, settings.scenario)
                    say(f"{settings.scenario}: {contender.model}, {contender.name}")
                    try:
                        runs.results.append(run(contender, split, settings, folder))
                    except (UserError, RuntimeError) as error:
                        runs.failures.append(failure(contender, batch, error))
                del mine, contender
                let_go(device)
        except (UserError, KeyboardInterrupt) as end:
            if not runs.results:
                raise
            runs.ended = end
            runs.remarks.append(UNFINISHED)
        runs.remarks += remarks(remote, device, watch)
    return runs


def place(contender: Contender, scenario: str) -> str:
    """The folder of a file's logs: its scenario, and behind that the GPU, as cuda0, or OpenVINO.

    So a file's runs on a CPU and on a GPU, or in two runtimes, leave each other's logs alone.
    """
    one = contender.runtime
    device = one.device.replace(":", "") if one.device.startswith("cuda") else ""
    other = OPENVINO if unversioned(one.runtime).lower() == OPENVINO else ""
    return "-".join(filter(None, (scenario, device, other)))


def run(contender: Contender, split: Split, settings: Settings, out: Path) -> Result:
    """Performance, then accuracy of `contender` over `split`; LoadGen's logs go to `out`.

    Raises UserError where LoadGen is missing, where the runtime fails, where the disk refuses and
    where the samples would not fit into the memory; KeyboardInterrupt once LoadGen has ended.
    """
    scenario = settings.scenario
    batch, in_flight = _sizes(settings, split, contender)
    if not takes(contender.runtime.batches, batch):
        raise UserError(not_taken(contender))
    lg = loadgen()
    system = _System(lg, contender, split, batch, in_flight)
    expected = HEADROOM[scenario] * system.rate()
    if scenario == OFFLINE:
        _check_memory(OFFLINE_QUERY * expected * settings.seconds)
    sut = lg.ConstructSUT(system.issue, lambda: None)
    qsl = lg.ConstructQSL(len(split), len(split), lambda _: None, lambda _: None)
    found: dict[str, Json] = {}
    try:
        for mode in ("performance", "accuracy"):
            test = lg.TestSettings()
            test.scenario = getattr(lg.TestScenario, scenario)
            test.mode = getattr(lg.TestMode, f"{mode.capitalize()}Only")
            test.min_duration_ms = math.ceil(1000 * settings.seconds)
            test.min_query_count = FEWEST_QUERIES if scenario == SINGLE_STREAM else 1
            test.single_stream_expected_latency_ns = max(1, int(1e9 / expected))
            test.offline_expected_qps = expected
            folder = out / mode
            with disk_errors(folder, "write"):
                folder.mkdir(parents=True, exist_ok=True)
            with held() as system.signal:
                lg.StartTestWithLogSettings(sut, qsl, test, _logs_in(lg, folder))
            if system.error:
                raise system.error
            (folder / "mlperf_log_trace.json").unlink(missing_ok=True)  # empty: not asked for
            found[mode] = _details(folder / "mlperf_log_detail.txt")
    finally:
        lg.DestroyQSL(qsl)
        lg.DestroySUT(sut)
    return _result(contender, scenario, found["performance"], split, batch, in_flight, out)


def _sizes(settings: Settings, split: Split, contender: Contender) -> tuple[int, int]:
    """Images of a batch, and batches in flight."""
    if settings.scenario == SINGLE_STREAM:
        return 1, 1
    on_cuda = contender.runtime.device.startswith("cuda")
    return min(settings.batch, len(split)), settings.in_flight if on_cuda else 1


def _check_memory(samples: float) -> None:
    """Raise UserError where so many samples at once would not fit into the memory that is left."""
    need, there = samples * SAMPLE_BYTES, machine.memory_left()
    if there is not None and need > there:
        raise UserError(
            f"Offline would ask for {samples / 1e6:,.0f} million images at once, which takes about "
            f"{need / 2**30:,.0f} GiB, and {there / 2**30:,.0f} are left here; give fewer --seconds"
        )


def _logs_in(lg: Any, folder: Path) -> Any:
    output = lg.LogOutputSettings()
    output.outdir = str(folder)
    settings = lg.LogSettings()
    settings.log_output = output
    settings.enable_trace = False
    return settings


class _System:
    """The system under test: LoadGen's samples, a batch at a time through the slots."""

    def __init__(
        self, lg: Any, contender: Contender, split: Split, batch: int, in_flight: int
    ) -> None:
        self._lg = lg
        self._batch = batch
        self._images = torch.from_numpy(split.images)
        runtime = contender.runtime
        first = split.images[: self._batch]
        self._slots = slots(runtime, first, in_flight, contender.one_stream)
        on_cuda = runtime.device.startswith("cuda")
        self._staged = [
            torch.empty(first.shape, dtype=torch.uint8, pin_memory=on_cuda) for _ in self._slots
        ]
        self._waiting: list[Sequence[Any]] = [[] for _ in self._slots]
        self._told = 0  # of a query's samples, in their order
        self.error: Exception | None = None
        self.signal: Callable[[], int] = lambda: 0  # one that came: nothing more is computed

    def rate(self) -> float:
        """Images a second, tried for a moment after a warm-up."""
        rate = 0.0
        for seconds in (0.2, TRIAL_SECONDS):
            sent, start = 0, time.perf_counter()
            while sent < len(self._slots) or time.perf_counter() - start < seconds:
                self._send(sent % len(self._slots), np.arange(self._batch))
                sent += 1
            for slot in self._slots:
                slot.wait()
            rate = sent * self._batch / (time.perf_counter() - start)
        return rate

    def issue(self, samples: Sequence[Any]) -> None:
        """LoadGen's call: compute `samples` and tell of each when it is done."""
        # An exception would not pass through LoadGen: it is kept, and what is left is given up.
        self._told = 0
        try:
            self._compute(samples)
        except Exception as error:
            self.error = error
        left = samples[self._told :]
        if left:
            self._lg.QuerySamplesComplete([self._lg.QuerySampleResponse(s.id, 0, 0) for s in left])

    def _compute(self, samples: Sequence[Any]) -> None:
        starts = range(0, len(samples), self._batch)
        # The oldest batch is told first, to the end: what is told is always the first `_told`.
        for number in range(len(starts) + len(self._slots)):
            if self.error or self.signal():
                return
            place = number % len(self._slots)
            self._finish(place)
            if number < len(starts):
                some = samples[starts[number] : starts[number] + self._batch]
                self._send(place, np.fromiter((s.index for s in some), np.int64, len(some)))
                self._waiting[place] = some

    def _send(self, place: int, indices: npt.NDArray[np.int64]) -> None:
        """Gather images, the last ones of a smaller batch being left as they were, and send."""
        self._slots[place].wait()
        staged = self._staged[place]
        torch.index_select(self._images, 0, torch.from_numpy(indices), out=staged[: len(indices)])
        self._slots[place].send(staged)

    def _finish(self, place: int) -> None:
        """Tell LoadGen the top-1 classes, int32, of what the slot was given."""
        samples = self._waiting[place]
        if not samples:
            return
        self._slots[place].wait()
        answer = self._slots[place].answer[: len(samples)].numpy()
        classes = np.ascontiguousarray(answer.argmax(1), dtype=np.int32)
        address, size = classes.ctypes.data, classes.itemsize
        response = self._lg.QuerySampleResponse
        self._lg.QuerySamplesComplete(
            [response(s.id, address + i * size, size) for i, s in enumerate(samples)]
        )
        self._told += len(samples)
        self._waiting[place] = []


def _details(log: Path) -> Json:
    """LoadGen's detail log: its keys with their values, the last of each."""
    with disk_errors(log, "read"):
        lines = log.read_text().splitlines()
    entries = [json.loads(line.partition(" ")[2]) for line in lines if line.startswith(":::MLLOG")]
    return {entry["key"]: entry["value"] for entry in entries}


def logged_accuracy(log: Path, labels: npt.NDArray[np.int64]) -> float:
    """Top-1, as a share, of LoadGen's accuracy log: a class for each image, as int32."""
    with disk_errors(log, "read"):
        entries = json.loads(log.read_text())
    indices = [entry["qsl_idx"] for entry in entries]
    answers = [int.from_bytes(bytes.fromhex(entry["data"]), "little") for entry in entries]
    if sorted(indices) != list(range(len(labels))):
        raise UserError(f"{log} does not hold every image once: LoadGen did not finish")
    return float((labels[indices] == np.array(answers)).mean())


def _result(
    contender: Contender,
    scenario: str,
    performance: Json,
    split: Split,
    batch: int,
    in_flight: int,
    out: Path,
) -> Result:
    single = scenario == SINGLE_STREAM
    nanoseconds = performance.get("result_90.00_percentile_latency_ns") if single else None
    early = performance.get("early_stopping_latency_ss") if single else None
    rate = "result_qps_without_loadgen_overhead" if single else "result_samples_per_second"
    return Result(
        who=contender.who,
        scenario=scenario,
        valid=performance["result_validity"] == "VALID",
        why_invalid=str(performance.get("result_invalid_reason", "")).strip(),
        p90_ms=nanoseconds / 1e6 if nanoseconds else None,
        early_stopping_p90_ms=early / 1e6 if early else None,
        images_per_second=float(performance[rate]),
        queries=int(performance["result_query_count"]),
        accuracy=logged_accuracy(out / "accuracy" / "mlperf_log_accuracy.json", split.labels),
        images=len(split),
        batch=batch,
        in_flight=in_flight,
        loadgen=str(performance["loadgen_version"]),
        logs=str(out),
    )


def to_json(runs: Runs, command: str) -> Json:
    """What a program reads: latencies in milliseconds, accuracies as shares."""
    return {
        "command": command,
        **runs.facts,
        "settings": asdict(runs.settings),
        "remarks": runs.remarks,
        "results": [{**one.pop("who"), **one} for one in map(asdict, runs.results)],
        "failures": [asdict(failure) for failure in runs.failures],
    }
