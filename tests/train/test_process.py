"""What a process that trains on a CPU sets for itself. Each has one here: it holds to its end."""

import sys
from pathlib import Path

import pytest
from processes import python


def said(code: str, *arguments: str) -> str:
    done = python("-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_freed_memory_is_kept() -> None:
    code = """
import resource
import torch
from cifar_deploy.train.process import keep_freed

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(1 << 28)  # 256 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert not keep_freed(torch.device("cuda"))  # no business of glibc's
faults()
print(faults())
assert keep_freed(torch.device("cpu"))
faults()
print(faults())
"""
    anew, kept = map(int, said(code).split())
    assert kept < anew / 10


# Over all threads of torch: what each thread makes of its part.
LEFT = """
import torch

def left() -> int:
    return int((torch.full((1 << 22,), 1e-40) * 0.5).count_nonzero())
"""


def test_a_gpu_leaves_the_cpu_as_it_is() -> None:
    code = f"""{LEFT}
from cifar_deploy.train.process import flush_subnormals

assert not flush_subnormals(torch.device("cuda"))
print(left())
"""
    assert int(said(code)) == 1 << 22


@pytest.mark.parametrize("command", [["train", "--epochs", "1"], ["find-lr", "--steps", "60"]])
def test_no_thread_of_a_training_works_with_subnormal_numbers(
    command: list[str], pictures: Path, tmp_path: Path
) -> None:
    code = f"""{LEFT}
import contextlib, sys
from cifar_deploy.cli import app
from cifar_deploy.errors import UserError

with contextlib.suppress(UserError):  # so short a range test may suggest nothing
    app(sys.argv[1:], standalone_mode=False)
print(left())
"""
    data = ("--data-dir", str(pictures), "--batch-size", "60", "--device", "cpu")
    text = said(code, *command, "simple_cnn", *data, "--out", str(tmp_path / "out"))
    assert text.splitlines()[-1] == "0"
