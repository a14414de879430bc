"""`validate_model`: the verdicts of `cifar-deploy validate`, from Python."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import command_line

from cifar_deploy import UserError, Verdict, validate_model
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.disk import read_json, write_json
from cifar_deploy.package import source
from cifar_deploy.store import ModelFolder, proof_path

FP16 = "models/simple_cnn/simple_cnn.fp16.onnx"
FP32 = "models/simple_cnn/simple_cnn.fp32.onnx"


@pytest.fixture(autouse=True)
def folder(own_cnn: ModelFolder) -> ModelFolder:
    return own_cnn


@pytest.mark.usefixtures("real_data")
def test_it_finds_what_the_command_finds(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: ModelFolder
) -> None:
    damaged = folder.path / "simple_cnn.int8.onnx"
    damaged.write_bytes(b"no graph")
    found = validate_model("simple_cnn", images=300, max_drop=1, latency=False, device="cpu")
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""  # pytest has the lines of the logger
    run = command_line(monkeypatch, capfd)
    limits = ("--images", "300", "--max-drop", "1", "--no-latency", "--device", "cpu")
    assert run("validate", "simple_cnn", *limits, "--json", "out.json").status == 2
    (model,) = json.loads(Path("out.json").read_text())["models"]
    first, *rows = model["rows"]
    assert [verdict.file for verdict in found] == [FP16, FP32, str(damaged)]
    for verdict, row in zip(found, rows, strict=True):
        assert (verdict.model, verdict.images) == (model["model"], 300)
        for name in ("file", "verdict", "precision", "runtime", "bytes"):
            assert getattr(verdict, name) == row[name]
        assert verdict.reason == row.get("reason", "")
        assert verdict.passed == (row["verdict"] == "PASS")
        assert verdict.top1 == row.get("accuracy")
        assert verdict.reference_top1 == (first["accuracy"] if "accuracy" in row else None)
        for name in (
            "lost",
            "gained",
            "upper_bound_of_loss_points",
            "margin_points",
            "same_top1",
            "largest_logit_difference",
        ):
            assert getattr(verdict, name) == row.get(name)
        assert verdict.p50_ms is verdict.p99_ms is verdict.images_per_second is None
    assert [verdict.verdict for verdict in found] == ["PASS", "PASS", "UNUSABLE"]


@pytest.mark.usefixtures("real_data")
def test_files_are_timed_and_may_be_one_anothers_reference() -> None:
    (verdict,) = validate_model(Path(FP16), reference=FP32, images=8, device="cpu")
    assert isinstance(verdict, Verdict)
    assert (verdict.file, verdict.model, verdict.images) == (FP16, Path(FP32).name, 8)
    assert verdict.p50_ms is not None
    assert verdict.p99_ms is not None
    assert 0 < verdict.p50_ms <= verdict.p99_ms
    assert verdict.images_per_second is not None
    assert verdict.images_per_second > 0
    assert verdict.batch in (1, 8)


def test_a_proof_is_left_and_a_reference_that_went_astray_proves_nothing(
    real_data: Dataset, folder: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    def judged() -> Verdict:
        (verdict,) = validate_model("simple_cnn", precision="fp32", latency=False, device="cpu")
        assert (verdict.verdict, verdict.images) == ("PASS", len(real_data.test))
        return verdict

    assert judged().passed
    found = source.find(folder, Path(FP32))
    source.require_proof(found)
    assert not proof_path(Path(FP16)).exists()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    card = read_json(folder.card)
    write_json(folder.card, {**card, "test_accuracy": card["test_accuracy"] - 0.1})
    assert not judged().passed
    assert "simple_cnn is not what its card says" in caplog.text


@pytest.mark.parametrize(
    ("validating", "said"),
    [
        (lambda: validate_model([]), "no model and no file was named"),
        (lambda: validate_model(3), "a int is no model"),  # type: ignore[arg-type]
        (lambda: validate_model(["simple_cnn", FP16]), "name models or files, not both"),
        (lambda: validate_model("simple_cnn", reference=FP32), "--reference goes with files"),
        (lambda: validate_model("simple_cnn", precision="int8"), "no exported int8 file"),
        (lambda: validate_model("simple_cnn", format="engine"), "format 'engine': it can be"),
        (lambda: validate_model("simple_cnn", format=5), "format 5: it can be onnx, trt"),  # type: ignore[arg-type]
        (lambda: validate_model("simple_cnn", precision=[["fp32"]]), "precision ['fp32']: it can"),  # type: ignore[list-item]
        (lambda: validate_model("simple_cnn", precision=[]), "precision []: it can be fp32"),
        (lambda: validate_model(FP16, format="onnx"), "choose among a model's files"),
        (lambda: validate_model("simple_cnn", images=0), "images 0: it is 1 or more"),
        (lambda: validate_model("simple_cnn", max_drop=-1), "max_drop -1: it is from 0 to 100"),
        (lambda: validate_model("simple_cnn", threads=0), "threads 0: it is from 1 to 1024"),
        (lambda: validate_model("simple_cnn", runtime="tflite"), "onnxruntime or openvino"),
        (lambda: validate_model("simple_cnn", device="tpu"), "--device tpu"),
        (lambda: validate_model("simple_cnn", data_dir="nowhere"), "nowhere does not exist"),
    ],
)
def test_what_cannot_be_judged_is_told(validating: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError) as told:
        validating()
    assert said in str(told.value)
