"""Python in a process of its own, and the command line in this one."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import cifar_deploy
from cifar_deploy import cli


def python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(cifar_deploy.__file__).parents[1]),
            **environment,
        },
    )


def may_mount() -> bool:
    """Whether a namespace with a disk of its own is to be had here."""
    if not shutil.which("unshare"):
        return False
    trial = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=16k t /mnt"]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


class Answer(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Answer]
Refused = Callable[..., str]


def call(patch: pytest.MonkeyPatch, *arguments: object) -> int:
    patch.setattr(sys, "argv", ["cifar-deploy", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program with its arguments: exit status, standard output, standard error."""

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        status = call(monkeypatch, *arguments)
        return Answer(status, *capsys.readouterr())

    return run


def lines_in_terminal(
    patch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    width: int,
    printing: Callable[[], object],
) -> list[list[str]]:
    """The words of each line that `printing` prints in a terminal of `width` columns."""
    for name, value in (("COLUMNS", str(width)), ("FORCE_COLOR", "1"), ("NO_COLOR", "1")):
        patch.setenv(name, value)
    capsys.readouterr()
    printing()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    return [line.split() for line in plain.splitlines()]


def refusing(run: Run) -> Refused:
    """Runs what must be refused: status 2, one or two lines on stderr, the disk untouched."""

    def refused(*arguments: object) -> str:
        before = snapshot()
        answer = run(*arguments)
        assert answer.status == 2, answer
        assert answer.out == ""
        lines = answer.err.strip().splitlines()
        assert 1 <= len(lines) <= 2, answer.err
        assert lines[0].startswith("error: ")
        assert "Traceback" not in answer.err
        assert snapshot() == before
        return answer.err

    return refused


def snapshot() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(Path().rglob("*")) if p.is_file()}
