import dataclasses
import importlib.util
import inspect
import itertools
import json
import logging
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from processes import lines_in_terminal
from sleepers import Sleeper

from cifar_deploy.architectures import weights
from cifar_deploy.benchmark import sweep, table
from cifar_deploy.benchmark.contenders import Contender, contenders
from cifar_deploy.benchmark.sweep import Settings
from cifar_deploy.cli.options import show
from cifar_deploy.data.dataset import Images
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes.load import ONNX, ONNXRUNTIME, OPENVINO
from cifar_deploy.runtimes.onnx_runtime import OnnxRuntime
from cifar_deploy.runtimes.protocol import REMOTE, Bound, Runtime
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.store import ModelFolder
from cifar_deploy.timing import BUFFERS, Lane, Pool
from cifar_deploy.watch import Watch

CPU = torch.device("cpu")


class Refusing(Sleeper):
    """It takes no batch above its limit."""

    def __init__(self, limit: int, error: Exception) -> None:
        super().__init__(lambda _: 0.0)
        self.limit, self.error = limit, error

    def bind(self, images: Images) -> Bound:
        if len(images) > self.limit:
            raise self.error
        return super().bind(images)


def test_runtimes_side_by_side_on_a_cpu(measured: ModelFolder) -> None:
    entered, failures = contenders([(measured, measured.exported(), True)], CPU, False)
    assert failures == []
    names = ["PyTorch eager fp32", "simple_cnn.fp16.onnx", "simple_cnn.fp32.onnx"]
    assert [contender.name for contender in entered] == names
    result = sweep.run([entered], Settings((1, 4), 0.05, (2,)), CPU)
    assert [(row.who.name, row.timing.batch) for row in result.rows] == [
        (name, batch) for batch in (1, 4) for name in names
    ]
    for row in result.rows:
        assert row.timing.calls >= sweep.TURNS
        assert row.throughput
        assert row.throughput.in_flight == 2
        assert row.throughput.images_per_second == pytest.approx(
            row.throughput.images / row.throughput.seconds
        )
        assert row.throughput.joules is None
        assert row.throughput.latency_ms.p99 >= row.throughput.latency_ms.p50 > 0
        assert row.card is None
    value = json.loads(json.dumps(sweep.to_json(result, "the command")))
    assert value["command"] == "the command"
    assert value["failures"] == []
    assert len(value["rows"]) == 6
    assert "no GPU is measured: these are the CPU runtimes, without copies" in value["remarks"]
    lines = table.notes(result)
    assert any("no GPU is measured" in line for line in lines)
    for row in result.rows:
        (cells,) = table.lines(row)
        assert len(cells) == len(table.TEXTS) + len(table.NUMBERS)
        # H2D, D2H and enqueue: there is no copy on a CPU.
        assert [cells[3], cells[5], cells[6]] == ["-", "-", "-"]


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_numbers_are_whole_at_any_width(
    measured: ModelFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    width: int,
) -> None:
    entered, _ = contenders([(measured, measured.exported(), True)], CPU, False)
    result = sweep.run([entered], Settings((8,), 0.01, (2,)), CPU)
    printing = partial(show, table.table(result.rows), [], {}, None, 160)
    lines = lines_in_terminal(monkeypatch, capsys, width, printing)
    for row in sweep.to_json(result, "")["rows"]:
        times = [row["compute"]["p50"], *(row["latency"][q] for q in ("min", "p50", "p90", "p99"))]
        speeds = (row["images_per_second"], row["throughput"]["images_per_second"])
        times += [row["throughput"]["latency_ms"][q] for q in ("p50", "p99")]
        words = {"8", *map(table.milliseconds, times), *(f"{speed:,.0f}" for speed in speeds)}
        assert any(words <= set(line) for line in lines), (words, lines)


def cold(rows: Sequence[sweep.Row]) -> list[tuple[float, float]]:
    """Seconds to open and milliseconds of the first call of each row."""
    found = []
    for row in rows:
        assert row.open_s is not None
        assert row.first_call_ms is not None
        found.append((row.open_s, row.first_call_ms))
    return found


def test_a_cold_start_of_every_runtime(
    measured: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = [OPENVINO] if importlib.util.find_spec("openvino") else []
    made: list[str] = []

    def slow(path: str, *arguments: Any, **named: Any) -> Any:
        made.append(path)
        time.sleep(1.0)
        return session(path, *arguments, **named)

    session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", slow)
    work = [(measured, [measured.onnx("fp32")], True)]
    begin = time.perf_counter()
    entered, failures = contenders(work, CPU, False, onnx=[ONNXRUNTIME, *openvino])
    took = time.perf_counter() - begin
    rows = sweep.run([entered], Settings((1, 4), 0.02, ()), CPU).rows
    assert failures == []
    assert len(rows) == 2 * (2 + len(openvino))
    assert len(made) == 1
    found = cold(rows)
    assert min(min(one) for one in found) > 0
    half = len(found) // 2
    opened = [seconds for seconds, _ in found[:half]]
    assert opened == [seconds for seconds, _ in found[half:]]  # once for all batches
    assert sum(opened) <= took
    assert opened[1] >= 1  # ONNX Runtime, by its session
    assert max(first for _, first in found) < 1000  # which is not in the call


def test_the_first_call_shows_what_is_slow_once(measured: ModelFolder) -> None:
    trained = weights.load(measured)
    calls = itertools.count()
    trained.network.register_forward_pre_hook(
        lambda *_: time.sleep(0.0 if next(calls) else 1.0)  # type: ignore[func-returns-value]
    )
    entered = [Contender("m", "f", PyTorch(trained, CPU), open_s=0.25)]
    one, four = sweep.run([entered], Settings((1, 4), 0.1, ()), CPU).rows
    assert cold([one])[0][1] >= 1000 > one.timing.latency.p99
    assert cold([four])[0][1] < 1000


def test_a_librarys_import_is_no_opening(
    measured: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slowly_imported.py").write_text("import time\ntime.sleep(1.0)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def needing(*arguments: Any) -> OnnxRuntime:
        importlib.import_module("slowly_imported")
        return OnnxRuntime(*arguments)

    monkeypatch.setitem(ONNX, "slowly_imported", needing)
    work = [(measured, [measured.onnx("fp32")], False)]
    ((contender,), _) = contenders(work, CPU, False, onnx=["slowly_imported"])
    assert "slowly_imported" in sys.modules
    assert contender.open_s is not None
    assert contender.open_s < 1


def test_cold_starts_are_told_a_line_a_model() -> None:
    there = Sleeper(lambda _: 0.0)
    there.device = REMOTE
    single = Sleeper(lambda _: 0.0)
    single.batches = [range(2, 3)]
    entered = [
        Contender("m", "a", Sleeper(lambda _: 0.0), open_s=0.0412),
        Contender("m", "b", Sleeper(lambda _: 0.0), open_s=1.5),
        Contender("m", "two", single, open_s=0.009),
        Contender("m", "served", there, open_s=0.1),
    ]
    result = sweep.run([entered], Settings((1, 2), 0.0, ()), CPU)
    served = [row for row in result.rows if row.who.name == "served"]
    assert {(row.open_s, row.first_call_ms) for row in served} == {(None, None)}
    known = {"a": 3.14, "b": 12345.6, "two": 0.5}
    result.rows = [
        dataclasses.replace(row, first_call_ms=known[row.who.name] * row.timing.batch)
        for row in result.rows
        if row.who.name in known
    ]
    assert [note for note in table.notes(result) if note.startswith("Cold")] == [
        "Cold start of m, opening + first call of batch 1: a 41 + 3.1 ms; b 1,500 + 12,346 ms.",
        "Cold start of m, opening + first call of batch 2: two 9.0 + 1.0 ms.",
    ]
    result.rows = served
    assert not [note for note in table.notes(result) if note.startswith("Cold")]


def test_contenders_take_turns() -> None:
    order: list[str] = []

    def noting(name: str) -> Sleeper:
        return Sleeper(lambda _: order.append(name) or 0.002)  # type: ignore[func-returns-value]

    entered = [Contender("m", name, noting(name)) for name in "abc"]
    result = sweep.run([entered], Settings((2,), 0.1, ()), CPU)
    turns = [name for name, _ in itertools.groupby(order)]
    # First each is warmed up, then each has its slices in turn.
    assert turns == list("abc") * (1 + sweep.TURNS)
    assert [row.throughput for row in result.rows] == [None, None, None]


def test_energy_is_counted_over_more_than_the_counters_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Card(Watch):
        """100 W, told every 0.1 s."""

        def joules(self) -> float:
            return 10 * (time.perf_counter() // 0.1)

    monkeypatch.setattr(sweep, "Watch", Card)
    there = Sleeper(lambda _: 0.001)
    there.device = REMOTE
    entered = [Contender("m", "f", Sleeper(lambda _: 0.001)), Contender("m", "served", there)]
    row, served = sweep.run([entered], Settings((4,), 0.05, (1,)), CPU).rows
    # Nobody knows whether a server computes on the card that is here.
    assert served.throughput
    assert served.throughput.joules is served.throughput.images_per_joule is served.card is None
    assert row.throughput
    assert row.throughput.seconds >= sweep.ENERGY_SECONDS
    assert row.throughput.joules == pytest.approx(100 * row.throughput.seconds, rel=0.12)
    assert row.throughput.images_per_joule == pytest.approx(
        row.throughput.images / row.throughput.joules
    )


def test_latency_in_flight_is_of_the_measured_calls() -> None:
    def alone_or_not(_: int) -> float:
        return 0.002 if threading.current_thread() is threading.main_thread() else 0.02

    entered = [Contender("m", "f", Sleeper(alone_or_not))]
    (row,) = sweep.run([entered], Settings((4,), 0.5, (3,)), CPU).rows
    assert row.throughput
    load = row.throughput.latency_ms
    # Warming up is not counted, nor in each slice the first call of each of the three.
    assert load.calls == row.throughput.images // 4 - sweep.FLIGHT_TURNS * 3
    assert load.p99 >= load.p50 >= 20 > row.timing.latency.p50


def test_several_counts_in_flight_are_a_line_each(measured: ModelFolder) -> None:
    # A processor of three cores, if they were: it computes three at once.
    cores = threading.Semaphore(3)

    def shared(_: int) -> float:
        with cores:
            time.sleep(0.01)
        return 0.0

    entered = [Contender("m", "f", Sleeper(shared))]
    result = sweep.run([entered], Settings((4,), 0.6, (1, 3, 6)), CPU)
    one, three, six = result.rows[0].throughputs
    assert [flown.in_flight for flown in (one, three, six)] == [1, 3, 6]
    assert three.images_per_second > 1.5 * one.images_per_second
    # Beyond the cores only the waiting grows.
    assert six.images_per_second < 1.5 * three.images_per_second
    (row,) = json.loads(json.dumps(sweep.to_json(result, "")))["rows"]
    assert row["throughput"] == row["throughputs"][0]
    assert [flown["in_flight"] for flown in row["throughputs"]] == [1, 3, 6]
    assert sweep.to_json(result, "")["settings"]["in_flight"] == (1, 3, 6)
    first, *others = table.lines(result.rows[0])
    assert [line[-5] for line in (first, *others)] == ["1", "3", "6"]
    assert {len(line) for line in (first, *others)} == {len(table.TEXTS) + len(table.NUMBERS)}
    assert not any("".join(line[:-5]) for line in others)
    assert any("in flight: 1, 3, 6 batches at once" in note for note in table.notes(result))


def test_who_asks_for_one_count_reads_what_there_was_before() -> None:
    entered = [Contender("m", "f", Sleeper(lambda _: 0.0))]
    for counts, in_flight in (((), 0), ((2,), 2)):
        value = sweep.to_json(sweep.run([entered], Settings((1,), 0.01, counts), CPU), "")
        assert value["settings"]["in_flight"] == in_flight
        (row,) = value["rows"]
        assert (row["throughput"] or {"in_flight": 0})["in_flight"] == in_flight


def test_what_is_too_much_in_flight_leaves_the_counts_before_it() -> None:
    class Narrow(Sleeper):
        def streams(self, count: int) -> Sequence[Runtime]:
            if count > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().streams(count)

    entered = [Contender("m", "f", Narrow(lambda _: 0.0))]
    result = sweep.run([entered], Settings((4,), 0.01, (1, 2, 4)), CPU)
    assert [flown.in_flight for flown in result.rows[0].throughputs] == [1, 2]
    assert ["memory is exhausted" in failure.reason for failure in result.failures] == [True]


def test_models_are_measured_one_after_another() -> None:
    order: list[str] = []

    def noting(name: str) -> Sleeper:
        return Sleeper(lambda _: order.append(name) or 0.0)  # type: ignore[func-returns-value]

    entered = [[Contender(name, "file", noting(name))] for name in "ab"]
    sweep.run(entered, Settings((1, 2), 0.01, (1,)), CPU)
    assert [name for name, _ in itertools.groupby(order)] == ["a", "b"]


def test_a_models_runtimes_are_let_go_before_the_next_ones_are_opened() -> None:
    loaded: list[weakref.ref[Sleeper]] = []

    def models() -> Iterator[list[Contender]]:
        for name in "abc":
            assert [one for one in loaded if one()] == []
            opened = [Contender(name, "file", Sleeper(lambda _: 0.0)) for _ in range(2)]
            loaded.extend(weakref.ref(one.runtime) for one in opened)  # type: ignore[arg-type]
            yield opened
            del opened

    result = sweep.run(models(), Settings((1, 2), 0.01, (1,)), CPU)
    assert [row.who.model for row in result.rows] == [*"aaaabbbbcccc"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("a batch of 8 is outside its profile"), "a batch of 8 is outside its profile"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            "the GPU's memory is exhausted; try a smaller batch or --in-flight 1",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"),
            "the GPU's memory is exhausted (tried to allocate 2.50 GiB); try a smaller batch or "
            "--in-flight 1",
        ),
        (
            torch.AcceleratorError("CUDA error: out of memory\nCompile with"),
            "the GPU's memory is exhausted; try a smaller batch or --in-flight 1",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
            "the memory is exhausted; try a smaller batch or --in-flight 1",
        ),
        (RuntimeError("could not enqueue\nmore"), "could not enqueue"),
    ],
)
def test_what_fails_is_told_and_the_rest_measured(error: Exception, said: str) -> None:
    entered = [
        Contender("m", "small", Refusing(4, error)),
        Contender("m", "large", Sleeper(lambda _: 0.0)),
    ]
    result = sweep.run([entered], Settings((1, 8), 0.01, (2,)), CPU)
    assert [(row.who.name, row.timing.batch) for row in result.rows] == [
        ("small", 1),
        ("large", 1),
        ("large", 8),
    ]
    (failure,) = result.failures
    assert (failure.name, failure.batch, failure.reason) == ("small", 8, said)
    assert f"m, small, batch 8: {said}" in table.notes(result)


def test_a_batch_that_a_file_does_not_take_is_told_only_where_it_was_asked_for() -> None:
    single, four = Sleeper(lambda _: 0.0), Sleeper(lambda _: 0.0)
    single.batches, four.batches = [range(1, 2)], [range(4, 5)]
    entered = [[Contender("m", "single", single)], [Contender("n", "four", four)]]
    result = sweep.run(entered, Settings((1, 2), 0.01, (), chosen=False), CPU)
    measured = [(row.who.name, row.timing.batch) for row in result.rows]
    assert measured == [("single", 1), ("four", 4)]  # at its own, where no other fits
    assert result.failures == []
    result = sweep.run(entered, Settings((2,), 0.01, ()), CPU)
    assert [(failure.name, failure.batch, failure.reason) for failure in result.failures] == [
        ("single", 2, "it takes batches of 1 only"),
        ("four", 2, "it takes batches of 4 only"),
    ]


def test_a_call_after_another_contenders_is_not_counted() -> None:
    ran: list[str] = []

    def cold(name: str) -> Callable[[int], float]:
        def seconds(_: int) -> float:
            ran.append(name)
            return 0.001 if ran[-2:] in ([name], [name, name]) else 0.05

        return seconds

    entered = [Contender("m", name, Sleeper(cold(name))) for name in ("one", "two")]
    for row in sweep.run([entered], Settings((1,), 1.0, ()), CPU).rows:
        assert row.timing.calls >= sweep.TURNS
        assert row.timing.latency.p99 < 25


def test_what_rests_on_few_calls_is_told() -> None:
    entered = [Contender("m", "slow", Sleeper(lambda _: 0.05))]
    (row,) = (result := sweep.run([entered], Settings((1,), 0.2, ()), CPU)).rows
    calls = row.timing.calls
    assert any(f"the fewest {calls}: their p99" in note for note in table.notes(result))
    assert row.steady
    entered = [Contender("m", "quick", Sleeper(lambda _: 0.0005))]
    result = sweep.run([entered], Settings((1,), 0.5, (1,)), CPU)
    assert not any("p99" in note or "figures in flight" in note for note in table.notes(result))
    entered = [Contender("m", "slow in flight", Sleeper(lambda _: 0.05))]
    (row,) = (result := sweep.run([entered], Settings((2,), 0.1, (2,)), CPU)).rows
    assert row.throughput
    told = f"1 of 1 figures in flight are of fewer than 20 batches, the fewest {2 * 2}:"
    assert any(told in note for note in table.notes(result))


def test_what_does_not_fit_several_times_keeps_its_latency() -> None:
    class Narrow(Sleeper):
        def bind(self, images: Images) -> Bound:
            if len(self.bound) == BUFFERS:  # those of the latency are bound
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().bind(images)

    entered = [
        Contender("m", "narrow", Narrow(lambda _: 0.0)),
        Contender("m", "b", Sleeper(lambda _: 0.0)),
    ]
    result = sweep.run([entered], Settings((8,), 0.01, (2,)), CPU)
    assert [row.who.name for row in result.rows] == ["narrow", "b"]
    narrow, other = result.rows
    assert narrow.timing.calls >= sweep.TURNS
    assert narrow.throughput is None
    assert other.throughput
    (failure,) = result.failures
    assert (failure.name, failure.batch) == ("narrow", 8)
    assert "memory is exhausted" in failure.reason
    assert table.lines(narrow)[0][-5:] == ["-"] * 5


def test_a_batch_is_as_large_as_it_is_called() -> None:
    runtime = Sleeper(lambda _: 0.0)
    batch = len(sweep.pixels(CPU)) + 1
    (row,) = sweep.run([[Contender("m", "f", runtime)]], Settings((batch,), 0.01, (1,)), CPU).rows
    assert set(runtime.bound) == {batch}
    assert row.throughput
    assert row.throughput.images % batch == 0


def test_a_gpu_that_fails_ends_the_run_in_one_line() -> None:
    error = torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile with")
    entered = [Contender("m", "file", Refusing(0, error))]
    with pytest.raises(UserError, match=r"^m, file: the GPU failed: CUDA error: .*nvidia-smi$"):
        sweep.run([entered], Settings((1,), 0.01, ()), CPU)
    # Also where the runtime has told it already.
    told = UserError("file: the GPU failed during a run")
    told.__cause__ = error
    with pytest.raises(UserError, match=r"^file: the GPU failed during a run$"):
        sweep.run([[Contender("m", "file", Refusing(0, told))]], Settings((1,), 0.01, ()), CPU)


def test_a_gpu_that_fails_later_leaves_what_was_measured() -> None:
    error = torch.AcceleratorError("CUDA error: unspecified launch failure")
    entered = [Contender("m", "file", Refusing(1, error))]
    result = sweep.run([entered], Settings((1, 2, 4), 0.01, ()), CPU)
    assert [row.timing.batch for row in result.rows] == [1]
    assert isinstance(result.ended, UserError)
    assert sweep.UNFINISHED in sweep.to_json(result, "")["remarks"]


def test_an_end_during_throughput_leaves_the_latency() -> None:
    def stop(said: str) -> None:
        if said.endswith("throughput"):
            raise KeyboardInterrupt

    entered = [Contender("m", name, Sleeper(lambda _: 0.0)) for name in ("one", "two")]
    result = sweep.run([entered], Settings((1, 2), 0.01, (1,)), CPU, stop)
    assert [(row.who.name, row.timing.batch) for row in result.rows] == [
        ("one", 1),
        ("two", 1),
    ]
    assert [row.throughput for row in result.rows] == [None, None]
    assert isinstance(result.ended, KeyboardInterrupt)


def test_torch_compiles_every_batch_size(
    measured: ModelFolder, compiled_graphs: Callable[[], int]
) -> None:
    runtime = PyTorch(weights.load(measured), CPU, compiled=True)
    images = sweep.pixels(CPU)
    # Otherwise what comes after the limit runs eagerly, under the name of a compiled network.
    with torch._dynamo.config.patch(recompile_limit=1):
        lanes = [Lane(runtime, Pool(images, CPU), batch) for batch in (2, 3)]
        answers = [runtime.bind(images[:batch]).run() for batch in (2, 3)]
    assert compiled_graphs() == 2
    for lane in lanes:  # it is in the first call of each
        assert lane.first() > 10 * min(lane.call().host for _ in range(9))
    expected = PyTorch(weights.load(measured), CPU).logits(images[:3])
    for answer in answers:
        np.testing.assert_allclose(answer.numpy(), expected[: len(answer)], atol=1e-4)


def test_what_torch_tries_is_not_printed(measured: ModelFolder) -> None:
    """What a GPU prints a CPU does not: here, that torch asks what is set."""
    from torch._inductor import config, select_algorithm

    PyTorch(weights.load(measured), CPU, compiled=True)
    asked = inspect.getsource(select_algorithm)
    assert not select_algorithm.PRINT_AUTOTUNE
    assert "not PRINT_AUTOTUNE" in asked
    assert not config.max_autotune_report_choices_stats
    assert "config.max_autotune_report_choices_stats" in asked
    assert not select_algorithm.log.isEnabledFor(logging.ERROR)


def test_a_file_that_cannot_be_opened_is_a_failure(measured: ModelFolder, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(measured.onnx("fp32").read_bytes()[:1000])
    good = Path(shutil.copy(measured.onnx("fp32"), tmp_path / "good.onnx"))
    work = [(ModelFolder(tmp_path), [broken, good], False)]
    entered, failures = contenders(work, CPU, False)
    assert [contender.name for contender in entered] == ["good.onnx"]
    assert [failure.name for failure in failures] == ["broken.onnx"]
    assert "truncated" in failures[0].reason


@pytest.mark.gpu
def test_runtimes_side_by_side_on_a_gpu(measured: ModelFolder) -> None:
    device = torch.device("cuda", 0)
    # The file takes part where ONNX Runtime has CUDA; PyTorch always, eager and compiled.
    entered, _ = contenders([(measured, measured.exported(), True)], device, True)
    names = [contender.name for contender in entered]
    assert names[0] == "PyTorch eager fp32"
    assert "torch.compile fp32" in names
    result = sweep.run([entered], Settings((32,), 0.3, (3,)), device)
    assert result.failures == []
    assert len(result.rows) == len(entered)
    assert min(min(one) for one in cold(result.rows)) > 0
    for row in result.rows:
        timing, thrown = row.timing, row.throughput
        assert timing.h2d
        assert timing.d2h
        assert timing.enqueue
        assert timing.latency.p50 > timing.compute.p50 > 0
        assert thrown
        assert thrown.images_per_second > 0
        assert thrown.latency_ms.p99 >= thrown.latency_ms.p50 > 0
        assert row.memory_mib is not None
        if thrown.joules is not None and thrown.images_per_joule:
            assert thrown.images_per_joule == pytest.approx(thrown.images / thrown.joules)
    assert result.facts["gpu"]["compute_capability"].count(".") == 1


@pytest.mark.gpu
def test_compiled_pytorch_answers_as_eager_does(measured: ModelFolder, capfd: Any) -> None:
    device = torch.device("cuda", 0)
    trained = weights.load(measured)
    images = sweep.pixels(CPU)[:32]
    reference = PyTorch(trained, device).logits(images)
    compiled = PyTorch(trained, device, compiled=True)
    bound = [compiled.bind(images[:16]), compiled.bind(images[16:])]
    for one, part in zip(bound * 3, (reference[:16], reference[16:]) * 3, strict=True):
        np.testing.assert_allclose(one.run().cpu().numpy(), part, atol=1e-3)
    assert "AUTOTUNE" not in "".join(capfd.readouterr())
    half = PyTorch(trained, device, "fp16").logits(images)
    np.testing.assert_allclose(half, reference, atol=3e-2)
    # The network of the reference was not converted with it.
    assert next(trained.network.parameters()).dtype == torch.float32
