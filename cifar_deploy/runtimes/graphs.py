"""The graph in an ONNX file: its nodes, their order and number, its tensors."""

import contextlib
import functools
import graphlib
import heapq
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def replace_nodes(graph: "onnx.GraphProto", nodes: "list[onnx.NodeProto]") -> None:
    """Let `graph` have these nodes, some of which may be its own, in this order."""
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def element_types(model: "onnx.ModelProto") -> dict[str, int]:
    """The element type of every tensor of `model`, by its name, as far as it can be inferred."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {t.name: t.data_type for t in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def in_order(graph: "onnx.GraphProto") -> None:
    """Let every node stand behind those it needs: the checker asks for it, runtimes do not.

    ONNX Runtime's converter to fp16, for one, writes its casts at the end. Of those that may come
    next the first one does (Kahn 1962, with a heap), so what is in order stays as it is.
    """
    maker: dict[str, int] = {}  # of each name, by its place
    for place, node in enumerate(graph.node):
        for name in filter(None, node.output):  # "" is left out
            maker.setdefault(name, place)
    needed = [{maker[name] for name in _needs(node) if name in maker} for node in graph.node]
    sorter = graphlib.TopologicalSorter(dict(enumerate(needed)))
    order: list[int] = []
    with contextlib.suppress(graphlib.CycleError):  # which the checker tells
        sorter.prepare()
        ready = [*sorter.get_ready()]
        heapq.heapify(ready)
        while ready:
            order.append(heapq.heappop(ready))
            sorter.done(order[-1])
            for place in sorter.get_ready():
                heapq.heappush(ready, place)
    if order != sorted(order):
        replace_nodes(graph, [graph.node[place] for place in order])


def _needs(node: "onnx.NodeProto") -> set[str]:
    """The names that `node` and what is inside it take."""
    return set(node.input).union(*map(_needs, _inside(node)))


def _inside(node: "onnx.NodeProto") -> Iterator["onnx.NodeProto"]:
    """The nodes of the graphs that `node` has for attributes."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from graph.node


def unfolded(model: "onnx.ModelProto") -> int:
    """How many nodes there are when functions are put in, as a runtime does, where they are used.

    The checker has seen that none uses itself.
    """
    bodies = {(f.domain, f.name): f.node for f in model.functions}

    def size(nodes: "Iterable[onnx.NodeProto]") -> int:
        return sum(
            1 + size(_inside(node)) + of_function(node.domain, node.op_type) for node in nodes
        )

    @functools.cache
    def of_function(domain: str, name: str) -> int:
        return size(bodies.get((domain, name), ()))

    return size(model.graph.node)


def tensors(model: "onnx.ModelProto") -> Iterator["onnx.TensorProto"]:
    """Every tensor in `model`, its subgraphs and its functions."""
    yield from _tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
        yield from _attribute_tensors(function.attribute_proto)


def _tensors(graph: "onnx.GraphProto") -> Iterator["onnx.TensorProto"]:
    """Every tensor in `graph` and its subgraphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: "Iterable[onnx.NodeProto]") -> Iterator["onnx.TensorProto"]:
    return _attribute_tensors(attribute for node in nodes for attribute in node.attribute)


def _attribute_tensors(
    attributes: "Iterable[onnx.AttributeProto]",
) -> Iterator["onnx.TensorProto"]:
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors(graph)
