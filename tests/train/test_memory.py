"""Memory: the batch that fits, and what was freed stays with the process."""

import subprocess
import sys

import pytest

from cifar_deploy.train.memory import largest


@pytest.mark.parametrize("room", [1, 2, 3, 7, 100, 333, 511, 512, 1000, 1023])
@pytest.mark.parametrize("failed", [1024, 100_000])
def test_the_largest_batch_is_found(room: int, failed: int) -> None:
    asked = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= room

    found = largest(fits, failed)
    assert room * 15 / 16 - 8 < found <= room
    assert found >= 1
    assert max(asked) < failed
    assert len(asked) < 30


def test_no_batch_may_fit() -> None:
    assert largest(lambda size: False, 100) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_freed_memory_is_kept() -> None:
    # In a process of its own: what it sets holds for a whole one.
    code = """
import resource
import torch
from cifar_deploy.train.memory import keep_freed

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
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    anew, kept = map(int, run.stdout.split())
    assert kept < anew / 10
