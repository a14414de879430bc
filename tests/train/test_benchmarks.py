"""The scripts in benchmarks/ run, write what they promise, and go on where they were stopped."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cifar_deploy
from cifar_deploy import disk, store
from cifar_deploy.cli import app
from cifar_deploy.engines.flavour import Flavour
from cifar_deploy.errors import UserError
from cifar_deploy.export.onnx_file import export_onnx

ROOT = Path(cifar_deploy.__file__).parents[1]

# What benchmarks/train_speed.py relies on in airbench's script.
AIRBENCH = """
import sys, torch
with open(sys.argv[0]) as f:
    code = f.read()

def print_training_details(variables, is_final_entry):
    print("not called")

class CifarNet(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
    def compile(self, mode):
        pass

def main(run, model):
    data = torch.load("cifar10/train.pt")
    assert data["images"].shape[1:] == (32, 32, 3) and len(data["classes"]) == 10
    time_seconds, val_acc = 1.5, 0.5
    print_training_details(locals(), is_final_entry=False)
    time_seconds, tta_val_acc = 2.0, 0.75
    print_training_details(locals(), is_final_entry=True)
    return tta_val_acc

if __name__ == "__main__":
    raise SystemExit("not as a program")
"""


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def call(name: str, *arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        capsys.readouterr()
        script(name).main()
        return str(capsys.readouterr().out)

    return call


def test_ablations_go_on_and_end_in_a_table(call: Any, pictures: Path, tmp_path: Path) -> None:
    options = ("--epochs", "1", "--hold-out", "60", "--device", "cpu", "--data-dir", pictures)
    variations = ("--set", "train.ema=0", "--set", "augment.flip=false augment.translate=0")
    basis = ("--basis", "train.batch_size=60")
    call("ablate", "simple_cnn", *options, *variations, *basis, "--seeds", "1")
    place = tmp_path / "build" / "ablate" / "simple_cnn.json"
    before = json.loads(place.read_text())["results"]
    assert len(before) == 3
    said = call("ablate", "simple_cnn", *options, *variations, *basis, "--seeds", "2")
    after = json.loads(place.read_text())["results"]
    assert len(after) == 6
    assert before.items() <= after.items()  # also their seconds: they were not run again
    assert {result["holdout_images"] for result in after.values()} == {60}
    rows = [line.split(" | ") for line in said.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip("| `") for row in rows] == [
        *("the recipe", "train.ema=0", "augment.flip=false augment.translate=0")
    ]
    assert all("±" in row[1] for row in rows)
    means: dict[str, float] = {}
    for result in after.values():
        share = 100 * result["holdout_accuracy"] / 2
        means[result["variation"]] = means.get(result["variation"], 0.0) + share
    assert [row[1].split(" ±")[0] for row in rows] == [f"{mean:.2f}" for mean in means.values()]
    with disk.only_writer(place.with_suffix("")), pytest.raises(UserError, match="another run is"):
        call("ablate", "simple_cnn", *options, *basis)
    with pytest.raises(UserError, match="no network is called 'resnet19x'"):
        call("ablate", "resnet19x")
    for none in (("--hold-out", "0"), ("--seeds", "0")):
        with pytest.raises(UserError, match="--hold-out and --seeds are 1 or more"):
            call("ablate", "simple_cnn", *options, *none)
    with pytest.raises(UserError, match=r"--set train\.batch_size=60 changes nothing"):
        call("ablate", "simple_cnn", *options, *basis, "--set", "train.batch_size=60")


def test_the_loops_on_a_cpu_are_compared(call: Any, pictures: Path, tmp_path: Path) -> None:
    said = call(
        *("train_speed", "--data-dir", pictures, "--json", "speed.json", "cpu"),
        *("--steps", "1", "--rounds", "2", "--batch-size", "8", "--workers", "0"),
    )
    found = json.loads((tmp_path / "speed.json").read_text())
    rates = found["images_per_second"]
    assert [len(rates[name]) for name in ("this", "usual")] == [2, 2]
    assert found["ratio"] == pytest.approx(sum(rates["this"]) / sum(rates["usual"]))
    assert f"this loop: {found['ratio']:.2f} times the usual one" in said
    assert "threads" in found["device"]
    assert not (tmp_path / "unused").exists()


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
def test_what_compilation_is_worth_on_a_cpu(call: Any, pictures: Path, tmp_path: Path) -> None:
    said = call(
        *("train_speed", "--data-dir", pictures, "--json", "speed.json", "compiled"),
        *("--network", "simple_cnn", "--steps", "1", "--rounds", "1", "--batch-size", "8"),
    )
    found = json.loads((tmp_path / "speed.json").read_text())
    (fast,), (slow,) = (found["images_per_second"][name] for name in ("compiled", "eager"))
    assert found["ratio"] == pytest.approx(fast / slow)
    assert f"simple_cnn: {found['ratio']:.2f} times as fast" in said
    assert found["warmup_seconds"] > 0  # without compilation a CPU needs none


def test_which_precision_is_faster(call: Any, pictures: Path, tmp_path: Path) -> None:
    said = call(
        *("train_speed", "--data-dir", pictures, "--json", "speed.json", "precisions"),
        *("--network", "cnn9", "--steps", "1", "--rounds", "1", "--batch-size", "8"),
    )
    found = json.loads((tmp_path / "speed.json").read_text())
    (fp32,), (bf16,) = (found["images_per_second"][name] for name in ("fp32", "bf16"))
    assert found["ratio"] == pytest.approx(fp32 / bf16)
    assert f"cnn9: {found['ratio']:.2f} times as fast in fp32" in said


@pytest.mark.parametrize(
    ("precision", "kinds"),
    [("bf16", {"small plane", "1x1", "depthwise"}), ("fp32", {"small plane", "Winograd"})],
)
def test_the_convolutions_are_compared(
    call: Any, tmp_path: Path, precision: str, kinds: set[str]
) -> None:
    options = ["--batch-size", "1", "--rounds", "1", *(["--fp32"] if precision == "fp32" else [])]
    said = call("train_speed", "--json", "conv.json", "convolutions", *options)
    result = json.loads((tmp_path / "conv.json").read_text())
    found = result["convolutions"]
    assert result["precision"] == precision
    assert {shape["kind"] for shape in found} == kinds
    for shape in found:
        assert set(shape["milliseconds"]) == {"torch", "this"}
        assert shape["shape"] in said


def in_processes(to: Path, *arguments: str) -> Any:
    """What train_speed.py writes where each step has a process, which reads the script again."""
    command = (sys.executable, ROOT / "benchmarks" / "train_speed.py", "--json", to, *arguments)
    subprocess.run(command, check=True, capture_output=True)
    return json.loads(to.read_text())


def test_kept_memory_is_compared(tmp_path: Path) -> None:
    # Its tensors are over 32 MiB, and glibc gives those back at once. Of smaller ones it keeps some
    # or all by itself, as the run before left its heap.
    size = ("--network", "simple_cnn", "--batch-size", "4096", "--rounds", "1")
    found = in_processes(tmp_path / "memory.json", "memory", *size)
    (given_back,), (kept,) = found["steps"]["given back"], found["steps"]["kept"]
    assert kept["faults"] < given_back["faults"] / 2
    assert found["ratio"] == round(given_back["seconds"] / kept["seconds"], 2)


def test_flushed_subnormals_are_compared(tmp_path: Path) -> None:
    found = in_processes(tmp_path / "subnormals.json", "subnormals", "--rounds", "1")
    (computed,), (flushed,) = found["steps"]["computed"], found["steps"]["flushed"]
    assert found["dead"] == 36
    assert found["ratio"] == round(computed["seconds"] / flushed["seconds"], 2)


def test_the_builds_of_engines_are_timed(call: Any, tmp_path: Path, rtx: Flavour) -> None:
    said = call("engine_builds", "simple_cnn", "--json", "builds.json")
    found = json.loads((tmp_path / "builds.json").read_text())
    assert found["library"] == str(rtx)
    assert [(row["network"], row["precision"]) for row in found["rows"]] == [
        ("simple_cnn", "fp32"),
        ("simple_cnn", "fp16"),
    ]
    for row in found["rows"]:
        assert len(row["build_seconds"]) == 3
        assert all(0 < seconds < 600 for seconds in row["build_seconds"])
    assert found["rows"][1]["bytes"] < found["rows"][0]["bytes"]
    assert said.count("| `simple_cnn` |") == 2


@pytest.mark.usefixtures("real_data")
def test_versions_of_runtimes_are_compared(
    call: Any, own_cnn: store.ModelFolder, tmp_path: Path
) -> None:
    packed = CliRunner().invoke(app, ["package", str(own_cnn.path), "--unproved"])
    assert packed.exit_code == 0, packed.output
    package = "simple_cnn-package"
    runtimes = ("--runtime", "onnxruntime", "onnxruntime==0.0.1")
    said = call("runtime_versions", package, *runtimes, "--json", "versions.json")
    here, nowhere = json.loads((tmp_path / "versions.json").read_text())["rows"]
    assert here["sha256"] == disk.sha256_of(own_cnn.onnx("fp32"))
    assert (here["same_top1"], here["images"], here["max_logit_difference"]) == (64, 64, 0.0)
    assert "No matching distribution" in nowhere["error"]
    assert f"| onnxruntime {here['version']} | 64 of 64, 0 |" in said
    # A file that is none is an error of the row.
    (tmp_path / package / "model.onnx").write_bytes(b"none")
    call("runtime_versions", package, "--runtime", "onnxruntime", "--json", "versions.json")
    (row,) = json.loads((tmp_path / "versions.json").read_text())["rows"]
    assert "simple_cnn-package/model.onnx" in row["error"]


def test_the_ways_of_the_cuda_provider_want_a_gpu() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "onnx_cuda.py", "none.onnx"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=hidden)
    assert done.returncode == 2
    assert re.fullmatch(r"error: --device cuda: .*\n", done.stderr)


@pytest.mark.gpu
def test_the_ways_of_the_cuda_provider_are_timed(call: Any, tmp_path: Path) -> None:
    file = export_onnx(script("engine_builds").untrained("simple_cnn", tmp_path), "fp16")
    call("onnx_cuda", str(file), "--seconds", "0.01", "--json", "ways.json")
    rows = json.loads((tmp_path / "ways.json").read_text())["rows"]
    assert len(rows) == 4 * 8
    assert all(0 <= row["apart"] < 0.05 < 1000 * row["ms"] for row in rows)


@pytest.mark.gpu
def test_the_speed_recipe_is_timed_beside_another_script(
    call: Any, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "airbench.py").write_text(AIRBENCH)
    short = (
        "--set",
        "train.epochs=1",
        "--set",
        "train.batch_size=60",
        "--set",
        "train.compile=off",
    )
    call(
        *("train_speed", "--data-dir", pictures, "--json", "speed.json", "gpu"),
        *("--seeds", "2", "--airbench", "airbench.py", *short),
    )
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [run["seed"] for run in found["ours"]["runs"]] == [0, 1]
    theirs = found["airbench"]["runs"][0]
    assert theirs == {
        "accuracy": 0.5,
        "accuracy_with_test_time_augmentation": 0.75,
        "train_seconds": 2.0,
        "train_seconds_before_test": 1.5,
    }
    assert found["times_airbench"] == pytest.approx(found["ours"]["train_seconds"]["mean"] / 2)
    assert all(run["warmup_seconds"] > 0 for run in found["ours"]["runs"])
