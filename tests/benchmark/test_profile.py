"""`cifar-deploy profile` as a person meets it, on real files in both runtimes."""

import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest
from processes import command_line

from cifar_deploy.benchmark.profile import MOST_RUNS, profile
from cifar_deploy.store import ModelFolder

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--seconds", "0.02")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return partial(command_line(monkeypatch, capsys), "profile")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_every_layer_has_its_time(
    run: Run,
    measured: ModelFolder,
    runtime: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"needs {runtime}")
    file, figures = measured.onnx("fp32"), tmp_path / "profile.json"
    places = ("--batch", "3", "--runtime", runtime, "--json", str(figures))
    status, out, _ = run(str(file), *QUICK, *places)
    assert status == 0
    value = json.loads(figures.read_text())
    assert value["batch"] == 3
    assert value["runs"] >= 3
    layers = value["layers"]
    assert all(layer["ms"] >= 0 for layer in layers)
    assert sum(layer["share"] for layer in layers) == pytest.approx(1)
    # What the runtimes merge is their affair; two convolutions and three linear layers are left.
    heavy = [layer for layer in layers if layer["operator"] in HEAVY]
    assert len(heavy) == 5
    assert all(layer["name"] in out.replace("\n", "") for layer in heavy if len(layer["name"]) < 30)
    assert "By operator:" in out
    assert all(bool(layer["kernel"]) == (runtime == "openvino") for layer in heavy)
    assert list(tmp_path.iterdir()) == [figures]  # and no file of ONNX Runtime's own


HEAVY = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Convolution", "FullyConnected")


def test_many_runs_of_a_small_network_are_summed_up_at_once(measured: ModelFolder) -> None:
    found = profile(measured.onnx("fp32"), "onnxruntime", 1, 2.0)
    assert 100 < found.runs <= MOST_RUNS
    # Every run has all layers: none was counted with its neighbour's.
    assert all(layer.ms > 0 for layer in found.layers)
    assert sum(layer.ms for layer in found.layers) < 2 * found.ms


def test_a_layer_below_what_openvino_counts_is_still_a_layer(
    measured: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr("cifar_deploy.benchmark.profile.MOST_RUNS", 5000)  # the mean falls slowly
    found = profile(measured.onnx("fp32"), "openvino", 1, 3.0)
    assert sum(layer.operator == "FullyConnected" for layer in found.layers) == 3
    # The warm-up's first run, which is slow, is in none of them.
    assert sum(layer.ms for layer in found.layers) < 2 * found.ms


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_is_put_before_another_programs_file_is_told(
    run: Run, foreign: Path, measured: ModelFolder, runtime: str, tmp_path: Path
) -> None:
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"needs {runtime}")
    figures = tmp_path / "profile.json"
    more = (*QUICK, "--runtime", runtime, "--json", str(figures))
    said = "here mean 0,0,0 and std 1,1,1 are put before it, and timed with it: layers of the table"
    status, out, _ = run(str(foreign), *more)
    assert (status, out.count(said)) == (0, 1)
    assert out.count(f"{foreign.name} takes float32 [batch, 3, 32, 32]") == 1
    value = json.loads(figures.read_text())
    assert value["addition"] in value["remarks"][0]
    assert value["addition"] in out
    status, out, _ = run(str(measured.onnx("fp32")), *more)
    assert (status, "put before" in out) == (0, False)
    assert json.loads(figures.read_text())["addition"] == ""


def test_what_cannot_be_profiled_is_told(run: Run, measured: ModelFolder, tmp_path: Path) -> None:
    single = tmp_path / "single.onnx"
    model = onnx.load(measured.onnx("fp32"))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, single)
    status, _, err = run(str(single), *QUICK, "--batch", "8")
    assert (status, err.splitlines()[-1]) == (
        2,
        f"error: {single} takes batches of 1 only; give --batch",
    )
    assert run(str(single), *QUICK)[0] == 0
    status, _, err = run(str(tmp_path / "m.engine"), *QUICK)
    assert status == 2
    assert "--export-layer-info" in err
    status, _, err = run(str(tmp_path / "lost.onnx"), *QUICK)
    assert status == 2
    assert "lost.onnx" in err
