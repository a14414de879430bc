import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sleepers import Sleeper

from cifar_deploy.benchmark import sweep, table
from cifar_deploy.benchmark.contenders import Contender, contenders
from cifar_deploy.benchmark.memory import Memory
from cifar_deploy.benchmark.sweep import Settings
from cifar_deploy.data.dataset import SIZE, Images
from cifar_deploy.device import MIB, memory_taken
from cifar_deploy.runtimes.protocol import REMOTE, Bound
from cifar_deploy.store import ModelFolder
from cifar_deploy.timing import BUFFERS

CPU = torch.device("cpu")
NOISE = 16  # MiB
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Holding(Sleeper):
    """It keeps so many MiB from its first batch on."""

    def __init__(self, mib: int) -> None:
        super().__init__(lambda _: 0.0)
        self.mib, self.kept = mib, np.zeros(0)

    def bind(self, images: Images) -> Bound:
        if not len(self.kept):
            self.kept = np.ones(self.mib * MIB // 8)
        return super().bind(images)


def test_where_nobody_tells_what_is_taken_it_is_not_known(tmp_path: Path) -> None:
    status = tmp_path / "status"
    assert memory_taken(CPU, status) is None
    status.write_text("Name:\tpython\nVmHWM:\t  9 kB\nVmRSS:\t   20480 kB\nRssAnon:\t 1 kB\n")
    assert memory_taken(CPU, status) == 20 * MIB
    status.write_text("Name:\tpython\n")
    assert memory_taken(CPU, status) is None
    unknown = Memory()
    with unknown.step():
        pass
    assert unknown.mib is None


def mapped(mib: int) -> mmap.mmap:
    """So many MiB from the system itself: the heap would keep them if it had room from before."""
    memory = mmap.mmap(-1, mib * MIB)
    np.frombuffer(memory, np.uint8)[:] = 1
    return memory


@linux
def test_what_others_take_between_the_steps_is_not_counted() -> None:
    memory, kept = Memory(CPU), []
    with memory.step():
        kept.append(mapped(128))
    assert memory.mib == pytest.approx(128, abs=NOISE)
    another = mapped(256)
    with memory.step():
        kept.append(mapped(64))
    assert memory.mib == pytest.approx(192, abs=NOISE)
    with memory.step():
        kept.clear()
        assert len(another)
    assert memory.mib == pytest.approx(0, abs=NOISE)


@linux
def test_what_was_freed_is_not_taken_for_nothing_by_the_next() -> None:
    # Small ones: glibc keeps their memory when they are freed, unlike that of one large one.
    freed = [np.ones(4096) for _ in range(128 * MIB // (8 * 4096))]
    last = np.ones(4096)  # above them: the end of the heap would be given back
    del freed
    memory = Memory(CPU)
    with memory.step():
        kept = [np.ones(4096) for _ in range(64 * MIB // (8 * 4096))]
    assert memory.mib == pytest.approx(64, abs=NOISE)
    assert len(kept)
    assert len(last)


@linux
def test_the_memory_of_each_contender_is_told_of_its_largest_batch() -> None:
    there = Holding(8)
    there.device = REMOTE
    entered = [
        Contender("m", "large", Holding(128), memory=Memory(CPU)),
        Contender("m", "small", Holding(32), memory=Memory(CPU)),
        Contender("m", "served", there, memory=Memory(CPU)),
        Contender("m", "unknown", Holding(8)),
    ]
    result = sweep.run([entered], Settings((2, 1), 0.01, (2,)), CPU)
    expected = {"large": 128, "small": 32}
    for row in result.rows:
        if mib := expected.get(row.who.name):
            assert row.memory_mib == pytest.approx(mib, abs=NOISE)
        else:
            assert row.memory_mib is None
    said = [
        f"{row.who.name} {row.memory_mib} MiB"
        for row in result.rows
        if row.timing.batch == 2 and row.who.name in expected
    ]
    told = "Memory of m, from before opening to after the first call of batch 2: "
    assert [n for n in table.notes(result) if n.startswith("Memory")] == [
        f"{told}{said[0]}; {said[1]}."
    ]
    (value, *_) = sweep.to_json(result, "")["rows"]
    assert value["memory_mib"] == result.rows[0].memory_mib


@linux
def test_the_memory_of_a_file_and_of_pytorch(measured: ModelFolder) -> None:
    entered, _ = contenders([(measured, [measured.onnx("fp32")], True)], CPU, False)
    batch = 4096
    rows = sweep.run([entered], Settings((1, batch), 0.01, ()), CPU).rows
    taken = [row.memory_mib for row in rows if row.timing.batch == batch]
    buffers = BUFFERS * batch * SIZE * SIZE * 3 / MIB
    assert len(taken) == 2
    assert all(mib is not None and buffers - NOISE < mib < 2000 for mib in taken), taken


@pytest.mark.gpu
def test_the_memory_of_a_gpu() -> None:
    device = torch.device("cuda", 0)
    left = torch.empty(64 * MIB, dtype=torch.uint8, device=device)
    del left  # torch keeps it
    memory = Memory(device)
    with memory.step():
        kept = torch.empty(32 * MIB, dtype=torch.uint8, device=device)
        torch.empty(32 * MIB, dtype=torch.uint8, device=device)
    assert memory.mib == pytest.approx(64, abs=NOISE)
    with memory.step():
        del kept
    assert memory.mib == pytest.approx(32, abs=NOISE)
