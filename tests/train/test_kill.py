"""Processes that die: at every write, in the middle of a file, at any time; and signals."""

import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import cifar_deploy
from cifar_deploy import architectures
from cifar_deploy.architectures import weights
from cifar_deploy.disk import sha256_of
from cifar_deploy.errors import UserError
from cifar_deploy.store import ModelFolder

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(cifar_deploy.__file__).parents[1]),
    # The same arithmetic everywhere; and a process without threads may be forked.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

# A process that has imported everything and runs each command it is told in a fork: importing
# torch anew for each of dozens of deaths would take minutes. A command is the real one, from
# cli.main on. It dies at its n-th write below a folder: before that write, or, with `bytes`, when
# the file grows beyond so many (the kernel then sends a signal that nothing handles, or, where it
# is ignored, refuses the rest as a full disk does).
NURSERY = """
import json, os, resource, signal, sys, time

import jinja2, matplotlib.pyplot, onnx, onnxruntime, onnxscript, torch, torchvision
from cifar_deploy import cli
from cifar_deploy.data import find
from cifar_deploy.export import onnx_file
from cifar_deploy.runtimes import load
from cifar_deploy.train import curves, loop, progress
from cifar_deploy.validate import judge, report

WRITING = os.O_WRONLY | os.O_RDWR


def arm(folder, at, bytes, full):
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if event not in ("open", "os.rename", "os.remove", "shutil.rmtree"):
            return
        name = arguments[0]
        # Python tells of an open twice; the second time with its mode.
        if event == "open" and not (arguments[1] and arguments[2] & WRITING):
            return
        if not isinstance(name, (str, os.PathLike)) or not os.fspath(name).startswith(folder):
            return
        if event == "open" and os.path.isdir(name):
            return  # a file without a name, of which nothing is left
        if event == "os.remove" and os.fspath(name).endswith(".part"):
            return  # already renamed
        seen += 1
        if seen != at:
            return
        if bytes is None:
            os.write(2, event.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN if full else signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, bytes))

    sys.addaudithook(hook)


def command(arguments):
    sys.argv = ["cifar-deploy", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


def forked(order):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 70
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(writing, 2)
            if order["moment"]:
                arm(**order["moment"])
            code = command(order["arguments"])
            sys.stdout.flush()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    os.close(writing)
    if order["delay"] is not None:
        time.sleep(order["delay"])
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    return {"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "said": said}


# The exporter's own preparations are made once, too.
onnx_file._translate(onnx_file.DeploymentGraph(torch.nn.Flatten(), [0.5] * 3, [0.5] * 3))
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(forked(json.loads(line))), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (negative: a signal's number) and standard error."""

    code: int
    said: str


class Nursery:
    """Runs commands in forks of one process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def run(
        self,
        *arguments: str | Path,
        below: Path | None = None,
        at: int = 0,
        cut: int | None = None,
        full: bool = False,
        delay: float | None = None,
    ) -> Ended:
        """Run a command; at its write number `at` in `below` it dies, or after `delay` seconds."""
        moment: dict[str, Any] | None = None
        if below:
            moment = {"folder": str(below), "at": at, "bytes": cut, "full": full}
        order = {"arguments": [*map(str, arguments)], "moment": moment, "delay": delay}
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self._answer()))

    def die_at_every_write(self, *arguments: str | Path, below: Path) -> Iterator[Ended]:
        """Run a command over and over: it dies a write later each time, also in the middle of it.

        The last time it does not die.
        """
        for at in itertools.count(1):
            ended = self.run(*arguments, below=below, at=at)
            yield ended
            if ended.code == 0:
                return
            assert ended.code == -signal.SIGKILL, ended.said
            if ended.said.endswith("open"):
                ended = self.run(*arguments, below=below, at=at, cut=60)
                yield ended
                assert ended.code == -signal.SIGXFSZ, ended.said


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.process.communicate()


def files(folder: Path) -> dict[str, bytes]:
    """What stands under final names; temporary ones begin with a dot."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def check_whole(folder: Path) -> None:
    """Whatever is there under its final name can be read to its end."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    assert tensors.get_tensor(name) is not None
        elif path.suffix == ".json":
            assert isinstance(json.loads(path.read_text()), dict)
        elif path.suffix == ".jsonl":
            assert path.read_text().endswith("}\n")
            assert all(json.loads(line) for line in path.read_text().splitlines())
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
        elif path.suffix == ".onnx":
            onnx.checker.check_model(path, full_check=True)
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
        else:
            raise AssertionError(f"{path} is not expected here")


TRAINED = {"model.safetensors", "card.json", "curves.png", "log.jsonl"}


def test_train_dies_at_every_write(nursery: Nursery, pictures: Path, tmp_path: Path) -> None:
    quick = ("--data-dir", pictures, "--epochs", "2", "--batch-size", "100", "--device", "cpu")
    whole, folder = ModelFolder(tmp_path / "whole"), ModelFolder(tmp_path / "simple_cnn")
    assert nursery.run("train", "simple_cnn", *quick, "--out", whole.path).code == 0
    old = ("train", "simple_cnn", *quick, "--seed", "1", "--out", folder.path)
    assert nursery.run(*old).code == 0
    before = files(folder.path)
    command = ("train", "simple_cnn", *quick, "--out", folder.path)

    for delay in (0.02, 0.1, 0.3):
        nursery.run(*command, delay=delay)
        check_whole(folder.path)

    # However far a quick machine came in that time: the earlier run again.
    shutil.rmtree(folder.path)
    folder.path.mkdir()
    for name, content in before.items():
        (folder.path / name).write_bytes(content)
    deaths = 0
    for _ in nursery.die_at_every_write(*command, below=folder.path):
        deaths += 1
        check_whole(folder.path)
        if folder.checkpoint.exists():
            break
        # The earlier run is still whole.
        assert weights.load(folder).card["seed"] == 1
        assert files(folder.path) == before
    assert deaths >= 3  # the checkpoint is opened, cut and renamed, and nothing else is written

    codes = []
    for ended in nursery.die_at_every_write(*command, "--resume", below=folder.path):
        codes.append(ended.code)
        check_whole(folder.path)
        if json.loads(folder.card.read_text())["weights"]["sha256"] == sha256_of(folder.weights):
            assert weights.load(folder).card["seed"] in (0, 1)
        else:  # the new weights beside the old card
            with pytest.raises(UserError, match=r"does not match card\.json"):
                weights.load(folder)
    # Weights, curves, log and card, each before, within, renamed; and the checkpoint's removal.
    assert codes.count(-signal.SIGXFSZ) == 4
    assert codes.count(-signal.SIGKILL) >= 8
    for name in ("model.safetensors", "log.jsonl"):
        assert (
            files(folder.path)[name].split(b'"seconds"')[0]
            == (files(whole.path)[name].split(b'"seconds"')[0])
        )
    assert {path.name for path in folder.path.iterdir()} == TRAINED  # and no litter


@pytest.fixture(scope="module")
def exported(
    nursery: Nursery, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> ModelFolder:
    folder = ModelFolder(tmp_path_factory.mktemp("models") / "simple_cnn")
    quick = ("--data-dir", pictures, "--epochs", "1", "--batch-size", "60", "--device", "cpu")
    assert nursery.run("train", "simple_cnn", *quick, "--out", folder.path).code == 0
    assert nursery.run("export", folder.path).code == 0
    return folder


def test_export_dies_at_every_write(
    nursery: Nursery, exported: ModelFolder, tmp_path: Path
) -> None:
    folder = ModelFolder(tmp_path / "simple_cnn")
    shutil.copytree(exported.path, folder.path)
    file = folder.onnx("fp32")
    before = file.read_bytes()
    # An older export, of other weights: as whole as the new one, and not the same.
    older = before.replace(b"class1", b"classX")
    assert older != before
    file.write_bytes(older)
    (folder.path / f"{file.name}.json").unlink()

    ends = []
    for ended in nursery.die_at_every_write("export", folder.path, below=folder.path):
        ends.append(ended.code)
        check_whole(folder.path)
        assert file.read_bytes() in (older, before)
    assert ends == [-9, -25, -9] * 2 + [0]  # the file and its manifest: before, within, renaming
    assert file.read_bytes() == before
    assert set(files(folder.path)) == {*TRAINED, file.name, f"{file.name}.json"}
    assert len(list(folder.path.iterdir())) == 6


def test_validate_dies_at_every_write(
    nursery: Nursery, exported: ModelFolder, pictures: Path, tmp_path: Path
) -> None:
    written = tmp_path / "written"
    written.mkdir()
    # 60 images are too few for the usual margin.
    options = ("--data-dir", pictures, "--device", "cpu", "--no-latency", "--max-drop", "100")
    places = ("--json", written / "validation.json", "--report", written / "report.html")
    ends = []
    command = ("validate", exported.path, *options, *places)
    for ended in nursery.die_at_every_write(*command, below=written):
        ends.append(ended.code)
        check_whole(written)
    assert ends == [-9, -25, -9] * 2 + [0]
    assert {path.name for path in written.iterdir()} == {"validation.json", "report.html"}


def test_a_full_disk_ends_a_training_with_a_message(
    nursery: Nursery, pictures: Path, tmp_path: Path
) -> None:
    folder = ModelFolder(tmp_path / "simple_cnn")
    quick = ("--data-dir", pictures, "--epochs", "1", "--batch-size", "60", "--device", "cpu")
    command = ("train", "simple_cnn", *quick, "--out", folder.path)
    ended = nursery.run(*command, below=folder.path, at=1, cut=60, full=True)
    assert ended.code == 2
    said = f"error: cannot write {folder.log}: File too large"
    assert ended.said.splitlines()[-1] == said
    assert nursery.run(*command).code == 0
    before = files(folder.path)
    # At the checkpoint's opening, and the weights' (the third write).
    for at, name in ((1, "checkpoint.safetensors"), (3, "model.safetensors")):
        ended = nursery.run(*command, "--seed", "1", below=folder.path, at=at, cut=60, full=True)
        assert ended.code == 2
        last = ended.said.splitlines()[-1]
        assert last == f"error: cannot write {folder.path / name}: File too large"
        assert "Traceback" not in ended.said
        now = files(folder.path)
        for kept in TRAINED:
            assert now[kept] == before[kept]
        assert not [path for path in folder.path.iterdir() if path.name.startswith(".")]


def test_signals_stop_the_command_and_resume_goes_on(
    nursery: Nursery, pictures: Path, tmp_path: Path
) -> None:
    options = ("--data-dir", str(pictures), "--epochs", "60", "--device", "cpu", "--seed", "5")
    command = ("train", "simple_cnn", *options, "--batch-size", "80", "--out")
    whole = tmp_path / "whole"
    assert nursery.run(*command, whole).code == 0
    started = []
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        folder = ModelFolder(tmp_path / str(status))
        process = subprocess.Popen(
            [sys.executable, "-m", "cifar_deploy", *command, str(folder.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        started.append((process, folder, number, status))
    waiting = list(started)
    while waiting:
        time.sleep(0.005)
        for entry in list(waiting):
            process, folder, number, _ = entry
            assert process.poll() is None
            if folder.log.exists():  # the first epoch has ended
                process.send_signal(number)
                waiting.remove(entry)
    for process, folder, _, status in started:
        said = process.communicate()[1].splitlines()
        assert process.returncode == status
        assert said[-1].startswith("stopped after step ")
        ways = "and --resume, or end the run there with --resume --finish"
        assert said[-1].endswith(f"{ways} ({folder.checkpoint})")
        assert set(files(folder.path)) == {"checkpoint.safetensors", "log.jsonl"}
        assert nursery.run(*command, folder.path, "--resume").code == 0
        assert files(folder.path)["model.safetensors"] == files(whole)["model.safetensors"]
        assert {path.name for path in folder.path.iterdir()} == TRAINED


def test_a_second_run_in_the_same_folder_is_refused(
    nursery: Nursery, pictures: Path, tmp_path: Path
) -> None:
    folder = ModelFolder(tmp_path / "m")
    options = ("--data-dir", str(pictures), "--device", "cpu", "--batch-size", "80", "--out")
    command = ("train", "simple_cnn", *options, str(folder.path), "--epochs")
    theirs = tmp_path / "their.pth"
    torch.save(architectures.build("simple_cnn", 10).state_dict(), theirs)
    running = [sys.executable, "-m", "cifar_deploy", *command, "5000"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(running, env=ENVIRONMENT, **quiet) as first:
        try:
            while not folder.log.exists():  # the first epoch has ended
                assert first.poll() is None
                time.sleep(0.005)
            for second in (
                (*command, "1", "--seed", "1"),
                (*command, "1", "--seeds", "2"),
                (*command, "5000", "--resume"),
                ("import", "simple_cnn", theirs, "--data-dir", pictures, "--out", folder.path),
            ):
                ended = nursery.run(*second)
                assert ended.code == 2
                told = f"error: another run is writing to {folder.path}; wait until it has ended, "
                assert ended.said == f"{told}or write elsewhere with --out FOLDER\n"
            assert first.poll() is None
            first.send_signal(signal.SIGTERM)
            assert first.wait(60) == 128 + signal.SIGTERM
        finally:
            first.kill()
    assert "go on with --resume" in nursery.run(*command, "1").said  # there is its checkpoint
    folder.checkpoint.unlink()
    assert nursery.run(*command, "1", "--seeds", "2").code == 0
    assert {path.name for path in folder.path.iterdir()} == TRAINED


def test_a_closed_terminal_leaves_a_checkpoint(pictures: Path, tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "closed")
    options = ("--data-dir", str(pictures), "--epochs", "600", "--device", "cpu")
    command = ("train", "simple_cnn", *options, "--batch-size", "80", "--out", str(folder.path))
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cifar_deploy", *command],
        stdout=theirs,
        stderr=theirs,
        env=ENVIRONMENT,
    )
    os.close(theirs)
    while not folder.log.exists():  # the first epoch has ended
        assert process.poll() is None
        if select.select([ours], [], [], 0.05)[0]:
            os.read(ours, 4096)
    os.close(ours)  # what is written there from now on is an error
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert set(files(folder.path)) == {"checkpoint.safetensors", "log.jsonl"}


def test_all_seeds_are_trained_though_nobody_reads_of_them(pictures: Path, tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "unread")
    options = ("--data-dir", str(pictures), "--epochs", "1", "--device", "cpu", "--seeds", "3")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "cifar_deploy", "train", "simple_cnn", *options),
            *("--batch-size", "60", "--out", str(folder.path)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stderr
    assert b"seed 0" in process.stderr.readline()
    process.stderr.close()  # as `| head -1` does
    assert process.wait(60) == 0
    assert len(json.loads(folder.card.read_text())["runs"]) == 3
    assert set(files(folder.path)) == TRAINED


def test_seeds_that_die_while_their_folders_are_removed_are_done(
    nursery: Nursery, pictures: Path, tmp_path: Path
) -> None:
    folder = ModelFolder(tmp_path / "simple_cnn")
    options = ("--data-dir", pictures, "--epochs", "1", "--batch-size", "60", "--device", "cpu")
    command = ("train", "simple_cnn", *options, "--seeds", "2", "--out", folder.path)
    for at in itertools.count(8):  # among the second seed's writes
        shutil.rmtree(folder.path, ignore_errors=True)
        ended = nursery.run(*command, below=folder.seeds, at=at)
        assert ended.code == -signal.SIGKILL, ended.said
        if ended.said.endswith("shutil.rmtree"):
            break
    card, second = folder.card.read_bytes(), folder.seeds / "1"
    for left in (set(files(second)), {"curves.png"}):
        second.mkdir(parents=True, exist_ok=True)
        for name in left:
            (second / name).touch()
        assert "go on with --seeds N --resume" in nursery.run(*command).said
        assert nursery.run(*command, "--resume").code == 0
        assert folder.card.read_bytes() == card
        assert set(files(folder.path)) == TRAINED
    # One of a run with more seeds is not thrown away.
    (folder.seeds / "2").mkdir(parents=True)
    assert "all seeds in" in nursery.run(*command, "--resume").said
    assert (folder.seeds / "2").exists()
