"""What is seen while a folder of images is read."""

import io
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_deploy.data import folder
from cifar_deploy.data.progress import Reading


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(place: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, stream: io.StringIO) -> str:
    """What is written while `place` is read, by a clock that goes on so far at every look."""
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        patched.setattr(folder, "MOST_THREADS", 1)
        clock = itertools.count(1_000.0, seconds).__next__
        with Reading(clock=clock) as watch:
            folder.read(place, watch)
    return stream.getvalue()


def test_a_log_gets_a_line_now_and_then(
    picture_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = picture_folder("pets [1]", train=20, test=10)
    train, test = place / "train", place / "test"
    assert shown(place, monkeypatch, 10.0, io.StringIO()).splitlines() == [
        f"reading {train}: {done} of 40 images" for done in range(1, 41, 3)
    ] + [f"reading {test}: {done} of 20 images" for done in range(3, 20, 3)]


def test_a_terminal_gets_a_bar(
    picture_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = picture_folder("pets [1]", train=20, test=10)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    said = shown(place, monkeypatch, 1.0, Terminal())
    assert f"reading {place / 'train'} " in said
    assert "40/40" in said
    assert f"reading {place / 'test'} " in said
    assert "20/20" in said


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_is_quickly_read_is_not_told(
    picture_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    stream: type[io.StringIO],
) -> None:
    assert shown(picture_folder("pets"), monkeypatch, 0.01, stream()) == ""
