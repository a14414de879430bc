"""Where things lie on disk: model folders, cards, manifests; writes are whole or absent."""

import contextlib
import errno
import functools
import glob
import hashlib
import json
import math
import os
import re
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_deploy.errors import UserError, disk_errors

MODELS_VARIABLE = "CIFAR_DEPLOY_MODELS"
CARD = "card.json"
ABANDONED_SECONDS = 24 * 3600.0  # without a change, of what another machine began to write
EXPORTED = (".onnx", ".engine")  # what the exporter writes, by its suffix
LOOKS, LOOK_SECONDS = 10, 0.05  # at a folder that is locked, before it is taken to be in use
# What a whole proof says in words and in numbers.
PROOF_TEXTS = ("sha256", "verdict", "runtime", "provider", "device")
PROOF_NUMBERS = (
    *("accuracy", "reference_accuracy"),
    *("upper_bound_of_loss_points", "margin_points"),
)
Json = dict[str, Any]


@dataclass(frozen=True)
class ModelFolder:
    """`models/<name>/`: what a recipe, a training run and an export leave there."""

    path: Path

    @property
    def name(self) -> str:
        """The model's name."""
        return self.path.name

    @property
    def argument(self) -> str:
        """What a command takes for it: its name among the models, and elsewhere its path."""
        among = self.path.resolve() == (models_root() / self.name).resolve()
        return shlex.quote(self.name if among else str(self.path))

    @property
    def recipe(self) -> Path:
        """How it is trained."""
        return self.path / "recipe.toml"

    @property
    def weights(self) -> Path:
        """What was trained."""
        return self.path / "model.safetensors"

    @property
    def card(self) -> Path:
        """What a reader needs to trust the weights."""
        return self.path / CARD

    @property
    def checkpoint(self) -> Path:
        """A run in the middle."""
        return self.path / "checkpoint.safetensors"

    @property
    def seeds(self) -> Path:
        """The folders of the other runs, by seed, until all seeds are done."""
        return self.path / "seeds"

    @property
    def log(self) -> Path:
        """A JSON line an epoch."""
        return self.path / "log.jsonl"

    @property
    def curves(self) -> Path:
        """The training curves, a picture."""
        return self.path / "curves.png"

    @property
    def trace(self) -> Path:
        """What a profile saw, for chrome://tracing or ui.perfetto.dev."""
        return self.path / "trace.json"

    @property
    def finder(self) -> Path:
        """The learning-rate finder's curve, a picture."""
        return self.path / "find-lr.png"

    def onnx(self, precision: str, engine: bool = False, batch: int | None = None) -> Path:
        """The ONNX file of a precision, one that takes any batch or only `batch` images.

        An int8 `engine` is built from another than CPUs run.
        """
        variant = f"{precision}.trt" if engine and precision == "int8" else precision
        variant += f".batch{batch}" if batch else ""
        return self.path / f"{self.name}.{variant}.onnx"

    def engine(self, precision: str, flavour: str) -> Path:
        """The TensorRT engine of a precision and a flavour."""
        return self.path / f"{self.name}.{precision}.{flavour}.engine"

    def exported(self) -> list[Path]:
        """Every exported file in the folder: ONNX files by name, then engines."""
        return [path for kind in EXPORTED for path in sorted(self.path.glob(f"*{kind}"))]


def check_exported(path: Path) -> None:
    """Raise UserError where `path` is no exported file: by its name, or since it is not there."""
    if path.suffix not in EXPORTED:
        raise UserError(f"{path} is of no exported format; those are: {', '.join(EXPORTED)}")
    if not path.exists():
        raise UserError(
            f"cannot read {path}: No such file or directory; give its path, or run: "
            "cifar-deploy export MODEL"
        )


def packaged(folder: Path) -> Path | None:
    """The model's file in a folder that `cifar-deploy package` wrote; None in any other."""
    if not Path(folder, "manifest.json").is_file() or Path(folder, CARD).exists():
        return None
    return next((f for where in ("model.*", "*/1/model.*") for f in folder.glob(where)), None)


def models_root() -> Path:
    """The folder that holds `<name>/`: $CIFAR_DEPLOY_MODELS, else `models` here."""
    return Path(os.environ.get(MODELS_VARIABLE) or "models")


def models_place() -> str:
    """The models' folder as an error names it; where it is missing, with the way to it."""
    root = models_root()
    if root.is_dir():
        return f"{root}/"
    return f"{root}/ (not there, seen from {Path.cwd()}; ${MODELS_VARIABLE} can name another)"


def model_folders() -> list[ModelFolder]:
    """Every folder among the models, by name."""
    return [ModelFolder(path) for path in sorted(models_root().glob("*/"))]


def trained_models() -> list[ModelFolder]:
    """Every folder among the models that has weights, by name."""
    return [folder for folder in model_folders() if folder.weights.exists()]


def all_trained() -> list[ModelFolder]:
    """The same. Raises UserError where there is none."""
    if found := trained_models():
        return found
    raise UserError(f"nothing in {models_place()} is trained; run: cifar-deploy train MODEL")


def packaged_recipe(name: str, file: str = "recipe.toml") -> Path | None:
    """The recipe that came with the program: in the wheel, or in the checkout it runs from."""
    package = Path(__file__).parent
    for candidate in (package / "recipes", package.parent / "models"):
        if (candidate / name / file).is_file():
            return candidate / name / file
    return None


def shipped(name: str) -> Path:
    """What came with the program and is no Python: in the wheel, or in the checkout it runs from.

    `name` is `LICENSE`, or a path in `cpp/`. Raises UserError where it is missing.
    """
    package = Path(__file__).parent
    for candidate in (package / name, package.parent / name):
        if candidate.exists():
            return candidate
    raise UserError(f"this installation of cifar-deploy lacks {name}; install it again")


# --- writes -------------------------------------------------------------------------------------


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
    part = _part(path)
    with disk_errors(path, "write"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path)
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(path)
        except OSError as error:
            _forget(part, error)
            raise
        finally:
            with contextlib.suppress(OSError):
                part.unlink()


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


def _forget(part: Path, error: OSError) -> None:
    """Take a temporary name, which means nothing to a reader, out of `error`.

    Some libraries give it with its whole path, and in a folder it is a file below it.
    """
    if part.name in str(error.filename):
        error.filename = None


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
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; rename it to `path` when the block succeeds.

    A folder that is there already is replaced then. A crash leaves the old folder or none, never
    half of one. Raises UserError where the disk refuses.
    """
    part = _part(path)
    with disk_errors(path, "write"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path)
            part.mkdir()
            new = part / "new"
            new.mkdir()
            yield new
            for written in filter(Path.is_file, new.rglob("*")):
                with written.open("rb") as file:
                    os.fsync(file.fileno())
            old = part / "old"
            if path.exists():  # a folder cannot be renamed over one that holds something
                path.rename(old)
            try:
                new.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
        except OSError as error:
            _forget(part, error)
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)


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


def training(folder: ModelFolder) -> str | None:
    """How far a training is that has not ended: "running" or "stopped"; None where there is none.

    On a disk without locks a running one is taken for stopped, once it has a checkpoint.
    """
    with contextlib.suppress(OSError):  # no such folder, or on Windows
        number = os.open(folder.path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            if _lock(number, shared=True) is False:
                return "running"
        finally:
            os.close(number)
    return "stopped" if folder.checkpoint.exists() or folder.seeds.exists() else None


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
    """The JSON object in `path`. Raises UserError where it is missing or is none."""
    with disk_errors(path, "read"):
        raw = path.read_bytes()
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); write it anew or restore it") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; write it anew or restore it")
    return value


# --- checksums and manifests --------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal."""
    with disk_errors(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_and_sha256(data: bytes) -> Json:
    """`bytes`, their number, and their `sha256`, as manifests and cards have them."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def manifest_path(file: Path) -> Path:
    """The manifest that stands beside an exported file: its name with `.json` behind."""
    return file.with_name(file.name + ".json")


def proof_path(file: Path) -> Path:
    """What `validate` found out about an exported file, beside it: `<file>.proof.json`."""
    return file.with_name(file.name + ".proof.json")


def read_proofs(path: Path, sha256: str) -> list[Json]:
    """The proofs beside an exported file that are of exactly the bytes of `sha256`, oldest first.

    There is one of each runtime and device that judged it. Raises UserError where one lacks what
    is told of it.
    """
    file = proof_path(path)
    if not file.exists():
        return []
    found = read_json(file)
    proofs = found.get("proofs", [found])  # earlier versions left the one
    if not isinstance(proofs, list) or not all(map(_whole, proofs)):
        raise UserError(f"{file} is no whole proof; run: {to_validate(path)}")
    return [proof for proof in proofs if proof["sha256"] == sha256]


def to_validate(file: Path | str, *options: str) -> str:
    """The command that judges an exported file, as it is typed."""
    return shlex.join(["cifar-deploy", "validate", str(file), *options])


def _whole(proof: Any) -> bool:
    """Whether a proof has all that is told of it."""
    if not isinstance(proof, dict) or not isinstance(data := proof.get("data"), dict):
        return False
    return (
        all(isinstance(proof.get(key), str) for key in PROOF_TEXTS)
        and all(isinstance(proof.get(key), int | float) for key in PROOF_NUMBERS)
        and isinstance(data.get("images"), int)
        and isinstance(data.get("name"), str)
    )


def write_manifest(file: Path, facts: Json, raw: bytes | None = None) -> Json:
    """Write the manifest of `file`: its size and sha256, then `facts`. Returns what was written.

    `raw`: the bytes that were written there, where another process may write there, too.
    """
    size = size_and_sha256(file.read_bytes() if raw is None else raw)
    manifest = {"file": file.name, **size, **facts}
    write_json(manifest_path(file), manifest)
    return manifest


def read_manifest(file: Path, raw: bytes | None = None) -> Json | None:
    """The manifest of `file`, or None where there is none (a file from elsewhere).

    `raw`: the file's bytes, where they have been read and will be used. Raises UserError where
    the bytes are not those the manifest was written for.
    """
    path = manifest_path(file)
    if not path.exists():
        return None
    manifest = read_json(path)
    found = sha256_of(file) if raw is None else hashlib.sha256(raw).hexdigest()
    if manifest.get("sha256") != found:
        raise UserError(
            f"{file} does not match its manifest {path.name} (sha256 differs): "
            "the file was changed or cut short; export it again"
        )
    return manifest


def check_weights(file: Path, manifest: Json, sha256: str) -> None:
    """Raise UserError where `manifest`, of an exported file, names other weights than `sha256`."""
    if manifest.get("weights_sha256") != sha256:
        raise UserError(
            f"{file} was exported from other weights than those that are there now; export it again"
        )


def only_batch(name: str) -> int | None:
    """The one batch that a model's ONNX file takes, by the name it was exported under."""
    found = re.search(r"\.batch(\d+)\.onnx$", name)
    return int(found[1]) if found else None


def stale(file: Path, card: Json) -> bool:
    """Whether the manifest of an exported file names other weights than the model's card.

    False where either says nothing of them, or the manifest cannot be read.
    """
    named = None
    with contextlib.suppress(UserError):
        named = read_json(manifest_path(file)).get("weights_sha256")
    made = named_weights(card)
    return bool(named and made) and named != made


def way_to_weights(folder: ModelFolder) -> str:
    """What a user does about a model that is not trained here, for the end of an error."""
    if (state := training(folder)) == "running":
        return "its training has not ended: it is running, wait for it"
    if state:
        return f"its training has not ended: give its command again, with --resume ({folder.path})"
    card = card_of(folder)
    if command := card.get("command"):
        return f"its card says how to {'make' if 'imported' in card else 'train'} it: {command}"
    known = packaged_recipe(folder.name) is not None
    run = f"run: cifar-deploy train {folder.name if known else 'NETWORK'}"
    if not known or folder.path.parent != models_root():
        return f"{run} --out {shlex.quote(str(folder.path))}"
    return run if models_root().is_dir() else f"{run}\nThe models are sought in {models_place()}"


# What a card's values are, where it has them: sections, then what is in them.
NUMBER = (int, float)
CARD_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("data", "recipe", "recipe.model", "init", "imported", "stopped"), dict),
    "classes": dict,
    **dict.fromkeys(("network", "command", "device", "stem", "recipe.model.stem"), str),
    **dict.fromkeys(("data.name", "data.verified", "data.sha256", "data.origin"), str),
    "data.test_sha256": str,
    **dict.fromkeys(("init.from", "init.sha256", "imported.from"), str),
    **dict.fromkeys(("test_accuracy", "test_accuracy_mean", "test_accuracy_std"), NUMBER),
    **dict.fromkeys(("holdout_accuracy", "holdout_accuracy_mean", "holdout_accuracy_std"), NUMBER),
    **dict.fromkeys(("epochs", "wall_seconds", "parameters", "test_images"), NUMBER),
    **dict.fromkeys(("stopped.step", "stopped.steps"), NUMBER),
    "data.holdout_images": NUMBER,
    **dict.fromkeys(("runs", "history", "teachers", "data.classes"), list),
    **dict.fromkeys(("data.mean", "data.std"), list),
}


def card_of(folder: ModelFolder) -> Json:
    """What the folder's card says; empty where there is none. A section of null is left out.

    Raises UserError where it cannot be read or a value is of another kind.
    """
    if not folder.card.exists():
        return {}
    card = read_json(folder.card)
    for name, kind in CARD_KINDS.items():
        *sections, key = name.split(".")
        holder: Json = card
        for section in sections:
            holder = holder.get(section, {})
        value = holder.get(key)
        if value is None:
            if kind in (dict, list):
                holder.pop(key, None)
        elif not isinstance(value, kind):
            said = f"{name} cannot be {json.dumps(value)[:40]}"
            raise UserError(f"{folder.card}: {said}; restore it or train again")
    return card


def runs_of(card: Json) -> Iterator[Json]:
    """A card, and what it says of each earlier run that its weights come from, the latest first.

    Of one that a card names and says nothing of, the last is empty.
    """
    yield card
    while (init := card.get("init")) is not None:
        yield (card := init if isinstance(init, dict) else {})


PIN, LEAST_PIN = 12, 8  # digits of a sha256 behind an @: told, and given at the least


def split_pin(name: str) -> tuple[str, str]:
    """The model or file that `name` names, and the beginning of a sha256 behind an @, if any.

    What exists is a path, whatever it is called.
    """
    named, _, sha256 = name.rpartition("@")
    digits = re.fullmatch(f"[0-9a-fA-F]{{{LEAST_PIN},64}}", sha256)
    if not named or not digits or Path(name).exists():
        return name, ""
    return named, sha256.lower()


def pinned(command: str, begun_with: str | None, teachers: Sequence[Json]) -> str:
    """A `train` command as it is followed later, when the names may stand for other weights.

    Those that it began with get the beginning of their sha256, `begun_with`; so do the teachers,
    `{"model", "sha256"}` each, which a recipe may have named.
    """
    if not begun_with and not teachers:
        return command
    try:
        words = shlex.split(command)
    except ValueError:  # no command of ours
        return command
    made: list[str] = []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option not in ("--init", "--teacher"):
            made.append(word)
            continue
        value = value if equals else next(rest, "")
        if option == "--init":
            value = _pin(value, begun_with)
        elif teachers:
            continue
        made += [f"{option}={value}"] if equals else [option, value]
    for teacher in teachers:
        made += ["--teacher", _pin(str(teacher.get("model")), teacher.get("sha256"))]
    return shlex.join(made)


def _pin(name: str, sha256: str | None) -> str:
    """`name`, and behind an @ the beginning of `sha256`, where that does not stand there."""
    behind = name.rpartition("@")[2].lower()
    there = len(behind) >= LEAST_PIN and (sha256 or "").startswith(behind)
    return name if not sha256 or there or name == "imagenet" else f"{name}@{sha256[:PIN]}"


def begun(card: Json) -> str | None:
    """The weights of others that the first run of a card's chain began with; None: with chance.

    Such are torchvision's, what `import` took, and files of which nothing is known.
    """
    *later, first = runs_of(card)
    if "imported" in first:
        first = first["imported"]
    elif not later or "command" in first:
        return None
    return str(first.get("from", "weights that their card does not name"))


def taught_from(card: Json) -> list[str]:
    """The weights of others that the teachers of a card's chain go back to."""
    return [origin for run in runs_of(card) for origin in run.get("teachers_from", [])]


def stopped_epoch(run: Json) -> int | None:
    """The epoch in which a run was ended before its last step; None for a whole one.

    `run` is its card, or what another one's `init` says of it.
    """
    where, epochs = run.get("stopped"), run.get("epochs")
    if not (isinstance(where, dict) and isinstance(epochs, NUMBER)):
        return None
    step, steps = where.get("step"), where.get("steps")
    if not (isinstance(step, NUMBER) and isinstance(steps, NUMBER) and steps > 0):
        return None
    return math.ceil(step * epochs / steps)


def stopped(run: Json) -> str:
    """The same in words; "" for a whole run."""
    epoch = stopped_epoch(run)
    return f"stopped at epoch {epoch} of {run['epochs']}" if epoch else ""


def named_weights(card: Json) -> Any:
    """The sha256 of the weights that a card names; None where it names none."""
    named = card.get("weights")
    return named.get("sha256") if isinstance(named, dict) else None


def read_card(folder: ModelFolder, raw: bytes | None = None) -> Json:
    """The card of a trained model, whose `weights` have the sha256 and the bytes of the file.

    `raw`: the file's bytes, where they have been read and will be used. Raises UserError where the
    file is not the one that it names.
    """
    if raw is None and not folder.weights.exists():
        raise UserError(f"{folder.path} has no trained weights; {way_to_weights(folder)}")
    if not folder.card.exists():
        raise UserError(f"{folder.weights} has no card.json beside it; train again")
    card = card_of(folder)
    found = sha256_of(folder.weights) if raw is None else hashlib.sha256(raw).hexdigest()
    if named_weights(card) != found:
        raise UserError(
            f"{folder.weights} does not match {folder.card.name} (sha256 differs): "
            "the weights were changed or cut short; train again or restore them"
        )
    card["weights"]["bytes"] = folder.weights.stat().st_size if raw is None else len(raw)
    return card
