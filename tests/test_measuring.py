"""`benchmark_model`: the figures of `cifar-deploy benchmark`, from Python."""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_deploy import Measurement, UserError, benchmark_model
from cifar_deploy.benchmark import contenders, sweep
from cifar_deploy.benchmark.sweep import Benchmark, Load, Row, Settings, Throughput
from cifar_deploy.store import ModelFolder
from cifar_deploy.timing import Times, Timing

FP32 = "models/simple_cnn/simple_cnn.fp32.onnx"
NAMES = ["PyTorch eager fp32", "simple_cnn.fp16.onnx", "simple_cnn.fp32.onnx"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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


def test_every_figure_is_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the sweep gives them, each another number: what is asked for reaches it, too."""
    asked: list[Any] = []

    def times(first: float) -> Times:
        return Times(first, first + 0.1, first + 0.2, first + 0.3)

    def sweep_of(models: Iterable[Any], settings: Settings, *_: Any) -> Benchmark:
        asked.append(settings)
        ((contender, *_),) = models
        timing = Timing(4, 11, times(1), times(2), times(3), times(4), times(5), times(6), 7.0)
        flown = Throughput(3, 12, 0.5, 8.0, 9.0, 10.0, Load(1, 2, 3))
        row = Row(contender.who, timing, (flown,), None, False, 12.0, 13.0, 14)
        return Benchmark(settings, {}, [row], [], ["a remark"], True)

    monkeypatch.setattr(sweep, "run", sweep_of)
    (found,) = benchmark_model(FP32, batch=4, seconds=0.7, in_flight=3, device="cpu")
    (settings,) = asked
    assert (settings.batches, settings.seconds, settings.in_flight) == ((4,), 0.7, (3,))
    figures = {
        **{"batch": 4, "calls": 11, "steady": False, "min_ms": 1, "p50_ms": 1.1, "p90_ms": 1.2},
        **{"p99_ms": 1.3, "compute_ms": 2.1, "h2d_ms": 3.1, "d2h_ms": 4.1, "enqueue_ms": 5.1},
        **{"images_per_second": 7, "in_flight": 3, "in_flight_images_per_second": 8},
        **{"images_per_joule": 10, "open_s": 12, "first_call_ms": 13, "memory_mib": 14},
    }
    assert {name: getattr(found, name) for name in figures} == figures


def test_what_makes_a_time_worth_less_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    (one,) = benchmark_model(FP32, batch=8, seconds=0, in_flight=0, device="cpu")
    assert one.calls is not None
    assert one.calls < 100
    assert "1 of 1 rows have fewer than 100 calls, the fewest " in caplog.text


@pytest.mark.parametrize("end", [UserError("the GPU failed"), KeyboardInterrupt()])
def test_what_ends_it_early_is_raised(
    end: UserError | KeyboardInterrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(_models: Any, settings: Settings, *_: Any) -> Benchmark:
        return Benchmark(settings, {}, [], [], [], True, end)

    monkeypatch.setattr(sweep, "run", ended)
    with pytest.raises(type(end)) as told:
        benchmark_model(FP32, device="cpu")
    assert told.value is end


def test_what_is_asked_for_reaches_the_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def opened(*arguments: Any) -> Any:
        asked.append(arguments)
        raise UserError("seen")

    monkeypatch.setattr(contenders, "contenders", opened)
    for compiled, trust in ((True, True), (None, False)):
        with pytest.raises(UserError, match="seen"):
            benchmark_model(
                FP32,
                runtime=["openvino", "openvino"],
                compile=compiled,
                trust=trust,
                threads=1,
                device="cpu",
            )
    assert torch.get_num_threads() == 1
    (_, _, *first), (_, _, *second) = asked
    assert (first[0], first[1], first[3]) == (True, True, ["openvino"])
    assert (second[0], second[1], second[3]) == (False, False, ["openvino"])


@pytest.mark.parametrize(
    ("measuring", "said"),
    [
        (lambda: benchmark_model([]), "no model and no file was named"),
        (lambda: benchmark_model(3), "a int is no model"),  # type: ignore[arg-type]
        (lambda: benchmark_model("simple_cnn", precision="int8"), "no exported int8 file"),
        (lambda: benchmark_model("simple_cnn", format="engine"), "format 'engine': it can be"),
        (lambda: benchmark_model("simple_cnn", format=5), "format 5: it can be onnx, trt"),  # type: ignore[arg-type]
        (lambda: benchmark_model("simple_cnn", precision=[["fp32"]]), "precision ['fp32']: it can"),  # type: ignore[list-item]
        (lambda: benchmark_model("simple_cnn", precision=[]), "precision []: it can be fp32"),
        (lambda: benchmark_model("simple_cnn", batch=0), "batch 0: it is from 1 to "),
        (lambda: benchmark_model("simple_cnn", batch=[]), "batch []: it is one size or more"),
        (lambda: benchmark_model("simple_cnn", batch="8"), "batch '8': it is a whole number"),  # type: ignore[arg-type]
        (lambda: benchmark_model("simple_cnn", batch=[[1]]), "batch [1]: it is a whole number"),  # type: ignore[list-item]
        (lambda: benchmark_model("simple_cnn", runtime=[["a"]]), "runtime ['a']: it can be"),  # type: ignore[list-item]
        (lambda: benchmark_model("simple_cnn", batch=[1, 8.0]), "batch 8.0: it is a whole number"),  # type: ignore[list-item]
        (
            lambda: benchmark_model("simple_cnn", in_flight=[1, 2]),
            "in_flight [1, 2]: it is a whole",
        ),  # type: ignore[arg-type]
        (lambda: benchmark_model("simple_cnn", seconds="1"), "seconds '1': it is a number"),  # type: ignore[arg-type]
        (
            lambda: benchmark_model("simple_cnn", runtime=None),
            "runtime None: it can be onnxruntime",
        ),  # type: ignore[arg-type]
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
