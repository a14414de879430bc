"""Which layers an int8 or fp16 file keeps in fp32 to lose no more accuracy than was asked for.

The way of NNCF's quantize_with_accuracy_control: rank the layers by what they cost, keep the worst
in fp32, measure again (docs.openvino.ai, "Quantizing with Accuracy Control"). Here a layer costs
the noise in the logits when it alone is in that precision, how many are kept is found by bisection,
and a loss is what `validate` means by it, the bound of `noninferiority`. No test image takes part.
"""

import bisect
import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from cifar_deploy.architectures import weights
from cifar_deploy.data.augment import augment
from cifar_deploy.data.dataset import Dataset, Images, Split
from cifar_deploy.errors import TEMPORARY, UserError, disk_errors, points
from cifar_deploy.export.mixed import mixed
from cifar_deploy.export.onnx_file import deployment_graph
from cifar_deploy.export.quantise import Calibration, check_kept, kept, layers, quantise
from cifar_deploy.recipe import Augment
from cifar_deploy.runtimes.half import rounded
from cifar_deploy.runtimes.onnx_runtime import OnnxRuntime
from cifar_deploy.runtimes.protocol import Logits, unanswered
from cifar_deploy.store import ModelFolder
from cifar_deploy.validate.noninferiority import PASS, Comparison, compare, score_bound

IMAGES = 5_000  # that a loss is measured on
NOISE, RANGES = 128, 64  # images that a layer's noise is measured on, and its ranges calibrated
# A network knows its training images by heart, and 8 bits change few of its answers to those. Moved
# and with a seventh of them covered they are nearly as hard as new ones.
HARDER = Augment(flip=False, translate=2, cutout=12)


def within(
    max_drop: float,
    folder: ModelFolder,
    dataset: Dataset,
    calibration: Calibration,
    engine: bool,
    told: Callable[[str], None],
    precision: str = "int8",
) -> Calibration:
    """`calibration`, and what else to keep in fp32 for a loss of at most `max_drop` points.

    Of the graph in `precision`, "int8" or "fp16", that `export_onnx` makes for an `engine`, or of
    that for CPUs, either in ONNX Runtime on the CPU; fp16 is rounded there as on a GPU
    (`half.rounded`). `told` gets a line a step; the facts of what comes back have the last one.
    Raises UserError where so few images cannot show so small a loss, where a single layer in that
    precision loses more, and for what `quantise` and the reading of the weights refuse.
    """
    split = dataset.train.without(len(calibration.images)).spread(IMAGES)
    _check_images(len(split), len(calibration.images), max_drop)
    trained = weights.load(folder)
    exact = deployment_graph(trained, "fp32", folder.weights)
    what = {"int8": "8 bits"}.get(precision, precision)
    free = layers(exact.graph, kept(exact.graph) if precision == "int8" else ())
    check_kept(calibration.keep, free, what)
    count, names = len(free), [name for name in free if name not in calibration.keep]
    split = Split(_harder(split.images, trained.mean), split.labels)
    start = deployment_graph(trained, "fp16", folder.weights) if precision == "fp16" else exact
    data = start.SerializeToString()

    def lowered(keep: Sequence[str], ranges: Images) -> onnx.ModelProto:
        model = onnx.load_model_from_string(data)  # anew: what is given is changed
        keep = (*calibration.keep, *keep)
        if precision == "fp16":
            return rounded(mixed(model, exact, keep))
        calibrated = Calibration(ranges, {}, keep)
        return quantise(model, calibrated, symmetric=engine)

    def trial(keep: Sequence[str]) -> Comparison:
        answers = _answers(lowered(keep, calibration.images), split.images)
        found = (answers.argmax(1) == split.labels) & ~unanswered(answers)
        result = compare(reference, found, max_drop / 100)
        last = f", {keep[-1]} the last" if keep else ""
        told(
            f"{folder.name}: {len(calibration.keep) + len(keep)} of {count} layers in fp32{last}: "
            f"the loss is at most {points(result.upper, 2)} points ({result.lost} images lost and "
            f"{result.gained} gained of {len(split):,})"
        )
        return result

    reference = _answers(exact, split.images).argmax(1) == split.labels
    best = trial(())
    ranked: list[str] = []
    if best.verdict != PASS:
        few = split.spread(NOISE).images
        ranges = calibration.images[:: max(1, -(-len(calibration.images) // RANGES))]
        silent = _answers(exact, few)

        def noise(name: str) -> float:
            alone = lowered([other for other in names if other != name], ranges)
            power = float(((_answers(alone, few) - silent) ** 2).sum())
            return math.inf if math.isnan(power) else power

        told(f"{folder.name}: ranking them by the noise of each alone")
        ranked = sorted(names, key=noise, reverse=True)
    missed, met = 0, len(ranked)  # so many of them are too few, and enough: then all are in fp32
    while met - missed > 1:
        middle = (missed + met) // 2
        found = trial(ranked[:middle])
        if found.verdict == PASS:
            met, best = middle, found
        else:
            missed = middle
    if best.verdict != PASS:
        raise UserError(
            f"{folder.name} loses more than {max_drop:g} points with a single layer in {what}; "
            f"allow it more, or export it in {'fp32' if precision == 'fp16' else 'fp16 or fp32'}"
        )
    chosen = calibration.keeping((*calibration.keep, *ranked[:met]))
    drop = {
        "margin_points": max_drop,
        "upper_bound_of_loss_points": round(100 * best.upper, 4),
        "lost": best.lost,
        "gained": best.gained,
        "images": len(split),
        "layers": count,
    }
    return dataclasses.replace(chosen, facts={**chosen.facts, "drop": drop})


def _check_images(count: int, calibrated: int, max_drop: float) -> None:
    """Raise UserError where `count` images, besides those calibrated on, show no loss so small."""

    def least(images: int) -> float:
        """The smallest loss, in points, that so many images can show."""
        return 100 * score_bound(0, 0, images) if images else 100.0

    if count and least(count) <= max_drop:
        return
    enough = 1 + bisect.bisect_left(
        range(1, IMAGES + 1), True, key=lambda images: least(images) <= max_drop
    )
    spare = count + calibrated - enough
    way = "ask for a larger --max-drop"
    if calibrated and count < IMAGES:
        way += ", with fewer --calibration-images"
        if spare > 0:
            way = f"--calibration-images {spare}, or fewer, leave enough"
    raise UserError(
        f"--max-drop {max_drop:g} is measured on training images besides those calibrated on: "
        f"{count:,}, which can show no less than {math.ceil(1_000 * least(count)) / 1_000:g} "
        f"points; {way}"
    )


def _harder(images: Images, mean: Sequence[float]) -> Images:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same file at the next time
        return np.asarray(augment(torch.from_numpy(images), HARDER, mean))


def _answers(model: onnx.ModelProto, images: Images) -> Logits:
    with (
        disk_errors(TEMPORARY, "write"),
        tempfile.TemporaryDirectory(prefix="cifar-deploy-") as room,
    ):
        path = Path(room) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return OnnxRuntime(path, torch.device("cpu")).logits(images)
