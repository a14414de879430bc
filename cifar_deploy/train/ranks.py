"""The processes of one training run, started by torchrun: who is who, and how they agree.

Without torchrun there is one process, and nothing here does anything.
"""

import contextlib
import datetime
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import distributed, nn

from cifar_deploy.device import TORCHRUN, launched
from cifar_deploy.disk import Json
from cifar_deploy.errors import OwnError, UserError, few, one_line

# A process may wait so long for the first of its machine to have read the images.
READING = datetime.timedelta(days=7)
# In what gloo and NCCL say: of a peer that is gone, and of anything else between processes.
GONE = ("connection closed", "connection reset", "broken pipe", "remote process exited")
BETWEEN = ("gloo", "nccl")


@dataclass(frozen=True)
class Ranks:
    """This process among `world`: its number, and its number on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def agree(self, flags: Sequence[int]) -> list[int]:
        """The largest of every process's flags, place by place. The device is not waited for."""
        if self.world == 1:
            return list(flags)
        shared = torch.tensor(flags, dtype=torch.int64)  # on the CPU, so gloo carries it
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return [int(flag) for flag in shared.tolist()]

    def total(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sum of every process's `numbers`, of any shape."""
        if self.world == 1:
            return numbers
        summed = numbers.clone()
        distributed.all_reduce(summed)
        return summed

    def same_buffers(self, network: nn.Module) -> None:
        """Give every process the first one's buffers, such as a batch norm's statistics."""
        if self.world > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, 0)

    def wait(self) -> None:
        """Until every process is here."""
        self.agree([0])

    def same(self, facts: Json) -> None:
        """Raise UserError where the processes differ in one of `facts`, values of JSON by names.

        In all of them: each finds out. A value that lies elsewhere or is large is named by its
        sha256.
        """
        if self.world == 1:
            return
        texts = [json.dumps(value, sort_keys=True) for value in facts.values()]
        numbers = [int(hashlib.sha256(t.encode()).hexdigest()[:15], 16) for t in texts]
        largest = self.agree([*numbers, *(-number for number in numbers)])
        pairs = zip(largest[: len(facts)], largest[len(facts) :], strict=True)
        ours = [name for name, (most, least) in zip(facts, pairs, strict=True) if most != -least]
        if ours:
            raise UserError(
                f"the processes of this run differ in {few(ours)}; give all of them the same "
                "command, files and versions"
            )

    @contextlib.contextmanager
    def one_after_the_other(self) -> Iterator[None]:
        """Let the first process of every machine do something, then the others."""
        if self.world == 1:
            yield
            return
        patient = distributed.new_group(backend="gloo", timeout=READING)
        assert not isinstance(patient, int)  # a number for those outside of it
        if self.local:
            distributed.barrier(patient)
        yield
        if not self.local:
            distributed.barrier(patient)
        distributed.barrier(patient)  # the others may take as long for it


ALONE = Ranks()


def is_first() -> bool:
    """Whether this process is the one that writes and speaks: asked before all have joined."""
    return not launched() or os.environ["RANK"] == "0"


def check_launch() -> None:
    """Raise UserError where a job's launcher numbered this process as torchrun does, but not whole.

    It would train alone, and so would all the others.
    """
    if not launched() and "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        missing = [name for name in TORCHRUN if name not in os.environ]
        raise UserError(
            f"$WORLD_SIZE is {os.environ['WORLD_SIZE']}, and ${missing[0]} is not set: start the "
            "processes of a run with torchrun, or unset $WORLD_SIZE and $RANK to train alone"
        )


def own_device(wish: str) -> str:
    """The device of this process for `--device wish`: a GPU each, by its number on the machine.

    Raises UserError where one GPU is named for all, or the machine has fewer than processes.
    """
    if wish == "cuda" or (wish == "auto" and torch.cuda.is_available()):
        gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if 0 < gpus < processes:
            raise UserError(
                f"{processes} processes for {gpus} GPU{'s' if gpus > 1 else ''} of this machine; "
                f"torchrun --nproc-per-node {gpus}, or --device cpu"
            )
        return f"cuda:{os.environ['LOCAL_RANK']}"
    if wish.startswith("cuda:"):
        raise UserError(f"--device {wish}: torchrun gives every process its own GPU; leave it out")
    return wish


@contextlib.contextmanager
def together(device: torch.device) -> Iterator[Ranks]:
    """Join the other processes for the duration of the block; alone where there is no torchrun.

    Raises OwnError where another process ends before this one, or cannot be reached. After a
    failure the group is left as it is: to take it down, NCCL would wait for the others, and they
    for this one. The process ends instead, which they notice.
    """
    if not launched():
        yield ALONE
        return
    ranks = Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    try:
        distributed.init_process_group(backend)
        yield ranks
    except RuntimeError as error:
        if said := _between(error):
            raise OwnError(said) from error
        raise
    distributed.destroy_process_group()


def _between(error: RuntimeError) -> str:
    """What to say of an error between processes; nothing where it is none."""
    words = str(error).lower()
    if any(word in words for word in GONE):
        return (
            "another process of this run has ended, so this one ends too; what it said, or what "
            "killed it, comes first. The same command with --resume goes on from the checkpoint "
            "that is there"
        )
    if not (isinstance(error, distributed.DistError) or any(word in words for word in BETWEEN)):
        return ""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = one_line(error)
    if len(lines) > 1 and lines[-2].startswith("Last error"):  # NCCL puts its own reason last
        reason += f" ({lines[-1]})"
    return f"the processes of this run do not reach each other: {reason}"
