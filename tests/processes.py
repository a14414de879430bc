"""Python in a process of its own, and the command line in this one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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


def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the program with its arguments: exit status, standard output, standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cifar-deploy", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, printed.out, printed.err

    return call
