"""Where a file's numbers leave another's: the noise in every tensor that both graphs have."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cifar_deploy.data.dataset import Images
from cifar_deploy.disk import Json
from cifar_deploy.errors import UserError, one_line
from cifar_deploy.kind import to_export
from cifar_deploy.runtimes import onnx_interface
from cifar_deploy.runtimes.half import rounded
from cifar_deploy.runtimes.onnx_interface import OURS, Pixels
from cifar_deploy.runtimes.onnx_runtime import CPU, FATAL
from cifar_deploy.runtimes.protocol import Logits
from cifar_deploy.store import ModelFolder

if TYPE_CHECKING:
    import onnx

BATCH = 32  # images at a time: what every node gives for these is held in memory, twice
WITH_WEIGHTS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """A node of the reference, and how much of what it gives is noise in the other file.

    `snr` is in dB: inf for the same numbers, -inf where all is noise, nan where one is no number,
    None where the other file has no tensor of that name and shape. `lost` is how much lower that is
    than the noisiest of what the node takes, unless that is exact.
    """

    node: str
    operator: str
    snr: float | None
    lost: float | None


def exact_beside(file: Path) -> Path:
    """The fp32 file of the model beside `file`. Raises UserError where there is none."""
    folder = ModelFolder(file.parent)
    exact = folder.onnx("fp32")
    if not folder.card.exists():
        raise UserError(
            f"{file} has no trained model beside it; name what it was made of: --reference"
        )
    if exact.name == file.name:
        raise UserError(f"{file} is what the others are compared with; name one in int8 or fp16")
    if not exact.exists():
        raise UserError(f"{exact} does not exist; run: {to_export(exact)}")
    return exact


def compare(reference: Path, file: Path, images: Images, pixels: Pixels) -> tuple[list[Layer], int]:
    """The nodes of `reference` in its order, with the signal-to-noise ratio of what they give.

    Over all numbers of a tensor and all `images`, uint8 [n, 32, 32, 3]: 10 log10 of the reference's
    power over that of the difference, as onnxruntime.quantization.qdq_loss_debug has it. Both run
    in ONNX Runtime on the CPU; int8 and fp16 layers are computed in fp32 between their roundings,
    as the file says. Returns with them how many images went in: of a file of a fixed batch, whole
    ones.

    Raises UserError for a file that is damaged or cannot run, for too few images, and where the
    files have no layer with weights in common.
    """
    (facts, first, _), (other_facts, second, _) = (
        onnx_interface.adapted_model(path, pixels) for path in (reference, file)
    )
    batch, count = _batches({reference: facts, file: other_facts}, len(images))
    if not count:
        raise UserError(f"{len(images)} images do not fill a batch of {batch}; --images {batch} do")
    made = {name for node in second.graph.node for name in node.output}
    nodes = [node for node in first.graph.node if not _added(node)]
    shared = [name for node in nodes for name in node.output if name and name in made]
    behind = _behind(second.graph)
    theirs = [behind.get(name, name) for name in shared]
    power = {name: [0.0, 0.0] for name in shared}  # of the signal, and of the noise
    # The nodes are the files' own: what rounds is put between them only here.
    answers = (
        _run(reference, rounded(first), facts, shared, images[:count], batch),
        _run(file, rounded(second), other_facts, theirs, images[:count], batch),
    )
    for mine, other in zip(*answers, strict=True):
        for name, x, y in zip(shared, mine, other, strict=True):
            if name in power and _alike(x, y):
                exact = x.astype(np.float64)
                with np.errstate(all="ignore"):  # what is no number is told as that
                    power[name][0] += float((exact**2).sum())
                    power[name][1] += float((np.where(x == y, 0, exact - y) ** 2).sum())
            else:
                power.pop(name, None)
    ratios = {name: _decibels(*both) for name, both in power.items()}
    weighted = next((i for i, n in enumerate(nodes) if n.op_type in WITH_WEIGHTS), 0)
    answer = facts["outputs"][0]["name"]
    if not any(name in ratios and name != answer for n in nodes[weighted:] for name in n.output):
        raise UserError(
            f"{file} and {reference} have no layer in common, by name and shape: compare files "
            "that were made of each other"
        )
    return list(_layers(nodes, ratios)), count


def in_half(file: Path, images: Images, pixels: Pixels) -> Logits | None:
    """The logits of an ONNX file on `images`, uint8 [n, 32, 32, 3], with fp16 as on a GPU.

    In ONNX Runtime on the CPU, which by itself computes it in fp32. None where the file has nothing
    in fp16, and where the images do not fill its batch. Raises UserError for one that cannot run.
    """
    facts, model, _ = onnx_interface.adapted_model(file, pixels)
    batch, count = _batches({file: facts}, len(images))
    wide = rounded(model)
    if wide is model or not count:
        return None
    name = facts["outputs"][0]["name"]
    answers = [answer for (answer,) in _run(file, wide, facts, [name], images[:count], batch)]
    return np.concatenate(answers)


def _batches(facts: dict[Path, Json], images: int) -> tuple[int, int]:
    """The images of a batch, and how many of `images` go in: whole batches where one is fixed.

    Raises UserError where two files want batches of other sizes.
    """
    sizes = {path: one["inputs"][0]["shape"][0] for path, one in facts.items()}
    fixed = {path: size for path, size in sizes.items() if isinstance(size, int)}
    if len(set(fixed.values())) > 1:
        said = ", ".join(f"{path} takes batches of {size}" for path, size in fixed.items())
        raise UserError(f"{said}: export one of them with an open batch")
    if not fixed:
        return BATCH, images
    batch = next(iter(fixed.values()))
    return batch, images // batch * batch


def _added(node: "onnx.NodeProto") -> bool:
    """Whether this was put around another program's graph."""
    return any(name.startswith(OURS) for name in (*node.input, *node.output))


def _behind(graph: "onnx.GraphProto") -> dict[str, str]:
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


def _run(
    path: Path,
    model: "onnx.ModelProto",
    facts: Json,
    names: list[str],
    images: Images,
    batch: int,
) -> Iterator[list[Any]]:
    """What `model` gives under `names`, a batch of the images after the other."""
    import onnxruntime

    given = {value.name for value in model.graph.output}
    model.graph.output.extend(type(model.graph.output[0])(name=name) for name in set(names) - given)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL  # errors reach the user through the exception
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
        for start in range(0, len(images), batch):
            yield session.run(names, {facts["inputs"][0]["name"]: images[start : start + batch]})
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
        raise UserError(f"{path}: ONNX Runtime cannot run it: {one_line(error)}") from error


def _alike(x: Any, y: Any) -> bool:
    """Whether both are float tensors of one shape."""
    both = all(isinstance(value, np.ndarray) and value.dtype.kind == "f" for value in (x, y))
    return both and x.shape == y.shape


def _decibels(signal: float, noise: float) -> float:
    if not noise:
        return math.inf
    if not math.isfinite(signal) or not math.isfinite(noise):
        return math.nan
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _layers(nodes: Sequence["onnx.NodeProto"], ratios: dict[str, float]) -> Iterator[Layer]:
    sources: dict[str, set[str]] = {}  # of a tensor: those with a ratio that it is made of
    for node in nodes:
        made_of = {
            name
            for taken in node.input
            for name in ([taken] if taken in ratios else sources.get(taken, ()))
        }
        outputs = [name for name in node.output if name]
        sources |= dict.fromkeys(outputs, made_of)
        snr = ratios.get(outputs[0])
        before = [ratios[name] for name in made_of]
        worst = math.nan if any(map(math.isnan, before)) else min(before, default=math.inf)
        lost = None
        if snr is not None and snr < math.inf and math.isfinite(worst):
            lost = worst - snr
        yield Layer(node.name or outputs[0], node.op_type, snr, lost)
