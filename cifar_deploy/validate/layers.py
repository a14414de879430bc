"""Where a file's numbers leave another's: the noise in every tensor that both graphs have."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cifar_deploy.data.dataset import Images
from cifar_deploy.errors import UserError, disk_errors, one_line
from cifar_deploy.runtimes import onnx_interface
from cifar_deploy.runtimes.onnx_interface import Pixels

if TYPE_CHECKING:
    import onnx

BATCH = 32  # images at a time: what every node gives for these is held in memory, twice


@dataclass(frozen=True)
class Layer:
    """A node of the reference, and how much of what it gives is noise in the other file.

    `snr` is in dB: inf for the same numbers, -inf for none, None where the other file has no such
    tensor. `lost` is how much lower that is than the noisiest of what the node takes, unless that
    is exact.
    """

    node: str
    operator: str
    snr: float | None
    lost: float | None


def compare(reference: Path, file: Path, images: Images, pixels: Pixels) -> list[Layer]:
    """The nodes of `reference` in its order, with the signal-to-noise ratio of what they give.

    Over all `images`, uint8 [n, 32, 32, 3], and all numbers of a tensor: 10 log10 of the
    reference's power over that of the difference, as onnxruntime.quantization.qdq_loss_debug has
    it. Both run in ONNX Runtime on the CPU. A graph that shows its tensors cannot be fused: int8
    layers are computed in fp32 between their roundings then, as the file says.

    Raises UserError for a file that is damaged or cannot run, and where no names are shared.
    """
    first, second = _model(reference, pixels), _model(file, pixels)
    made = {name for node in second.graph.node for name in node.output}
    shared = [name for node in first.graph.node for name in node.output if name in made]
    rounded = _rounded(second.graph)
    theirs = [rounded.get(name, name) for name in shared]
    signal, noise = dict.fromkeys(shared, 0.0), dict.fromkeys(shared, 0.0)
    answers = _run(reference, first, shared, images), _run(file, second, theirs, images)
    for mine, other in zip(*answers, strict=True):
        for name, x, y in zip(shared, mine, other, strict=True):
            if x.dtype.kind != "f" or y.dtype.kind != "f" or x.shape != y.shape:
                noise.pop(name, None)
                continue
            exact = x.astype(np.float64)
            signal[name] += float((exact**2).sum())
            noise[name] += float(((exact - y) ** 2).sum())
    ratios = {name: _decibels(signal[name], noise[name]) for name in noise}
    if len(ratios) < 2:
        raise UserError(
            f"{file} and {reference} name none of their tensors alike: compare files that were "
            "made of each other"
        )
    return list(_layers(first.graph, ratios))


def _rounded(graph: "onnx.GraphProto") -> dict[str, str]:
    """What stands for a tensor that is quantised: the same after its way through 8 bits.

    Before it, it may be no more than what the quantisation's range makes a ReLU of.
    """
    source = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"
    }
    return {
        source[node.input[0]]: node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in source
    }


def _model(path: Path, pixels: Pixels) -> "onnx.ModelProto":
    import onnx

    _, source, _ = onnx_interface.adapted(path, pixels)
    with disk_errors(path, "read"):
        model: onnx.ModelProto = onnx.ModelProto.FromString(source or path.read_bytes())
    return model


def _run(
    path: Path, model: "onnx.ModelProto", names: list[str], images: Images
) -> Iterator[list[Any]]:
    """What `model` gives under `names`, a batch of the images after the other."""
    import onnxruntime

    given = {value.name for value in model.graph.output}
    model.graph.output.extend(
        type(model.graph.output[0])(name=name) for name in names if name not in given
    )
    weights = {tensor.name for tensor in model.graph.initializer}
    (entry,) = (value.name for value in model.graph.input if value.name not in weights)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors reach the user through the exception
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for start in range(0, len(images), BATCH):
            yield session.run(names, {entry: images[start : start + BATCH]})
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
        raise UserError(f"{path}: ONNX Runtime cannot run it: {one_line(error)}") from error


def _decibels(signal: float, noise: float) -> float:
    if not math.isfinite(signal) or not math.isfinite(noise):
        return -math.inf
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _layers(graph: "onnx.GraphProto", ratios: dict[str, float]) -> Iterator[Layer]:
    sources: dict[str, list[str]] = {}  # of a tensor: those with a ratio that it is made of
    for node in graph.node:
        made_of = [
            name
            for taken in node.input
            for name in ([taken] if taken in ratios else sources.get(taken, []))
        ]
        for name in node.output:
            sources[name] = made_of
        snr = ratios.get(node.output[0])
        before = min((ratios[name] for name in made_of), default=math.inf)
        lost = None if snr is None or math.isinf(before) else before - snr
        yield Layer(node.name, node.op_type, snr, lost)
