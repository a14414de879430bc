import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sleepers import Sleeper

from cifar_deploy.architectures import weights
from cifar_deploy.benchmark import mlperf, sweep, table
from cifar_deploy.benchmark.contenders import Contender, contenders
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes.onnx_runtime import OnnxRuntime
from cifar_deploy.runtimes.openvino import OpenVino
from cifar_deploy.store import ModelFolder
from cifar_deploy.validate.judge import Options, Reference, judge

pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen has no wheel here")
CPU = torch.device("cpu")


@pytest.mark.parametrize("scenario", ["SingleStream", "Offline"])
def test_accuracy_from_loadgens_log_is_that_of_validate(
    measured: ModelFolder, small_data: Dataset, tmp_path: Path, scenario: str
) -> None:
    file = measured.onnx("fp32")
    judged = judge(
        Reference.of_model(weights.load(measured)), [file], small_data, CPU, Options(100.0, 0.0)
    )
    contender = Contender("simple_cnn", file.name, OnnxRuntime(file, CPU))
    # A batch that does not divide the images, so that the last one is smaller.
    settings = mlperf.Settings(scenario, 0.3, 64, 2)
    result = mlperf.run(contender, small_data.test, settings, tmp_path / "logs")
    assert result.accuracy == judged.rows[1].accuracy
    assert result.images == len(small_data.test)
    assert result.images_per_second > 0
    for mode in ("performance", "accuracy"):
        assert (tmp_path / "logs" / mode / "mlperf_log_detail.txt").stat().st_size
    summary = (tmp_path / "logs" / "performance" / "mlperf_log_summary.txt").read_text()
    assert f"Result is : {'VALID' if result.valid else 'INVALID'}" in summary
    if scenario == "SingleStream":
        assert result.valid, summary
        assert result.p90_ms
        assert f": {round(result.p90_ms * 1e6)}\n" in summary
        assert result.early_stopping_p90_ms
        assert result.queries >= mlperf.FEWEST_QUERIES
    else:
        assert result.p90_ms is None
        assert "Samples per second: " in summary


def test_both_scenarios_of_all_files_and_the_json(
    measured: ModelFolder, small_data: Dataset, tmp_path: Path
) -> None:
    entered, _ = contenders([(measured, [measured.onnx("fp16")], True)], CPU, False)
    settings = mlperf.Settings("SingleStream", 0.1, 1, 1)
    runs = mlperf.run_all(
        [entered], {"simple_cnn": small_data.test.first(50)}, settings, tmp_path, CPU
    )
    value = json.loads(json.dumps(mlperf.to_json(runs, "the command")))
    assert [r["name"] for r in value["results"]] == ["PyTorch eager fp32", "simple_cnn.fp16.onnx"]
    for result in value["results"]:
        assert Path(result["logs"]).is_relative_to(tmp_path / "simple_cnn")
        assert result["loadgen"]
    assert value["failures"] == []


def test_runs_on_other_devices_and_in_other_runtimes_leave_the_logs_alone(
    measured: ModelFolder, small_data: Dataset, tmp_path: Path
) -> None:
    """The same file, on what a GPU is called here: where it is computed is not looked at."""
    gpus = [Sleeper(lambda _: 0.001) for _ in range(2)]
    for number, gpu in enumerate(gpus):
        gpu.device = f"cuda:{number}"
    file = measured.onnx("fp32")
    runtimes: list[Any] = [OnnxRuntime(file, CPU), *gpus]
    if importlib.util.find_spec("openvino"):
        runtimes.append(OpenVino(file, CPU))
    places = [mlperf.place(Contender("m", file.name, one), "Offline") for one in runtimes]
    wanted = ["Offline", "Offline-cuda0", "Offline-cuda1", "Offline-openvino"]
    assert places == wanted[: len(runtimes)]
    settings = mlperf.Settings("Offline", 0.1, 8, 1)
    entered = [Contender("m", file.name, one) for one in runtimes if one not in gpus]
    runs = mlperf.run_all([entered], {"m": small_data.test.first(20)}, settings, tmp_path, CPU)
    assert [Path(result.logs) for result in runs.results] == [
        tmp_path / "m" / file.name / folder for folder in places if "cuda" not in folder
    ]


def test_a_batch_is_no_larger_than_the_images_are_many(small_data: Dataset, tmp_path: Path) -> None:
    entered = [Contender("m", "file", Sleeper(lambda _: 0.001))]
    settings = mlperf.Settings("Offline", 0.1, 256, 4)
    runs = mlperf.run_all([entered], {"m": small_data.test.first(50)}, settings, tmp_path, CPU)
    (result,) = runs.results
    # On a CPU what is sent is computed at once.
    assert (result.batch, result.in_flight) == (50, 1)
    assert any("batch 50, 1 in flight" in note for note in table.scenario_notes(runs))


def test_samples_that_would_fill_the_memory_are_refused(
    small_data: Dataset, tmp_path: Path
) -> None:
    entered = [Contender("m", "file", Sleeper(lambda _: 0.001))]
    settings = mlperf.Settings("Offline", 1e7, 256, 1)
    runs = mlperf.run_all([entered], {"m": small_data.test.first(50)}, settings, tmp_path, CPU)
    (failure,) = runs.failures
    said = r"about [\d,]+ GiB, and [\d,]+ are left here; give fewer --seconds$"
    assert re.search(said, failure.reason)
    assert not list(tmp_path.rglob("mlperf_log*"))


def test_a_runtime_that_fails_under_loadgen_is_told(small_data: Dataset, tmp_path: Path) -> None:
    runtime = Sleeper(lambda _: 0.0)
    started = []

    def fail(_: int) -> float:
        # LoadGen has begun when the trial is over.
        if (tmp_path / "m" / "file" / "SingleStream" / "performance").exists():
            started.append(1)
            raise UserError("the GPU went away")
        return 0.001

    runtime.seconds = fail
    settings = mlperf.Settings("SingleStream", 0.1, 1, 1)
    runs = mlperf.run_all(
        [[Contender("m", "file", runtime)]],
        {"m": small_data.test.first(20)},
        settings,
        tmp_path,
        CPU,
    )
    assert len(started) == 1  # after the first error nothing more is tried
    assert [(failure.reason, failure.batch) for failure in runs.failures] == [
        ("the GPU went away", 1)
    ]
    assert runs.results == []


def test_a_gpu_that_fails_ends_the_run_and_keeps_what_was_found(
    small_data: Dataset, tmp_path: Path
) -> None:
    good, bad, late = (Sleeper(lambda _: 0.001) for _ in range(3))

    def fail(_: int) -> float:
        raise torch.AcceleratorError("CUDA error: an illegal memory access\nCompile with")

    bad.seconds = fail
    splits = {"m": small_data.test.first(20)}
    settings = mlperf.Settings("Offline", 0.1, 8, 1)
    entered = [Contender("m", name, one) for name, one in (("a", good), ("b", bad), ("c", late))]
    runs = mlperf.run_all([entered], splits, settings, tmp_path, CPU)
    assert [result.who.name for result in runs.results] == ["a"]
    assert str(runs.ended).startswith("m, b: the GPU failed: CUDA error: an illegal memory access;")
    assert sweep.UNFINISHED in mlperf.to_json(runs, "")["remarks"]
    assert late.calls == 0
    with pytest.raises(UserError, match=r"^m, b: the GPU failed"):
        mlperf.run_all([entered[1:]], splits, settings, tmp_path, CPU)


@pytest.mark.parametrize("scenario", ["SingleStream", "Offline"])
def test_ctrl_c_under_loadgen_keeps_what_was_found(
    small_data: Dataset, tmp_path: Path, ctrl_c: Callable[[], None], scenario: str
) -> None:
    """It would not pass through LoadGen, which ends the process then."""
    good, stopped, late = (Sleeper(lambda _: 0.001) for _ in range(3))
    after = []

    def interrupted(_: int) -> float:
        if (tmp_path / "m" / "b" / scenario / "performance").exists():
            after.append(1)
            if len(after) == 3:
                ctrl_c()
        return 0.001

    stopped.seconds = interrupted
    named = (("a", good), ("b", stopped), ("c", late))
    entered = [Contender("m", name, one) for name, one in named]
    settings = mlperf.Settings(scenario, 0.2, 2, 1)
    runs = mlperf.run_all([entered], {"m": small_data.test.first(20)}, settings, tmp_path, CPU)
    assert [result.who.name for result in runs.results] == ["a"]
    assert isinstance(runs.ended, KeyboardInterrupt)
    assert sweep.UNFINISHED in runs.remarks
    assert len(after) <= 4  # what was being computed, and nothing more
    assert (runs.failures, late.calls) == ([], 0)


def test_a_signal_under_loadgen_reaches_who_waited_for_it(
    small_data: Dataset, tmp_path: Path
) -> None:
    caught = []

    def end(number: int, _frame: object) -> None:
        caught.append(number)
        raise KeyboardInterrupt

    def terminated(_: int) -> float:
        if (tmp_path / "performance").exists() and not caught:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.001

    before = signal.signal(signal.SIGTERM, end)
    try:
        settings = mlperf.Settings("SingleStream", 0.1, 1, 1)
        with pytest.raises(KeyboardInterrupt):
            mlperf.run(
                Contender("m", "file", Sleeper(terminated)),
                small_data.test.first(20),
                settings,
                tmp_path,
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught == [signal.SIGTERM]


class Late:
    """A slot that tells of a failure when it is waited for, as one on a GPU does."""

    def __init__(self, sent: list[int], failing: int) -> None:
        self.sent, self.failing, self.mine = sent, failing, -1
        self.answer = torch.zeros(2, 10)

    def send(self, _: torch.Tensor) -> None:
        self.mine = len(self.sent)
        self.sent.append(self.mine)

    def wait(self) -> None:
        if self.mine == self.failing:
            raise UserError("the GPU went away")


@pytest.mark.parametrize("failing", range(7))
def test_every_sample_is_answered_once_whichever_batch_fails(
    small_data: Dataset, failing: int
) -> None:
    """LoadGen waits for ever for one that is not, and takes no two answers."""
    answered: list[int] = []
    loadgen = SimpleNamespace(
        QuerySampleResponse=lambda number, _address, _size: number,
        QuerySamplesComplete=answered.extend,
    )
    contender = Contender("m", "file", Sleeper(lambda _: 0.0))
    system = mlperf._System(loadgen, contender, small_data.test.first(12), 2, 4)
    sent: list[int] = []
    slots: Any = [Late(sent, failing) for _ in range(4)]
    system._slots = slots
    system.issue([SimpleNamespace(id=number, index=number) for number in range(12)])
    assert sorted(answered) == list(range(12))
    assert isinstance(system.error, UserError) == (failing < 6)  # of six batches


def test_without_loadgen_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(UserError, match=r"pip install 'cifar-deploy\[loadgen\]'"):
        mlperf.loadgen()


def test_a_log_that_lacks_an_image_is_no_result(small_data: Dataset, tmp_path: Path) -> None:
    log = tmp_path / "mlperf_log_accuracy.json"
    labels = small_data.test.labels[:3]
    entries = [
        {"seq_id": i, "qsl_idx": i, "data": int(label).to_bytes(4, "little").hex()}
        for i, label in enumerate(labels)
    ]
    log.write_text(json.dumps(entries))
    assert mlperf.logged_accuracy(log, labels) == 1.0
    entries[1]["data"] = (99).to_bytes(4, "little").hex()
    log.write_text(json.dumps(entries))
    assert mlperf.logged_accuracy(log, labels) == pytest.approx(2 / 3)
    log.write_text(json.dumps(entries[:2]))
    with pytest.raises(UserError, match="does not hold every image once"):
        mlperf.logged_accuracy(log, labels)


@pytest.mark.gpu
@pytest.mark.parametrize("scenario", ["SingleStream", "Offline"])
def test_loadgen_drives_a_gpu(
    measured: ModelFolder, small_data: Dataset, tmp_path: Path, scenario: str
) -> None:
    device = torch.device("cuda", 0)
    (contender, *_), _ = contenders([(measured, [], True)], device, False)
    judged = judge(
        Reference.of_model(weights.load(measured)), [], small_data, device, Options(100.0, 0.0)
    )
    settings = mlperf.Settings(scenario, 0.5, 64, 3)
    result = mlperf.run(contender, small_data.test, settings, tmp_path)
    assert result.accuracy == judged.rows[0].accuracy
