"""`benchmark_model`: the figures of `cifar-deploy benchmark`, from Python."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_deploy import Measurement, UserError, benchmark_model
from cifar_deploy.store import ModelFolder

FP32 = "models/simple_cnn/simple_cnn.fp32.onnx"
NAMES = ["PyTorch eager fp32", "simple_cnn.fp16.onnx", "simple_cnn.fp32.onnx"]


@pytest.fixture(autouse=True)
def folder(own_cnn: ModelFolder) -> Path:
    return own_cnn.path


def test_pytorch_and_all_files_are_timed_at_every_batch(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, folder: Path
) -> None:
    (folder / "simple_cnn.int8.onnx").write_bytes(b"no graph")
    found = benchmark_model("simple_cnn", batch=[1, 8], seconds=0.02, device="cpu")
    assert capfd.readouterr() == ("", "")  # pytest has the lines of the logger
    *rows, lost = found
    assert [(row.batch, row.name) for row in rows] == [(n, name) for n in (1, 8) for name in NAMES]
    for row in rows:
        assert isinstance(row, Measurement)
        assert (row.model, row.reason) == ("simple_cnn", "")
        assert row.precision == row.name.removesuffix(".onnx")[-4:]
        assert row.runtime
        assert row.runtime.split()[0] == ("PyTorch" if "PyTorch" in row.name else "ONNX")
        assert row.min_ms
        assert row.p50_ms
        assert row.p90_ms
        assert row.p99_ms
        assert 0 < row.min_ms <= row.p50_ms <= row.p90_ms <= row.p99_ms
        assert row.h2d_ms is row.d2h_ms is row.enqueue_ms is None
        assert row.compute_ms == row.p50_ms  # on a CPU there are no copies
        assert row.images_per_second
        assert row.in_flight == 2
        assert row.in_flight_images_per_second
        assert row.open_s
        assert row.first_call_ms
    assert (lost.name, lost.batch, lost.p50_ms) == ("simple_cnn.int8.onnx", None, None)
    assert "no valid ONNX file" in lost.reason
    assert "no GPU is measured" in caplog.text


def test_only_what_is_asked_for_is_timed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cifar_deploy.measuring")
    (one, two) = benchmark_model(
        [Path(FP32)],
        batch=3,
        seconds=0.01,
        in_flight=0,
        runtime=["onnxruntime", "openvino"],
        device="cpu",
    )
    assert (one.batch, two.batch) == (3, 3)
    assert (one.name, two.name) == (f"{NAMES[2]}, onnxruntime", f"{NAMES[2]}, openvino")
    assert one.in_flight is one.in_flight_images_per_second is two.in_flight is None
    assert any(record.levelno == logging.INFO for record in caplog.records)
    names = {
        row.name
        for row in benchmark_model(folder, precision="fp16", batch=1, seconds=0.01, device="cpu")
    }
    assert names == set(NAMES[:2])


@pytest.mark.parametrize(
    ("measuring", "said"),
    [
        (lambda: benchmark_model([]), "no model and no file was named"),
        (lambda: benchmark_model(3), "a int is no model"),  # type: ignore[arg-type]
        (lambda: benchmark_model("simple_cnn", precision="int8"), "no exported int8 file"),
        (lambda: benchmark_model("simple_cnn", format="engine"), "format 'engine': it can be"),
        (lambda: benchmark_model("simple_cnn", batch=0), "batch 0: it is from 1 to "),
        (lambda: benchmark_model("simple_cnn", batch=[]), "batch []: it is one size or more"),
        (lambda: benchmark_model("simple_cnn", seconds=-1), "seconds -1: it is 0 or more"),
        (lambda: benchmark_model("simple_cnn", in_flight=-1), "in_flight -1: it is from 0 to 9999"),
        (lambda: benchmark_model("simple_cnn", threads=0), "threads 0: it is from 1 to 1024"),
        (lambda: benchmark_model("simple_cnn", runtime="tflite"), "onnxruntime or openvino"),
        (lambda: benchmark_model("simple_cnn", runtime=[]), "runtime []: it can be onnxruntime"),
        (lambda: benchmark_model("simple_cnn", device="tpu"), "--device tpu"),
        (lambda: benchmark_model("models/simple_cnn/no.onnx"), "no.onnx"),
        (lambda: benchmark_model("none"), "none"),
    ],
)
def test_what_cannot_be_measured_is_told(measuring: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError) as told:
        measuring()
    assert said in str(told.value)


def test_where_nothing_can_be_measured_that_is_told(folder: Path) -> None:
    (folder / "simple_cnn.fp32.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"^nothing to measure: simple_cnn\.fp32\.onnx: "):
        benchmark_model(FP32, batch=1, device="cpu")
