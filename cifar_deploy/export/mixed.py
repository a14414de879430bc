"""An fp16 graph some of whose layers compute in fp32: mixed precision (arXiv:1710.03740)."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cifar_deploy.export.quantise import LAYERS, check_kept, layers
from cifar_deploy.runtimes.graphs import element_types, replace_nodes

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def mixed(half: onnx.ModelProto, exact: onnx.ModelProto, keep: Sequence[str]) -> onnx.ModelProto:
    """`half`, the graph in fp16, with the convolutions and linear layers of `keep` in fp32.

    Their weights are those of `exact`, the same graph in fp32. What a layer gives stays in fp32
    through all that is no layer (ReLU, Add, pools, a batch norm that was not folded) until another
    layer takes it: a sum that fp16 cannot hold is none that a cast behind its layer would save.
    `half` is changed and comes back.

    Raises UserError for a name that is none of these layers.
    """
    graph = half.graph
    check_kept(keep, layers(graph, ()), "fp16")
    types = element_types(half)
    weights = _Weights(half, exact)
    widened: set[str] = set()  # what is in fp32 now
    cast_from: dict[str, str] = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"
    }
    casts: dict[tuple[str, int], str] = {}
    nodes: list[onnx.NodeProto] = []

    def cast(name: str, to: int) -> str:
        before = cast_from.get(name, "")
        if to == FLOAT and types.get(before) == FLOAT:
            return before  # it was rounded for this node
        if (name, to) not in casts:
            made = casts[name, to] = wide(name) if to == FLOAT else f"{name}_fp16"
            nodes.append(helper.make_node("Cast", [name], [made], f"node_{made}", to=to))
        return casts[name, to]

    for node in graph.node:
        follows = node.op_type not in LAYERS and not widened.isdisjoint(node.input)
        in_fp32 = node.name in keep or follows
        for i, name in enumerate(node.input):
            if types.get(name) == HALF and (name in widened) != in_fp32:
                stored = in_fp32 and weights.in_fp32(node, i)
                node.input[i] = stored or cast(name, FLOAT if in_fp32 else HALF)
        if in_fp32:
            widened.update(name for name in node.output if types.get(name) in (HALF, FLOAT))
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i == HALF:
                    attribute.i = FLOAT
        nodes.append(node)
    replace_nodes(graph, nodes)
    _drop_unread(graph)
    infer_shapes(half)
    return half


def infer_shapes(model: onnx.ModelProto) -> None:
    """Note the type and the shape of everything in `model` anew, in place."""
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model)
    model.graph.value_info.extend(inferred.graph.value_info)


def wide(name: str) -> str:
    """What a tensor of this name is called in fp32, where it is in fp16 as well."""
    return f"{name}_fp32"


class _Weights:
    """What the graph in fp16 stores, as the one in fp32 does."""

    def __init__(self, half: onnx.ModelProto, exact: onnx.ModelProto) -> None:
        self._graph = half.graph
        self._stored = {tensor.name: tensor for tensor in half.graph.initializer}
        self._exact = {tensor.name: tensor for tensor in exact.graph.initializer}
        self._nodes = {node.name: node for node in exact.graph.node}

    def in_fp32(self, node: onnx.NodeProto, index: int) -> str:
        """The name of an input of `node` in fp32, stored now; "" where it is no stored tensor."""
        name = node.input[index]
        if name not in self._stored:
            return ""
        made = wide(name)
        if made not in self._stored:
            values = numpy_helper.to_array(self._stored[name])
            there = self._nodes.get(node.name)
            alike = there and len(there.input) == len(node.input)
            known = self._exact.get(there.input[index]) if there and alike else None
            found = values.astype(np.float32)
            # Nodes of the two graphs are called alike; should they not be, their numbers tell.
            if known is not None and known.data_type == FLOAT:
                better = numpy_helper.to_array(known)
                with np.errstate(over="ignore"):
                    same = np.array_equal(better.astype(np.float16), values, equal_nan=True)
                found = better if same else found
            self._stored[made] = numpy_helper.from_array(found, made)
            self._graph.initializer.append(self._stored[made])
        return made


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the nodes and the stored tensors that nothing takes any more."""
    read = {value.name for value in graph.output}
    for node in reversed(list(graph.node)):
        if read.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            read.update(node.input)
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name not in read:
            del graph.initializer[i]
