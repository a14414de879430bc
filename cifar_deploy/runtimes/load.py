"""Load what a user names, a trained model or an exported file, into its runtime."""

from pathlib import Path

import torch

from cifar_deploy.architectures import weights
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes import onnx_interface
from cifar_deploy.runtimes.onnx_runtime import OnnxRuntime
from cifar_deploy.runtimes.protocol import Runtime
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.store import ModelFolder


def open_file(path: Path, device: torch.device) -> tuple[Runtime, tuple[str, ...]]:
    """An exported file in its runtime, and its class names (numbers, where it carries none).

    Raises UserError for a file of another kind, or one that its runtime refuses.
    """
    if path.suffix != ".onnx":
        raise UserError(f"{path} is of no exported format; those are: .onnx")
    runtime = OnnxRuntime(path, device)
    facts = onnx_interface.inspect(path)
    count = int(facts["outputs"][0]["shape"][-1])
    return runtime, tuple(facts["classes"] or (str(i) for i in range(count)))


def open_model(folder: ModelFolder, device: torch.device) -> tuple[Runtime, tuple[str, ...]]:
    """A trained model in PyTorch, and its class names."""
    trained = weights.load(folder)
    return PyTorch(trained, device), trained.classes
