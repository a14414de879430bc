"""Read an ONNX file from anywhere: whether it has the deployment interface, or can be given it."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_deploy.data.dataset import SIZE
from cifar_deploy.disk import Json
from cifar_deploy.engines.options import LARGEST_BATCH
from cifar_deploy.errors import UserError, disk_errors, is_plain, one_line
from cifar_deploy.runtimes import graphs
from cifar_deploy.runtimes.protocol import ANY, MOST_CLASSES
from cifar_deploy.store import read_manifest

if TYPE_CHECKING:
    import onnx

WANTED = (
    f"a deployment graph takes uint8 [batch, {SIZE}, {SIZE}, 3] and gives float32 [batch, classes]"
)
# What other programs' exporters write, and how they say it.
FLOATS = ("float32", "float16")
TAKEN = f"float32 or float16, pixels as [batch, 3, {SIZE}, {SIZE}] or [batch, {SIZE}, {SIZE}, 3]"
OURS = "cifar_deploy."  # so no names of a graph begin
GIVEN, ANSWER = f"{OURS}images", f"{OURS}logits"
BROADCASTS = 7  # the first opset whose Mul and Add do
MOST_NODES = 10_000  # with functions put in where they are used
LARGEST = (1 << 31) - 1  # bytes: protobuf, and with it ONNX, holds no more in one file


@dataclass(frozen=True)
class Pixels:
    """How a graph of another program wants them: in 0..1, less `mean`, over `std`, per channel."""

    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Graph:
    """What a runtime needs of an ONNX file."""

    source: bytes | None  # with what was put before it; None: the file as it is
    addition: str  # that in words
    precision: str
    input: str  # names
    output: str
    classes: int
    batches: Sequence[range]  # that it takes
    names: list[str] | None = None  # of the classes, where it has them


def graph(path: Path, pixels: Pixels | None = None) -> Graph:
    """The ONNX file as a runtime runs it. With `pixels` it may have another program's interface.

    Raises UserError as `inspect` does, and where the file is not the one its manifest speaks of.
    """
    read_manifest(path)
    if pixels:
        facts, source, addition = adapted(path, pixels)
    else:
        facts, source, addition = inspect(path), None, ""
    (given,), (answer,) = facts["inputs"], facts["outputs"]
    batch = given["shape"][0]  # a name where it is open
    return Graph(
        source,
        addition,
        precision=facts["precision"],
        input=given["name"],
        output=answer["name"],
        classes=int(answer["shape"][-1]),
        batches=[range(batch, batch + 1)] if isinstance(batch, int) else ANY,
        names=class_names(facts),
    )


def inspect(path: Path, foreign: bool = False) -> Json:
    """What an ONNX file takes and gives, read from its bytes alone.

    `opset`; `precision` ("fp32", "fp16", ...: the lowest that weights are stored in); `inputs` and
    `outputs`, each with name, dtype and shape (a dynamic size is its name, or "?" without one);
    `metadata`, the file's own properties as text; `operators`, how many nodes there are of each
    kind, the most first.

    Raises UserError where the file is missing, truncated or no ONNX, where it keeps weights in
    other files, and where its interface is not the deployment graph's: one input, uint8
    [batch, 32, 32, 3], and one output, float32 [batch, classes]; the batch may be a number.
    `foreign` also lets through what `adapted` can give that interface.
    """
    model = _read(path)
    with _checked(path):
        return _facts(path, model, foreign)


def class_names(facts: Json) -> list[str] | None:
    """The class names in `inspect`'s metadata; None where there is not one for every logit."""
    try:
        names = json.loads(facts["metadata"]["classes"])
    except (KeyError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or len(names) != facts["outputs"][0]["shape"][-1]:
        return None
    return names if all(isinstance(name, str) and is_plain(name) for name in names) else None


@contextlib.contextmanager
def _checked(path: Path) -> Iterator[None]:
    """Turn what onnx's checker objects to into a UserError."""
    import onnx

    try:
        yield
    except (onnx.checker.ValidationError, UnicodeError) as error:
        raise UserError(_damaged(path, one_line(error))) from error


def adapted(path: Path, pixels: Pixels) -> tuple[Json, bytes | None, str]:
    """A graph with the deployment interface, of a file that may have another program's.

    Such a file takes float32, float16 or uint8 pixels [batch, 3, 32, 32] or [batch, 32, 32, 3] and
    gives float32 or float16 [batch, classes]; the conversion, and for floats the normalisation by
    `pixels`, are put before its first node. Returns `inspect`'s facts, the graph's bytes (None: the
    file as it is), and in words what was put around it. Raises UserError as `inspect` does.
    """
    facts, model, said = adapted_model(path, pixels)
    return facts, model.SerializeToString() if said else None, said


def adapted_model(path: Path, pixels: Pixels) -> tuple[Json, "onnx.ModelProto", str]:
    """The same, with the graph itself: every node stands behind those it needs.

    The names of what was put around it begin with `OURS`, but for an Identity that gives it to the
    graph.
    """
    model = _read(path)
    with _checked(path):
        facts = _facts(path, model, True)
        (given,), (answer,) = facts["inputs"], facts["outputs"]
        if _fits(given, answer):
            return facts, model, ""
        _put_around(model, given, answer, pixels)
        facts = _facts(path, model, False)
    mean, std = (",".join(f"{v:g}" for v in values) for values in (pixels.mean, pixels.std))
    said = [f"takes {_type(given)} and gives {answer['dtype']}: here"]
    if given["dtype"] in FLOATS:
        said.append(f"mean {mean} and std {std} are put before it")
    elif given["shape"][1] == 3:
        said.append("a transposition is put before it")
    if answer["dtype"] != "float32":
        said.append("a cast to float32 is put behind it")
    return facts, model, f"{said[0]} {', '.join(said[1:])}"


def _put_around(model: "onnx.ModelProto", given: Json, answer: Json, pixels: Pixels) -> None:
    """Let `model` begin with the preprocessing, and end in float32."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph, nodes = model.graph, []
    last = GIVEN

    def then(operator: str, name: str, inputs: Sequence[str] = (), **attributes: Any) -> None:
        nonlocal last
        nodes.append(helper.make_node(operator, [last, *inputs], [name], **attributes))
        last = name

    if given["dtype"] in FLOATS:
        then("Cast", f"{GIVEN}.float", to=TensorProto.FLOAT)
        deviation = np.array(pixels.std, np.float64)
        for operator, values in (  # as the deployment graph has it
            ("Mul", 1 / (255 * deviation)),
            ("Add", -np.array(pixels.mean, np.float64) / deviation),
        ):
            name = f"{GIVEN}.{operator}"
            constant = numpy_helper.from_array(values.astype(np.float32))
            nodes.append(helper.make_node("Constant", [], [f"{name}.by"], value=constant))
            then(operator, name, [f"{name}.by"])
    if given["shape"][1] == 3:
        then("Transpose", f"{GIVEN}.planes", perm=[0, 3, 1, 2])
    if given["dtype"] == "float16":
        then("Cast", f"{GIVEN}.half", to=TensorProto.FLOAT16)
    then("Identity", given["name"])
    for index, node in enumerate(nodes):
        graph.node.insert(index, node)
    listed = next(value for value in graph.input if value.name == given["name"])
    graph.input.remove(listed)
    batch = given["shape"][0]
    shape = ["batch" if batch == "?" else batch, SIZE, SIZE, 3]
    graph.input.insert(0, helper.make_tensor_value_info(GIVEN, TensorProto.UINT8, shape))
    if answer["dtype"] != "float32":
        graph.node.append(
            helper.make_node("Cast", [answer["name"]], [ANSWER], to=TensorProto.FLOAT)
        )
        graph.output.remove(graph.output[0])
        graph.output.append(
            helper.make_tensor_value_info(ANSWER, TensorProto.FLOAT, answer["shape"])
        )


def _facts(path: Path, model: "onnx.ModelProto", foreign: bool) -> Json:
    import onnx

    tensors = list(graphs.tensors(model))
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in tensors):
        raise UserError(
            f"{path} keeps its weights in other files; save it again with the weights inside "
            "(torch.onnx.export: external_data=False)"
        )
    onnx.checker.check_model(model)
    if model.functions and graphs.unfolded(model) > MOST_NODES:
        raise UserError(
            f"{path} unfolds to more than {MOST_NODES:,} nodes, by functions that use functions; "
            "save it without them"
        )
    # Before IR version 4 every initialiser was listed as an input as well.
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [_describe(value) for value in model.graph.input if value.name not in weights]
    outputs = [_describe(value) for value in model.graph.output]
    _judge(path, inputs, outputs, foreign)
    if _opset(model) < BROADCASTS and not _fits(inputs[0], outputs[0]):
        raise UserError(
            f"{path} is of opset {_opset(model)}, to which no preprocessing can be added; export "
            f"it with opset {BROADCASTS} or later"
        )
    names = [name for node in model.graph.node for name in (node.name, node.op_type, *node.output)]
    if not all(map(is_plain, [*names, *(value["name"] for value in (*inputs, *outputs))])):
        raise UserError(f"{path} has control characters in its names; save it without them")
    return {
        "opset": _opset(model),
        "precision": _precision(tensors),
        "inputs": inputs,
        "outputs": outputs,
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
        "operators": dict(Counter(node.op_type for node in model.graph.node).most_common()),
    }


def _opset(model: "onnx.ModelProto") -> int:
    """The version of ONNX's own operators; 0 where the file imports none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def _read(path: Path) -> "onnx.ModelProto":
    import onnx
    from google.protobuf.message import DecodeError

    with disk_errors(path, "read"):
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than 2 GiB: it is no ONNX file")
        raw = path.read_bytes()
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(raw)
    except DecodeError:
        raise UserError(_damaged(path, "it does not parse")) from None
    if model.ir_version > onnx.IR_VERSION and model.graph.node:
        raise UserError(
            f"{path} is of ONNX's IR version {model.ir_version}, and onnx {onnx.__version__} knows "
            f"up to {onnx.IR_VERSION}; run: pip install --upgrade onnx"
        )
    if not model.graph.node or not _opset(model):
        raise UserError(_damaged(path, "there is no whole graph in it"))
    graphs.in_order(model.graph)
    return model


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is truncated or no valid ONNX file ({reason}); export it again"


def _precision(tensors: "Iterable[onnx.TensorProto]") -> str:
    """Of filters and matrices where there are any: what else is stored may be finer."""
    import onnx

    stored = list(tensors)
    weights = [tensor for tensor in stored if len(tensor.dims) > 1] or stored
    there = {tensor.data_type for tensor in weights}
    kinds = onnx.TensorProto
    names: dict[int, str] = {
        kinds.INT8: "int8",
        kinds.UINT8: "int8",
        kinds.FLOAT16: "fp16",
        kinds.BFLOAT16: "bf16",
    }
    return next((name for kind, name in names.items() if kind in there), "fp32")


def _describe(value: "onnx.ValueInfoProto") -> Json:
    import onnx

    tensor = value.type.tensor_type
    kinds = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
    kind = kinds.get(tensor.elem_type, "of an unknown type")
    dimensions = [d.dim_value if d.dim_value > 0 else d.dim_param or "?" for d in tensor.shape.dim]
    return {
        "name": value.name,
        "dtype": {"float": "float32", "double": "float64"}.get(kind, kind),
        "shape": dimensions,
    }


def _judge(path: Path, inputs: list[Json], outputs: list[Json], foreign: bool) -> None:
    """Raise UserError where this is not the deployment interface, nor a `foreign` one."""
    for values, what in ((inputs, "input"), (outputs, "output")):
        if len(values) != 1:
            raise UserError(f"{path} has {len(values)} {what}s; {WANTED}")
    (given,), (answer,) = inputs, outputs
    if _fits(given, answer):
        return
    known = _image_of(given, ("uint8", *FLOATS)) and _logits(answer, FLOATS)
    if known and foreign:
        return
    right = _image_of(given, ("uint8", *FLOATS)) if foreign else _image(given, ("uint8",), -1)
    wrong, what = (answer, "output") if right else (given, "input")
    way = WANTED
    if known:
        way += "; only validate, layers, profile, and benchmark without --scenario, take this file"
    elif foreign and what == "input":
        way += f"; validate and benchmark also take {TAKEN}"
    raise UserError(f"{path}: {what} {wrong['name']!r} is {_type(wrong)}; {way}")


def _fits(given: Json, answer: Json) -> bool:
    """Whether this is the deployment interface."""
    return _image(given, ("uint8",), -1) and _logits(answer, ("float32",))


def _image(value: Json, dtypes: Sequence[str], channels: int) -> bool:
    """Whether this is a batch of 32x32 images whose `channels` lie at that place of the shape."""
    shape = list(value["shape"])
    if value["dtype"] not in dtypes or len(shape) != 4 or shape.pop(channels) != 3:
        return False
    batch, *plane = shape
    return plane == [SIZE, SIZE] and (not isinstance(batch, int) or batch <= LARGEST_BATCH)


def _image_of(value: Json, dtypes: Sequence[str]) -> bool:
    return _image(value, dtypes, 1) or _image(value, dtypes, -1)


def _logits(value: Json, dtypes: Sequence[str]) -> bool:
    shape = value["shape"]
    known = len(shape) == 2 and isinstance(shape[1], int) and shape[1] <= MOST_CLASSES
    return value["dtype"] in dtypes and known


def _type(value: Json) -> str:
    return f"{value['dtype']} [{', '.join(map(str, value['shape']))}]"
