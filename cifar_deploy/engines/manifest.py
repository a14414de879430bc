"""What stands beside an engine, and what it says about running it here, before anything is loaded.

An engine is code for one library version and some GPUs. The manifest names them, so that a
refusal is a sentence; the sha256 in it decides whether the bytes may be deserialised at all.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cifar_deploy import device as machine
from cifar_deploy.disk import Json, read_json
from cifar_deploy.engines.flavour import NAMES, RTX, TENSORRT, TITLES, numbers
from cifar_deploy.errors import UserError, disk_errors
from cifar_deploy.store import manifest_path, read_manifest

# What TensorRT for RTX is known to refuse; of other GPUs between its targets it is asked.
HOPPER = "9.0"
TURING = "7.5"
NO_GPU = "runs on a CUDA GPU; none is here"
MAGIC_RTX = b"vtrt"  # how serialised engines of TensorRT for RTX 1.7 begin


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: its name and its compute capability as "8.9"."""

    name: str
    compute_capability: str


def read(path: Path, trust: bool = False, raw: bytes | None = None) -> Json:
    """The manifest of an engine, its bytes checked against it: `raw`, or else the file's.

    Raises UserError where the engine or the manifest is missing, where the sha256 differs, and
    where it is another kind of file. With `trust` a missing or differing manifest is no error:
    what it says is used as far as it goes.
    """
    if raw is None:
        with disk_errors(path, "read"), path.open("rb") as file:
            start = file.read(len(MAGIC_RTX))
    else:
        start = raw[: len(MAGIC_RTX)]
    if trust:
        beside = manifest_path(path)
        manifest = read_json(beside) if beside.exists() else {}
    else:
        found = read_manifest(path, raw)
        if found is None:
            raise UserError(
                f"{path} has no manifest ({manifest_path(path).name}): an engine is code, and this "
                "one is not known to be from your export; export it again, or give --trust"
            )
        manifest = found
    flavour = manifest.get("flavour") or (RTX if start == MAGIC_RTX else TENSORRT)
    if flavour not in NAMES:
        raise UserError(f"{path}: its manifest names no flavour of TensorRT; export it again")
    if flavour == TENSORRT and start == MAGIC_RTX:
        raise UserError(
            f"{path} is an engine of tensorrt-rtx, and its manifest says tensorrt; export it again"
        )
    return {**manifest, "flavour": flavour}


def refusal(
    manifest: Json, version: str, gpu: Gpu | None, known: Collection[str] = (), system: str = ""
) -> str | None:
    """Why the engine of this manifest cannot run here; None where nothing speaks against it.

    `version` is that of the flavour's library here, `known` what it builds for
    (`options.targets`), `gpu` the CUDA device (None: there is none, and the others do not matter),
    `system` what `device.system` says, which it is asked by default.
    """
    flavour, built = str(manifest["flavour"]), manifest.get("tensorrt")
    title = TITLES[flavour]
    if gpu is None:
        return f"an engine of {library(manifest)} {NO_GPU}"
    if built and not _fits(flavour, str(built), version, bool(manifest.get("version_compatible"))):
        return f"built with {title} {built}, this is {version}; export it again here"
    # Of the same GPU, too: H100 beside x86-64, GH200 beside ARM. Those of RTX name none.
    there, here = manifest.get("system"), system or machine.system()
    if there and there != here:
        return f"built on {there}, this is {here}; export it again here"
    if flavour == RTX and (reason := _other_target(manifest, f"{title} {version}", gpu, known)):
        return reason
    where = manifest.get("gpu")
    if flavour == TENSORRT and isinstance(where, dict):
        return _other_gpu(where, manifest.get("hardware_compatibility"), gpu)
    return None


def not_for(gpu: Gpu | None, library: str, known: Collection[str], said: str = "") -> str:
    """What is told of a GPU that an engine of TensorRT for RTX does not run on.

    The way out is another engine where the library builds for the GPU (`known`), and another
    runtime where it does not. `said`: what the engine was built for.
    """
    if gpu and gpu.compute_capability in known:
        here = gpu.compute_capability
        said = said or f"not built for compute capability {here} ({gpu.name})"
        # For Turing it builds no linear layer in fp32, and int8 files may have one, too.
        half = " --precision fp16" if here == TURING else ""
        return f"{said}; export it again with --compute-capability {here}{half}"
    which = f" of {gpu.compute_capability} ({gpu.name})" if gpu else ""
    return (
        f"{library} does not support this GPU's compute capability{which}; run the ONNX file on "
        "it, or an engine of --flavour tensorrt"
    )


def library(manifest: Json) -> str:
    """What built the engine of a manifest, with the version where it is named."""
    return f"{TITLES[str(manifest['flavour'])]} {manifest.get('tensorrt') or ''}".rstrip()


def runs_on(manifest: Json) -> str:
    """The GPUs that an engine is for, in words, and the system where it is bound to one."""
    title = library(manifest)
    if targets := _listed(manifest, "targets"):
        return f"compute capability {', '.join(targets)}, as asked"
    if targets := _listed(manifest, "default_targets"):
        return f"compute capability {', '.join(targets)} and later, the default of {title}"
    built = manifest.get("gpu")
    if manifest["flavour"] == RTX or not isinstance(built, dict):
        return f"GPUs that {title} supports"
    here, compatibility = built.get("compute_capability"), manifest.get("hardware_compatibility")
    place = f", {system}" if (system := manifest.get("system")) else ""
    if compatibility == "ampere+":
        return f"Ampere and later{place}"
    if compatibility is not None:
        return f"compute capability {here}{place}"
    return f"{built.get('name')}, compute capability {here}{place}"


def _listed(manifest: Json, key: str) -> list[str]:
    return [str(target) for target in manifest.get(key) or []]


def _other_target(manifest: Json, library: str, gpu: Gpu, known: Collection[str]) -> str | None:
    """Why an engine of TensorRT for RTX cannot run on a GPU, where that is certain."""
    here = gpu.compute_capability
    this = f"this is {here} ({gpu.name})"
    if targets := _listed(manifest, "targets"):
        if here in targets:
            return None
        said = f"built for compute capability {', '.join(targets)}, {this}"
        if known and numbers(here) > max(map(numbers, known)):  # a default engine runs there
            return f"{said}; export it again without --compute-capability"
        return not_for(gpu, library, known, said)
    default = _listed(manifest, "default_targets")
    if not default or here in default:
        return None
    if here == HOPPER or numbers(here) < min(map(numbers, default)):
        said = f"built for compute capability {', '.join(default)} and later, {this}"
        return not_for(gpu, library, known, said)
    return None


def _fits(flavour: str, built: str, version: str, version_compatible: bool) -> bool:
    """Whether an engine built with one version may be loaded by another.

    TensorRT: the very same version; a version-compatible engine by later ones of its major
    version, and one of 10 by 11. TensorRT for RTX: the same major and minor version; whatever
    else there is, its own validity check knows.
    https://docs.nvidia.com/deeplearning/tensorrt/11.1.0/inference-library/engine-compatibility.html
    """
    there, here = numbers(built), numbers(version)
    if flavour == RTX:
        return there[:2] == here[:2]
    if version_compatible:
        return there <= here and (there[:1] == here[:1] or (there[0], here[0]) == (10, 11))
    return there == here


def _other_gpu(built: Json, compatibility: object, gpu: Gpu) -> str | None:
    there, here = str(built.get("compute_capability")), gpu.compute_capability
    if compatibility == "ampere+":
        old = float(here) < 8.0
        return f"built for Ampere and later, this is {here} ({gpu.name})" if old else None
    if there != here:
        return (
            f"built for compute capability {there} ({built.get('name')}), "
            f"this is {here} ({gpu.name}); export it again here"
        )
    if compatibility is None and built.get("name") != gpu.name:
        return (
            f"built for {built.get('name')}, this is {gpu.name}; export it again here, or there "
            "with --hardware-compatibility same-compute-capability"
        )
    return None
