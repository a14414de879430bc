"""Load what a user names, a trained model or an exported file, into its runtime."""

import contextlib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from cifar_deploy.address import Address
from cifar_deploy.architectures import weights
from cifar_deploy.disk import Json
from cifar_deploy.engines import flavour
from cifar_deploy.engines import manifest as engine_manifest
from cifar_deploy.errors import UserError
from cifar_deploy.kind import check_exported
from cifar_deploy.runtimes import onnx_interface
from cifar_deploy.runtimes.onnx_interface import Pixels
from cifar_deploy.runtimes.onnx_runtime import OnnxRuntime
from cifar_deploy.runtimes.openvino import OpenVino
from cifar_deploy.runtimes.openvino import library as openvino_library
from cifar_deploy.runtimes.protocol import Runtime
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.runtimes.served import Served
from cifar_deploy.runtimes.tensorrt import TensorRT
from cifar_deploy.store import ModelFolder, check_weights, read_manifest

ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"  # also their modules' names
# What runs ONNX files, by name.
ONNX: dict[str, Callable[[Path, torch.device, Pixels | None], Runtime]] = {
    ONNXRUNTIME: OnnxRuntime,
    OPENVINO: OpenVino,
}


def check_onnx(names: Sequence[str]) -> None:
    """Raise UserError for what runs no ONNX files here, and for none."""
    wrong = [name for name in names if not isinstance(name, str) or name not in ONNX]
    if wrong or not names:
        raise UserError(f"runtime {wrong[0] if wrong else names}: it can be {' or '.join(ONNX)}")


def open_runtime(
    path: Path | Address,
    device: torch.device,
    trust: bool = False,
    known: Json | None = None,
    pixels: Pixels | None = None,
    onnx: str = ONNXRUNTIME,
) -> Runtime:
    """An exported file in the runtime of its kind, or a model where it is served.

    Raises UserError for a file of another kind, or one that its runtime refuses. `trust` lets an
    engine without a matching manifest through; `known` is the manifest of one whose bytes have
    been checked already; with `pixels` an ONNX file may have another program's interface, and they
    are prepared as it wants them; `onnx` is what runs ONNX files, one of ONNX.
    """
    if isinstance(path, Address):
        return Served(path)
    check_exported(path)
    if path.suffix == ".engine":
        return TensorRT(path, device, trust, known)
    return ONNX[onnx](path, device, pixels)


def import_library(
    path: Path | Address, device: torch.device, trust: bool = False, onnx: str = ONNXRUNTIME
) -> None:
    """Import what `open_runtime` needs for the same arguments: the opening alone is timed then.

    What is wrong with the file or the library, `open_runtime` tells.
    """
    if isinstance(path, Address):
        return
    with contextlib.suppress(ImportError, UserError):
        if path.suffix != ".engine":
            importlib.import_module("onnx")
            if onnx == OPENVINO:
                openvino_library()
            else:
                importlib.import_module(onnx)
        elif device.type == "cuda":  # else none is imported
            flavour.load(str(engine_manifest.read(path, trust)["flavour"]))


def open_file(
    path: Path | Address, device: torch.device, trust: bool = False, onnx: str = ONNXRUNTIME
) -> tuple[Runtime, tuple[str, ...]]:
    """A file or served model in its runtime, and its class names (numbers, where it has none).

    `onnx` is what runs ONNX files. Raises UserError as `open_runtime` does.
    """
    runtime = open_runtime(path, device, trust, onnx=onnx)
    classes: object
    if isinstance(runtime, Served):
        classes, count = runtime.labels(), runtime.classes
    elif isinstance(runtime, TensorRT):
        classes, count = runtime.manifest.get("classes"), runtime.classes
    else:
        assert isinstance(runtime, OnnxRuntime | OpenVino)
        classes, count = runtime.graph.names, runtime.graph.classes
    if not isinstance(classes, list | tuple) or len(classes) != count:
        classes = range(count)
    return runtime, tuple(map(str, classes))


def check_file(path: Path, weights_sha256: str | None = None, trust: bool = False) -> None:
    """See that an exported file is whole and can be given pixels, without running it.

    With `weights_sha256` also that it was exported from those weights. `trust`: as `open_runtime`.
    Raises UserError where not.
    """
    check_exported(path)
    if path.suffix == ".engine":
        manifest: Json | None = engine_manifest.read(path, trust)
    else:
        manifest = read_manifest(path)
        facts = onnx_interface.inspect(path, foreign=True)
        if manifest is None and "weights_sha256" in facts["metadata"]:  # the file says it itself
            manifest = facts["metadata"]
    if weights_sha256 and manifest and not (trust and manifest.get("weights_sha256") is None):
        check_weights(path, manifest, weights_sha256)


def open_model(folder: ModelFolder, device: torch.device) -> tuple[Runtime, tuple[str, ...]]:
    """A trained model in PyTorch, and its class names."""
    trained = weights.load(folder)
    return PyTorch(trained, device), trained.classes
