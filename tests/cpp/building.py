"""Building C++ with CMake, and packages for it to load."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cifar_deploy.data.dataset import Images
from cifar_deploy.disk import Json
from cifar_deploy.runtimes.onnx_runtime import OnnxRuntime
from cifar_deploy.runtimes.protocol import Logits
from cifar_deploy.store import read_manifest

ROOT = Path(__file__).parents[2]
CPP = ROOT / "cpp"
RUNTIMES = ("OPENVINO", "ONNXRUNTIME", "TENSORRT", "TENSORRT_RTX")
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Werror"]
PACKAGES = "cmake ninja-build g++ clang libclang-rt-dev g++-aarch64-linux-gnu qemu-user"  # Debian's


def need(*tools: str) -> None:
    """Skip where a tool is missing; where CIFAR_DEPLOY_TOOLS=required, as in CI, fail."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        why = f"needs {', '.join(missing)} (Debian: {PACKAGES})"
        if os.environ.get("CIFAR_DEPLOY_TOOLS") == "required":
            pytest.fail(why)
        pytest.skip(why)


def openvino_options() -> list[str]:
    """What CMake needs to find the wheel's OpenVINO; the test is skipped without the wheel."""
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("needs OpenVINO: pip install openvino")
    from openvino.utils import get_cmake_path

    return ["-DCIFAR_DEPLOY_WITH_OPENVINO=ON", f"-DOpenVINO_DIR={get_cmake_path()}"]


def without(*runtimes: str) -> list[str]:
    return [f"-DCIFAR_DEPLOY_WITH_{name}=OFF" for name in runtimes]


def run(
    *command: object, given: bytes = b"", status: int = 0, cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[bytes]:
    """A command that must end with `status`."""
    done = subprocess.run(
        [str(word) for word in command],
        input=given,
        capture_output=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **more},
    )
    assert done.returncode == status, (done.stdout + done.stderr).decode(errors="replace")
    return done


def cmake(source: Path, build: Path, options: Sequence[str], *targets: str) -> str:
    """Configure and build `targets` (none: all) quickly; what CMake said."""
    need("cmake", "ninja", "c++")
    options = ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1", *options]
    said = run("cmake", "-S", source, "-B", build, "-G", "Ninja", *options)
    chosen = ["--target", *targets] if targets else []
    run("cmake", "--build", build, *chosen)
    return (said.stdout + said.stderr).decode()


@dataclass(frozen=True)
class Packed:
    """A package folder, the file in it, and what ONNX Runtime in Python says of images."""

    folder: Path
    file: Path
    logits: Callable[[Images], Logits]


def write_package(file: Path, folder: Path, images: Images) -> Packed:
    """Write the folder that `cifar-deploy package --target cpp` writes, without README and code."""
    manifest = read_manifest(file)
    assert manifest is not None
    runtime = OnnxRuntime(file, torch.device("cpu"))
    logits = runtime.logits(images).astype("<f4").tobytes()
    labels = "".join(f"{name}\n" for name in manifest["classes"]).encode()
    (folder / "vectors").mkdir(parents=True)
    shutil.copy(file, folder / "model.onnx")
    (folder / "labels.txt").write_bytes(labels)
    (folder / "vectors" / "images.rgb").write_bytes(images.tobytes())
    (folder / "vectors" / "logits.f32").write_bytes(logits)
    entries: Json = {
        "format": 1,
        "model": manifest["model"],
        "network": manifest["network"],
        "precision": manifest["precision"],
        "backend": "onnx",
        "file": "model.onnx",
        "bytes": manifest["bytes"],
        "sha256": manifest["sha256"],
        "input": "images",
        "output": "logits",
        "height": 32,
        "width": 32,
        "classes": len(manifest["classes"]),
        "labels": "labels.txt",
        "labels_sha256": sha256(labels),
        "min_batch": 1,
        "max_batch": 1024,
        "fixed_batch": 0,
        "vectors_from": f"{runtime.runtime} {runtime.provider}",
        "vectors_count": len(images),
        "vectors_sha256": f"{sha256(images.tobytes())} {sha256(logits)}",
    }
    text = "".join(f"{key} {value}\n" for key, value in entries.items())
    (folder / "manifest.txt").write_text(text)
    return Packed(folder, folder / "model.onnx", runtime.logits)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pixels_of(raw: bytes) -> Images:
    return np.frombuffer(raw, np.uint8).reshape(-1, 32, 32, 3)
