"""Networks as a training leaves them, and each exported once per precision."""

import contextlib
import copy
import functools
import io
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cifar_deploy import architectures
from cifar_deploy.architectures import weights
from cifar_deploy.architectures.weights import Trained
from cifar_deploy.data import cifar10
from cifar_deploy.data.dataset import Dataset, Images
from cifar_deploy.disk import sha256_of, write_json
from cifar_deploy.export.onnx_file import Graphs, export_onnx
from cifar_deploy.export.quantise import Calibration
from cifar_deploy.store import ModelFolder

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]
ACCURACY = 0.9321


@pytest.fixture(scope="session")
def data(request: pytest.FixtureRequest) -> Dataset:
    """The real data set where it is here, else the small generated one."""
    try:
        found: Dataset = request.getfixturevalue("real_data")
    except pytest.skip.Exception:
        found = request.getfixturevalue("small_data")
    return found


@pytest.fixture(scope="session")
def images(data: Dataset) -> Images:
    return data.test.images[:64]


def spread(network: nn.Module, images: Images) -> None:
    """Give the batch norms of `network` signs, scales and statistics as after a training."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
            with torch.no_grad():
                module.weight[torch.rand_like(module.weight) < 0.2] *= -1
            module.momentum = None  # average over all batches
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    pixels = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    network.train()
    with torch.no_grad():
        for batch in pixels.split(len(pixels) // 2):
            network(batch)
    network.eval()


@pytest.fixture(scope="session")
def trained_like(data: Dataset) -> Callable[[str], nn.Module]:
    @functools.cache
    def build(name: str) -> nn.Module:
        torch.manual_seed(7)
        network = architectures.build(name)
        spread(network, data.train.images[:32])
        return network

    return lambda name: copy.deepcopy(build(name))


def save(folder: ModelFolder, name: str, network: nn.Module, storage: str = "fp16") -> None:
    """Write weights and a card as the training does."""
    facts = weights.header(name, "cifar", cifar10.CLASSES, MEAN, STD)
    weights.save(folder.weights, weights.stored(network, storage), facts)
    card = {
        "network": name,
        "test_accuracy": ACCURACY,
        "weights": {"file": folder.weights.name, "sha256": sha256_of(folder.weights)},
    }
    write_json(folder.card, card)


@pytest.fixture(scope="session")
def saved() -> Callable[[Path, str, nn.Module], ModelFolder]:
    """A new folder with such a network, its weights in fp32."""

    def write(path: Path, name: str, network: nn.Module) -> ModelFolder:
        folder = ModelFolder(path)
        folder.path.mkdir()
        save(folder, name, network, "fp32")
        return folder

    return write


@dataclass(frozen=True)
class Exported:
    folder: ModelFolder
    path: Path
    printed: str
    warned: list[str]


@dataclass(frozen=True)
class Shelf:
    """Trained folders, their graphs and exports, each made at its first use."""

    folder: Callable[[str], ModelFolder]
    trained: Callable[[str], Trained]
    exported: Callable[[str, str], Exported]
    calibration: Calibration
    graphs: Graphs

    def copied(self, name: str, to: Path) -> ModelFolder:
        """The weights and the card of a network in a folder of one's own, without its exports."""
        there, made = self.folder(name), ModelFolder(to)
        made.path.mkdir()
        for file in (there.weights, there.card):
            shutil.copy(file, made.path)
        return made


@pytest.fixture(scope="session")
def shelf(
    trained_like: Callable[[str], nn.Module],
    data: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Shelf:
    root = tmp_path_factory.mktemp("models")
    calibration = Calibration.of(data, 40)  # a whole batch of them and a part
    graphs: Graphs = {}

    @functools.cache
    def folder(name: str) -> ModelFolder:
        made = ModelFolder(root / name)
        made.path.mkdir()
        save(made, name, trained_like(name))
        return made

    @functools.cache
    def exported(name: str, precision: str) -> Exported:
        printed = io.StringIO()
        place = folder(name)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                path = export_onnx(place, precision, calibration, graphs=graphs)
        return Exported(place, path, printed.getvalue(), [str(w.message) for w in warned])

    trained = functools.cache(lambda name: weights.load(folder(name)))
    return Shelf(folder, trained, exported, calibration, graphs)
