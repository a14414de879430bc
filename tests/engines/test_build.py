import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_deploy.engines.build import build, interruptibly
from cifar_deploy.engines.flavour import Flavour
from cifar_deploy.engines.manifest import MAGIC_RTX
from cifar_deploy.engines.options import Options, Profile
from cifar_deploy.errors import UserError

SOURCE = Path("models/tiny/tiny.fp32.onnx")
Graph = Callable[[str], bytes]


class Notes:
    """A `build.Watch` that writes down what it is told."""

    def __init__(self) -> None:
        self.open: dict[str, tuple[str | None, int]] = {}
        self.done: dict[str, int] = {}
        self.finished: list[str] = []

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        assert parent is None or parent in self.open
        self.open[phase] = (parent, steps)

    def step(self, phase: str, done: int) -> None:
        assert 1 <= done <= self.open[phase][1]
        self.done[phase] = done

    def finish(self, phase: str) -> None:
        self.finished.append(phase)


def test_an_engine_and_its_interface(rtx: Flavour, graph: Graph) -> None:
    built = build(rtx, graph("Relu"), SOURCE, Options())
    assert built.engine.startswith(MAGIC_RTX)
    assert built.inputs == [{"name": "images", "dtype": "uint8", "shape": ["batch", 32, 32, 3]}]
    assert built.outputs == [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}]
    assert 0 < built.seconds < 60


def test_options_reach_the_builder(rtx: Flavour, graph: Graph) -> None:
    plain = build(rtx, graph("Relu"), SOURCE, Options()).engine
    assert build(rtx, graph("Relu"), SOURCE, Options()).engine == plain
    for options in (
        Options(profiles=(Profile(), Profile(1, 1, 1))),
        Options(profiles=(Profile(1, 8, 16),)),
        Options(compute_capabilities=("8.6", "12.0")),
        Options(tf32=True),
    ):
        assert build(rtx, graph("Relu"), SOURCE, options).engine != plain, options


def test_a_refused_node_is_named(rtx: Flavour, graph: Graph) -> None:
    with pytest.raises(UserError) as caught:
        build(rtx, graph("StringNormalizer"), SOURCE, Options())
    assert str(caught.value) == (
        f"{SOURCE}: {rtx} refuses node 'the_node' (StringNormalizer): the operator is not "
        "supported; use --format onnx"
    )


def test_what_is_no_onnx_is_told(rtx: Flavour) -> None:
    with pytest.raises(UserError, match=f"{SOURCE}: .* cannot read it: .*; export it again"):
        build(rtx, b"no ONNX file", SOURCE, Options())


def test_progress_is_told_phase_by_phase(rtx: Flavour, graph: Graph) -> None:
    notes = Notes()
    build(rtx, graph("Relu"), SOURCE, Options(), notes)
    (outermost,) = [phase for phase, (parent, _) in notes.open.items() if parent is None]
    assert notes.done[outermost] > 1
    assert notes.finished[-1] == outermost
    assert set(notes.open) == set(notes.finished)


def test_ctrl_c_stops_a_build_at_its_next_step(
    rtx: Flavour, graph: Graph, ctrl_c: Callable[[], None]
) -> None:
    class Impatient(Notes):
        def step(self, phase: str, done: int) -> None:
            if not self.done:
                ctrl_c()
                time.sleep(0.5)  # the main thread, which Python tells of signals, gets its turn
            super().step(phase, done)

    whole, stopped = Notes(), Impatient()
    build(rtx, graph("Relu"), SOURCE, Options(), whole)
    with pytest.raises(KeyboardInterrupt):
        build(rtx, graph("Relu"), SOURCE, Options(), stopped)
    assert 1 <= sum(stopped.done.values()) < sum(whole.done.values()) / 2
    # The library is as good as before.
    assert build(rtx, graph("Relu"), SOURCE, Options()).engine


def test_ctrl_c_as_early_as_can_be_leaves_nothing_running(ctrl_c: Callable[[], None]) -> None:
    stop, seen = threading.Event(), []

    def work() -> None:
        ctrl_c()
        seen.append(stop.wait(5))

    with pytest.raises(KeyboardInterrupt):
        interruptibly(work, stop)
    assert seen == [True]
