"""Several processes: together they do what one would do; when one dies, the others say so."""

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from processes import python
from torch import distributed
from typer.testing import CliRunner

import cifar_deploy
from cifar_deploy import architectures
from cifar_deploy.architectures import weights
from cifar_deploy.cards import read_card
from cifar_deploy.cli import app, train
from cifar_deploy.device import TORCHRUN
from cifar_deploy.disk import only_writer
from cifar_deploy.errors import OwnError, UserError
from cifar_deploy.store import ModelFolder
from cifar_deploy.train import checkpoint
from cifar_deploy.train.loop import Job, Trainer
from cifar_deploy.train.ranks import Ranks, check_launch, own_device, together

MakeJob = Callable[..., Job]

# The command itself, with a checkpoint after every step, and a second process that is killed.
DYING = """
import os, signal
from cifar_deploy.train import loop

loop.CHECKPOINT_SECONDS = 0.0
step = loop.Trainer.step


def dying(self):
    if self.state.step == 4 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    step(self)


loop.Trainer.step = dying
from cifar_deploy.cli import main

main()
"""


# Each process alone, then both together, then both from the checkpoint of step 4 on.
NORMED = """
import sys
from pathlib import Path
import torch
from cifar_deploy import architectures, recipe
from cifar_deploy.cli import leave
from cifar_deploy.data import synthetic
from cifar_deploy.store import ModelFolder
from cifar_deploy.train.loop import Job, Trainer
from cifar_deploy.train.ranks import ALONE, together

room = Path(sys.argv[1])
sys.path.insert(0, str(room))
architectures.NETWORKS["norms"] = "norms"
CPU, DATA = torch.device("cpu"), synthetic.generate(train=60, test=20)
DATA.train.labels[DATA.train.labels > 5] = 0  # classes of other sizes, and some without any
QUICK = ["train.epochs=2", "train.batch_size=20", "train.precision=fp32", "optimizer.lr=0.05"]
QUICK += ["train.class_weights=balanced"]
FOLDER = ModelFolder(room / "out")


def trained(ranks, resume=False):
    job = Job("norms", recipe.load(None, QUICK), DATA, CPU, FOLDER, resume, ranks=ranks)
    trainer = Trainer(job)
    trainer._prepare()
    found = {}
    while trainer.state.step < trainer.steps:
        trainer.step()
        done = trainer.state.step
        found[f"loss of step {done}"] = ranks.total(trainer.loss) / ranks.world
        if done == 4 and ranks.world > 1:
            trainer._save()
    found |= {f"last {k}": v for k, v in trainer.network.state_dict().items()}
    return found | {f"mean {k}": v for k, v in trainer.best().state_dict().items()}


with together(CPU) as ranks:
    alone = trained(ALONE)
    both = trained(ranks)
    assert list(alone) == list(both)
    for key, value in alone.items():
        torch.testing.assert_close(both[key], value, rtol=1e-5, atol=1e-5)
    ranks.wait()  # until the checkpoint is there
    for key, value in trained(ranks, resume=True).items():
        assert torch.equal(both[key], value), key
    print("same")
leave(0)  # as the command does
"""
# Convolutions of images and, flat, a linear layer's numbers, which are one a channel and image.
NORMS = """
from torch import nn


def build(num_classes):
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32, momentum=0.3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 32, bias=False)),
        *(nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, num_classes)),
    )
"""


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return python(
        *("-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-addr", "127.0.0.1", "--master-port", "0", "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", "127.0.0.1:0"),
        # Time for the other to say that one has died before torchrun ends it, too.
        *("--monitor-interval", "1", *arguments),
        OMP_NUM_THREADS="1",
    )


def test_two_processes_do_what_one_does_also_after_one_was_killed(
    pictures: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start.safetensors"
    facts = {"network": "simple_cnn", "stem": "cifar", "mean": [0.5] * 3, "std": [0.25] * 3}
    state = architectures.build("simple_cnn", 10).state_dict()
    weights.save(start, state, {**facts, "classes": [str(n) for n in range(10)]})
    quick = ("train", "simple_cnn", "--data-dir", pictures, "--device", "cpu")
    teacher = tmp_path / "teacher"
    taught = [*quick, "--epochs", "1", "--batch-size", "60", "--out", teacher]
    assert CliRunner().invoke(app, [*map(str, taught)], catch_exceptions=False).exit_code == 0
    options = (
        *(*quick, "--epochs", "4", "--init", start, "--teacher", teacher),
        *("--batch-size", "80", "--lr", "0.05", "--set", "augment.translate=2"),
        *("--set", "augment.cutout=8", "--set", "augment.alternate=true", "--out"),
    )
    alone, two = ModelFolder(tmp_path / "one"), ModelFolder(tmp_path / "two")
    done = CliRunner().invoke(app, [*map(str, options), str(alone.path)], catch_exceptions=False)
    assert done.exit_code == 0

    (tmp_path / "dying.py").write_text(DYING)
    ended = torchrun(tmp_path / "dying.py", *options, two.path)
    assert ended.returncode != 0
    assert "error: another process of this run has ended, so this one ends too" in ended.stderr
    assert "The same command with --resume goes on from the checkpoint" in ended.stderr
    assert checkpoint.read(two)[1]["step"] == 4
    assert not two.weights.exists()

    again = torchrun("-m", "cifar_deploy", *options, two.path, "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("simple_cnn: ") == 1  # one speaks for both
    assert "Warning" not in again.stderr
    first, second = read_card(alone), read_card(two)
    assert (first["processes"], second["processes"]) == (1, 2)
    assert second["command"].startswith("torchrun --nproc-per-node 2 -m cifar_deploy train simple")
    assert "--resume" not in second["command"]
    assert len(second["history"]) == 4
    for mine, theirs in zip(first["history"], second["history"], strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], abs=2e-5)
        assert theirs["train_accuracy"] == pytest.approx(mine["train_accuracy"], abs=1 / 240)
    assert second["test_accuracy"] == pytest.approx(first["test_accuracy"], abs=1 / 60)
    for card in (first, second):
        right, images = map(sum, zip(*card["classes"].values(), strict=True))
        assert (right / images, images) == (card["test_accuracy"], 60)
    mine, theirs = (weights.load(folder).network.state_dict() for folder in (alone, two))
    for key, value in mine.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-4, atol=1e-5)
    lines = [json.loads(line) for line in two.log.read_text().splitlines()]
    assert lines == second["history"]
    assert not two.checkpoint.exists()


def test_processes_where_another_run_writes_are_refused_together(
    pictures: Path, tmp_path: Path
) -> None:
    with only_writer(tmp_path / "m"):
        quick = ("--data-dir", pictures, "--device", "cpu", "--epochs", "1", "--batch-size", "60")
        ended = torchrun(
            "-m", "cifar_deploy", "train", "simple_cnn", *quick, "--out", tmp_path / "m"
        )
    assert ended.returncode == 1
    assert ended.stderr.count("error: another run is writing to ") == 1


def test_batch_norms_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    (tmp_path / "norms.py").write_text(NORMS)
    (tmp_path / "both.py").write_text(NORMED)
    done = torchrun(tmp_path / "both.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same") == 2


def test_the_command_of_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "train", "cnn9", "--resume"])
    assert train._command(1) == "cifar-deploy train cnn9"
    for here, said in (("8", "--nproc-per-node 8"), ("4", "--nnodes 2 --nproc-per-node 4")):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
        assert train._command(8) == f"torchrun {said} -m cifar_deploy train cnn9"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [(["--version"], 0, cifar_deploy.__version__), (["train", "no_such_network"], 2, "")],
)
def test_one_of_torchruns_processes_does_not_wait_for_python_to_shut_down(
    arguments: list[str], status: int, said: str
) -> None:
    script = (
        "import atexit; atexit.register(print, 'shut down')\n"
        "from cifar_deploy.cli import main; main()"
    )
    waits, torchruns = ["shut down"], {**dict.fromkeys(TORCHRUN, "0"), "WORLD_SIZE": "1"}
    for variables, shut_down in (({}, waits), ({"LOCAL_RANK": "0"}, waits), (torchruns, [])):
        done = python("-c", script, *arguments, **variables)
        assert done.returncode == status
        assert done.stdout.split("\n")[:-1] == [*filter(None, [said]), *shut_down]
        assert ("error: " in done.stderr) == bool(status)


SAME = """
import os
import torch
from torch import nn
from cifar_deploy.cli import leave
from cifar_deploy.train.ranks import together

with together(torch.device("cpu")) as ranks:
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(1.0 + ranks.rank)
    ranks.same_buffers(norm)
    assert norm.running_mean.tolist() == [1.0, 1.0], norm.running_mean
    print("same")
leave(0)
"""


def test_the_first_ones_statistics_are_what_is_judged(tmp_path: Path) -> None:
    # Of a norm that does not ask the others, every process has its own; the first one's are stored.
    (tmp_path / "same.py").write_text(SAME)
    done = torchrun(tmp_path / "same.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same") == 2


@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_more_processes_than_gpus_are_told_by_each_of_them(
    wish: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert own_device(wish) == "cuda:1"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"4 processes for 2 GPUs .* --nproc-per-node 2"):
        own_device(wish)
    assert own_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"), "has ended"),
        (
            distributed.DistBackendError(
                "NCCL error in: ProcessGroupNCCL.cpp:77, invalid usage\n"
                "Last error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000"
            ),
            r"do not reach each other: NCCL error .* \(Duplicate GPU detected : rank 1 .*\)$",
        ),
        (
            distributed.DistNetworkError("The client socket has timed out after 60000ms"),
            "do not reach each other: The client socket has timed out",
        ),
    ],
)
def test_the_reason_of_an_error_between_processes_is_told(error: Exception, said: str) -> None:
    with pytest.raises(OwnError, match=said), joined():
        raise error


def test_an_error_of_one_process_alone_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="plan build timed out") as raised, joined():
        raise RuntimeError("cuDNN: plan build timed out")
    assert not isinstance(raised.value, UserError)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """In a group of this process alone, which a failure leaves behind."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(TORCHRUN, ("0", "1", "0", "127.0.0.1", "0"), strict=True):
            patch.setenv(name, value)
        try:
            with together(torch.device("cpu")):
                yield
        finally:
            distributed.destroy_process_group()


def test_a_batch_that_cannot_be_shared_is_told(make_job: MakeJob) -> None:
    with pytest.raises(UserError, match=r"3 processes cannot .* batch of 100 .* --batch-size 99"):
        Trainer(dataclasses.replace(make_job(), ranks=Ranks(0, 3, 0)))


def test_alone_there_is_nothing_to_agree_on() -> None:
    alone = Ranks()
    assert alone.main
    assert alone.agree([0, 3]) == [0, 3]
    numbers = torch.tensor([1.0, 2.0])
    assert alone.total(numbers) is numbers
    with alone.one_after_the_other():
        alone.wait()


DIFFERENT = """
import os, sys
from cifar_deploy.cli import main
if os.environ["RANK"] == "1":
    sys.argv[1:] = [word.replace("=0.05", "=0.06") for word in sys.argv[1:]]
    sys.argv[1:] = [word.replace("--here", "--no-such-option") for word in sys.argv[1:]]
sys.argv[1:] = [word for word in sys.argv[1:] if word != "--here"]
main()
"""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lr=0.05"], "error: the processes of this run differ in network and recipe; give all"),
        (["--here"], "process 1: error: No such option: --no-such-option"),
    ],
)
def test_processes_that_differ_train_nothing(
    options: list[str], said: str, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "different.py").write_text(DIFFERENT)
    quick = ("train", "simple_cnn", "--data-dir", pictures, "--device", "cpu", "--epochs", "1")
    out = tmp_path / "m"
    ended = torchrun(
        *(tmp_path / "different.py", *quick, "--batch-size", "60", "--out", out, *options)
    )
    assert ended.returncode == 1
    assert ended.stderr.count(said) == 1, ended.stderr
    assert not ModelFolder(out).weights.exists()


def test_other_commands_are_for_one_process() -> None:
    ended = torchrun("-m", "cifar_deploy", "models")
    assert ended.returncode == 1
    assert ended.stderr.count("error: `models` is one process's: run it without torchrun") == 1


def test_a_job_that_is_started_again_goes_on(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ModelFolder(tmp_path / "m")
    options = ("train", "simple_cnn", "--data-dir", pictures, "--device", "cpu", "--epochs", "2")
    command = [*map(str, (*options, "--batch-size", "60", "--out", folder.path))]
    with monkeypatch.context() as patch:
        patch.setattr(weights, "stored", None)
        with pytest.raises(TypeError):
            CliRunner().invoke(app, command, catch_exceptions=False)
    assert folder.checkpoint.exists()
    with pytest.raises(UserError, match="go on with --resume"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "from step 8 on" in done.stderr
    assert read_card(folder)["test_images"] == 60


def test_processes_that_are_numbered_otherwise_do_not_train_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_launch()
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "here")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"\$WORLD_SIZE is 2, and \$LOCAL_RANK is not set: start"):
        check_launch()
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_launch()
