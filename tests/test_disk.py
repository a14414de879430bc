import contextlib
import datetime
import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import may_mount

import cifar_deploy
from cifar_deploy import disk, store
from cifar_deploy.errors import UserError

ROOT = Path(cifar_deploy.__file__).parents[1]

# --- atomic_path --------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "down" / "a.json"
    disk.write_json(file, {"a": "é" * 1000})
    disk.write_json(file, {"b": 1})
    assert file.read_text() == '{\n  "b": 1\n}\n'
    assert names(file.parent) == ["a.json"]


def test_a_link_stays_one_and_a_pipe_is_written_into(tmp_path: Path) -> None:
    real, link, pipe = tmp_path / "deep/real.txt", tmp_path / "link.txt", tmp_path / "pipe"
    real.parent.mkdir()
    link.symlink_to(real)
    disk.write_text(link, "through")
    assert link.is_symlink()
    assert real.read_text() == "through"
    assert names(real.parent) == ["real.txt"]
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        disk.write_text(pipe, "down")
        assert os.read(reader, 100) == b"down"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    # As /dev/stdout is, and the shell's >(command): a link that leads to no name.
    reader, writer = os.pipe()
    try:
        disk.write_text(Path(f"/dev/fd/{writer}"), "down")
        assert os.read(reader, 100) == b"down"
    finally:
        os.close(reader)
        os.close(writer)


def test_a_name_that_is_no_utf8_can_be_written(tmp_path: Path) -> None:
    disk.write_json(tmp_path / "a.json", {"class": "caf\udce9"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"class": "caf\udce9"}


def test_the_old_file_stands_until_the_block_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    disk.write_text(file, "old")
    with disk.atomic_path(file) as part:
        assert part.parent == tmp_path
        part.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    with file.open() as reading:  # who began before goes on with the whole old one
        disk.write_text(file, "newer")
        assert reading.read() == "new"


def test_what_has_its_name_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def fsync(number: int) -> None:
        synced.append((os.fstat(number).st_size, list(tmp_path.glob("[!.]*"))))

    monkeypatch.setattr(os, "fsync", fsync)
    disk.write_text(tmp_path / "file", "four")
    (tmp_path / "file").unlink()
    with disk.atomic_folder(tmp_path / "folder") as part:
        (part / "deep").mkdir()
        (part / "deep" / "file").write_text("three")
    assert synced == [(4, []), (5, [])]


def test_a_folder_whose_place_is_refused_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "folder"
    with disk.atomic_folder(place) as part:
        (part / "file").write_text("old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="No space left"), disk.atomic_folder(place) as part:
        (part / "file").write_text("new")
    assert (place / "file").read_text() == "old"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_no_part(
    tmp_path: Path, error: type[BaseException]
) -> None:
    file = tmp_path / "a.txt"
    disk.write_text(file, "old")

    def write() -> None:
        with disk.atomic_path(file) as part:
            part.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write()
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_dead_processes_part_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        file = tmp_path / "a.txt"
        mine, stale, other = (
            tmp_path / f".{name}.{pid}.part"
            for name, pid in (("a.txt", living.pid), ("a.txt", dead.pid), ("b.txt", dead.pid))
        )
        for part in (mine, stale, other):
            part.write_text("half")
        disk.write_text(file, "new")
        assert names(tmp_path) == sorted([file.name, mine.name, other.name])
        assert mine.read_text() == "half"
        living.communicate(b"\n")
    disk.write_text(file, "newer")
    assert names(tmp_path) == sorted([file.name, other.name])


def test_writers_of_one_number_do_not_meet(tmp_path: Path) -> None:
    # As in two containers that share a folder, where processes' numbers are the same.
    file, folder = tmp_path / "a.txt", tmp_path / "folder"
    with disk.atomic_path(file) as mine, disk.atomic_path(file) as theirs:
        mine.write_text("mine")
        theirs.write_text("theirs")
    assert file.read_text() == "mine"
    with disk.atomic_folder(folder) as here, disk.atomic_folder(folder) as there:
        (here / "mine").write_text("mine")
        (there / "theirs").write_text("theirs")
    assert names(folder) == ["mine"]
    assert names(tmp_path) == ["a.txt", "folder"]


def leave_part(file: Path, *before: str) -> Path:
    """What a process leaves that ends while it writes `file`; `before` is what it is run by."""
    script = (
        "import os, sys; from pathlib import Path; from cifar_deploy import disk\n"
        "with disk.atomic_path(Path(sys.argv[1])) as part:\n"
        "    part.write_text('theirs')\n"
        "    os._exit(0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*before, sys.executable, "-c", script, file], check=True, env=environment)
    (part,) = file.parent.iterdir()
    return part


@pytest.mark.parametrize("name", ["a.txt", "a[1].txt"])
def test_what_a_killed_process_left_is_swept(name: str, tmp_path: Path) -> None:
    leave_part(tmp_path / name)
    disk.write_text(tmp_path / name, "new")
    assert names(tmp_path) == [name]


def test_what_another_container_writes_is_left_alone_for_a_day(tmp_path: Path) -> None:
    inside = ["unshare", "-rpf", "--mount-proc"]
    if not may_mount() or subprocess.run([*inside, "true"], check=False).returncode:
        pytest.skip("no namespace of process numbers is to be had here")
    file = tmp_path / "a.txt"
    part = leave_part(file, *inside)
    disk.write_text(file, "mine")
    assert part.read_text() == "theirs"
    then = part.stat().st_mtime - disk.ABANDONED_SECONDS
    os.utime(part, (then, then))
    disk.write_text(file, "mine")
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*/a\.txt: Is a directory"):
        disk.write_text(tmp_path / "a.txt", "new")
    assert names(tmp_path) == ["a.txt"]


def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("no folder")
    with pytest.raises(UserError, match=r"cannot write .*/models.*: (Not a dir|File exists)"):
        disk.write_text(tmp_path / "models" / "a.txt", "new")


def test_a_place_where_a_file_can_be_made_is_left_alone(tmp_path: Path) -> None:
    old = tmp_path / "old.txt"
    old.write_text("old")
    for place in (old, tmp_path / "new" / "new.txt", Path("/dev/null")):
        disk.check_place(place)
    assert names(tmp_path) == ["old.txt"]


# --- one run a folder ---------------------------------------------------------------------------

HOLDING = """
import sys
from pathlib import Path
from cifar_deploy import disk

with disk.only_writer(Path(sys.argv[1])):
    print("holding", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is the only writer of `folder`."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "holding\n"
        yield other
        other.kill()


def test_a_folder_has_one_writer_until_it_ends_or_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "m"
    for _ in range(2):
        with holding(folder) as other:
            told = f"another run is writing to {re.escape(str(folder))}; .* --out FOLDER$"
            for _ in range(2):
                with pytest.raises(UserError, match=told), disk.only_writer(folder):
                    pass
            with disk.only_writer(tmp_path / "models" / "n"):
                pass
            assert names(tmp_path / "models") == ["m"]
            other.kill()
            other.wait()
            with disk.only_writer(folder):
                (folder / "card.json").touch()
    assert names(folder) == ["card.json"]


def test_who_looks_at_a_folder_keeps_no_run_out_and_is_no_run(tmp_path: Path) -> None:
    folder = store.ModelFolder(tmp_path)
    looking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert store.training(folder) is None  # another that looks is no training
    gone = threading.Timer(0.1, os.close, [looking])
    gone.start()
    with disk.only_writer(tmp_path):
        assert store.training(folder) == "running"
    gone.join()


def test_a_folder_that_gets_nothing_is_not_left(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "down" / "m"
    with disk.only_writer(folder):
        assert folder.is_dir()
    assert names(tmp_path) == []
    folder.mkdir(parents=True)
    with disk.only_writer(folder):
        pass
    assert folder.is_dir()  # somebody else's
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"cannot make .*/file"),
        disk.only_writer(tmp_path / "file"),
    ):
        pass


def test_a_disk_without_locks_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with disk.only_writer(tmp_path / "m"), disk.only_writer(tmp_path / "m"):
        (tmp_path / "m" / "card.json").touch()
    assert names(tmp_path / "m") == ["card.json"]


# --- a disk that refuses ------------------------------------------------------------------------

# Works in the folder given, on the kind of disk given, and prints what came of each write and what
# the folder holds in the end.
PROGRAM = """
import json, os, resource, subprocess, sys
from pathlib import Path
from cifar_deploy import disk
from cifar_deploy.errors import UserError

SETUP
os.chdir(sys.argv[1])
Path("old.bin").write_bytes(b"old")
Path("old.json").write_bytes(b"{}")
if sys.argv[2] == "remounted":
    subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
elif sys.argv[2] == "limited":
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
elif sys.argv[2] == "locked":
    os.chmod(".", 0o555)
    if not os.geteuid():  # no lock holds root
        os.setuid(65534)
said = []
for write in (WRITES):
    try:
        write()
        said.append("written")
    except UserError as error:
        said.append(str(error))
files = {path.name: path.read_text() for path in Path().iterdir() if path.is_file()}
print(json.dumps([said, files]))
"""
OWN = """
    lambda: disk.write_bytes(Path("old.bin"), bytes(100_000)),
    lambda: disk.write_json(Path("old.json"), ["long"] * 10_000),
    lambda: disk.write_text(Path("new.txt"), "long" * 10_000),
    lambda: disk.check_place(Path("new/text.txt")),
"""
# Weights and pictures are written with the help of libraries.
LIBRARIES = """
import torch
from matplotlib import pyplot
from cifar_deploy.architectures import weights
from cifar_deploy.train import curves
record = {"epoch": 1, "loss": 1.0, "train_accuracy": 0.5, "lr": 0.1}
"""
WITH_LIBRARIES = """
    lambda: weights.save(Path("old.bin"), {"x": torch.zeros(100_000)}, {}),
    lambda: curves.draw(Path("new.png"), "x", [record]),
"""


def on_disk(kind: str, folder: Path, setup: str, writes: str) -> tuple[list[str], dict[str, str]]:
    """What the writes are answered, and the files then, on a "full" or a "read-only" disk."""
    program = PROGRAM.replace("SETUP", setup).replace("WRITES", writes)
    if may_mount():
        way = "mounted" if kind == "full" else "remounted"
        script = 'mount -t tmpfs -o size=16k t "$1" && exec "$2" -c "$3" "$1" "$4"'
        command = ["unshare", "-rm", "sh", "-c", script, "sh", str(folder), sys.executable, program]
    else:
        way = "limited" if kind == "full" else "locked"
        command = [sys.executable, "-c", program, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, way], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    said, files = json.loads(done.stdout)
    return said, files


FULL = "(No space left on device|File too large)"
READ_ONLY = "(Read-only file system|Permission denied)"


@pytest.mark.parametrize(("kind", "reason"), [("full", FULL), ("read-only", READ_ONLY)])
def test_a_disk_that_refuses_keeps_the_old_files(tmp_path: Path, kind: str, reason: str) -> None:
    (*said, asked), files = on_disk(kind, tmp_path, "", OWN)
    # How full a disk is would be found out only by filling it.
    answer = "written" if kind == "full" else f"cannot write new/text.txt: {reason}"
    assert re.fullmatch(answer, asked)
    for line, name in zip(said, ("old.bin", "old.json", "new.txt"), strict=True):
        assert re.fullmatch(f"cannot write {re.escape(name)}: {reason}", line)
    assert files == {"old.bin": "old", "old.json": "{}"}


@pytest.mark.parametrize(("kind", "reason"), [("full", FULL), ("read-only", READ_ONLY)])
def test_libraries_on_a_disk_that_refuses(tmp_path: Path, kind: str, reason: str) -> None:
    said, files = on_disk(kind, tmp_path, LIBRARIES, WITH_LIBRARIES)
    for line, name in zip(said, ("old.bin", "new.png"), strict=True):
        assert re.fullmatch(f"cannot write {re.escape(name)}: {reason}", line)
    assert files == {"old.bin": "old", "old.json": "{}"}


# --- reading and checksums ----------------------------------------------------------------------


@pytest.mark.parametrize("raw", [b"", b'{"a": 1', b"\xff", b"\x00\x00"])
def test_what_is_no_json_is_told(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "card.json"
    file.write_bytes(raw)
    with pytest.raises(UserError, match=r"card\.json is not JSON"):
        disk.read_json(file)


def test_json_that_is_too_deep_is_told_and_control_characters_are_shown(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for depth in (900, 5_000, 200_000):  # later versions of Python read more of it than they walk
        file.write_text('{"a": ' + "[" * depth + "]" * (depth if depth < 200_000 else 0) + "}")
        with contextlib.suppress(UserError):
            disk.read_json(file)
    with pytest.raises(UserError, match="is not JSON"):
        disk.read_json(file)
    for text, shown in (
        ("\x1b]0;m\x07", r"\x1b]0;m\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("2\r", r"2\x0d"),
    ):
        for ascii_ in (True, False):
            value = {"a": [{"b": text}, 1, None], text: 1}
            file.write_text(json.dumps(value, ensure_ascii=ascii_))
            assert disk.read_json(file) == {"a": [{"b": shown}, 1, None], shown: 1}
    disk.write_json(file, {"a": "two\nlines and a\ttab"})
    assert disk.read_json(file) == {"a": "two\nlines and a\ttab"}


def test_numbers_that_nothing_can_have() -> None:
    sound = (0, -3, 2.5, 1e15, -1e15)
    assert all(map(disk.is_number, sound))
    strange = (float("nan"), float("inf"), -float("inf"), 10**400, 1e16, True, "1", None, [1])
    assert not any(map(disk.is_number, strange))


def test_json_that_is_no_object_is_told(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    file.write_text("[1]")
    with pytest.raises(UserError, match="does not hold a JSON object"):
        disk.read_json(file)
    with pytest.raises(UserError, match=r"cannot read .*absent\.json: No such file"):
        disk.read_json(tmp_path / "absent.json")


def test_the_checksum_is_sha256(tmp_path: Path) -> None:
    file = tmp_path / "abc"
    file.write_bytes(b"abc")
    # FIPS 180-4's example.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert disk.sha256_of(file) == disk.sha256_of(b"abc") == known
    assert disk.size_and_sha256(b"abc") == {"bytes": 3, "sha256": known}


def test_the_time_of_files_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    before = datetime.datetime.now(datetime.UTC)
    assert before <= disk.now() <= datetime.datetime.now(datetime.UTC)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert disk.stamp() == "1970-01-02T00:00:00+00:00"
    for wrong in ("yesterday", "1" + "0" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(UserError, match=r"\$SOURCE_DATE_EPOCH is .*: it is seconds since 1970"):
            disk.stamp()
