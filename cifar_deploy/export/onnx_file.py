"""The deployment graph as an ONNX file, its manifest beside it."""

import json
import tempfile
from pathlib import Path
from typing import TypeAlias

import onnx
import torch

from cifar_deploy import __version__, device
from cifar_deploy.architectures import weights
from cifar_deploy.architectures.deployment import DeploymentGraph
from cifar_deploy.architectures.weights import Trained
from cifar_deploy.data.dataset import SIZE
from cifar_deploy.disk import Json, atomic_path, stamp
from cifar_deploy.errors import TEMPORARY, UserError, disk_errors
from cifar_deploy.export.fold import fold_batch_norms
from cifar_deploy.export.mixed import infer_shapes, mixed, wide
from cifar_deploy.export.pools import plain_pools
from cifar_deploy.export.quantise import Calibration, layers, quantise
from cifar_deploy.export.quiet import quiet
from cifar_deploy.runtimes import onnx_interface
from cifar_deploy.signals import held
from cifar_deploy.store import ModelFolder, manifest_path, write_manifest

# What an int8 graph does not do in 8 bits, it does in fp32.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.float32}
PRECISIONS = tuple(DTYPES)
# The opset that torch's translations are written in: a later one goes through a converter and
# gives these graphs nothing. TensorRT from 10 on and every ONNX Runtime in bounds read it.
OPSET = 18
# What was translated, by the weights' sha256 and the type of the network's numbers.
Graphs: TypeAlias = dict[tuple[str, torch.dtype], onnx.ModelProto]


def export_onnx(
    folder: ModelFolder,
    precision: str,
    calibration: Calibration | None = None,
    engine: bool = False,
    batch: int | None = None,
    graphs: Graphs | None = None,
) -> Path:
    """Write the trained network in `folder` as `<name>.<precision>.onnx` and its manifest.

    The graph takes `images`, uint8 [batch, 32, 32, 3] RGB, and gives `logits`, float32
    [batch, classes]; between them the network runs in `precision` ("fp32", "fp16" or "int8"), its
    batch norms folded. "int8" needs a `calibration`, and is for CPUs; for an `engine` it is
    `<name>.int8.trt.onnx` (`quantise.quantise` tells how they differ). In "fp16" a `calibration`
    says which layers stay in fp32 (`mixed.mixed` tells how), if any. The same weights and libraries
    give the same bytes; in int8 on the same kind of processor. With `batch` the graph takes just so
    many images, and is `<name>.<precision>.batch<N>.onnx`. Nothing appears under the final name
    before onnx's checker with full shape inference has passed. Returns the path. Translating a
    network takes most of the time, and int8 begins with the graph of fp32: one that is in `graphs`
    is not made again, and what is made stays there.

    Raises UserError for another precision, without trained weights, where a weight does not fit
    the precision, for a kept layer that is none, where another program's file has that name, and
    where the disk refuses.
    """
    if precision not in DTYPES:
        raise UserError(f"--precision {precision}: it can be {' or '.join(PRECISIONS)}")
    path = folder.onnx(precision, engine, batch)
    _keep_foreign(path)
    trained = weights.load(folder)
    graphs = {} if graphs is None else graphs
    model = _once(graphs, trained, precision, folder.weights)
    if precision == "int8":
        assert calibration, "int8 is calibrated on images"
        model = quantise(model, calibration, symmetric=engine)
        _strip(model)
    elif precision == "fp16":
        if calibration and calibration.keep:
            exact = _once(graphs, trained, "fp32", folder.weights)
            model = mixed(model, exact, calibration.keep)
        _check_range(model, trained, folder.weights)
    if batch:
        _fix(model, batch)
    # The oldest that has its operators: torch notes a later one, which older runtimes refuse.
    model.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import))
    facts: Json = {
        "model": folder.name,
        "network": trained.name,
        "precision": precision,
        "classes": list(trained.classes),
        "mean": trained.mean,
        "std": trained.std,
        "test_accuracy": trained.card.get("test_accuracy"),
        "weights_sha256": trained.card["weights"]["sha256"],
        "cifar_deploy": __version__,
    }
    if any(0xD800 <= ord(character) <= 0xDFFF for character in folder.name):  # no UTF-8
        raise UserError(f"{folder.path}: ONNX has names in UTF-8 only; rename the folder")
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    onnx.helper.set_model_props(model, texts)
    raw = model.SerializeToString(deterministic=True)
    with atomic_path(path) as part:
        part.write_bytes(raw)
        onnx.checker.check_model(part, full_check=True)
        found = onnx_interface.inspect(part)
    manifest: Json = {
        "format": "onnx",
        "opset": found["opset"],
        "inputs": found["inputs"],
        "outputs": found["outputs"],
        **facts,
        **recorded(precision, calibration),
        "versions": device.versions(),
        "created": stamp(),
    }
    write_manifest(path, manifest, raw)
    return path


def recorded(precision: str, calibration: Calibration | None) -> Json:
    """What a file's manifest has of its `calibration`; in fp16 only what was kept, if anything."""
    facts = dict(calibration.facts) if calibration and precision != "fp32" else {}
    if precision == "fp16":
        facts = {key: facts[key] for key in ("kept_fp32", "drop") if key in facts}
    return {"calibration": facts} if facts else {}


def deployment_graph(trained: Trained, precision: str, source: Path) -> onnx.ModelProto:
    """The graph of a trained network, its batch norms folded; for "int8" what is quantised.

    In "fp16" a weight that does not fit is infinite. Raises UserError, which names `source`, where
    one is not finite to begin with.
    """
    network = fold_batch_norms(trained.network)
    plain_pools(network)
    if lost := weights.not_finite(network.state_dict()):
        raise UserError(f"{source}: {lost} is not finite; the training diverged, train again")
    model = _translate(DeploymentGraph(network, trained.mean, trained.std, DTYPES[precision]))
    _strip(model)
    return model


def _once(graphs: Graphs, trained: Trained, precision: str, source: Path) -> onnx.ModelProto:
    """`deployment_graph`, or what of it is in `graphs`, where it is put: a copy, to be changed."""
    key = (trained.card["weights"]["sha256"], DTYPES[precision])
    if key not in graphs:
        graphs[key] = deployment_graph(trained, precision, source)
    model = onnx.ModelProto()
    model.CopyFrom(graphs[key])
    return model


def _keep_foreign(path: Path) -> None:
    """Raise UserError where `path` is another program's file, which is not to be lost."""
    if not path.exists() or manifest_path(path).exists():
        return
    try:
        foreign = "cifar_deploy" not in onnx_interface.inspect(path, foreign=True)["metadata"]
    except UserError:  # damaged, or nothing that could be used here
        return
    if foreign:
        raise UserError(
            f"{path} was not exported by cifar-deploy and would be written over; move it elsewhere"
        )


def _check_range(model: onnx.ModelProto, trained: Trained, source: Path) -> None:
    """Raise UserError, which names `source`, where a weight has become infinite in fp16."""
    stored = {tensor.name for tensor in model.graph.initializer}
    for key, tensor in fold_batch_norms(trained.network).state_dict().items():
        name = f"network.{key}"
        in_fp32 = wide(name) in stored and name not in stored
        if in_fp32 or not tensor.is_floating_point() or bool(tensor.half().isfinite().all()):
            continue
        free = layers(model.graph, ())
        taking = [n.name for n in model.graph.node if name in n.input and n.name in free]
        fp16 = "".join(f"--precision fp16 --keep-fp32 {node} or " for node in taking[:1])
        raise UserError(
            f"{source}: {key} holds {tensor.abs().max():.3g} once batch norms are folded, too "
            f"large for fp16; export with {fp16}--precision fp32"
        )


def _translate(graph: DeploymentGraph) -> onnx.ModelProto:
    """`graph` as an ONNX model with a dynamic batch. Prints and warns nothing."""
    graph.eval()
    # 1 would be taken for a constant.
    example = torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8, device="cpu")
    with disk_errors(TEMPORARY, "write"):
        tempfile.gettempdir()  # where there is none, torch tells that on a page
    # torch takes what a signal's handler raises for a failure of its own, and goes on another way.
    with quiet(), held():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def _fix(model: onnx.ModelProto, batch: int) -> None:
    """Let `model` take `batch` images and no other number: every shape in it is then known."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    infer_shapes(model)  # those noted are of any batch


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes on nodes and values: traces with local paths."""
    model.doc_string = ""
    model.graph.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
