"""`benchmarks/gpu.py`, run for real on a CPU with little to do."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

import cifar_deploy
from cifar_deploy import architectures
from cifar_deploy.data.dataset import Dataset

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


def test_the_whole_on_a_cpu(tmp_path: Path, small_data: Dataset) -> None:
    pictures = tmp_path / "pictures"
    for name, split, count in (("train", small_data.train, 60), ("test", small_data.test, 60)):
        for i in range(count):
            path = pictures / name / small_data.classes[split.labels[i]] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[i]).save(path)
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


def test_a_command_over_its_limit_is_stopped_and_may_save(gpu: ModuleType, session: Any) -> None:
    saved = session.out / "saved"
    code = (
        "import pathlib, signal, sys, time\n"
        f"def stop(*_): pathlib.Path({str(saved)!r}).touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('working', flush=True)\n"
        "time.sleep(60)"
    )
    start = time.monotonic()
    step = gpu.run(session, "train", "slow", python(code), start + 2.0)
    assert time.monotonic() - start < 20
    assert (step.status, step.rc) == ("stopped", 143)
    assert saved.exists()
    assert "working" in (session.out / "gpu.log").read_text()
    late = gpu.run(session, "train", "next", python("pass"), start)
    assert late.status == "not started"


def test_one_that_does_not_listen_is_ended(
    gpu: ModuleType, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    step = gpu.run(session, "benchmark", "deaf", python(code), time.monotonic() + 1.5)
    assert (step.status, step.rc) == ("stopped", -9)


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


def test_engines_are_built_of_the_flavours_that_are_installed(
    gpu: ModuleType, session: Any
) -> None:
    session.asked.format, session.asked.precision = ["trt"], ["fp32"]
    session.facts = {"missing": {"tensorrt": "no engines of that flavour"}}
    assert [label for label, _ in gpu.formats(session)] == ["trt tensorrt-rtx fp32"]
    session.facts = {"missing": {"tensorrt_rtx_bindings": "no engines of that flavour"}}
    assert [label for label, _ in gpu.formats(session)] == ["trt tensorrt fp32"]


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
    (folder / "seeds").mkdir()  # the first of several seeds is done
    assert not gpu.trained_here(session, "cnn9")
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


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--stages", "trian", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no stage is called trian")
    assert not (tmp_path / "out").exists()


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
