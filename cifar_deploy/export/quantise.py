"""An ONNX graph in 8 bits: QDQ pairs around its layers, their scales calibrated on images.

The method is Jacob et al. 2018, arXiv:1712.05877; the work is done by ONNX Runtime's quantizer,
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
"""

import difflib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from cifar_deploy.data.dataset import SIZE, Dataset, Images
from cifar_deploy.disk import Json
from cifar_deploy.errors import TEMPORARY, UserError, disk_errors, few, one_line
from cifar_deploy.export.quiet import quiet

COUNT = 512  # images to calibrate with
BATCH = 32  # of them at a time: what every layer gives for these is held in memory
# Of a layer's values so many percent stay within its range: the few beyond would make it coarse.
PERCENTILE = 99.999
LINEAR = ["Gemm", "MatMul"]
LAYERS = ["Conv", *LINEAR]
# What ONNX Runtime's own preparation notes in a graph: batch norms are folded here already.
PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}


@dataclass(frozen=True)
class Calibration:
    """Training images, uint8 [n, 32, 32, 3], whose they are, and the nodes that stay in fp32.

    fp16 has no images, since it has no ranges, and of the facts what was kept.
    """

    images: Images
    facts: Json
    keep: tuple[str, ...] = ()  # besides those of `kept`

    @classmethod
    def of(cls, dataset: Dataset, count: int = COUNT, keep: Sequence[str] = ()) -> "Calibration":
        """`count` training images, evenly spread over the training set; all where there are fewer.

        No test image is among them: the file is judged on those.
        """
        chosen = dataset.train.spread(count).images
        facts = {
            "images": len(chosen),
            "method": f"percentile {PERCENTILE:g}",
            "data": dataset.name,
            "data_sha256": dataset.sha256,
        }
        return cls(chosen, facts).keeping(keep)

    @classmethod
    def of_none(cls, keep: Sequence[str] = ()) -> "Calibration":
        """That of fp16."""
        return cls(np.zeros((0, SIZE, SIZE, 3), np.uint8), {}).keeping(keep)

    def keeping(self, keep: Sequence[str]) -> "Calibration":
        """The same with just these nodes in fp32."""
        facts = self.facts | ({"kept_fp32": list(keep)} if keep else {})
        return Calibration(self.images, facts, tuple(keep))


class _Reader:
    """A calibration set as ONNX Runtime reads it: one batch after another."""

    def __init__(self, images: Images) -> None:
        self._batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        self.set_range(0, len(self))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._next = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, Images] | None:
        batch = next(self._next, None)
        return None if batch is None else {"images": batch}


# NumPy's words for a histogram that cannot be.
NO_HISTOGRAM = ("is not finite", "Too many bins")


def kept(graph: onnx.GraphProto) -> list[str]:
    """The nodes that stay in fp32.

    The convolution that meets the pixels, and depthwise ones: few of the multiplications, and much
    of what 8 bits cost. And a max pool before a ReLU, which is no part of a layer then: quantised,
    it would have a pair on either side of that ReLU.
    """
    taken = {name for node in graph.node if node.op_type == "Relu" for name in node.input}
    pools = [n for n in graph.node if n.op_type == "MaxPool" and n.output[0] in taken]
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    single = {one.name for one in graph.initializer if len(one.dims) > 1 and one.dims[1] == 1}
    depthwise = [
        node
        for node in convolutions
        if node.input[1] in single and any(a.name == "group" and a.i > 1 for a in node.attribute)
    ]
    return [node.name for node in (*convolutions[:1], *depthwise, *pools)]


def layers(graph: onnx.GraphProto, in_fp32: Sequence[str]) -> list[str]:
    """The convolutions and linear layers but for those `in_fp32`: what may be kept besides.

    A ReLU alone is none: left out of 8 bits it takes its layer's rounding along.
    """
    return [n.name for n in graph.node if n.op_type in LAYERS and n.name not in in_fp32]


def check_kept(names: Sequence[str], known: list[str], what: str = "8 bits") -> None:
    """Raise UserError for a name that is none of the `known` ones, which would be in `what`."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            way = f"did you mean {near[0]}?" if near else f"those are {few(known, 3)}"
            none = f"is no convolution or linear layer that would be in {what}"
            raise UserError(f"--keep-fp32 {name} {none}; {way}")


def quantise(
    model: onnx.ModelProto,
    calibration: Calibration,
    symmetric: bool,
    keep: Callable[[onnx.GraphProto], list[str]] = kept,
    percentile: float = PERCENTILE,
) -> onnx.ModelProto:
    """The fp32 deployment graph `model` with its layers in 8 bits, but for a few.

    Weights are int8, a scale for each output channel. Activations are uint8 with a zero point, and
    biases int32, which is what CPUs are quick with; or, `symmetric`, activations are int8 around
    zero and biases stay fp32, as TensorRT wants it. For CPUs weights have 7 bits: sums of two
    products of 8 bits overflow in silence on those without VNNI. The nodes that `keep` and the
    calibration name, and all that is no layer, stay in fp32; `benchmarks/int8.py` shows what they
    and `percentile` do.

    Raises UserError for a node that would not be in 8 bits anyway, for activations that have no
    range, and where the disk refuses.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    onnx.helper.set_model_props(model, PREPARED)
    between = [] if symmetric else ["Relu", "MaxPool"]  # stays in 8 bits from layer to layer
    in_fp32 = keep(model.graph)
    check_kept(calibration.keep, layers(model.graph, in_fp32))
    extra = {
        "CalibPercentile": percentile,
        "CalibStridedMinMax": 1,
        "ActivationSymmetric": symmetric,
        "QuantizeBias": not symmetric,
        # TensorRT fuses what follows a layer, which a pair in between would prevent. For CPUs it is
        # the logits that 256 steps are too few for: two of them would often be equal.
        "OpTypesToExcludeOutputQuantization": LAYERS if symmetric else LINEAR,
    }
    with (
        disk_errors(TEMPORARY, "write"),
        tempfile.TemporaryDirectory(prefix="cifar-deploy-") as room,
        quiet(),
    ):
        path = Path(room) / "model.onnx"
        try:
            quantize_static(
                model,
                path,
                _Reader(calibration.images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=LAYERS + between,
                nodes_to_exclude=[*in_fp32, *calibration.keep],
                per_channel=True,
                reduce_range=not symmetric,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.Percentile,
                extra_options=extra,
            )
        except ValueError as error:
            if not any(said in str(error) for said in NO_HISTOGRAM):
                raise
            raise UserError(
                "8 bits have no range for what a layer gives for the calibration images, NaN, "
                f"infinity or numbers far apart ({one_line(error)}); its weights are too large"
            ) from error
        return onnx.load(path)
