"""The library, and a graph with the deployment interface that builds in a moment."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cifar_deploy.engines.build import build
from cifar_deploy.engines.flavour import Flavour
from cifar_deploy.engines.options import Options


def tiny(operator: str = "Relu") -> bytes:
    """The mean of each channel, through `operator` and a matrix, as logits of 10 classes."""
    matrix = np.arange(30, dtype=np.float32).reshape(3, 10)
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], "cast", to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], "mean", keepdims=0),
        helper.make_node(operator, ["mean"], ["changed"], "the_node"),
        helper.make_node("MatMul", ["changed", "matrix"], ["logits"], "matmul"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 32, 32, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [
            numpy_helper.from_array(matrix, "matrix"),
            numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if operator == "Relu":
        onnx.checker.check_model(model)
    raw: bytes = model.SerializeToString()
    return raw


@pytest.fixture(scope="session")
def graph() -> Callable[[str], bytes]:
    """`tiny`, for the tests."""
    return tiny


@pytest.fixture(scope="session")
def engine(rtx: Flavour) -> bytes:
    """A serialised engine of TensorRT for RTX."""
    return build(rtx, tiny(), Path("tiny.onnx"), Options()).engine
