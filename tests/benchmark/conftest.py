"""Something to measure: an untrained network and its exports, made once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch._dynamo.utils import counters

from cifar_deploy import architectures
from cifar_deploy.architectures import weights
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.disk import sha256_of, write_json
from cifar_deploy.export.onnx_file import export_onnx
from cifar_deploy.store import ModelFolder


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory, small_data: Dataset) -> ModelFolder:
    """simple_cnn with random weights, exported as fp32 and fp16. Read only."""
    made = ModelFolder(tmp_path_factory.mktemp("measured") / "simple_cnn")
    torch.manual_seed(11)
    facts = weights.header("simple_cnn", "cifar", small_data.classes, [0.5] * 3, [0.25] * 3)
    weights.save(made.weights, architectures.build("simple_cnn").state_dict(), facts)
    write_json(
        made.card,
        {
            "network": "simple_cnn",
            "weights": {"sha256": sha256_of(made.weights), "bytes": made.weights.stat().st_size},
            "data": {"name": "synthetic", "sha256": small_data.sha256},
        },
    )
    for precision in ("fp32", "fp16"):
        export_onnx(made, precision)
    return made


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, small_data: Dataset) -> Path:
    """A folder of images with a few of each class."""
    place = tmp_path_factory.mktemp("pictures")
    for name, split, count in (("train", small_data.train, 40), ("test", small_data.test, 60)):
        for i in range(count):
            path = place / name / small_data.classes[split.labels[i]] / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[i]).save(path)
    for label in small_data.classes:
        assert (place / "train" / label).is_dir()
        assert (place / "test" / label).is_dir()
    return place


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Another program's ONNX file: it takes float pixels, [batch, 3, 32, 32]."""
    pixels = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 32, 32])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])
    weight = numpy_helper.from_array(np.ones((3072, 10), np.float32), "weight")
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "graph", [pixels], [answer], [weight])
    opset = [helper.make_opsetid("", 18)]
    file = tmp_path / "x.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), file)
    return file


@pytest.fixture
def models(measured: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models that the program looks into."""
    monkeypatch.setenv("CIFAR_DEPLOY_MODELS", str(measured.path.parent))
    return measured.path.parent


@pytest.fixture
def compiled_graphs() -> Callable[[], int]:
    """How many graphs torch.compile has made in this test.

    It would run what another test made of the same network for as long as that has not been freed.
    """
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    return lambda: counters["stats"]["unique_graphs"] - before
