"""What ends a command from outside: it cleans up, and the exit status says what it was."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cifar_deploy import cli, disk, store
from cifar_deploy.architectures.deployment import DeploymentGraph
from cifar_deploy.cli import signals
from cifar_deploy.device import TORCHRUN
from cifar_deploy.export import onnx_file
from cifar_deploy.signals import held

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interrupted(place: Path, number: signal.Signals) -> None:
    """Write a folder, and get a signal in the middle."""
    with disk.atomic_folder(place) as part:
        (part / "file").write_text("half")
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_leaves_nothing_half_written(number: signal.Signals, tmp_path: Path) -> None:
    before = list(map(signal.getsignal, HANDLED))
    with signals.as_ctrl_c() as ended:
        assert ended() == 0
        with pytest.raises(KeyboardInterrupt):
            interrupted(tmp_path / "new", number)
        if number == signal.SIGTERM:  # as `timeout` sends it
            os.kill(os.getpid(), number)
        assert ended() == 128 + number
    assert not list(tmp_path.iterdir())
    assert list(map(signal.getsignal, HANDLED)) == before


def test_a_signal_that_comes_again_later_ends_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first may have been lost where Python swallows exceptions."""
    with signals.as_ctrl_c():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(signals, "TOGETHER", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_what_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.as_ctrl_c() as ended:
            os.kill(os.getpid(), signal.SIGHUP)
        assert ended() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_of_torchruns_processes_dies_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")  # alone it is a scheduler's, or a shell's leftover
    with signals.as_ctrl_c():
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    for name in TORCHRUN:
        monkeypatch.setenv(name, "0")
    with signals.as_ctrl_c():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


WENT_ON: list[bool] = []


class Ended(nn.Flatten):
    """A network in whose translation a signal comes."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        WENT_ON.append(True)
        return super().forward(images)


def test_a_signal_ends_an_export_when_torch_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    """Here and there torch takes a KeyboardInterrupt for a failure, tells it and goes on."""
    graph = DeploymentGraph(Ended(), [0.5] * 3, [0.5] * 3)
    with signals.as_ctrl_c() as ended:
        with pytest.raises(KeyboardInterrupt):
            onnx_file._translate(graph)
        assert ended() == 128 + signal.SIGTERM
    assert WENT_ON
    assert capsys.readouterr() == ("", "")


def fail_while_held() -> None:
    with held() as first:
        assert first() == 0
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGINT)
        assert first() == signal.SIGHUP
        raise RuntimeError("what a library made of it")


def test_what_is_held_has_its_turn_whatever_is_raised() -> None:
    with signals.as_ctrl_c() as ended:
        with pytest.raises(KeyboardInterrupt):
            fail_while_held()
        assert ended() == 128 + signal.SIGHUP


def swallow() -> list[store.ModelFolder]:
    """What an import of a large library does to a Ctrl-C in it."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt as error:
        raise ImportError("half imported") from error
    raise AssertionError


def die() -> list[store.ModelFolder]:
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError


@pytest.mark.parametrize(("happens", "status"), [(swallow, 130), (die, 143)])
def test_the_status_is_the_signals(
    happens: Callable[[], list[store.ModelFolder]],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(store, "model_folders", happens)
    monkeypatch.setattr(sys, "argv", ["cifar-deploy", "models"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == status
    assert capsys.readouterr().err == ""
