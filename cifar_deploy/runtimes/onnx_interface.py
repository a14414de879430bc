"""Read an ONNX file from anywhere, and see whether it has the deployment interface."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_deploy.data.dataset import SIZE
from cifar_deploy.errors import UserError, disk_errors, one_line
from cifar_deploy.store import Json

if TYPE_CHECKING:
    import onnx

WANTED = (
    f"a deployment graph takes uint8 [batch, {SIZE}, {SIZE}, 3] and gives float32 [batch, classes]"
)
LARGEST = (1 << 31) - 1  # bytes: protobuf, and with it ONNX, holds no more in one file


def inspect(path: Path) -> Json:
    """What an ONNX file takes and gives, read from its bytes alone.

    `opset`; `precision` ("fp32", "fp16", ... as most of its numbers are stored); `inputs` and
    `outputs`, each with name, dtype and shape (a dynamic size is its name, or "?" without one);
    `metadata`, the file's own properties as text.

    Raises UserError where the file is missing, truncated or no ONNX, where it keeps weights in
    other files, and where its interface is not the deployment graph's: one input, uint8
    [batch, 32, 32, 3], and one output, float32 [batch, classes]; the batch may be a number.
    """
    import onnx

    model = _read(path)
    try:
        return _facts(path, model)
    except (onnx.checker.ValidationError, UnicodeError) as error:
        raise UserError(_damaged(path, one_line(error))) from error


def _facts(path: Path, model: "onnx.ModelProto") -> Json:
    import onnx

    tensors = list(_tensors(model.graph))
    for function in model.functions:
        tensors += _node_tensors(function.node)
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in tensors):
        raise UserError(
            f"{path} keeps its weights in other files; save it again with the weights inside "
            "(torch.onnx.export: external_data=False)"
        )
    onnx.checker.check_model(model)
    # Before IR version 4 every initialiser was listed as an input as well.
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [_describe(value) for value in model.graph.input if value.name not in weights]
    outputs = [_describe(value) for value in model.graph.output]
    _judge(path, inputs, outputs)
    return {
        "opset": _opset(model),
        "precision": _precision(tensors),
        "inputs": inputs,
        "outputs": outputs,
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
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
    return model


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is truncated or no valid ONNX file ({reason}); export it again"


def _tensors(graph: "onnx.GraphProto") -> Iterator["onnx.TensorProto"]:
    """Every tensor in `graph` and its subgraphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: "Iterable[onnx.NodeProto]") -> Iterator["onnx.TensorProto"]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors(graph)


def _precision(tensors: "Iterable[onnx.TensorProto]") -> str:
    from math import prod

    import onnx

    numbers: Counter[int] = Counter()
    for tensor in tensors:
        numbers[tensor.data_type] += prod(tensor.dims)
    kinds = onnx.TensorProto
    names: dict[int, str] = {
        kinds.FLOAT: "fp32",
        kinds.FLOAT16: "fp16",
        kinds.BFLOAT16: "bf16",
        kinds.INT8: "int8",
    }
    known = [kind for kind, _ in numbers.most_common() if kind in names]
    return names[known[0]] if known else "fp32"


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


def _judge(path: Path, inputs: list[Json], outputs: list[Json]) -> None:
    """Raise UserError where this is not the deployment interface."""
    for values, what, dtype in ((inputs, "input", "uint8"), (outputs, "output", "float32")):
        if len(values) != 1:
            raise UserError(f"{path} has {len(values)} {what}s; {WANTED}")
        value, shape = values[0], values[0]["shape"]
        if what == "input":
            fits = len(shape) == 4 and shape[1:] == [SIZE, SIZE, 3]
        else:
            fits = len(shape) == 2 and isinstance(shape[1], int)
        if value["dtype"] != dtype or not fits:
            sizes = ", ".join(map(str, shape))
            raise UserError(
                f"{path}: {what} {value['name']!r} is {value['dtype']} [{sizes}]; {WANTED}"
            )
