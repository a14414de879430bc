"""A checked engine, deserialised; stripped weights put back."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_deploy.device import MIB, gpu_memory_left
from cifar_deploy.disk import Json, sha256_of
from cifar_deploy.engines import flavour as flavours
from cifar_deploy.engines import manifest as manifests
from cifar_deploy.engines.flavour import RTX, Flavour
from cifar_deploy.engines.options import targets
from cifar_deploy.errors import UserError, disk_errors

if TYPE_CHECKING:
    import torch

# What another export mends; the rest is this machine's.
OF_THE_FILE = {"VERSION_MISMATCH", "MALFORMED_ENGINE"}


class Opened:
    """An engine in the library's memory, with what has to live as long as it does."""

    def __init__(self, flavour: Flavour, runtime: Any, engine: Any, manifest: Json) -> None:
        self.flavour = flavour
        self.runtime = runtime
        self.engine = engine
        self.manifest = manifest


def open_engine(
    path: Path, device: "torch.device", trust: bool = False, known: Json | None = None
) -> Opened:
    """Check the engine in `path` against its manifest and this machine, and deserialise it.

    `known` is its manifest where that stands elsewhere (in a package). The bytes that are checked
    are the bytes that are deserialised.

    Raises UserError, in one line, for what `manifest.read` and `manifest.refusal` find, for what
    the library's own validity check finds (TensorRT for RTX has one), and where it refuses.
    """
    with disk_errors(path, "read"):
        raw = path.read_bytes()
    manifest = manifests.read(path, trust, raw) if known is None else known
    if known is not None and sha256_of(raw) != known.get("sha256"):
        raise UserError(f"{path} was changed while it was opened; write the package again")
    name = str(manifest["flavour"])
    # Without a GPU its absence is the reason to tell, whatever is installed.
    gpu = gpu_of(device)
    library = flavours.load(name) if gpu else None
    version = library.version if library else ""
    builds_for = targets(library) if library and name == RTX else ()
    if reason := manifests.refusal(manifest, version, gpu, builds_for):
        raise UserError(f"{path}: {reason}")
    opened = deserialise(library or flavours.load(name), raw, path, manifest, gpu)
    if manifest.get("stripped"):
        refit(opened, path)
    return opened


def gpu_of(device: "torch.device") -> manifests.Gpu | None:
    """The CUDA device's name and compute capability; None for a CPU."""
    import torch

    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return manifests.Gpu(torch.cuda.get_device_name(device), f"{major}.{minor}")


def deserialise(
    flavour: Flavour, raw: bytes, path: Path, manifest: Json, gpu: manifests.Gpu | None = None
) -> Opened:
    """Hand checked bytes to the library, on `gpu`. Raises UserError where it refuses them."""
    if gpu:
        import torch

        torch.cuda.empty_cache()  # what torch keeps for itself, the library may need
    runtime = flavour.make("Runtime", flavour.log)
    if manifest.get("version_compatible"):
        # Such an engine carries a small runtime of its own; its sha256 has been checked.
        runtime.engine_host_code_allowed = True
    if hasattr(runtime, "get_engine_validity"):
        _check_validity(flavour, runtime, raw, path, gpu)
    engine = runtime.deserialize_cuda_engine(raw)
    if engine is None and flavour.log.out_of_memory():
        raise _too_large(path, raw)
    if engine is None:
        raise UserError(f"{path}: {flavour} cannot load it: {flavour.log.reason()}")
    return Opened(flavour, runtime, engine, manifest)


def _check_validity(
    flavour: Flavour, runtime: Any, raw: bytes, path: Path, gpu: manifests.Gpu | None
) -> None:
    """TensorRT for RTX reads the header alone and says what is wrong with it."""
    trt = flavour.module
    validity, bits = runtime.get_engine_validity(raw)
    if validity != trt.EngineValidity.INVALID:
        return
    members: dict[str, Any] = trt.EngineInvalidityDiagnostics.__members__
    found = [name for name, member in members.items() if int(bits) & int(member)]
    if "UNSUPPORTED_CC" in found:  # of the engine, or of the library: it does not say which
        raise UserError(f"{path}: {manifests.not_for(gpu, str(flavour), targets(flavour))}")
    if "INSUFFICIENT_GPU_MEMORY" in found:
        raise _too_large(path, raw)
    said = ", ".join(name.lower().replace("_", " ") for name in found) or flavour.log.reason()
    way_out = "export it again"
    if set(found) - OF_THE_FILE:
        way_out = f"it says: {flavour.log.reason()}"
    raise UserError(f"{path}: {flavour} finds the engine invalid here: {said}; {way_out}")


def _too_large(path: Path, raw: bytes) -> UserError:
    return UserError(
        f"{path}: the GPU's memory does not hold the engine: it needs {len(raw) / MIB:,.0f} MiB or "
        f"more, {gpu_memory_left()}; close what else runs there"
    )


def refit(opened: Opened, path: Path) -> None:
    """Put the weights of the ONNX file beside a stripped engine into it.

    Raises UserError where that file is missing or is not the one the engine was built from.
    """
    source = opened.manifest.get("onnx")
    named = source if isinstance(source, dict) else {}
    onnx = path.with_name(Path(str(named.get("file", ""))).name or "missing.onnx")
    if not onnx.is_file():
        raise UserError(f"{path} has no weights in it, and {onnx} to refit it from is not there")
    with disk_errors(onnx, "read"):
        raw = onnx.read_bytes()
    if sha256_of(raw) != named.get("sha256"):
        raise UserError(f"{path} was built from another {onnx.name}; export it again")
    trt, log = opened.flavour.module, opened.flavour.log
    log.clear()
    refitter = trt.Refitter(opened.engine, log)
    parser = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_bytes(raw) or not refitter.refit_cuda_engine():
        raise UserError(f"{path} cannot be refitted from {onnx}: {log.reason()}")
