"""What a training run writes to a log, and that a terminal gets a bar alone."""

import io
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cifar_deploy.train.loop import Job, Trainer
from cifar_deploy.train.progress import Bar

Written = Callable[..., list[str]]


@dataclass
class Clock:
    """One that is turned by hand."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(bar: Bar, clock: Clock, steps: range, seconds: float, per_epoch: int) -> None:
    """A run of `steps`, each of `seconds`, as the loop tells of it on a CPU."""
    with bar:
        for done in steps:
            clock.now += seconds
            epoch = (done - 1) // per_epoch
            bar.step(done, epoch, 1.02, 0.631, 312.4)
            if done % per_epoch == 0:
                record = {"epoch": epoch + 1, "loss": 1.0, "train_accuracy": 0.64, "seconds": 9}
                bar.epoch(record)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    """The lines of a log, of a run of 400 steps in four epochs that took `seconds` each."""

    def written(
        steps: range = range(1, 401), seconds: float = 1.0, quiet: bool = False
    ) -> list[str]:
        log, clock = io.StringIO(), Clock()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", log)
            bar = Bar(400, 4, steps.start - 1, quiet, clock)
        run(bar, clock, steps, seconds, 100)
        return log.getvalue().splitlines()

    return written


def test_a_log_gets_a_line_a_minute(written: Written) -> None:
    lines = written(seconds=2.5)
    assert lines[0] == (
        "step 9/400, epoch 1/4  loss 1.020  accuracy 63.1 %  312 images/s  "
        "about 16 min left at this rate"
    )
    within = [int(found[1]) for line in lines if (found := re.match(r"step (\d+)/", line))]
    assert within[:6] == [9, 33, 57, 81, 124, 148]  # an epoch's line is one, too
    told = [line for line in lines if line.startswith("epoch")]
    assert told[0] == "epoch   1/4  loss 1.000  accuracy 64.00 %  9 s  about 12 min left"
    assert told[3] == "epoch   4/4  loss 1.000  accuracy 64.00 %  9 s"
    assert re.search(r"about 1 h 52 min left", written(seconds=17.0)[0])


def test_short_epochs_get_no_lines_but_their_own(written: Written) -> None:
    assert [line[:11] for line in written(seconds=0.18)] == [f"epoch   {n}/4" for n in (1, 2, 3, 4)]
    assert "left" in "".join(written(seconds=0.3)[1:3])
    assert not any("left" in line for line in written(seconds=0.04))  # it is too early to say


def test_what_an_earlier_process_did_took_this_one_no_time(written: Written) -> None:
    lines = written(range(201, 401), seconds=2.5)
    assert lines[0].startswith("step 209/400, epoch 3/4 ")
    assert lines[0].endswith("about 8 min left at this rate")  # 191 steps of 2.5 s


def test_the_other_processes_are_silent(written: Written) -> None:
    assert written(seconds=2.5, quiet=True) == []


def test_a_terminal_has_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", screen)
    run(Bar(400, 4, clock=clock), clock, range(1, 401), 2.5, 100)
    assert "━" in screen.getvalue()
    assert "step " not in screen.getvalue()
    assert "left" not in screen.getvalue()


def test_a_run_tells_its_log(
    make_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The loop's own figures; an hour of the clock goes by each time that it looks."""
    monkeypatch.setattr("cifar_deploy.train.loop.LOOK_SECONDS", {"cpu": 0.0})
    clock = Clock()

    def turned() -> float:
        clock.now += 3_600
        return clock.now

    trainer = Trainer(make_job())
    with Bar(trainer.steps, 3, clock=turned) as bar:
        trainer.run(bar)
    lines = capsys.readouterr().err.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert len(steps) == trainer.steps - 1  # of the first there is nothing to say yet
    form = r"step 2/18, epoch 1/3  loss \d\.\d{3}  accuracy [\d.]+ %  [\d,]+ images/s  about \d+ h"
    assert re.match(form, steps[0])
    assert steps[-1].startswith("step 18/18, epoch 3/3 ")
    assert "left" not in steps[-1]
