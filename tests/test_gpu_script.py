"""`benchmarks/gpu.py`, run for real on a CPU with little to do."""

import argparse
import importlib.util
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from building import need, openvino_options, run
from PIL import Image

import cifar_deploy
from cifar_deploy import architectures
from cifar_deploy.benchmark import sweep
from cifar_deploy.benchmark.contenders import contenders
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.store import ModelFolder, manifest_path

SCRIPT = Path(cifar_deploy.__file__).parent.parent / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_script"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def session(gpu: ModuleType, tmp_path: Path) -> Any:
    asked = argparse.Namespace(out=str(tmp_path / "out"), work=str(tmp_path / "work"), again=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "work").mkdir()
    return gpu.Session(asked)


STAGES_OF_ONE = (
    "train:nothing,simple_cnn export:simple_cnn validate:simple_cnn benchmark:simple_cnn "
    "pack:simple_cnn speed"
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def pictures(tmp_path: Path, small_data: Dataset) -> Path:
    """Sixty images to train on, and sixty to test by."""
    place = tmp_path / "pictures"
    for name, split, count in (("train", small_data.train, 60), ("test", small_data.test, 60)):
        for i in range(count):
            path = place / name / small_data.classes[split.labels[i]] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[i]).save(path)
    return place


def test_the_whole_on_a_cpu(tmp_path: Path, pictures: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    command = [
        *(sys.executable, str(SCRIPT), "--out", str(out), "--work", str(work)),
        *("--device", "cpu", "--seconds", "0.02", "--batch", "1"),
        *("--format", "onnx", "--precision", "fp32", "--set", "train.epochs=1"),
        *("--set", "train.batch_size=20", "--images", "50", "--validate-args=--no-latency"),
        # A name that no network has: its failure is written down and the rest goes on.
        *("--stages", STAGES_OF_ONE),
    ]
    environment = {"CIFAR_DEPLOY_DATA": str(pictures), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 1, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    states = {(step["stage"], step["name"]): step["status"] for step in summary["steps"]}
    assert states == {
        ("train", "nothing"): "failed",
        ("train", "simple_cnn"): "ok",
        ("export", "onnx fp32 of 1 models"): "ok",
        ("validate", "1 models"): "failed",
        ("benchmark", "simple_cnn"): "ok",
        ("pack", "simple_cnn"): "ok",
        ("speed", "-"): "skipped",
    }
    assert summary["not_ok"] == 2
    assert summary["machine"]["torch"]
    failed, judged = [step for step in summary["steps"] if step["status"] == "failed"]
    # Fifty images are too few to tell: judged, and not passed.
    assert (judged["rc"], judged["error"]) == (1, "simple_cnn.fp32.onnx: INCONCLUSIVE")
    assert len(json.loads((out / "validation.json").read_text())["models"]) == 1
    assert (out / "report.html").stat().st_size
    assert failed["rc"] == 2
    assert failed["error"].startswith("error: no network is called 'nothing'")
    assert failed["error"] in done.stdout  # the summary comes last
    cards = json.loads((out / "train.json").read_text())["cards"]
    assert cards["simple_cnn"]["epochs"] == 1
    runs = json.loads((out / "benchmark.json").read_text())["runs"]
    assert len(runs["simple_cnn"]["rows"]) == 2
    files = sorted(path.name for path in out.iterdir())
    assert len(files) <= 8
    assert all(path.stat().st_size < 16 << 20 for path in out.iterdir())
    packed = subprocess.run(
        f"cat {out}/models.tar.* | tar t", shell=True, capture_output=True, text=True, check=True
    )
    assert "simple_cnn/model.safetensors" in packed.stdout.split()


def test_what_is_proved_runs_in_cpp(tmp_path: Path, pictures: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    stages = " ".join(f"{stage}:simple_cnn" for stage in ("train", "export", "validate", "cpp"))
    command = [
        *(sys.executable, str(SCRIPT), "--out", str(out), "--work", str(work), "--device", "cpu"),
        *("--format", "onnx", "--precision", "fp32", "--seconds", "0.02", "--batch", "2"),
        *("--set", "train.epochs=1", "--set", "train.batch_size=20", "--stages", stages),
        "--validate-args=--no-latency --max-drop 20",
    ]
    (_, openvino) = openvino_options()
    need("cmake", "c++")
    more = {"CIFAR_DEPLOY_DATA": str(pictures), "OMP_NUM_THREADS": "1"}
    more["OpenVINO_DIR"] = openvino.partition("=")[2]
    more["CMAKE_BUILD_TYPE"] = "Debug"  # the quickest to build
    done = run(*command, **more)
    summary = json.loads((out / "summary.json").read_text())
    mine = [(s["name"], s["status"]) for s in summary["steps"] if s["stage"] == "cpp"]
    steps = ("configure the library", "build the library", "package simple_cnn.fp32.onnx")
    assert mine == [(name, "ok") for name in (*steps, "simple_cnn.fp32.onnx")], done.stdout
    runs = json.loads((out / "cpp.json").read_text())["runs"]
    (one,) = runs["simple_cnn.fp32.onnx"]["results"]
    assert one["ok"]
    assert one["self_test"]["said"].startswith("PASS: 60 images")
    assert one["evaluation"]["said"].startswith("PASS: 60 images")
    assert "OpenVINO" in one["evaluation"]["said"]
    assert [row["batch"] for row in one["benchmark"]["sweep"]] == [2]

    # Not once more, until the file is another one.
    only_cpp = [*command, "--stages", "cpp:simple_cnn"]
    again = run(*only_cpp, **more).stdout.decode()
    assert re.search(r"simple_cnn.fp32.onnx +run before", again)

    package = work / "packages" / "simple_cnn.fp32.onnx"
    again = [sys.executable, str(SCRIPT.with_name("cpp_target.py")), "--seconds", "0.02"]
    refused = run(*again, str(package), "--programs", str(tmp_path), status=2, **more)
    assert refused.stderr.startswith(f"error: cannot run {tmp_path}/classify: No such".encode())
    again += ["--programs", str(work / "cpp-build" / "bin"), str(package)]
    refused = run(*again, str(tmp_path), status=2, **more).stderr.decode()
    assert refused == f"error: {tmp_path} is no package; cifar-deploy package MODEL writes one\n"
    manifest = package / "manifest.txt"
    text = re.sub(
        r"test_right \d+\ntest_margin \d+", "test_right 60\ntest_margin 0", manifest.read_text()
    )
    manifest.write_text(text)
    failed = run(*again, status=1, **more).stdout.decode()
    assert "simple_cnn.fp32.onnx: FAIL: 60 images, " in failed
    failed = run(*again, "--batch", "0", status=1, **more).stdout.decode()
    assert "simple_cnn.fp32.onnx: benchmark: --batch" in failed


def test_cpp_is_left_out_where_no_runtime_is_named(
    gpu: ModuleType, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in gpu.CPP_RUNTIMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu.shutil, "which", lambda tool: tool)
    gpu.cpp(session, [], time.monotonic() + 9)
    (step,) = session.steps
    assert (step.status, step.error[:29]) == ("skipped", "none of ONNXRUNTIME_ROOT, Ope")
    # What no runtime that is named can run there is not built for.
    session.asked.device = "cuda"
    for name in ("OpenVINO_DIR", "TENSORRT_ROOT", "TENSORRT_RTX_ROOT"):
        monkeypatch.setenv(name, "somewhere")
    monkeypatch.setattr(gpu, "exported", lambda _session, _name: [Path("nothing.onnx")])
    monkeypatch.setattr(gpu, "run", None)
    gpu.cpp(session, ["simple_cnn"], time.monotonic() + 9)
    both, none = (step.error for step in session.steps[1:])
    assert both.startswith("TENSORRT_RTX_ROOT, beside TENSORRT_ROOT: ")
    assert none == "no file with a PASS runs on cuda by OpenVINO_DIR, TENSORRT_ROOT"
    monkeypatch.setattr(gpu.shutil, "which", lambda tool: None)
    gpu.cpp(session, [], time.monotonic() + 9)
    assert session.steps[-1].error == "cmake and c++ not found"


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be noticed does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP])  # the latter a closed terminal
def test_a_script_that_is_told_to_end_leaves_a_summary_and_no_process(
    told: signal.Signals, tmp_path: Path
) -> None:
    pids, slow = tmp_path / "pids", tmp_path / "test_slow.py"
    slow.write_text(
        "import os, pathlib, pytest, subprocess, sys, time\n"
        "@pytest.mark.gpu\n"
        "def test_slow():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"    path = pathlib.Path({str(pids)!r})\n"
        "    path.with_suffix('.part').write_text(f'{os.getpid()} {child.pid}')\n"
        "    path.with_suffix('.part').rename(path)\n"
        "    time.sleep(300)\n"
        "def test_that_needs_no_gpu():\n"
        "    pass\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--work", str(tmp_path / "work")]
    command += ["--device", "cpu", "--stages", f"tests:{slow} export"]
    terminal, theirs = pty.openpty()
    closed = told is signal.SIGHUP
    with subprocess.Popen(
        command, stdout=theirs if closed else subprocess.PIPE, text=True
    ) as script:
        os.close(theirs)
        while not pids.exists() and script.poll() is None:
            time.sleep(0.1)
        # Should this script be killed: what it was doing is written down already.
        (step,) = json.loads((out / "summary.json").read_text())["steps"]
        assert step["status"] == "running"
        os.close(terminal)
        script.send_signal(told)
        script.send_signal(told)  # as `timeout` does
        printed, _ = script.communicate(timeout=120)
    assert script.returncode == 130
    assert not any(alive(int(pid)) for pid in pids.read_text().split())
    summary = json.loads((out / "summary.json").read_text())
    (step,) = summary["steps"]  # no other stage began
    assert (step["stage"], step["status"]) == ("tests", "stopped")
    assert step["error"] == "this script was told to end"
    assert summary["not_ok"] == 1
    assert closed or f"results: {out}" in printed
    log = (out / "gpu.log").read_text()
    assert "KeyboardInterrupt" in log  # pytest had its word
    assert "1 deselected" in log  # -m gpu, also for a file that is named


def test_the_whole_ends_at_its_limit(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PATIENCE", 0.2)
    out, work = tmp_path / "out", tmp_path / "work"
    options = ["--out", str(out), "--work", str(work), "--stages", "tests train:cnn9"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options, "--total", "0.1"])
    assert gpu.main() == 1
    steps = json.loads((out / "summary.json").read_text())["steps"]
    assert [step["status"] for step in steps] == ["not started", "not started"]


def listening(saved: Path, deaf: tuple[str, ...], ear: str) -> list[str]:
    return python(
        "import pathlib, signal, sys, time\n"
        f"def stop(*_): pathlib.Path({str(saved)!r}).touch(); sys.exit(3)\n"
        f"for name in {deaf!r}: signal.signal(getattr(signal, name), signal.SIG_IGN)\n"
        f"if {ear!r}: signal.signal(getattr(signal, {ear!r}), stop)\n"
        "print('working', flush=True)\n"
        "time.sleep(60)"
    )


@pytest.mark.parametrize(
    ("deaf", "ear", "rc"),
    [
        ((), "SIGINT", 3),
        (("SIGINT",), "SIGTERM", 3),
        (("SIGINT", "SIGTERM"), "", -signal.SIGKILL),
    ],
)
def test_a_command_over_its_limit_is_stopped_and_may_save(
    gpu: ModuleType,
    session: Any,
    monkeypatch: pytest.MonkeyPatch,
    deaf: tuple[str, ...],
    ear: str,
    rc: int,
) -> None:
    # Who listens has time enough; who does not is not waited for.
    patience = [(n, 0.5 if n.name in deaf else 30.0) for n, _ in gpu.ASKING]
    monkeypatch.setattr(gpu, "ASKING", patience)
    saved = session.out / "saved"
    start = time.monotonic()
    step = gpu.run(session, "train", "slow", listening(saved, deaf, ear), start + 3.0)
    assert time.monotonic() - start < 25
    assert (step.status, step.rc) == ("stopped", rc)
    assert saved.exists() == bool(ear)
    assert "working" in (session.out / "gpu.log").read_text()
    late = gpu.run(session, "train", "next", python("pass"), start)
    assert late.status == "not started"


def test_commands_at_a_time_run_together_and_are_logged_one_by_one(
    gpu: ModuleType, session: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    met = (
        "import pathlib, sys, time\n"
        "mine, other = (pathlib.Path({folder!r}, name) for name in {names!r})\n"
        "print('here is', mine.name, flush=True)\n"
        "mine.touch()\n"
        "while not other.exists(): time.sleep(0.01)\n"
        "print('error: of', mine.name, flush=True)\n"
        "sys.exit(mine.name == 'b')\n"
    )
    folder = str(session.work)
    commands = {
        "a": python(met.format(folder=folder, names=("a", "b"))),
        "b": python(met.format(folder=folder, names=("b", "a"))),
        "late": python("import time; print('waits', flush=True); time.sleep(300)"),
    }
    ended: list[int] = []
    steps = gpu.run_all(
        session, "train", commands, time.monotonic() + 10, 2, ended=lambda: ended.append(1)
    )
    assert [step.status for step in steps] == ["ok", "failed", "stopped"]
    assert steps[1].error == "error: of b"
    assert len(ended) == 3
    log = session.log.read_text()
    assert log.index("here is a") < log.index("error: of a")
    assert not log[log.index("here is a") : log.index("error: of a")].count("of b")
    assert "waits" in log
    assert not list(session.work.glob("*.log"))
    printed = capsys.readouterr().out
    assert printed.count("began") == 3
    assert printed.count("error: of b") == 1


def measuring(session: Any) -> None:
    """What the script has when it is called to measure on a CPU."""
    more = {"device": "cpu", "seconds": 0.02, "batch": ["1"], "benchmark_args": "--in-flight 0"}
    vars(session.asked).update(more)


def test_pytorch_is_measured_where_nothing_is_exported(gpu: ModuleType, session: Any) -> None:
    measuring(session)
    gpu.benchmark(session, ["simple_cnn"], time.monotonic() + 300)
    assert session.steps[-1].status == "ok"
    runs = json.loads((session.out / "benchmark.json").read_text())["runs"]
    assert [row["name"] for row in runs["simple_cnn"]["rows"]] == ["PyTorch eager fp32"]
    # A file that came later is looked for; that it does not open is told, and no failure.
    (session.work / "models/simple_cnn/simple_cnn.fp32.onnx").write_bytes(b"no ONNX file")
    gpu.benchmark(session, ["simple_cnn"], time.monotonic() + 300)
    step = session.steps[-1]
    assert (step.status, step.rc) == ("ok", 1)
    assert step.error.startswith("simple_cnn.fp32.onnx: ")
    gpu.benchmark(session, ["simple_cnn"], time.monotonic())
    assert session.steps[-1].error == "measured before"
    # What was ended early is measured again.
    found = session.work / "benchmark/simple_cnn.json"
    value = json.loads(found.read_text())
    found.write_text(json.dumps({**value, "remarks": [*value["remarks"], sweep.UNFINISHED]}))
    gpu.benchmark(session, ["simple_cnn"], time.monotonic())
    assert session.steps[-1].status == "not started"


def test_loadgens_logs_are_kept_with_the_result(
    gpu: ModuleType, session: Any, real_data: Dataset
) -> None:
    pytest.importorskip("mlperf_loadgen")
    measuring(session)
    session.asked.images = 20
    gpu.loadgen(session, ["simple_cnn"], time.monotonic() + 300)
    assert [step.status for step in session.steps] == ["ok", "ok"]
    runs = json.loads((session.out / "loadgen.json").read_text())["runs"]
    assert sorted(runs) == ["simple_cnn.Offline", "simple_cnn.SingleStream"]
    with tarfile.open(session.out / "loadgen-logs.tar.gz") as logs:
        names = logs.getnames()
    for scenario in ("Offline", "SingleStream"):
        place = f"./simple_cnn/PyTorch-eager-fp32/{scenario}"
        assert f"{place}/performance/mlperf_log_summary.txt" in names
        assert f"{place}/accuracy/mlperf_log_accuracy.json" in names


def test_to_measure_nothing_is_a_failure(gpu: ModuleType, session: Any) -> None:
    measuring(session)
    gpu.benchmark(session, ["resnet18"], time.monotonic() + 60)
    (step,) = session.steps
    assert (step.status, step.error) == ("failed", "nothing of resnet18 is trained")


@pytest.fixture
def begun(gpu: ModuleType, session: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that are begun, which take too long for what is asked here."""
    commands: list[list[str]] = []

    def note(told: Any, stage: str, name: str, command: list[str], *_: object) -> Any:
        commands.append(command)
        told.steps.append(gpu.Step(stage, name, status="ok"))
        return told.steps[-1]

    monkeypatch.setattr(gpu, "run", note)
    vars(session.asked).update(format=["onnx"], precision=["fp32"], validate_args="", images=0)
    vars(session.asked).update(device="cuda", seconds=0.02, batch=[], benchmark_args="")
    session.asked.cpu_verdicts = False
    session.facts = {"missing": {}, "checks": {}}
    return commands


@pytest.mark.parametrize("stage", ["export", "validate", "benchmark", "loadgen", "pack"])
def test_a_model_that_is_left_out_is_a_failure_and_the_others_go_on(
    gpu: ModuleType, session: Any, begun: list[list[str]], stage: str
) -> None:
    file = session.work / "models/simple_cnn/simple_cnn.fp32.onnx"
    assert gpu.trained(session, "simple_cnn")
    if stage == "validate":
        file.touch()
    getattr(gpu, stage)(session, ["simple_cnn", "resnt18"], time.monotonic())
    told = [step for step in session.steps if step.status == "failed"]
    assert [step.error.partition(" is ")[0] for step in told] == ["nothing of resnt18"]
    assert len(session.steps) > 1
    assert all("simple_cnn" in command and "resnt18" not in command for command in begun)


def test_where_nothing_is_exported_no_other_model_is_judged(
    gpu: ModuleType, session: Any, begun: list[list[str]]
) -> None:
    other = session.work / "models/cnn9/cnn9.fp32.onnx"
    other.parent.mkdir(parents=True)
    other.touch()
    gpu.validate(session, ["resnet18"], time.monotonic())
    (step,) = session.steps
    assert (step.status, step.error) == ("failed", "nothing of resnet18 is exported")
    other.unlink()
    gpu.validate(session, [], time.monotonic())
    assert session.steps[-1].error == "nothing of all is exported"
    assert begun == []


@pytest.mark.gpu
def test_half_precision_needs_no_exported_file(gpu: ModuleType, session: Any) -> None:
    assert gpu.trained(session, "simple_cnn")
    folder = ModelFolder(session.work / "models" / "simple_cnn")
    entered, _ = contenders([(folder, [], True)], torch.device("cuda", 0), False)
    assert [one.name for one in entered] == ["PyTorch eager fp32", "PyTorch eager fp16"]


CLOSED = {"name": "m.fp32.onnx", "batch": None, "reason": "no CUDA provider"}
FULL = {"name": "m.fp16.onnx", "batch": 8, "reason": "memory is exhausted"}
BROKEN = {"name": "PyTorch eager fp32", "batch": None, "reason": "it fails"}


@pytest.mark.parametrize(
    ("rows", "failures", "rc", "status", "error"),
    [
        (1, [CLOSED], 1, "ok", "m.fp32.onnx: no CUDA provider"),
        (0, [CLOSED], 1, "failed", "m.fp32.onnx: no CUDA provider"),
        (
            *(1, [CLOSED, FULL], 1, "failed"),
            "m.fp32.onnx: no CUDA provider; m.fp16.onnx, batch 8: memory is exhausted",
        ),
        (1, [BROKEN], 1, "failed", "PyTorch eager fp32: it fails"),
        (1, [CLOSED], 2, "failed", "error: the GPU failed"),
        (1, [], 1, "failed", "error: the GPU failed"),
    ],
)
def test_a_real_failure_to_measure_is_told_from_a_file_that_does_not_open(
    gpu: ModuleType,
    tmp_path: Path,
    rows: int,
    failures: list[dict[str, Any]],
    rc: int,
    status: str,
    error: str,
) -> None:
    found = tmp_path / "m.json"
    found.write_text(json.dumps({"rows": [{}] * rows, "failures": failures}))
    said = "m: batch 1\nerror: the GPU failed\n"
    assert gpu._unmeasured(found, 0.0, rc, said) == (status, error)
    # What an earlier call left says nothing of this one.
    late = time.time() + 60
    assert gpu._unmeasured(found, late, rc, said) == ("failed", "error: the GPU failed")


@pytest.mark.parametrize(
    ("verdict", "on_cpu", "labels"),
    [
        ("UNUSABLE", False, ["1 models"]),
        ("PASS", False, ["1 models", "1 models, latency"]),
        ("UNUSABLE", True, ["1 models", "1 models on the CPU"]),
    ],
)
def test_the_gpu_does_not_wait_for_files_that_it_cannot_run(
    gpu: ModuleType,
    session: Any,
    monkeypatch: pytest.MonkeyPatch,
    verdict: str,
    on_cpu: bool,
    labels: list[str],
) -> None:
    rows = [{"file": "m", "verdict": "REFERENCE"}, {"file": "m.onnx", "verdict": verdict}]

    def judged(*arguments: str) -> list[str]:  # a GPU without CUDA in ONNX Runtime is not here
        json_file, page = arguments[arguments.index("--json") + 1], arguments[-1]
        text = json.dumps({"models": [{"rows": rows}]})
        return python(f"open({json_file!r}, 'w').write({text!r}); open({page!r}, 'w')")

    monkeypatch.setattr(gpu, "program", judged)
    vars(session.asked).update(device="cuda", images=0, validate_args="", cpu_verdicts=on_cpu)
    session.facts = {"missing": {}, "checks": {"onnxruntime cuda": {"works": False}}}
    file = session.work / "models/simple_cnn/simple_cnn.fp32.onnx"
    file.parent.mkdir(parents=True)
    file.touch()
    gpu.validate(session, ["simple_cnn"], time.monotonic() + 60)
    assert [step.name for step in session.steps] == labels
    made = {"summary.json", "gpu.log", "validation.json", "report.html"}
    assert {path.name for path in session.out.iterdir()} == made


def test_the_error_that_says_most_is_kept(gpu: ModuleType) -> None:
    traceback = "Traceback (most recent call last):\n  File x\nValueError: no such thing\n"
    assert gpu.first_error(traceback) == "ValueError: no such thing"
    assert gpu.first_error("a\nerror: name a model\nb\n") == "error: name a model"
    tests = "...F\nFAILED tests/test_x.py::test_y - assert 1 == 2\n1 failed in 1 s\n"
    assert gpu.first_error(tests).startswith("FAILED tests/test_x.py::test_y")
    assert gpu.first_error("only this\n") == "only this"
    assert gpu.first_error("") == "it said nothing"


def test_a_second_call_keeps_what_the_first_one_did(gpu: ModuleType, session: Any) -> None:
    gpu.run(session, "train", "one", python("raise SystemExit(3)"), time.monotonic() + 20)
    gpu.run(session, "train", "two", python("pass"), time.monotonic() + 20)
    again = gpu.Session(session.asked)
    gpu.run(again, "train", "one", python("pass"), time.monotonic() + 20)
    steps = json.loads((session.out / "summary.json").read_text())["steps"]
    assert {step["name"]: step["status"] for step in steps} == {"one": "ok", "two": "ok"}


def test_what_a_stage_said_of_itself_is_said_anew(gpu: ModuleType, session: Any) -> None:
    gpu.fail(session, "benchmark", "nothing of resnet18 is trained")
    gpu.fail(session, "speed", "nothing")
    for label in ("onnx fp32 of 7 models", "trt fp32 of 7 models"):
        session.steps.append(gpu.Step("export", label, status="failed"))
    gpu.save(session)
    again = gpu.Session(session.asked)
    gpu.run(again, "benchmark", "resnet18", python("pass"), time.monotonic() + 20)
    gpu.run(again, "export", "trt fp32 of 5 models", python("pass"), time.monotonic() + 20)
    steps = [(step["stage"], step["name"]) for step in gpu.save(again)]
    assert steps == [
        ("speed", "-"),
        ("export", "onnx fp32 of 7 models"),  # which nobody tried again
        ("benchmark", "resnet18"),
        ("export", "trt fp32 of 5 models"),
    ]


def test_a_timing_that_is_done_is_kept(gpu: ModuleType, session: Any) -> None:
    vars(session.asked).update(device="cuda", seeds=1, speed_set=[], airbench="")
    timed = {"ours": {"runs": [1, 2, 3]}}
    (session.work / "speed.json").write_text(json.dumps(timed))

    def status() -> str:
        gpu.speed(session, [], time.monotonic())  # there is no time for more
        return str(session.steps[-1].status)

    assert (status(), session.steps[-1].error) == ("ok", "measured before")
    vars(session.asked).update(seeds=4)
    assert status() == "not started"
    vars(session.asked).update(seeds=3, airbench="airbench94_muon.py")
    assert status() == "not started"
    vars(session.asked).update(airbench="", again=True)
    assert status() == "not started"


def test_verdicts_stay_where_the_latency_is_not_waited_for(
    gpu: ModuleType, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vars(session.asked).update(device="cpu", images=0, validate_args="", cpu_verdicts=False)
    session.facts = {"missing": {}, "checks": {}}
    models = [{"rows": [{"file": "m.onnx", "verdict": "PASS"}]}]
    file = session.work / "models/simple_cnn/simple_cnn.fp32.onnx"
    file.parent.mkdir(parents=True)
    file.touch()

    def judged(told: Any, stage: str, label: str, *_: object) -> None:
        if "latency" in label:
            raise KeyboardInterrupt
        gpu.write(told.work / "validation.json", {"models": models})

    monkeypatch.setattr(gpu, "run", judged)
    with pytest.raises(KeyboardInterrupt):
        gpu.validate(session, [], time.monotonic() + 60)
    assert json.loads((session.out / "validation.json").read_text()) == {"models": models}


def test_what_is_exported_is_not_exported_again(gpu: ModuleType, session: Any) -> None:
    vars(session.asked).update(format=["onnx"], precision=["fp32"])
    session.facts = {"missing": {}, "checks": {}, "gpu": "NVIDIA H100"}
    gpu.export(session, ["simple_cnn"], time.monotonic() + 120)
    assert (session.steps[-1].rc, session.steps[-1].status) == (0, "ok")
    gpu.export(session, ["simple_cnn"], time.monotonic())
    assert (session.steps[-1].error, session.steps[-1].status) == ("exported before", "ok")
    # Of other weights, or where it is asked for.
    manifest = manifest_path(session.work / "models/simple_cnn/simple_cnn.fp32.onnx")
    kept = manifest.read_text()
    manifest.write_text(json.dumps({**json.loads(kept), "weights_sha256": "0" * 64}))
    gpu.export(session, ["simple_cnn"], time.monotonic())
    assert session.steps[-1].status == "not started"
    manifest.write_text(kept)
    engine = session.work / "models/simple_cnn/simple_cnn.fp32.tensorrt.engine"
    options = ["--format", "trt", "--precision", "fp32", "--flavour", "tensorrt"]
    engine.touch()
    for card, there in (("NVIDIA H100", True), ("NVIDIA H200", False)):
        built = {**json.loads(kept), "gpu": {"name": card}}
        manifest_path(engine).write_text(json.dumps(built))
        assert gpu.made(session, "simple_cnn", options) is there
    session.asked.again = True
    gpu.export(session, ["simple_cnn"], time.monotonic())
    assert session.steps[-1].status == "not started"


def test_engines_are_built_of_the_flavours_that_are_installed(
    gpu: ModuleType, session: Any
) -> None:
    session.asked.format, session.asked.precision = ["trt"], ["fp32"]
    session.facts = {"missing": {"tensorrt": "no engines of that flavour"}, "checks": {}}
    assert [label for label, _ in gpu.formats(session)] == ["trt tensorrt-rtx fp32"]
    session.facts["missing"] = {"tensorrt_rtx_bindings": "no engines of that flavour"}
    assert [label for label, _ in gpu.formats(session)] == ["trt tensorrt fp32"]
    session.facts["checks"] = {"tensorrt": {"works": False, "detail": "does not support this GPU"}}
    assert list(gpu.formats(session)) == []
    assert gpu.unsupported(session) == {"tensorrt": "does not support this GPU"}


def test_what_was_published_is_not_taken_for_trained(gpu: ModuleType, session: Any) -> None:
    folder = session.work / "models" / "cnn9"
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").touch()
    assert not gpu.trained(session, "cnn9")  # a run in the middle is gone on with
    assert [path.name for path in folder.iterdir()] == ["checkpoint.safetensors"]
    (folder / "checkpoint.safetensors").unlink()
    assert gpu.trained(session, "cnn9")
    assert (folder / "model.safetensors").exists()
    assert not gpu.trained_here(session, "cnn9")
    gpu.write_cards(session)
    assert json.loads((session.out / "train.json").read_text())["cards"] == {}
    (folder / "card.json").write_text("{}")
    assert gpu.trained_here(session, "cnn9")
    assert gpu.seeds_of(session, "cnn9") == 1
    (folder / "seeds").mkdir()  # the first of several seeds is done
    assert not gpu.trained_here(session, "cnn9")
    assert gpu.seeds_of(session, "cnn9") == 0
    (folder / "seeds").rmdir()
    gpu.write_cards(session)
    assert list(json.loads((session.out / "train.json").read_text())["cards"]) == ["cnn9"]


def test_the_dearest_network_comes_last(gpu: ModuleType) -> None:
    assert gpu.recipes() == list(gpu.ORDER)
    assert sorted(gpu.ORDER) == sorted(architectures.NETWORKS)


def test_what_was_timed_stands_beside_the_cards(gpu: ModuleType, session: Any) -> None:
    (session.work / "speed.json").write_text('{"times_airbench": 1.2}')
    gpu.write_cards(session)
    written = json.loads((session.out / "train.json").read_text())
    assert written == {"cards": {}, "speed": {"times_airbench": 1.2}}


def test_a_model_whose_weights_are_not_published_is_left_out(gpu: ModuleType, session: Any) -> None:
    assert (SCRIPT.parent.parent / "models/resnet18/card.json").exists()
    assert not gpu.trained(session, "resnet18")
    assert gpu.trained(session, "simple_cnn")
    assert (session.work / "models/simple_cnn/model.safetensors").exists()


def test_a_doctor_who_does_not_end_is_not_waited_for(
    gpu: ModuleType, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PATIENCE", 0.2)
    monkeypatch.setattr(gpu, "program", lambda *_: python("import time; time.sleep(60)"))
    assert gpu.checks(session) == {"doctor": {"works": False, "detail": "stopped after 0.2 s"}}


def test_nor_is_he_beyond_the_end_of_the_whole(
    gpu: ModuleType, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.end = time.monotonic() + 1.0
    monkeypatch.setattr(gpu, "PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(gpu, "program", lambda *_: python("import time; time.sleep(60)"))
    begin = time.monotonic()
    facts = gpu.machine(session)
    assert time.monotonic() - begin < 30
    assert facts["torch"].startswith("stopped after ")
    assert facts["checks"]["doctor"]["detail"].startswith("stopped after ")


def test_what_else_the_doctor_prints_is_passed_over(
    gpu: ModuleType, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"checks": [{"name": "torch", "works": True, "detail": ""}]}
    said = f"Failed to load libcublas.so.12\n{json.dumps(answer, indent=2)}\n"
    monkeypatch.setattr(gpu, "program", lambda *_: python(f"print({said!r})"))
    assert gpu.checks(session) == {"torch": {"works": True, "detail": ""}}
    monkeypatch.setattr(gpu, "program", lambda *_: python("print('Failed')"))
    assert gpu.checks(session) == {"doctor": {"works": False, "detail": "it said nothing"}}


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--stages", "trian", "error: no stage is called trian"),
        ("--out", "/dev/null/x", "error: cannot make /dev/null/x: Not a directory"),
        ("--work", "/dev/null/x", "error: cannot make /dev/null/x/models: Not a directory"),
    ],
)
def test_bad_input_is_refused_in_a_line(tmp_path: Path, option: str, value: str, said: str) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(SCRIPT), "--stages", "", "--work", str(tmp_path / "work")]
    command += ["--out", str(out), option, value]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert out.exists() == (option == "--work")


@pytest.mark.parametrize("damaged", ["{", "[]", "{}", '{"steps": [{"name": "a"}]}', "\xff"])
def test_a_damaged_summary_is_written_anew(
    gpu: ModuleType, session: Any, capsys: pytest.CaptureFixture[str], damaged: str
) -> None:
    summary = session.out / "summary.json"
    summary.write_bytes(damaged.encode("latin-1"))
    gpu.fail(session, "pack", "nothing")
    gpu.save(session)
    gpu.save(session)
    said = f"{summary} is no summary of this script's; it is written anew"
    assert capsys.readouterr().out.count(said) == 1
    (step,) = json.loads(summary.read_text())["steps"]
    assert step["stage"] == "pack"


def test_large_weights_are_packed_in_parts(
    gpu: ModuleType, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PART", 4096)
    folder = session.work / "models" / "vgg19"
    folder.mkdir(parents=True)
    raw = bytes(range(256)) * 50
    (folder / "model.safetensors").write_bytes(raw)
    gpu.pack(session, ["vgg19"], 0.0)
    parts = sorted(session.out.glob("models.tar.*"))
    assert len(parts) > 3
    assert max(part.stat().st_size for part in parts) <= 4096
    command = f"cat {session.out}/models.tar.* | tar xO vgg19/model.safetensors"
    done = subprocess.run(command, shell=True, capture_output=True, check=True)
    assert done.stdout == raw
    gpu.pack(session, ["vgg91"], 0.0)
    assert session.steps[-1].status == "failed"
    assert session.steps[-1].error.startswith("nothing of vgg91 is in ")


def test_more_seeds_than_before_are_trained(
    gpu: ModuleType, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = session.work / "models" / "cnn9"
    folder.mkdir(parents=True)
    vars(session.asked).update(device="cpu", data="auto", set=[], jobs=1)
    begun: list[dict[str, list[str]]] = []
    monkeypatch.setattr(
        gpu, "run_all", lambda _, __, commands, *___, **____: begun.append(commands)
    )
    for card, seeds, again, wanted in (
        ({}, 1, False, None),
        ({}, 3, False, ["--resume", "--seeds", "3"]),  # the first of them is there
        ({"runs": [1, 2, 3]}, 3, False, None),
        ({"runs": [1, 2, 3]}, 5, False, ["--resume", "--seeds", "5"]),
        ({}, 1, True, []),
    ):
        (folder / "card.json").write_text(json.dumps(card))
        vars(session.asked).update(seeds=seeds, again=again)
        gpu.train(session, ["cnn9"], time.monotonic())
        command = begun[-1].get("cnn9")
        assert (command and command[command.index("auto") + 1 :]) == wanted
