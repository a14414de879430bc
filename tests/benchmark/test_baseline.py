"""What counts as the same measurement, and as slower."""

from dataclasses import replace
from pathlib import Path

import pytest

from cifar_deploy.benchmark import baseline, sweep
from cifar_deploy.benchmark.contenders import Who
from cifar_deploy.benchmark.sweep import Row
from cifar_deploy.disk import write_json
from cifar_deploy.errors import UserError
from cifar_deploy.timing import Times, Timing


def row(p50: float, runtime: str = "ONNX Runtime 1.31.1", name: str = "m.onnx") -> Row:
    spent, other = Times(0.5 * p50, p50, 3 * p50, 4 * p50), Times(9.0, 9.0, 9.0, 9.0)
    timing = Timing(8, 100, spent, other, None, None, None, other, 8000 / 9)
    return Row(Who("m", name, runtime, "CPU", "cpu", "fp32"), timing, (), None, True, *[None] * 3)


def test_a_median_is_slower_by_its_share_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    known = {"model": "m", "runtime": "ONNX Runtime 1.30.0", "batch": 8}
    rows = [known | {"name": "m.onnx, ONNX Runtime", "latency": {"p50": 2.0}}]
    write_json(path, {"device": "this", "rows": rows})
    before = baseline.read(path, "this")
    (change,) = found = baseline.changes(before, [row(2.5), row(2.5, "OpenVINO 2026.4.1")])
    assert (change.before, change.now) == (2.0, 2.5)
    assert change.slower == pytest.approx(25)
    assert (baseline.slower(found, 24), baseline.slower(found, 26)) == ([change], [])
    (quicker,) = baseline.changes(before, [row(1.0)])
    assert quicker.slower == pytest.approx(-50)
    assert baseline.notes(before, [quicker, change], [change]) == [
        f"Against {path}: 2 of 1 rows, their medians 0.50 to 1.25 times as long.",
        "m, m.onnx, batch 8: SLOWER by 25 %: 2.5 ms at the median, 2 then",
    ]
    # What is over the bound does not look like it.
    close = [baseline.Change("m", "m.onnx", 8, 2_400.0, 2_641.0, False)]
    *_, line = baseline.notes(before, close, baseline.slower(close, 10))
    assert line == "m, m.onnx, batch 8: SLOWER by 10.1 %: 2,641 ms at the median, 2,400 then"
    short = [baseline.Change("m", "m.onnx", 1, 0.0101, 0.0104, False)]
    assert "0.0104 ms at the median, 0.0101 then" in baseline.notes(before, short, short)[-1]

    (said,) = baseline.to_json(before, found, 24)["rows"]
    assert said == {
        **{"model": "m", "name": "m.onnx", "batch": 8},
        **{"before_p50": 2.0, "now_p50": 2.5, "slower_percent": pytest.approx(25)},
    }


@pytest.mark.parametrize("p50", ["NaN", "Infinity", f"1{'0' * 400}", "true", '"2"'])
def test_a_baseline_of_no_numbers_is_refused_before_anything_is_measured(
    tmp_path: Path, p50: str
) -> None:
    row = (
        f'{{"model": "m", "name": "n", "runtime": "R 1", "batch": 1, "latency": {{"p50": {p50}}}}}'
    )
    path = tmp_path / "before.json"
    path.write_text(f'{{"device": "this", "rows": [{row}]}}')
    with pytest.raises(UserError, match="is not what `benchmark --json` writes"):
        baseline.read(path, "this")


def test_what_a_comparison_rests_on_is_told(tmp_path: Path) -> None:
    path = tmp_path / "before.json"

    def told(*, remarks: list[str], now: Row, **then: object) -> list[str]:
        known = {"model": "m", "runtime": "ONNX Runtime 1.30.0", "batch": 8, "name": "m.onnx"}
        rows = [known | {"latency": {"p50": 2.0}} | then]
        write_json(path, {"device": "this", "rows": rows, "remarks": remarks})
        before = baseline.read(path, "this")
        return baseline.notes(before, baseline.changes(before, [now]), [])[1:]

    busy = "the processor was busy: others used 64 % of it"
    files = "models/m has no exported files, and PyTorch alone was measured"
    assert told(remarks=[files, busy], now=row(2.0)) == [f"When {path} was measured, {busy}."]
    little = "1 of the 1 medians are, then or now, of fewer than 10 calls or were not steady after"
    for then, now in (
        ({"calls": 9, "steady": True}, row(2.0)),
        ({"calls": 100, "steady": False}, row(2.0)),
        ({"calls": 100, "steady": True}, replace(row(2.0), steady=False)),
        ({}, replace(row(2.0), timing=replace(row(2.0).timing, calls=9))),
    ):
        (line,) = told(remarks=[], now=now, **then)
        assert line.startswith(little)
    assert told(remarks=[], now=row(2.0), calls=10, steady=True) == []


def test_what_is_not_measured_any_more_is_told(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    known = {"model": "m", "batch": 8, "latency": {"p50": 2.0}}
    rows = [
        known | {"name": "m.onnx", "runtime": "ONNX Runtime 1.30.0"},
        known | {"name": "m.onnx, OpenVINO", "runtime": "OpenVINO 2026.4.1"},
        known | {"name": "n.onnx", "runtime": "ONNX Runtime 1.30.0"},
    ]
    write_json(path, {"device": "this", "rows": rows})
    before, now = baseline.read(path, "this"), [row(2.0)]
    lost = baseline.missing(before, now)
    found = baseline.changes(before, now)
    assert baseline.notes(before, found, [], lost)[-1] == (
        "Measured then, and not now: m, m.onnx, batch 8, m, n.onnx, batch 8."
    )
    assert baseline.to_json(before, found, 10, lost)["missing"] == [
        {"model": "m", "name": "m.onnx", "runtime": "OpenVINO", "batch": 8},
        {"model": "m", "name": "n.onnx", "runtime": "ONNX Runtime", "batch": 8},
    ]


def test_pytorch_beside_files_decides_nothing() -> None:
    file, torch = row(2.0), row(9.0, "PyTorch 2.14.1", "PyTorch eager fp32")
    assert sweep.judged([torch, file]) == [file]
    assert sweep.judged([torch]) == [torch]
