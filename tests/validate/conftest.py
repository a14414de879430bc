"""Something to judge: a network trained in seconds and exported, and how to damage its files."""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from judgements import MakeJudgement, judgement_of
from onnx import numpy_helper

from cifar_deploy import recipe
from cifar_deploy.architectures import weights
from cifar_deploy.architectures.weights import Trained
from cifar_deploy.data import synthetic
from cifar_deploy.data.dataset import Dataset, Split
from cifar_deploy.disk import Json
from cifar_deploy.export.onnx_file import export_onnx
from cifar_deploy.store import ModelFolder, write_manifest
from cifar_deploy.train.loop import Job, Trainer
from cifar_deploy.validate.judge import Options, Reference, judge

CPU = torch.device("cpu")


class Silent:
    def step(self, done: int, epoch: int, loss: float, accuracy: float, rate: float) -> None:
        pass

    def epoch(self, record: Json) -> None:
        pass


def quickly_trained(data: Dataset, place: Path) -> ModelFolder:
    """simple_cnn after 160 steps; which test images there are makes no difference to it."""
    folder = ModelFolder(place / "simple_cnn")
    settings = {
        "train": {"epochs": 4, "batch_size": 50, "ema": 0.0, "precision": "fp32"},
        "optimizer": {"name": "adamw", "lr": 0.003},
        "augment": {"translate": 0, "flip": False},
    }
    Trainer(Job("simple_cnn", recipe.parse(settings, "test"), data, CPU, folder)).run(Silent())
    return folder


@pytest.fixture(scope="session")
def judged_data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """2,000 training images, and test images enough for the default margins.

    None is all but a tie between two classes: what becomes of those in fp16 is chance, and two
    of them lost may be more than a margin allows.
    """
    data = synthetic.generate(train=2_000, test=6_500)
    trained = weights.load(quickly_trained(data, tmp_path_factory.mktemp("first")))
    logits = judge(Reference.of_model(trained), [], data, CPU, Options(seconds=0)).rows[0].logits
    second, first = np.sort(logits)[:, -2:].T
    clear = np.flatnonzero(first - second > 0.02)[:6_000]  # fp16's logits differ by up to 0.005
    assert len(clear) == 6_000
    test = Split(data.test.images[clear], data.test.labels[clear])
    return dataclasses.replace(data, test=test)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, judged_data: Dataset) -> ModelFolder:
    """simple_cnn after 160 steps, exported as fp32 and fp16. Read only."""
    place = quickly_trained(judged_data, tmp_path_factory.mktemp("models"))
    for precision in ("fp32", "fp16"):
        export_onnx(place, precision)
    return place


@pytest.fixture
def trained(folder: ModelFolder) -> Trained:
    return weights.load(folder)


@pytest.fixture
def floats(trained: Trained, tmp_path: Path) -> Path:
    """The network alone, as torch.onnx.export writes it: normalised floats in planes."""
    path = tmp_path / "floats.onnx"
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            trained.network,
            (torch.zeros(2, 3, 32, 32),),
            path,
            dynamo=True,
            verbose=False,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    return path


@pytest.fixture
def make_judgement(small_data: Dataset) -> MakeJudgement:
    """Judgements over the test images of `small_data`, with the answers that the test wants."""
    return partial(judgement_of, small_data)


@pytest.fixture
def damage() -> Callable[[Path, Path], Path]:
    """A copy of an ONNX file whose classifier has its classes turned by one, with a manifest."""

    def turn(source: Path, target: Path) -> Path:
        model = onnx.load(source)
        # The classifier's weights are the last initialisers with ten rows or columns.
        last = next(
            tensor
            for tensor in reversed(model.graph.initializer)
            if len(tensor.dims) == 2 and 10 in tensor.dims
        )
        values = numpy_helper.to_array(last)
        turned = np.roll(values, 1, axis=list(last.dims).index(10))
        last.CopyFrom(numpy_helper.from_array(turned, last.name))
        target.write_bytes(model.SerializeToString())
        write_manifest(target, {})
        return target

    return turn
