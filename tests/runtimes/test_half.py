"""An fp16 graph in fp32, rounded where it is in fp16."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from cifar_deploy.runtimes.graphs import element_types
from cifar_deploy.runtimes.half import LARGEST, rounded

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def graph(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """`nodes` from "x", float32 [n], to "y", the same; "two" and "small" are stored in fp16."""
    made = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", FLOAT, ["n"])],
        [
            numpy_helper.from_array(np.array(2, np.float16), "two"),
            numpy_helper.from_array(np.array(0.001, np.float16), "small"),
        ],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def node(operator: str, taken: list[str], given: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, taken, [given], given, **attributes)


def doubled() -> onnx.ModelProto:
    """x, doubled and made small again, in fp16."""
    constant = numpy_helper.from_array(np.array(0.5, np.float16))
    return graph(
        node("Cast", ["x"], "half", to=HALF),
        node("Mul", ["half", "two"], "large"),
        node("Mul", ["large", "small"], "less"),
        node("Constant", [], "point_five", value=constant),
        node("Mul", ["less", "point_five"], "least"),
        node("Cast", ["least"], "y", to=FLOAT),
    )


def test_it_answers_as_fp16_does_and_in_fp32() -> None:
    model = doubled()
    before = model.SerializeToString()
    wide = rounded(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(wide, full_check=True)
    x = np.array([1.23456, 30_000, LARGEST / 2, 40_000, 1e-7], np.float32)
    with np.errstate(over="ignore"):
        (wanted,) = ReferenceEvaluator(model).run(None, {"x": x})
        (found,) = ReferenceEvaluator(wide).run(None, {"x": x})
    np.testing.assert_array_equal(found, wanted)
    assert list(np.isinf(found)) == [False, False, False, True, False]
    kinds = element_types(wide)
    assert all(kinds[name] == FLOAT for name in ("half", "large", "less", "least", "two"))
    assert [name for name, kind in kinds.items() if kind == HALF] == [
        f"{name}.half" for name in ("half", "large", "less", "point_five", "least")
    ]


def test_what_is_not_in_fp16_or_not_known_stays_as_it_is() -> None:
    plain = graph(node("Relu", ["x"], "y"))
    del plain.graph.initializer[:]
    strange = doubled()
    strange.graph.node[1].domain = "elsewhere"
    strange.opset_import.append(helper.make_opsetid("elsewhere", 1))
    for model in (plain, strange):
        assert rounded(model) is model
