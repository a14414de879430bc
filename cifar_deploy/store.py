"""Where things lie on disk: model folders, exported files with their manifests and proofs."""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_deploy.disk import (
    Json,
    has_writer,
    is_number,
    read_json,
    sha256_of,
    size_and_sha256,
    write_json,
)
from cifar_deploy.errors import UserError

MODELS_VARIABLE = "CIFAR_DEPLOY_MODELS"
CARD = "card.json"
EXPORTED = (".onnx", ".engine")  # what the exporter writes, by its suffix
# What is raised where a manifest lacks something, or has it of another kind.
MISSING = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)
# What a whole proof says in words and in numbers.
PROOF_TEXTS = ("sha256", "verdict", "runtime", "provider", "device")
PROOF_NUMBERS = (
    *("accuracy", "reference_accuracy"),
    *("upper_bound_of_loss_points", "margin_points"),
)


@dataclass(frozen=True)
class ModelFolder:
    """`models/<name>/`: what a recipe, a training run and an export leave there."""

    path: Path

    @property
    def name(self) -> str:
        """The model's name: its folder's, also where that is called "." or ".."."""
        return (self.path if self.path.name not in ("", "..") else self.path.resolve()).name

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

    def is_of(self, file: str, precision: str) -> bool:
        """Whether an exported file's name is of a precision; the model's own may have one in it."""
        return f".{precision}." in file.removeprefix(self.name)

    def exported(self) -> list[Path]:
        """Every exported file in the folder: ONNX files by name, then engines."""
        return [path for kind in EXPORTED for path in sorted(self.path.glob(f"*{kind}"))]


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
    raise UserError(f"nothing in {models_place()} is trained; run: cifar-deploy train NETWORK")


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


def training(folder: ModelFolder) -> str | None:
    """How far a training is that has not ended: "running" or "stopped"; None where there is none.

    On a disk without locks a running one is taken for stopped, once it has a checkpoint.
    """
    if has_writer(folder.path):
        return "running"
    return "stopped" if folder.checkpoint.exists() or folder.seeds.exists() else None


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
        all(isinstance(t := proof.get(key), str) and t.isprintable() for key in PROOF_TEXTS)
        and all(is_number(proof.get(key)) for key in PROOF_NUMBERS)
        and isinstance(data.get("images"), int)
        and is_number(data["images"])
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
    if manifest.get("sha256") != sha256_of(file if raw is None else raw):
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
