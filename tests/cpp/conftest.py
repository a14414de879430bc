"""The C++ library built once, and packages of real networks for it to load."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from building import CPP, ROOT, RUNTIMES, Packed, cmake, openvino_options, without, write_package

from cifar_deploy.data.dataset import Dataset
from cifar_deploy.disk import read_json
from cifar_deploy.export.onnx_file import export_onnx
from cifar_deploy.export.quantise import Calibration
from cifar_deploy.store import ModelFolder


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with `classify`, `benchmark` and `probe`, which have the OpenVINO backend."""
    build = tmp_path_factory.mktemp("cpp") / "build"
    options = [*openvino_options(), *without(*RUNTIMES[1:])]
    cmake(CPP, build, options, "classify", "benchmark", "probe")
    return build / "bin"


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program `unit`, under ASan and UBSan."""
    build = tmp_path_factory.mktemp("sanitized") / "build"
    options = [*openvino_options(), *without(*RUNTIMES[1:]), "-DCIFAR_DEPLOY_SANITIZE=ON"]
    cmake(CPP, build, [*options, "-DCMAKE_CXX_FLAGS_DEBUG=-O0"], "unit")
    return build / "bin" / "unit"


@pytest.fixture(scope="session")
def packed(real_data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Packed]:
    """A package of the committed custom_resnet in a precision."""
    model = ModelFolder(tmp_path_factory.mktemp("models") / "custom_resnet")
    committed = ModelFolder(ROOT / "models" / "custom_resnet")
    model.path.mkdir()
    shutil.copy(committed.weights, model.weights)
    shutil.copy(committed.card, model.card)
    assert read_json(model.card)["network"] == "custom_resnet"

    @cache
    def write(precision: str) -> Packed:
        file = export_onnx(model, precision, Calibration.of(real_data, 128))
        folder = tmp_path_factory.mktemp("package") / precision
        return write_package(file, folder, real_data.test.images[:64])

    return write


@pytest.fixture
def copied(packed: Callable[[str], Packed], tmp_path: Path) -> Path:
    """A package of one's own to damage."""
    return Path(shutil.copytree(packed("fp32").folder, tmp_path / "package"))
