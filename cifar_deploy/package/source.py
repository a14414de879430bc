"""What is packaged: an exported file, its manifest, and the proof that it is as good."""

from dataclasses import dataclass
from pathlib import Path

from cifar_deploy.cards import read_card
from cifar_deploy.data.find import load, trained_on
from cifar_deploy.disk import Json
from cifar_deploy.engines.flavour import AUTO, NAMES, RTX
from cifar_deploy.engines.options import Profile
from cifar_deploy.errors import UserError, disk_errors
from cifar_deploy.runtimes import onnx_interface
from cifar_deploy.store import (
    MISSING,
    ModelFolder,
    check_weights,
    manifest_path,
    proof_path,
    read_manifest,
    read_proofs,
    to_validate,
)

PASS = "PASS"  # validate's word for a proved file
TRITON = "triton"  # the target whose runtime and device are known


@dataclass(frozen=True)
class Engine:
    """What only an engine has."""

    tensorrt: str  # the version that built it, and that it needs
    capability: str  # compute capabilities that it runs on, or "any"
    gpu: str  # the only model of GPU that it runs on, or ""
    system: str  # and the only operating system and processor architecture, or ""
    profiles: tuple[Profile, ...]


@dataclass(frozen=True)
class Source:
    """An exported file as it is packaged. `data` are its bytes; `manifest` speaks of them."""

    folder: ModelFolder
    path: Path
    data: bytes
    manifest: Json
    proofs: tuple[Json, ...]  # of exactly these bytes, oldest first
    backend: str  # "onnx", "tensorrt" or "tensorrt-rtx"
    network: str
    precision: str
    classes: tuple[str, ...]
    input: str
    output: str
    fixed_batch: int  # 0: any
    engine: Engine | None
    target: str  # "cpp" or "triton"

    @property
    def proof(self) -> Json | None:
        """The latest verdict of where it counts, or else the latest."""
        return max(reversed(self.proofs), key=lambda one: not self._elsewhere(one), default=None)

    @property
    def proved(self) -> bool:
        """Whether `validate` gave these bytes a PASS, and where it counts."""
        return self.proof is not None and self.proof["verdict"] == PASS and not self.elsewhere

    @property
    def elsewhere(self) -> str:
        """Why a PASS is none for the target: what computed then is not what will; "" if it is."""
        return self._elsewhere(self.proof) if self.proof else ""

    def _elsewhere(self, proof: Json) -> str:
        if self.engine:
            return ""
        by, provider = str(proof["runtime"]), str(proof["provider"])
        on_gpu = provider.startswith("CUDA")
        if self.precision == "int8" and on_gpu:
            return "on a GPU, where ONNX Runtime computes in fp32 what is 8 bits on a CPU"
        if self.target == TRITON and not by.startswith("ONNX Runtime"):
            return f"by {by}, and Triton runs it in ONNX Runtime"
        if self.target == TRITON and self.precision == "fp16" and not on_gpu:
            return "on a CPU, which computes fp16 in fp32, and Triton has a GPU"
        return ""

    @property
    def sha256(self) -> str:
        """Of `data`."""
        return str(self.manifest["sha256"])

    @property
    def batches(self) -> tuple[int, int]:
        """The smallest and the largest batch; 0 for no limit."""
        if self.fixed_batch:
            return self.fixed_batch, self.fixed_batch
        if self.engine:
            profiles = self.engine.profiles
            return min(p.min for p in profiles), max(p.max for p in profiles)
        return 1, 0


def is_stale(folder: ModelFolder, precision: str) -> bool:
    """Whether the ONNX file is missing, or is of other weights than those that are there now.

    Raises UserError where the model or the file is damaged.
    """
    file = folder.onnx(precision)
    weights = read_card(folder)["weights"]["sha256"]
    return not file.exists() or _manifest_of(file, folder).get("weights_sha256") != weights


def find(folder: ModelFolder, path: Path, target: str = "cpp") -> Source:
    """The exported file `path` of the trained model in `folder`.

    Raises UserError where it cannot be read, is of earlier weights, damaged or another one under
    its name, or its manifest lacks something.
    """
    weights = read_card(folder)["weights"]["sha256"]
    with disk_errors(path, "read"):
        data = path.read_bytes()
    manifest = _manifest_of(path, folder, data)
    check_weights(path, manifest, weights)
    if manifest.get("file") != path.name:
        raise UserError(
            f"{path} was exported as {manifest.get('file')} in {manifest.get('precision')}, by its "
            "manifest; export it again"
        )
    try:
        return _source(folder, path, data, manifest, target)
    except MISSING as error:
        raise UserError(
            f"{manifest_path(path)} lacks what a package needs ({error!r}); export it again"
        ) from error


def _source(folder: ModelFolder, path: Path, data: bytes, manifest: Json, target: str) -> Source:
    engine = None
    if path.suffix == ".onnx":  # the graph itself says it, and cannot be wrong
        facts, backend = onnx_interface.inspect(path), "onnx"
    else:
        facts, backend = manifest, manifest["flavour"]
        if manifest.get("stripped"):
            raise UserError(
                f"{path} was stripped of its weights and cannot stand alone; export it without "
                "--strip-weights"
            )
        engine = Engine(
            str(manifest["tensorrt"]),
            _capability(manifest),
            _only_gpu(manifest),
            str(manifest.get("system") or ""),
            _profiles(manifest),
        )
    (given,), (answer,) = facts["inputs"], facts["outputs"]
    batch = given["shape"][0]
    classes = tuple(map(str, manifest["classes"]))
    if answer["shape"][-1] != len(classes):
        raise ValueError(f"{len(classes)} classes")
    return Source(
        folder=folder,
        path=path,
        data=data,
        manifest=manifest,
        proofs=tuple(
            proof
            for proof in read_proofs(path, manifest["sha256"])
            if proof.get("weights_sha256") == manifest["weights_sha256"]
        ),
        backend=backend,
        network=str(manifest["network"]),
        precision=str(manifest["precision"]),
        classes=classes,
        input=str(given["name"]),
        output=str(answer["name"]),
        fixed_batch=batch if isinstance(batch, int) and batch > 0 else 0,
        engine=engine,
        target=target,
    )


def _profiles(manifest: Json) -> tuple[Profile, ...]:
    sizes = [[int(p[key]) for key in ("min", "opt", "max")] for p in manifest["profiles"]]
    profiles = tuple(Profile(*size) for size in sizes)
    if not profiles or not all(1 <= p.min <= p.opt <= p.max for p in profiles):
        raise ValueError(f"profiles {manifest['profiles']}")
    return profiles


def _capability(manifest: Json) -> str:
    """The GPUs that an engine runs on: the named targets, the one it was built on, or any."""
    if manifest["flavour"] not in NAMES:
        raise ValueError(f"flavour {manifest['flavour']}")
    if targets := manifest.get("targets"):
        return " ".join(targets)
    if manifest["flavour"] == RTX:  # built without a GPU: for all that are supported
        return "any"
    if manifest.get("hardware_compatibility") == "ampere+":  # TensorRT itself tells then
        return "any"
    return str(manifest["gpu"]["compute_capability"])


def _only_gpu(manifest: Json) -> str:
    """The model of GPU that an engine is bound to, "" for none (`engines.manifest.refusal`)."""
    bound = manifest["flavour"] != RTX and manifest.get("hardware_compatibility") is None
    return str(manifest["gpu"]["name"]) if bound else ""


def require_proof(source: Source) -> None:
    """Raise UserError unless `validate` gave exactly this file a PASS."""
    command = to_validate(source.path)
    if source.proved:
        return
    if source.proof and source.proof["verdict"] == PASS:
        device = {"int8": " --device cpu", "fp16": " --device cuda"}.get(source.precision, "")
        why = f"was proved {source.elsewhere}; run: {command}{device}"
    elif source.proof:
        why = f"did not pass: {source.proof.get('verdict')}; see `{command}`"
    elif reason := _changed(source.folder):  # validate would leave no proof
        why = f"is not proved: {reason}: {command}"
    elif proof_path(source.path).exists():
        why = f"was exported anew since it was judged; run: {command}"
    else:
        why = f"is not proved on the whole test set; run: {command}"
        if source.engine:
            why += ", on a machine with the GPU it is for"
    raise UserError(f"{source.path} {why}\n--unproved packages it all the same, and says so")


def _changed(folder: ModelFolder) -> str:
    """What to tell where a model's own images are not its test images any more; "" if they are."""
    card = read_card(folder)
    if "origin" not in (seen := card.get("data", {})):
        return ""
    try:
        return load(*trained_on(card)).changed(folder.name, seen)
    except UserError:  # they are not there: validate says so
        return ""


def _manifest_of(file: Path, folder: ModelFolder, raw: bytes | None = None) -> Json:
    manifest = read_manifest(file, raw)
    if manifest is None:
        raise UserError(
            f"{file} has no manifest beside it, as what was exported has; run: cifar-deploy export "
            f"{folder.argument}"
        )
    return manifest


def engine(folder: ModelFolder, precision: str, flavour: str) -> Path:
    """The engine of a flavour, or of the only flavour that is there. Raises UserError for none."""
    if flavour not in (AUTO, *NAMES):
        raise UserError(f"--flavour {flavour}: it can be {', '.join((AUTO, *NAMES))}")
    wanted = NAMES if flavour == AUTO else (flavour,)
    there = [name for name in wanted if folder.engine(precision, name).exists()]
    if not there:
        said = f"there is no engine of {folder.name} in {precision}"
        way = f"cifar-deploy export {folder.argument} --format trt --precision {precision}"
        if flavour != AUTO:
            said, way = f"{said} of {flavour}", f"{way} --flavour {flavour}"
        raise UserError(f"{said} in {folder.path}; run: {way}")
    if len(there) > 1:
        raise UserError(f"{folder.path} has engines of {' and '.join(there)}; name one: --flavour")
    return folder.engine(precision, there[0])
