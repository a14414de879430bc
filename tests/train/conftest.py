"""A training run in the test's own process, and a network with all that has a state."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from PIL import Image

from cifar_deploy import architectures, recipe
from cifar_deploy.data import synthetic
from cifar_deploy.data.dataset import Dataset, Split
from cifar_deploy.disk import Json
from cifar_deploy.store import ModelFolder
from cifar_deploy.train.loop import Job

NORMED = '''
"""Batch norm and dropout: running statistics, and random numbers inside the network."""

from torch import nn


def build(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(200, num_classes),
    )
'''


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The batches here are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Recorder:
    """A watch that keeps what it is told."""

    steps: list[int] = field(default_factory=list)
    epochs: list[Json] = field(default_factory=list)

    def step(self, done: int, epoch: int, loss: float, accuracy: float, rate: float) -> None:
        self.steps.append(done)

    def epoch(self, record: Json) -> None:
        self.epochs.append(record)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def few(small_data: Dataset) -> Dataset:
    """600 training and 200 test images."""
    return Dataset(
        name="few",
        origin="the first of the generated images",
        classes=small_data.classes,
        train=small_data.train.first(600),
        test=small_data.test.first(200),
        verified="generated",
    )


def _save(split: Split, place: Path) -> None:
    for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        folder = place / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 240 training and 60 test images, quick to read."""
    place = tmp_path_factory.mktemp("pictures")
    data = synthetic.generate(train=240, test=60)
    _save(data.train, place / "train")
    _save(data.test, place / "test")
    return place


MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(few: Dataset, tmp_path: Path) -> MakeJob:
    """A quick job: three epochs of six steps, with overrides."""

    def make(
        *overrides: str,
        network: str = "simple_cnn",
        dataset: Dataset = few,
        folder: str = "out",
        resume: bool = False,
    ) -> Job:
        quick = ["train.epochs=3", "train.batch_size=100", "train.precision=fp32"]
        chosen = recipe.load(None, [*quick, "optimizer.lr=0.05", *overrides])
        place = ModelFolder(tmp_path / folder)
        return Job(network, chosen, dataset, torch.device("cpu"), place, resume)

    return make


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Makes a network of a name from its file's text, and gives the name back."""
    monkeypatch.syspath_prepend(tmp_path)

    def register(name: str, text: str) -> str:
        (tmp_path / f"{name}_network.py").write_text(text)
        monkeypatch.setitem(architectures.NETWORKS, name, f"{name}_network")
        return name

    return register


@pytest.fixture
def normed(register: Callable[[str, str], str]) -> str:
    """The name of a registered network with batch norm and dropout."""
    return register("normed", NORMED)
