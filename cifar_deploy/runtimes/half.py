"""An fp16 graph as hardware computes it that has fp16."""

from typing import TYPE_CHECKING

from cifar_deploy.runtimes.graphs import element_types, replace_nodes

if TYPE_CHECKING:
    import onnx

LARGEST = 65_504  # that fp16 holds


def rounded(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """`model` in fp32 with everything that it holds in fp16 rounded to that where it is made.

    ONNX Runtime on a CPU computes what follows each other in fp16 in fp32 throughout: what is
    rounded in between on a GPU, or infinite beyond `LARGEST`, does not show. It does in this graph,
    whose tensors have the names of before. `model` itself comes back where nothing is in fp16, and
    where a tensor's type is not known or a node has graphs inside.
    """
    from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

    float16, float32 = TensorProto.FLOAT16, TensorProto.FLOAT
    types = element_types(model)
    made = [name for node in model.graph.node for name in node.output if name]
    inside = any(attribute.g.node for node in model.graph.node for attribute in node.attribute)
    if float16 not in types.values() or inside or not all(types.get(name) for name in made):
        return model

    def widen(tensor: TensorProto) -> None:
        if tensor.data_type == float16:
            values = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    wide = ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    del graph.value_info[:]  # of the types of before
    for tensor in graph.initializer:
        widen(tensor)
    nodes = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                widen(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == float16:
                attribute.i = float32
        nodes.append(node)
        for i, name in enumerate(node.output):
            if types.get(name) == float16:
                exact, half = f"{name}.exact", f"{name}.half"
                node.output[i] = exact
                nodes.append(helper.make_node("Cast", [exact], [half], half, to=float16))
                nodes.append(helper.make_node("Cast", [half], [name], f"{name}.wide", to=float32))
    replace_nodes(graph, nodes)
    return wide
