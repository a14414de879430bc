"""Load what a user names, a trained model or an exported file, into its runtime."""

import json
from pathlib import Path

import torch

from cifar_deploy.architectures import weights
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes import onnx_interface
from cifar_deploy.runtimes.onnx_runtime import OnnxRuntime
from cifar_deploy.runtimes.protocol import Runtime
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.store import ModelFolder, read_manifest


def open_file(path: Path, device: torch.device) -> tuple[Runtime, tuple[str, ...]]:
    """An exported file in its runtime, and its class names (numbers, where it carries none).

    Raises UserError for a file of another kind, or one that its runtime refuses.
    """
    if path.suffix != ".onnx":
        raise UserError(f"{path} is of no exported format; those are: .onnx")
    runtime = OnnxRuntime(path, device)
    facts = onnx_interface.inspect(path)
    count = int(facts["outputs"][0]["shape"][-1])
    try:
        classes = json.loads(facts["metadata"]["classes"])
    except (KeyError, ValueError):
        classes = []
    if not isinstance(classes, list) or len(classes) != count:
        classes = list(range(count))
    return runtime, tuple(map(str, classes))


def check_file(path: Path, weights_sha256: str | None = None) -> None:
    """See that an exported file is whole and has the deployment interface, without running it.

    With `weights_sha256` also that it was exported from those weights. Raises UserError where not.
    """
    manifest = read_manifest(path)
    onnx_interface.inspect(path)
    if weights_sha256 and manifest and manifest.get("weights_sha256") != weights_sha256:
        raise UserError(
            f"{path} was exported from other weights than those that are there now; export it again"
        )


def open_model(folder: ModelFolder, device: torch.device) -> tuple[Runtime, tuple[str, ...]]:
    """A trained model in PyTorch, and its class names."""
    trained = weights.load(folder)
    return PyTorch(trained, device), trained.classes
