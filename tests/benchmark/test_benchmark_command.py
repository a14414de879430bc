"""`cifar-deploy benchmark` as a person meets it."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import command_line

import cifar_deploy
from cifar_deploy.benchmark.contenders import Who
from cifar_deploy.benchmark.sweep import Row, slower_than
from cifar_deploy.cli.options import OnnxBy
from cifar_deploy.engines.flavour import RTX
from cifar_deploy.engines.manifest import MAGIC_RTX
from cifar_deploy.export.onnx_file import export_onnx
from cifar_deploy.runtimes.load import ONNX
from cifar_deploy.store import ModelFolder, write_manifest
from cifar_deploy.timing import Times, Timing

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return partial(command_line(monkeypatch, capsys), "benchmark")


QUICK = ("--device", "cpu", "--seconds", "0.02")


def test_a_model_with_all_its_files(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    batches = ("--batch", "2,3", "--batch", "1")
    status, out, err = run("simple_cnn", *QUICK, *batches, "--json", str(file))
    assert status == 0
    told = err.splitlines()
    assert "simple_cnn, batch 2: PyTorch eager fp32 latency" in told
    assert len(told) == len(set(told))  # not once for every turn
    value = json.loads(file.read_text())
    assert value["settings"]["batches"] == [2, 3, 1]
    assert [row["name"] for row in value["rows"] if row["batch"] == 3] == [
        "PyTorch eager fp32",
        "simple_cnn.fp16.onnx",
        "simple_cnn.fp32.onnx",
    ]
    assert all(row["open_s"] > 0 and row["first_call_ms"] > 0 for row in value["rows"])
    assert "Cold start of simple_cnn, opening + first call of batch 2: PyTorch eager fp32 " in out
    assert "Memory of simple_cnn, from before opening to after the first call of batch 3: " in out
    assert all(isinstance(row["memory_mib"], int) for row in value["rows"])
    assert "no GPU is measured" in out
    assert "compute" in out


def test_a_file_of_other_weights_is_timed_and_told(run: Run, models: Path, tmp_path: Path) -> None:
    place = tmp_path / "simple_cnn"
    shutil.copytree(models / "simple_cnn", place)
    manifest = place / "simple_cnn.fp16.onnx.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"weights_sha256": "0" * 64}))
    quick = (*QUICK, "--batch", "1", "--in-flight", "0", "--json", "-")
    status, out, _ = run(str(place), *quick)
    assert status == 0
    said = [remark for remark in json.loads(out)["remarks"] if "other weights" in remark]
    assert [remark.split()[0] for remark in said] == ["simple_cnn.fp16.onnx"]
    manifest.write_text("nothing")  # then that file fails, and the rest is timed
    status, out, _ = run(str(place), *quick)
    assert status == 1
    value = json.loads(out)
    assert [failure["name"] for failure in value["failures"]] == ["simple_cnn.fp16.onnx"]
    assert len(value["rows"]) == 2
    assert not any("other weights" in remark for remark in value["remarks"])


def test_a_file_alone_and_json_alone_on_standard_output(run: Run, models: Path) -> None:
    file = str(models / "simple_cnn" / "simple_cnn.fp32.onnx")
    status, out, _ = run(file, *QUICK, "--batch", "1", "--in-flight", "0", "--json", "-")
    assert status == 0
    (row,) = json.loads(out)["rows"]
    assert row["name"] == "simple_cnn.fp32.onnx"
    assert row["throughput"] is None


def test_what_is_slower_than_before_is_told_and_status_1(
    run: Run, models: Path, tmp_path: Path
) -> None:
    file = str(models / "simple_cnn" / "simple_cnn.fp32.onnx")
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    quick = (file, *QUICK, "--batch", "1,2,1", "--in-flight", "1,2,2", "--json")  # each once
    assert run(*quick, str(before))[0] == 0
    value = json.loads(before.read_text())

    def compared(factor: float, **facts: object) -> tuple[int, str, str]:
        """With a baseline whose figure for a batch of 2 is `factor` times what it was."""
        rows = [
            row | {"latency": row["latency"] | {"p50": row["latency"]["p50"] * factor}}
            if row["batch"] == 2
            else row
            for row in value["rows"]
        ]
        other = tmp_path / "other.json"
        other.write_text(json.dumps(value | {"rows": rows} | facts))
        # A median of a busy machine may well be twice another, and not a hundred times.
        options = ("--baseline", str(other), "--max-slowdown", "2000")
        return run(*quick, str(after), *options)

    status, out, _ = compared(1.0)
    assert status == 0
    assert f"Against {tmp_path / 'other.json'}: 2 of 2 rows, their medians" in out
    assert "SLOWER" not in out
    assert len(json.loads(after.read_text())["baseline"]["rows"]) == 2
    status, out, _ = compared(1e-3)
    assert status == 1
    assert "simple_cnn, simple_cnn.fp32.onnx, batch 2: SLOWER by" in out
    assert "batch 1: SLOWER" not in out
    status, out, _ = compared(1.0, rows=[])
    assert (status, "Nothing of" in out) == (1, True)
    status, _, err = compared(1.0, device="another CPU, 64 threads")
    assert (status, "is of another CPU, 64 threads, and this is" in err) == (2, True)
    elsewhere = {**value["rows"][0], "runtime": "OpenVINO 1.0"}
    status, out, _ = compared(1.0, rows=[elsewhere])
    assert (status, "Nothing of" in out) == (1, True)
    wrong = {**elsewhere, "latency": {"p50": "fast"}}
    still = {**elsewhere, "latency": {"p50": 0.0}}
    for row, said in (({}, "is not what"), (wrong, "is not what"), (still, "of no time")):
        status, _, err = compared(1.0, rows=[row])
        assert (status, said in err) == (2, True)


def test_a_latency_over_the_bound_is_told_and_status_1(
    run: Run, models: Path, tmp_path: Path
) -> None:
    file, figures = str(models / "simple_cnn" / "simple_cnn.fp32.onnx"), tmp_path / "figures.json"
    quick = (file, *QUICK, "--batch", "1,256", "--in-flight", "0", "--json", str(figures))
    over = "simple_cnn, simple_cnn.fp32.onnx, batch {}: its latency has a p99 of {:,.6g} ms, over"
    for bound, status in (("0.000001", 1), ("3600000", 0)):
        found, out, err = run(*quick, "--max-latency", bound)
        value = json.loads(figures.read_text())
        said = [over.format(row["batch"], row["latency"]["p99"]) for row in value["rows"]]
        assert found == status
        assert (len(said), value["max_latency_ms"]) == (2, float(bound))
        assert [line.rpartition(" --")[0] for line in err.splitlines() if "p99" in line] == (
            said if status else []
        )
        assert "simple_cnn.fp32.onnx" in out


def test_only_rows_over_the_bound_are_told() -> None:
    def row(p99: float, batch: int) -> Row:
        times = Times(0.1, 0.2, 0.3, p99)
        timing = Timing(batch, 100, times, times, None, None, None, times, 1.0)
        return Row(Who("m", "f", "r 1", "CPU", "cpu", "fp32"), timing, (), None, True, *[None] * 3)

    (said,) = slower_than([row(2.0, 1), row(2.5, 8)], 2.0)
    assert said == "m, f, batch 8: its latency has a p99 of 2.5 ms, over --max-latency 2"


def test_a_models_file_of_another_batch_is_left_out(run: Run, models: Path, tmp_path: Path) -> None:
    place = tmp_path / "simple_cnn"
    shutil.copytree(models / "simple_cnn", place)
    file = export_onnx(ModelFolder(place), "fp32", batch=3)
    quick = (*QUICK, "--in-flight", "0", "--json", "-", "--format", "onnx")

    def measured(*sizes: int) -> tuple[list[int], list[str]]:
        """At which batches the file was timed, as all others are at all, and what is told of it."""
        status, out, _ = run(str(place), *quick, "--batch", ",".join(map(str, sizes)))
        value = json.loads(out)
        assert (status, value["failures"]) == (0, [])
        batches: dict[str, list[int]] = {file.name: []}
        for row in value["rows"]:
            batches.setdefault(row["name"], []).append(row["batch"])
        timed = batches.pop(file.name)
        assert list(batches.values()) == [list(sizes)] * 3
        return timed, [remark for remark in value["remarks"] if file.name in remark]

    left, only = f"{file.name} was left out at batch", "it takes batches of 3 only"
    assert measured(1, 2) == ([], [f"{left}es 1, 2: {only}"])
    assert measured(3) == ([3], [])
    assert measured(1, 3, 4) == ([3], [f"{left}es 1, 4: {only}"])
    # One that was named is not, and alone leaves nothing to measure.
    status, out, err = run(str(file), *QUICK, "--batch", "2")
    assert (status, out) == (2, "")
    assert err.endswith(f"nothing to measure: {file.name}: it takes batches of 3 only\n")
    status, out, _ = run(str(file), *QUICK, "--batch", "2,3")
    assert (status, "it takes batches of 3 only" in out) == (1, True)


def test_a_scenario_leaves_a_models_file_of_another_batch_out(
    run: Run, models: Path, tmp_path: Path, pictures: Path
) -> None:
    pytest.importorskip("mlperf_loadgen")
    place = tmp_path / "simple_cnn"
    shutil.copytree(models / "simple_cnn", place, ignore=shutil.ignore_patterns("*.onnx*"))
    file = export_onnx(ModelFolder(place), "fp32", batch=3)

    def measured(*arguments: str) -> tuple[int, list[str], list[str], list[str]]:
        """The exit status, what was measured, what is told of the file, and what failed."""
        options = ("--scenario", "Offline", "--images", "20", "--data-dir", str(pictures))
        options += ("--data", "auto", "--out", str(tmp_path / "logs"), "--json", "-")
        status, out, _ = run(*arguments, *QUICK, *options)
        value = json.loads(out)
        results, failures = ([one["name"] for one in value[k]] for k in ("results", "failures"))
        return status, results, [said for said in value["remarks"] if file.name in said], failures

    eager, only = "PyTorch eager fp32", "it takes batches of 3 only"
    left = f"{file.name} was left out at batch 20: {only}"  # of 256, but there are 20 images
    assert measured(str(place)) == (0, [eager], [left], [])
    assert measured(str(place), "--batch", "3") == (0, [eager, file.name], [], [])
    # One that was named is missed.
    assert measured(str(file), str(place)) == (1, [eager], [left], [file.name])


def test_a_model_without_files_is_measured_in_pytorch_and_told_how_to_export(
    run: Run, models: Path, tmp_path: Path, pictures: Path
) -> None:
    place = tmp_path / "simple_cnn"
    shutil.copytree(models / "simple_cnn", place, ignore=shutil.ignore_patterns("*.onnx*"))
    said = f"{place} has no exported files, and PyTorch alone was measured: "
    said += f"`cifar-deploy export {place}` makes some"
    quick = (str(place), *QUICK, "--in-flight", "0", "--json", "-")
    status, out, _ = run(*quick, "--batch", "2")
    value = json.loads(out)
    assert (status, [row["name"] for row in value["rows"]]) == (0, ["PyTorch eager fp32"])
    assert said in value["remarks"]
    status, out, err = run(*quick, "--precision", "int8")  # what was asked for is not there
    assert (status, out, "no exported int8 file; run: cifar-deploy export" in err) == (2, "", True)
    pytest.importorskip("mlperf_loadgen")
    options = ("--scenario", "SingleStream", "--images", "20", "--data", "auto")
    options += ("--data-dir", str(pictures), "--out", str(tmp_path / "logs"))
    status, out, _ = run(str(place), *QUICK, *options, "--json", "-")
    assert status == 0
    assert said in json.loads(out)["remarks"]


def test_a_cpu_runtime_takes_as_many_threads_as_asked(run: Run, models: Path) -> None:
    before = torch.get_num_threads()
    file = str(models / "simple_cnn" / "simple_cnn.fp32.onnx")
    quick = (file, *QUICK, "--batch", "1", "--in-flight", "0", "--json", "-")
    try:
        for threads in (1, 2):
            status, out, _ = run(*quick, "--threads", str(threads))
            value = json.loads(out)
            assert (status, value["threads"]) == (0, threads)
            assert value["device"].endswith(f", {threads} threads")
    finally:
        torch.set_num_threads(before)


def test_two_models_of_one_name_are_not_thrown_together(
    run: Run, models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / "simple_cnn", tmp_path / "simple_cnn")
    both = (str(models / "simple_cnn"), str(tmp_path / "simple_cnn"))
    status, out, err = run(*both, *QUICK)
    assert (status, out) == (2, "")
    assert "two models are called simple_cnn; measure one after the other" in err
    # One of them twice, by name and by a file of it, is one model.
    file = str(models / "simple_cnn" / "simple_cnn.fp32.onnx")
    quick = ("--batch", "1", "--in-flight", "0", "--no-compile")
    assert run("simple_cnn", file, *QUICK, *quick)[0] == 0


def test_what_is_advised_is_of_that_model(run: Run, models: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "runs" / "resnet18"
    shutil.copytree(models / "simple_cnn", elsewhere)
    _, _, err = run(str(elsewhere), "--precision", "int8")
    assert f"run: cifar-deploy export {elsewhere} --precision int8" in err
    _, _, err = run(str(models / "simple_cnn"), "--precision", "int8")
    assert "run: cifar-deploy export simple_cnn --precision int8" in err
    _, _, err = run("--precision", "int8")
    assert "run: cifar-deploy export MODEL --precision int8" in err


def test_names_are_no_markup(run: Run, models: Path, tmp_path: Path) -> None:
    file = tmp_path / "net[int8].onnx"
    shutil.copy(models / "simple_cnn" / "simple_cnn.fp32.onnx", file)
    status, out, _ = run(str(file), *QUICK, "--batch", "1", "--in-flight", "0")
    assert (status, "net[int8].onnx" in out) == (0, True)


def test_a_scenario_keeps_loadgens_logs(
    run: Run, tmp_path: Path, models: Path, pictures: Path
) -> None:
    pytest.importorskip("mlperf_loadgen")
    file = str(models / "simple_cnn" / "simple_cnn.fp32.onnx")
    options = ("--scenario", "SingleStream", "--images", "30", "--data", "auto")
    options += ("--data-dir", str(pictures))
    status, out, _ = run(file, *QUICK, *options, "--out", str(tmp_path / "logs"))
    assert status == 0
    assert "VALID" in out
    logs = tmp_path / "logs" / "simple_cnn" / "simple_cnn.fp32.onnx" / "SingleStream"
    assert (logs / "accuracy" / "mlperf_log_accuracy.json").exists()
    assert (logs / "performance" / "mlperf_log_summary.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("simple_cnn", "--batch", "0"), "--batch 0: images a call"),
        (("simple_cnn", "--batch", "8,-1"), "--batch -1: images a call"),
        (("simple_cnn", "--batch", "8,"), "--batch : images a call"),
        (("simple_cnn", "--in-flight", "1,0"), "--in-flight 0: batches at once"),
        (("simple_cnn", "--in-flight", "-1"), "--in-flight -1: batches at once"),
        (("simple_cnn", "--in-flight", "2,"), "--in-flight : batches at once"),
        (("simple_cnn", "--scenario", "Offline", "--in-flight", "1,2"), "takes one --in-flight"),
        (("nothing.onnx",), "nothing.onnx"),
        (("/nowhere/file.onnx",), "/nowhere/file.onnx"),
        (("vgg19",), "run: cifar-deploy train vgg19"),
        (("simple_cnn", "--format", "trt"), "run: cifar-deploy export simple_cnn --format trt"),
        (("--format", "trt"), "no model with an exported trt file"),
        (("simple_cnn", "--device", "cuda:99"), "use --device cpu"),
        (("simple_cnn", "--scenario", "Server"), "Server"),
        (("simple_cnn", "--images", "5"), "--images goes with --scenario"),
        (("simple_cnn", "--scenario", "SingleStream", "--batch", "1"), "takes single images, no"),
        (("simple_cnn", "--scenario", "Offline", "--batch", "8,32"), "Offline takes one --batch"),
        (
            ("simple_cnn", "--scenario", "Offline", "--baseline", "b.json"),
            "--baseline compares what is measured without --scenario",
        ),
        (("simple_cnn", "--baseline", "b.json"), "b.json"),
        (
            ("simple_cnn", "--baseline", "b.json", "--json", "./b.json"),
            "--json b.json would replace the baseline; name another file",
        ),
        (("simple_cnn", "--seconds", "inf"), "--seconds inf: a number that ends"),
        (("simple_cnn", "--max-slowdown", "5"), "--max-slowdown goes with --baseline"),
        (("simple_cnn", "--max-latency", "0"), "--max-latency 0: milliseconds, more than 0"),
        (("simple_cnn", "--max-latency", "nan"), "--max-latency nan: milliseconds"),
        (
            ("simple_cnn", "--scenario", "Offline", "--max-latency", "1"),
            "--max-latency judges what is measured without --scenario",
        ),
        (("simple_cnn", "--threads", str(2**40)), "--threads"),
        (("simple_cnn", "--data-dir", "."), "--data-dir goes with --scenario"),
        (
            ("simple_cnn", "--scenario", "Offline", "--runtime=openvino", "--runtime=onnxruntime"),
            "--scenario takes one --runtime",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    run: Run, arguments: tuple[str, ...], said: str
) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_without_loadgen_the_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    status, _, err = run("simple_cnn", "--scenario", "Offline")
    assert status == 2
    assert "cifar-deploy[loadgen]" in err


def test_a_file_that_cannot_run_is_told_and_ends_with_1(
    run: Run, models: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((models / "simple_cnn" / "simple_cnn.fp32.onnx").read_bytes()[:500])
    good = str(models / "simple_cnn" / "simple_cnn.fp32.onnx")
    status, out, _ = run(good, str(broken), *QUICK, "--batch", "1")
    assert status == 1
    assert "broken.onnx" in out
    assert "simple_cnn.fp32.onnx" in out


def test_a_damaged_model_keeps_none_of_the_others_from_being_measured(
    run: Run, models: Path, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_DEPLOY_MODELS", str(tmp_path))
    for name in ("a", "b", "simple_cnn"):
        shutil.copytree(models / "simple_cnn", tmp_path / name)
    weights = tmp_path / "a" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    (tmp_path / "b" / "card.json").write_text("nothing")
    quick = (*QUICK, "--in-flight", "0", "--batch", "1", "--json", "-")
    said = "does not match card.json (sha256 differs): the weights were changed or cut short"
    status, out, err = run(*quick)
    value = json.loads(out)
    assert (status, {row["model"] for row in value["rows"]}) == (1, {"simple_cnn"})
    assert len(value["rows"]) == 3
    a, b = value["failures"]
    assert (a["model"], a["name"], a["batch"]) == ("a", weights.name, None)
    assert a["reason"].startswith(said)
    assert (b["model"], "card.json is not JSON" in b["reason"]) == ("b", True)
    assert err.count(f"a, {weights.name}: {said}") == 1
    assert not any(" has no exported files" in remark for remark in value["remarks"])
    # One that is named is told at once, and so it is where no other is left.
    for arguments in (("a",), ("simple_cnn", "a")):
        status, out, err = run(*arguments, *quick)
        assert (status, out, f"error: {weights} {said}" in err) == (2, "", True)
    if importlib.util.find_spec("mlperf_loadgen"):
        options = ("--scenario", "SingleStream", "--images", "20", "--data", "auto")
        options += ("--data-dir", str(pictures), "--out", str(tmp_path / "logs"))
        status, out, _ = run(*QUICK, *options, "--precision", "fp32", "--json", "-")
        value = json.loads(out)
        assert (status, {one["model"] for one in value["results"]}) == (1, {"simple_cnn"})
        assert [failure["model"] for failure in value["failures"]] == ["a", "b"]
    for name in ("b", "simple_cnn"):
        shutil.rmtree(tmp_path / name)
    status, out, err = run(*quick)
    assert (status, out, f"error: {weights} {said}" in err) == (2, "", True)


def test_a_models_engines_are_no_failure_without_a_gpu(
    run: Run, models: Path, tmp_path: Path
) -> None:
    place = tmp_path / "simple_cnn"
    shutil.copytree(models / "simple_cnn", place)
    engine = ModelFolder(place).engine("fp32", RTX)
    engine.write_bytes(MAGIC_RTX)
    write_manifest(engine, {"flavour": RTX, "tensorrt": "1.7.1.116"})
    quick = (*QUICK, "--batch", "1", "--in-flight", "0")
    status, out, _ = run(str(place), *quick)
    said = "an engine of TensorRT for RTX 1.7.1.116 runs on a CUDA GPU; none is here"
    assert (status, f"{engine.name}: {said}" in out) == (0, True)
    assert run(str(place), *quick, "--precision", "fp32")[0] == 0
    # What was named is missed.
    assert run(str(place), *quick, "--format", "trt")[0] == 1
    assert run(str(place), str(engine), *quick)[0] == 1
    assert run(str(engine), *quick)[0] == 2
    engine.write_bytes(MAGIC_RTX + b"changed")  # and no GPU is what is wrong with this one
    status, out, _ = run(str(place), *quick)
    assert (status, "does not match its manifest" in out) == (1, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_measured(
    models: Path, tmp_path: Path, number: signal.Signals
) -> None:
    file = tmp_path / "figures.json"
    arguments = ("simple_cnn", "--device", "cpu", "--seconds", "0.5", "--json", str(file))
    with subprocess.Popen(
        [sys.executable, "-m", "cifar_deploy", "benchmark", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cifar_deploy.__file__).parents[1])},
    ) as running:
        assert running.stderr is not None
        assert running.stdout is not None
        next(line for line in running.stderr if "batch 8:" in line)
        running.send_signal(number)
        out = running.stdout.read()
    assert running.returncode == 128 + number
    assert "simple_cnn.fp16.onnx" in out
    assert "it was ended early: the rest was not measured." in out
    value = json.loads(file.read_text())
    assert {row["batch"] for row in value["rows"]} == {1}
    assert "it was ended early: the rest was not measured" in value["remarks"]


def test_two_runtimes_side_by_side(run: Run, models: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    file, figures = str(models / "simple_cnn" / "simple_cnn.fp16.onnx"), tmp_path / "figures.json"
    both = ("--runtime", "openvino", "--runtime", "onnxruntime")
    status, out, _ = run(file, *QUICK, "--batch", "2", *both, "--json", str(figures))
    assert status == 0
    found = [row["runtime"].split()[0] for row in json.loads(figures.read_text())["rows"]]
    assert found == ["OpenVINO", "ONNX"]
    assert "simple_cnn.fp16.onnx, openvino" in out
    assert {by.value for by in OnnxBy} == set(ONNX)


def test_nothing_trained(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_DEPLOY_MODELS", str(tmp_path))
    status, _, err = run()
    assert status == 2
    assert f"nothing in {tmp_path}{os.sep} is trained" in err


def test_a_file_of_another_program_is_measured_with_what_it_lacks(run: Run, foreign: Path) -> None:
    status, out, _ = run(str(foreign), *QUICK, "--batch", "2")
    assert status == 0
    assert "x.onnx takes float32 [batch, 3, 32, 32] and gives float32: here mean 0,0,0" in out
    assert "and timed with it" in out
