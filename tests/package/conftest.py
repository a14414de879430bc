"""A model that is exported and proved, and the program to package it with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Refused, Run, call, command_line, refusing
from workshop import NAME, write_model, write_pictures

from cifar_deploy.data import find
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.store import ModelFolder, write_manifest


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    write_pictures(place)
    return place


@pytest.fixture(scope="session")
def dataset(pictures: Path) -> Dataset:
    return find.load("auto", pictures)


@pytest.fixture(scope="session")
def proved(tmp_path_factory: pytest.TempPathFactory, pictures: Path, dataset: Dataset) -> Path:
    """A folder with `models/simple_cnn`: exported in both precisions, both files proved."""
    place = tmp_path_factory.mktemp("workshop")
    write_model(ModelFolder(place / "models" / NAME), dataset, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("CIFAR_DEPLOY_DATA", str(pictures))
        patch.delenv("CIFAR_DEPLOY_MODELS", raising=False)
        assert call(patch, "export", NAME, "--precision", "fp32", "--precision", "fp16") == 0
        # On the CPU: not every ONNX Runtime has CUDA.
        quick = ("--max-drop", "1", "--no-latency", "--device", "cpu")
        assert call(patch, "validate", NAME, *quick) == 0
    return place


@pytest.fixture
def model(
    proved: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModelFolder:
    """A copy of the proved model, in the working directory's `models/`."""
    here = tmp_path / "here"
    shutil.copytree(proved / "models", here / "models")
    monkeypatch.chdir(here)
    monkeypatch.setenv("CIFAR_DEPLOY_DATA", str(pictures))
    monkeypatch.delenv("CIFAR_DEPLOY_MODELS", raising=False)
    return ModelFolder(Path("models") / NAME)


@pytest.fixture
def run(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the program beside `model`."""
    return command_line(monkeypatch, capsys)


@pytest.fixture
def refused(run: Run) -> Refused:
    return refusing(run)


@pytest.fixture
def engine(model: ModelFolder) -> Callable[..., Path]:
    """Write bytes that stand for an engine, with the manifest that the exporter writes."""

    def engine(flavour: str = "tensorrt", precision: str = "fp16", **facts: Any) -> Path:
        path = model.path / f"{NAME}.{precision}.{flavour}.engine"
        path.write_bytes(b"engine of " + flavour.encode() + bytes(range(256)))
        card = json.loads(model.card.read_text())
        onnx = json.loads(Path(f"{model.onnx(precision)}.json").read_text())
        manifest = {
            "format": "tensorrt",
            "flavour": flavour,
            **{key: onnx[key] for key in ("model", "network", "precision", "classes")},
            **{key: onnx[key] for key in ("mean", "std", "inputs", "outputs")},
            "weights_sha256": card["weights"]["sha256"],
            "onnx": {"file": onnx["file"], "sha256": onnx["sha256"]},
            "profiles": [{"min": 1, "opt": 128, "max": 1024}],
            "tensorrt": "10.13.3.9",
            "cuda": "13",
            "gpu": {"name": "NVIDIA H100", "compute_capability": "9.0"},
            "targets": [],
            **facts,
        }
        write_manifest(path, manifest)
        return path

    return engine
