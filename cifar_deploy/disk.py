"""How files are written and read: whole or not at all, by one run at a time; JSON, checksums."""

import contextlib
import datetime
import errno
import functools
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from cifar_deploy.errors import UserError, disk_errors, plain

ABANDONED_SECONDS = 24 * 3600.0  # without a change, of what another machine began to write
LOOKS, LOOK_SECONDS = 10, 0.05  # at a folder that is locked, before it is taken to be in use
LARGEST = 1e15  # number in a file
Json = dict[str, Any]


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    A crash or kill -9 leaves the old file or none, never half of one. What a killed process left
    under its temporary name is removed by the next write of the same file. Raises UserError where
    the disk refuses (full, read-only, no such folder). A link stays one, and what it names is
    replaced; a device or a pipe is written into.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with disk_errors(path, "write"), tempfile.TemporaryDirectory() as room:
            part = Path(room, path.name)
            yield part
            with path.open("wb") as stream:
                stream.write(part.read_bytes())
        return
    path = path.resolve() if path.is_symlink() else path
    with _beside(path) as part:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)


def check_place(path: Path) -> None:
    """Raise UserError where the disk lets no file be made at `path`: asked before long work.

    Folders that are missing are no hindrance, the writes above make them.
    """
    with disk_errors(path, "write"):
        place = path.resolve()
        if place.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # A device, or a pipe: of one that /dev/stdout names, what that resolves to is no path.
        if path.exists() and not path.is_file():
            return
        try:
            tempfile.TemporaryFile(dir=next(p for p in place.parents if p.exists())).close()
        except OSError as error:
            error.filename = None
            raise


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, of which nothing is left afterwards.

    It means nothing to a reader, and is taken out of errors: some libraries give it with its whole
    path, and in a folder it is a file below it.
    """
    part = _part(path)
    with disk_errors(path, "write"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path)
            yield part
        except OSError as error:
            if part.name in str(error.filename):
                error.filename = None
            raise
        finally:
            _remove(part)


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            part.unlink()


@functools.cache
def _numbering() -> str:
    """Where a process's number counts, as 8 hexadecimal digits: containers number their own.

    Where the system does not tell, it is another one for every process.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        place = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
        return hashlib.sha256(place.encode()).hexdigest()[:8]
    except OSError:
        return secrets.token_hex(4)


def this_process() -> str:
    """This process as temporary names have it, for `is_abandoned`."""
    return f"{_numbering()}.{os.getpid()}"


def is_abandoned(temporary: Path, process: str) -> bool:
    """Whether the `process` that made a file or folder is gone; False where that cannot be told.

    Of one in another container or on another machine the number says nothing here: what it made
    is taken for abandoned a day after its last change. A number alone, as earlier versions wrote
    it, is taken for one of here.
    """
    numbering, _, number = process.rpartition(".")
    if numbering not in ("", _numbering()):
        with contextlib.suppress(OSError):
            return time.time() - temporary.stat().st_mtime > ABANDONED_SECONDS
        return False
    return not Path("/proc", number).exists() and Path("/proc/self").exists()


def _part(path: Path) -> Path:
    """A temporary name beside `path` that nobody else has, whoever shares the disk."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{this_process()}.part")


def _sweep(path: Path) -> None:
    """Remove temporary files of `path` whose process is gone."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        owner = re.fullmatch(r".*?\.((?:[0-9a-f]{8}\.)?\d+)\.part", part.name)
        if owner and is_abandoned(part, owner[1]):
            _remove(part)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; rename it to `path` when the block succeeds.

    A folder that is there already is replaced then. A crash leaves the old folder or none, never
    half of one. Raises UserError where the disk refuses.
    """
    with _beside(path) as part:
        new, old = part / "new", part / "old"
        new.mkdir(parents=True)
        yield new
        for written in filter(Path.is_file, new.rglob("*")):
            with written.open("rb") as file:
                os.fsync(file.fileno())
        if path.exists():  # a folder cannot be renamed over one that holds something
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


def _lock(number: int, wait: bool = False, shared: bool = False) -> bool | None:
    """Take the lock of an open file or folder, for as long as it is open in a process that lives.

    False where another has it, unless it is to `wait`; None where the disk, or the system, knows no
    locks. Several can have it `shared`.
    """
    try:
        import fcntl  # not on Windows

        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(number, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _lock_soon(number: int) -> bool:
    """Take the lock as `_lock` does, also where others hold it for a moment, to see who has it."""
    for _ in range(LOOKS):
        if _lock(number) is not False:
            return True
        time.sleep(LOOK_SECONDS)
    return False


def _is_still(path: Path, number: int) -> bool:
    """Whether `path` names what is open as `number`: it may have been removed meanwhile."""
    try:
        return os.path.samestat(path.stat(), os.fstat(number))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Let no other run write to a model's `folder`, which is made where it is missing.

    The folder itself is locked, so that nothing is left behind, whatever ends the process; one that
    was made and got nothing is removed again. Raises UserError where another run is at work there,
    and where the folder cannot be made. On a disk without locks nobody is kept out.
    """
    with disk_errors(folder, "make"):
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
    number = -1
    while number < 0:
        with disk_errors(folder, "make"):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            number = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # removed by another run, which ended
            continue
        except OSError:  # a folder that cannot be read, or on Windows
            break
        if not _lock_soon(number):
            os.close(number)
            raise UserError(
                f"another run is writing to {folder}; wait until it has ended, or write elsewhere "
                "with --out FOLDER"
            )
        if not _is_still(folder, number):
            os.close(number)
            number = -1
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for place in missing:
                place.rmdir()
        if number >= 0:
            os.close(number)


def has_writer(folder: Path) -> bool:
    """Whether a run is writing to `folder`; False where that cannot be told."""
    with contextlib.suppress(OSError):  # no such folder, or on Windows
        number = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            return _lock(number, shared=True) is False
        finally:
            os.close(number)
    return False


@contextlib.contextmanager
def in_turn(file: Path) -> Iterator[None]:
    """Let one process after another read and write anew what stands beside `file`.

    The file is locked and not its folder, which a training holds for hours.
    """
    with disk_errors(file, "read"):
        number = os.open(file, os.O_RDONLY)
    try:
        _lock(number, wait=True)
        yield
    finally:
        os.close(number)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_path(path) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    # A name from a disk may hold bytes that are no UTF-8: they stand there as \udcXX.
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Json:
    """The JSON object in `path`, `printable`. Raises UserError where it is missing or none."""
    with disk_errors(path, "read"):
        raw = path.read_bytes()
    try:
        value = parsed(raw)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); write it anew or restore it") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; write it anew or restore it")
    return value


def parsed(raw: bytes | str) -> Any:
    """JSON, `printable`. Raises ValueError for what is none, or is nested too deeply."""
    try:
        return printable(json.loads(raw))
    except RecursionError as error:
        raise ValueError(str(error)) from error


def printable(value: Any) -> Any:
    """`value`, from JSON, with all its texts `errors.plain`: a terminal will obey none of them."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain(key): printable(one) for key, one in value.items()}
    return list(map(printable, value)) if isinstance(value, list) else value


def now() -> datetime.datetime:
    """The time that files are told to be of, UTC: $SOURCE_DATE_EPOCH, in seconds, or else now.

    Who exports the same again then has the same bytes, dates and all
    (https://reproducible-builds.org/docs/source-date-epoch). Raises UserError for no time.
    """
    if not (epoch := os.environ.get("SOURCE_DATE_EPOCH")):
        return datetime.datetime.now(datetime.UTC)
    try:
        return datetime.datetime.fromtimestamp(int(epoch), datetime.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UserError(f"$SOURCE_DATE_EPOCH is {epoch}: it is seconds since 1970") from error


def stamp() -> str:
    """The same as text, to the second."""
    return now().isoformat(timespec="seconds")


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value`, from JSON, is a number that something can have: not NaN, not 1e400."""
    return type(value) in (int, float) and bool(abs(value) <= LARGEST)  # type: ignore[arg-type]


def sha256_of(data: Path | bytes) -> str:
    """SHA-256 of bytes, or of a file's, in hexadecimal."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with disk_errors(data, "read"), data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_and_sha256(data: bytes) -> Json:
    """`bytes`, their number, and their `sha256`, as manifests and cards have them."""
    return {"bytes": len(data), "sha256": sha256_of(data)}
