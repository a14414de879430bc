import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cifar_deploy.errors import UserError
from cifar_deploy.runtimes.onnx_interface import (
    Pixels,
    adapted,
    adapted_model,
    class_names,
    inspect,
)

IMAGES = ("images", TensorProto.UINT8, ["batch", 32, 32, 3])
LOGITS = ("logits", TensorProto.FLOAT, ["batch", 10])
Value = tuple[str, int, list[Any] | None]


def build(
    inputs: tuple[Value, ...] = (IMAGES,),
    outputs: tuple[Value, ...] = (LOGITS,),
    dtype: type[np.floating[Any]] = np.float32,
) -> onnx.ModelProto:
    """Cast, Flatten and one Gemm: the smallest classifier."""
    weight = np.random.default_rng(0).normal(size=(3072, 10)).astype(dtype)
    inner = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Cast", [inputs[0][0]], ["cast"], to=inner),
        helper.make_node("Flatten", ["cast"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "weight"], ["product"]),
        helper.make_node("Cast", ["product"], [outputs[0][0]], to=outputs[0][1]),
    ]
    nodes += [helper.make_node("Identity", [outputs[0][0]], [name]) for name, _, _ in outputs[1:]]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"model": "tiny"})
    return model


def written(tmp_path: Path, model: onnx.ModelProto) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_facts(tmp_path: Path) -> None:
    assert inspect(written(tmp_path, build())) == {
        "opset": 18,
        "precision": "fp32",
        "inputs": [{"name": "images", "dtype": "uint8", "shape": ["batch", 32, 32, 3]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        "metadata": {"model": "tiny"},
        "operators": {"Cast": 2, "Flatten": 1, "Gemm": 1},
    }


def test_a_file_newer_than_the_library_is_not_called_damaged(tmp_path: Path) -> None:
    model = build()
    model.ir_version = 99
    with pytest.raises(UserError, match=r"IR version 99, .* pip install --upgrade onnx"):
        inspect(written(tmp_path, model))


def test_precision_is_that_of_the_weights(tmp_path: Path) -> None:
    assert inspect(written(tmp_path, build(dtype=np.float16)))["precision"] == "fp16"


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_precision_of_8_bits_is_int8(kind: type[Any], tmp_path: Path) -> None:
    model = build()
    del model.graph.initializer[:]
    weight, scale = np.zeros((3072, 10), kind), np.array(0.1, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "quantised"))
    model.graph.initializer.append(numpy_helper.from_array(scale, "scale"))
    node = helper.make_node("DequantizeLinear", ["quantised", "scale"], ["weight"])
    model.graph.node.insert(0, node)
    assert inspect(written(tmp_path, model))["precision"] == "int8"


def test_precision_of_constants_in_nodes(tmp_path: Path) -> None:
    model = build(dtype=np.float16)
    (weight,) = model.graph.initializer
    model.graph.node.insert(0, helper.make_node("Constant", [], ["weight"], value=weight))
    del model.graph.initializer[:]
    assert inspect(written(tmp_path, model))["precision"] == "fp16"


@pytest.mark.parametrize(("batch", "shown"), [(1, 1), (64, 64), ("n", "n"), (None, "?"), (-1, "?")])
def test_any_batch(tmp_path: Path, batch: Any, shown: Any) -> None:
    model = build(
        (("x", TensorProto.UINT8, [batch, 32, 32, 3]),), (("y", TensorProto.FLOAT, [batch, 7]),)
    )
    facts = inspect(written(tmp_path, model))
    assert facts["inputs"] == [{"name": "x", "dtype": "uint8", "shape": [shown, 32, 32, 3]}]
    assert facts["outputs"][0]["shape"] == [shown, 7]


def test_initialisers_listed_as_inputs(tmp_path: Path) -> None:
    weight = helper.make_tensor_value_info("weight", TensorProto.FLOAT, [3072, 10])
    model = build()
    model.graph.input.append(weight)
    assert [value["name"] for value in inspect(written(tmp_path, model))["inputs"]] == ["images"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            build((("x", TensorProto.FLOAT, ["batch", 32, 32, 3]),)),
            r"input 'x' is float32 \[batch, 32, 32, 3\]; a deployment graph takes uint8",
        ),
        (
            build((("x", TensorProto.UINT8, ["batch", 3, 32, 32]),)),
            r"input 'x' is uint8 \[batch, 3, 32, 32\]",
        ),
        (build((("x", TensorProto.UINT8, None),)), "Field 'shape' of 'type' is required"),
        (
            build((IMAGES, ("mask", TensorProto.UINT8, [1]))),
            "has 2 inputs; a deployment graph",
        ),
        (
            build(outputs=(("y", TensorProto.FLOAT16, ["batch", 10]),)),
            r"output 'y' is float16 \[batch, 10\]",
        ),
        (
            build(outputs=(LOGITS, ("copy", TensorProto.FLOAT, ["batch", 10]))),
            "has 2 outputs",
        ),
    ],
    ids=["float", "planar", "shapeless", "inputs", "half", "outputs"],
)
def test_another_interface(tmp_path: Path, model: onnx.ModelProto, message: str) -> None:
    path = written(tmp_path, model)
    with pytest.raises(UserError, match=message) as caught:
        inspect(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        inspect(tmp_path / "no.onnx")
    with pytest.raises(UserError, match="Is a directory"):
        inspect(tmp_path)


def saved_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(1000))
    return file.getvalue()


@pytest.mark.parametrize(
    "raw",
    [b"", b"\0", b"hello, world\n" * 50, b"\x89PNG\r\n\x1a\n" + bytes(99), saved_array()],
    ids=["empty", "zero", "text", "png", "npy"],
)
def test_foreign_file(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"foreign\.onnx is truncated or no valid ONNX file"):
        inspect(path)


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = written(tmp_path, build())
    whole = path.read_bytes()
    step = len(whole) // 150
    # The last bytes are the file's own properties and the opset: each of them counts too.
    for length in (*range(0, len(whole) - 60, step), *range(len(whole) - 60, len(whole) - 1)):
        path.write_bytes(whole[:length])
        try:
            facts = inspect(path)
        except UserError as error:
            assert "truncated or no valid ONNX file" in str(error)  # noqa: PT017
        else:
            # Cut between two fields, the file is a whole one without the last of them.
            assert facts["opset"] == 18


def test_damaged_bytes_never_crash(tmp_path: Path) -> None:
    path = written(tmp_path, build())
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    weights = whole.tobytes().index(onnx.load(path).graph.initializer[0].raw_data)
    outside = np.r_[0:weights, weights + 3072 * 40 : len(whole)]
    generator = np.random.default_rng(1)
    refused = 0
    for _ in range(400):
        damaged = whole.copy()
        where = generator.choice(outside, size=3)
        damaged[where] = generator.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            inspect(path)
        except UserError:
            refused += 1
    assert refused > 200


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(build(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(UserError, match=r"model\.onnx keeps its weights in other files"):
        inspect(path)


def elsewhere() -> onnx.NodeProto:
    """A constant, called chosen, whose numbers lie in another file."""
    secret = numpy_helper.from_array(np.zeros(10, np.float32), "secret")
    secret.ClearField("raw_data")
    secret.data_location = TensorProto.EXTERNAL
    secret.external_data.add(key="location", value="../elsewhere")
    return helper.make_node("Constant", [], ["chosen"], value=secret)


def test_external_data_in_a_subgraph(tmp_path: Path) -> None:
    model = build()
    output = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, [10])
    branch = helper.make_graph([elsewhere()], "branch", [], [output])
    truth = numpy_helper.from_array(np.array(True), "truth")
    model.graph.initializer.append(truth)
    model.graph.node.append(
        helper.make_node("If", ["truth"], ["unused"], then_branch=branch, else_branch=branch)
    )
    with pytest.raises(UserError, match="keeps its weights in other files"):
        inspect(written(tmp_path, model))


def using(*functions: onnx.FunctionProto, given: Sequence[str] = ()) -> onnx.ModelProto:
    """A model that has these functions and calls the last one."""
    model = build()
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid("own", 1))
    node = helper.make_node(functions[-1].name, given, ["unused"], domain="own")
    model.graph.node.append(node)
    return model


def function(
    name: str, given: Sequence[str], made: str, nodes: Sequence[onnx.NodeProto]
) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, given, [made], nodes, opsets)


def test_external_data_in_a_function(tmp_path: Path) -> None:
    model = using(function("F", [], "chosen", [elsewhere()]))
    with pytest.raises(UserError, match="keeps its weights in other files"):
        inspect(written(tmp_path, model))


def test_external_data_in_a_functions_default(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["chosen"])
    constant.attribute.add(name="value", ref_attr_name="given", type=onnx.AttributeProto.TENSOR)
    own = function("F", [], "chosen", [constant])
    (value,) = elsewhere().attribute
    value.name = "given"
    own.attribute_proto.append(value)
    with pytest.raises(UserError, match="keeps its weights in other files"):
        inspect(written(tmp_path, using(own)))


def test_external_data_of_a_sparse_constant(tmp_path: Path) -> None:
    model = build()
    indices = numpy_helper.from_array(np.zeros(10, np.int64), "indices")
    sparse = helper.make_sparse_tensor(elsewhere().attribute[0].t, indices, [100])
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], sparse_value=sparse))
    with pytest.raises(UserError, match="keeps its weights in other files"):
        inspect(written(tmp_path, model))


def nested(levels: int) -> onnx.ModelProto:
    """Each function uses the one below twice: 2 ** levels additions when all are put in."""
    twice = [helper.make_node("Add", ["x", "x"], ["y"])]
    functions = [function("F0", ["x"], "y", twice)]
    for level in range(levels):
        both = [
            helper.make_node(f"F{level}", [given], [made], domain="own")
            for given, made in (("x", "once"), ("once", "y"))
        ]
        functions.append(function(f"F{level + 1}", ["x"], "y", both))
    return using(*functions, given=[build().graph.initializer[0].name])


def test_functions_that_unfold_without_an_end_are_refused(tmp_path: Path) -> None:
    inspect(written(tmp_path, nested(6)))
    for levels in (14, 60):
        with pytest.raises(UserError, match="unfolds to more than 10,000 nodes"):
            inspect(written(tmp_path, nested(levels)))


@pytest.mark.parametrize(("batch", "classes"), [(1 << 40, 10), ("n", 1 << 62)])
def test_sizes_that_nothing_has_are_refused(tmp_path: Path, batch: Any, classes: int) -> None:
    given, answer = [batch, 32, 32, 3], [batch, classes]
    model = build((("x", TensorProto.UINT8, given),), (("y", TensorProto.FLOAT, answer),))
    with pytest.raises(UserError, match="a deployment graph takes uint8"):
        inspect(written(tmp_path, model))


def test_names_that_a_terminal_would_obey_are_refused(tmp_path: Path) -> None:
    model = build()
    model.graph.node[0].name = "\x1b]0;mine\x07"
    with pytest.raises(UserError, match="has control characters in its names"):
        inspect(written(tmp_path, model))
    for names in (["\x1b[2J", *"bcdefghij"], "[" * 700 + "]" * 700, "[" * 200_000):
        model = build()
        text = names if isinstance(names, str) else json.dumps(names)
        model.metadata_props.add(key="classes", value=text)
        assert class_names(inspect(written(tmp_path, model))) is None


# --- other programs' interfaces -----------------------------------------------------------------

PIXELS = Pixels((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def logits(model: onnx.ModelProto | bytes, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    raw = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    answer: npt.NDArray[Any] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return answer


@pytest.mark.parametrize("ir_version", [3, 10])
@pytest.mark.parametrize("batch", ["batch", 3])
@pytest.mark.parametrize(
    ("dtype", "planes"),
    [
        ("float32", True),
        ("float32", False),
        ("float16", True),
        ("float16", False),
        ("uint8", True),
    ],
)
def test_a_foreign_graph_gets_the_preprocessing_that_it_lacks(
    tmp_path: Path, dtype: str, planes: bool, batch: int | str, ir_version: int
) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    half = dtype == "float16"
    model = build(
        (("x", kind, [batch, 3, 32, 32] if planes else [batch, 32, 32, 3]),),
        (("y", TensorProto.FLOAT16 if half else TensorProto.FLOAT, [batch, 10]),),
        np.float16 if half else np.float32,
    )
    model.ir_version = ir_version
    if ir_version < 4:  # every weight is an input as well
        weight = model.graph.initializer[0]
        model.graph.input.append(
            helper.make_tensor_value_info("weight", weight.data_type, weight.dims)
        )
    before = model.SerializeToString()
    facts, graph, said = adapted(written(tmp_path, model), PIXELS)
    assert graph is not None
    assert facts["inputs"][0]["dtype"] == "uint8"
    assert facts["inputs"][0]["shape"] == [batch, 32, 32, 3]
    assert (facts["outputs"][0]["dtype"], facts["outputs"][0]["shape"]) == ("float32", [batch, 10])
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    wanted: npt.NDArray[Any] = images
    if dtype != "uint8":
        wanted = (images.astype(np.float64) / 255 - PIXELS.mean) / PIXELS.std
    wanted = (wanted.transpose(0, 3, 1, 2) if planes else wanted).astype(dtype)
    found = logits(graph, images)
    expected = logits(before, np.ascontiguousarray(wanted))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0.02 if half else 1e-4, atol=0.2 * half + 1e-3)
    assert said.startswith(f"takes {dtype} [{batch}, ")
    assert ("mean 0.5,0.4,0.3 and std 0.2,0.25,0.3 are put before it" in said) == (dtype != "uint8")
    assert ("a transposition is put before it" in said) == (dtype == "uint8")
    assert ("a cast to float32 is put behind it" in said) == half


def test_a_deployment_graph_is_left_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, build())
    assert adapted(path, PIXELS) == (inspect(path), None, "")


@pytest.mark.parametrize(
    "shape", [["batch", 3, 224, 224], ["batch", 32, 32, 1], ["batch", 3072]], ids=str
)
def test_other_images_are_refused_with_what_is_taken(tmp_path: Path, shape: list[Any]) -> None:
    model = build((("x", TensorProto.FLOAT, shape),))
    with pytest.raises(UserError, match=r"validate and benchmark also take float32 or float16"):
        adapted(written(tmp_path, model), PIXELS)


@pytest.mark.parametrize("answer", [["batch", "?"], ["batch", 10, 1, 1]], ids=str)
def test_an_output_that_is_none_is_told_as_one(tmp_path: Path, answer: list[Any]) -> None:
    pixels = ("x", TensorProto.FLOAT, ["batch", 3, 32, 32])
    model = build((pixels,), (("y", TensorProto.FLOAT, answer),))
    with pytest.raises(UserError, match="output 'y' is float32"):
        adapted(written(tmp_path, model), PIXELS)


@pytest.mark.parametrize("opset", [5, 6])
def test_an_opset_without_broadcasting_is_refused(tmp_path: Path, opset: int) -> None:
    pixels = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3072])
    nodes = [helper.make_node("Flatten", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "graph", [pixels], [answer])
    opsets = [helper.make_opsetid("", opset)]
    path = written(tmp_path, helper.make_model(graph, opset_imports=opsets, ir_version=3))
    with pytest.raises(UserError, match=f"is of opset {opset}, .* opset 7 or later"):
        adapted(path, PIXELS)


def test_batches_may_have_other_names_or_none(tmp_path: Path) -> None:
    model = build(
        (("x", TensorProto.FLOAT, [None, 3, 32, 32]),), (("y", TensorProto.FLOAT, ["n", 10]),)
    )
    facts, raw, _ = adapted(written(tmp_path, model), PIXELS)
    assert facts["inputs"][0]["shape"] == ["batch", 32, 32, 3]
    assert raw is not None
    assert logits(raw, np.zeros((5, 32, 32, 3), np.uint8)).shape == (5, 10)


def test_nodes_may_stand_in_any_order(tmp_path: Path) -> None:
    """As ONNX Runtime's converter to fp16 leaves them."""
    model = build()
    model.graph.node.reverse()
    images = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert inspect(written(tmp_path, model)) == inspect(written(tmp_path, build()))
    floats = build((("x", TensorProto.FLOAT, ["batch", 3, 32, 32]),))
    wanted = adapted(written(tmp_path, floats), PIXELS)[1]
    floats.graph.node.reverse()
    found = adapted(written(tmp_path, floats), PIXELS)[1]
    assert wanted is not None
    assert found is not None
    np.testing.assert_array_equal(logits(found, images), logits(wanted, images))


def chained(length: int) -> tuple[onnx.ModelProto, list[str]]:
    """A model with a chain of so many nodes before the rest, and its nodes' outputs in order."""
    model = build()
    names = [f"link{i}" for i in range(length)]
    links = [
        helper.make_node("Identity", [before], [name])
        for before, name in zip(["images", *names], names, strict=False)
    ]
    model.graph.node[0].input[0] = names[-1]
    nodes = [*links, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model, [node.output[0] for node in nodes]


def test_a_long_chain_in_reverse_is_put_in_order(tmp_path: Path) -> None:
    model, outputs = chained(1_500)
    model.graph.node.reverse()
    _, found, _ = adapted_model(written(tmp_path, model), PIXELS)
    assert [node.output[0] for node in found.graph.node] == outputs


def test_what_is_in_order_stays_as_it_is(tmp_path: Path) -> None:
    # A constant that is used last stands last: it could come first, and need not.
    model, outputs = chained(3)
    model.graph.node.insert(2, helper.make_node("Identity", ["link0"], ["unused"]))
    model.graph.node.append(helper.make_node("Constant", [], ["late"], value_float=1.0))
    outputs = [*outputs[:2], "unused", *outputs[2:], "late"]
    _, found, _ = adapted_model(written(tmp_path, model), PIXELS)
    assert [node.output[0] for node in found.graph.node] == outputs


def test_a_circle_is_told(tmp_path: Path) -> None:
    model = build()
    model.graph.node[0].input[0] = "product"
    with pytest.raises(UserError, match="no valid ONNX file"):
        inspect(written(tmp_path, model))


def test_who_takes_a_foreign_graph_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, build((("x", TensorProto.FLOAT, ["batch", 3, 32, 32]),)))
    with pytest.raises(
        UserError,
        match="only validate, layers, profile, and benchmark without --scenario, take this",
    ):
        inspect(path)


def stored(tmp_path: Path, *weights: npt.NDArray[Any]) -> str:
    model = build()
    model.graph.initializer.extend(
        numpy_helper.from_array(weight, f"more{i}") for i, weight in enumerate(weights)
    )
    return str(inspect(written(tmp_path, model))["precision"])


def test_precision_is_the_lowest_of_filters_and_matrices(tmp_path: Path) -> None:
    half, eight = np.zeros((3, 4), np.float16), np.zeros((4, 3), np.int8)
    assert stored(tmp_path, half[0], eight[0], np.float16(1)) == "fp32"  # of no matrix
    assert stored(tmp_path, half) == "fp16"
    assert stored(tmp_path, np.zeros((2, 2, 3, 3), np.float32), half) == "fp16"
    assert stored(tmp_path, half, eight) == "int8"


@pytest.mark.parametrize("shape", [["n", 32, 16, 3], ["n", 16, 32, 3], ["n", 32, 32, 3, 1]])
def test_sides_are_both_32(tmp_path: Path, shape: list[Any]) -> None:
    with pytest.raises(UserError, match="a deployment graph takes uint8"):
        inspect(written(tmp_path, build((("x", TensorProto.UINT8, shape),))))
