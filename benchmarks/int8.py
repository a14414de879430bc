"""What each choice in an int8 file is worth: answers and speed with it, and with it changed.

    python benchmarks/int8.py custom_resnet mobilenet_v3_small --json int8.json

Every file is made of the model's fp32 graph with 512 training images and answers to 2,000 others in
ONNX Runtime on the CPU; the test images are not looked at. Speed is the median of three rounds in
turns, batches of 100; that of a graph for engines says nothing of the engine.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import onnx
import torch

from cifar_deploy import architectures, cards, disk, store
from cifar_deploy.data import find
from cifar_deploy.data.dataset import Dataset, Images
from cifar_deploy.export.onnx_file import export_onnx
from cifar_deploy.export.quantise import PERCENTILE, Calibration, kept, quantise
from cifar_deploy.runtimes.onnx_runtime import OnnxRuntime

IMAGES, BATCH, ROUNDS = 2_000, 100, 3
CPU, ENGINE = "for CPUs", "for an engine"
Keep = Callable[[onnx.GraphProto], list[str]]


def others(graph: onnx.GraphProto) -> list[str]:
    """What `kept` keeps and is no convolution."""
    convolutions = {node.name for node in graph.node if node.op_type == "Conv"}
    return [name for name in kept(graph) if name not in convolutions]


def first(graph: onnx.GraphProto) -> list[str]:
    """Of the convolutions only the one that meets the pixels is kept."""
    return [kept(graph)[0], *others(graph)]


def depthwise(graph: onnx.GraphProto) -> list[str]:
    """Of the convolutions only the depthwise ones are kept."""
    return kept(graph)[1:]


def no_pool(graph: onnx.GraphProto) -> list[str]:
    """Every max pool is quantised."""
    left_out = others(graph)
    return [name for name in kept(graph) if name not in left_out]


VARIATIONS: dict[str, tuple[Keep, float]] = {
    "as exported": (kept, PERCENTILE),
    "the first convolution in 8 bits": (depthwise, PERCENTILE),
    "depthwise convolutions in 8 bits": (first, PERCENTILE),
    "both in 8 bits": (others, PERCENTILE),
    "max pools before a ReLU in 8 bits": (no_pool, PERCENTILE),
    "percentile 99.9": (kept, 99.9),
    "percentile 99.99": (kept, 99.99),
    "percentile 100": (kept, 100.0),
}


def answers(runtime: OnnxRuntime, images: Images) -> tuple[np.ndarray, float]:
    """Logits [n, classes], and images/s."""
    started = time.perf_counter()
    parts = [runtime.logits(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    return np.concatenate(parts), len(images) / (time.perf_counter() - started)


def measure(folder: store.ModelFolder, dataset: Dataset, room: Path) -> list[disk.Json]:
    """All rows of one model: fp32, then both kinds of graph in every variation that differs."""
    calibration = Calibration.of(dataset)
    seen = {image.tobytes() for image in calibration.images}
    spread = dataset.train.spread(2 * IMAGES).images
    images = np.stack([image for image in spread if image.tobytes() not in seen][:IMAGES])
    whole = export_onnx(folder, "fp32")
    files = {("fp32", ""): whole}
    for symmetric in (False, True):
        graphs: set[bytes] = set()
        for name, (keep, percentile) in VARIATIONS.items():
            print(f"{folder.name}, {ENGINE if symmetric else CPU}: {name}", file=sys.stderr)
            made = quantise(onnx.load(whole), calibration, symmetric, keep, percentile)
            data = made.SerializeToString(deterministic=True)
            if data in graphs:
                continue  # the network has none of what is changed
            graphs.add(data)
            path = room / f"{folder.name}.{symmetric}.{len(files)}.onnx"
            path.write_bytes(data)
            files[ENGINE if symmetric else CPU, name] = path
    runtimes = {key: OnnxRuntime(path, torch.device("cpu")) for key, path in files.items()}
    reference, _ = answers(runtimes["fp32", ""], images)
    rows: dict[tuple[str, str], disk.Json] = {}
    for turn in range(ROUNDS):
        for key, runtime in runtimes.items():
            if turn and key[0] == ENGINE:
                continue
            found, speed = answers(runtime, images)
            same = float((found.argmax(1) == reference.argmax(1)).mean())
            off = float(np.abs(found - reference).mean())
            graph, variation = key
            row = rows.setdefault(key, {"model": folder.name, "graph": graph, "speeds": []})
            row |= {"variation": variation, "same_top1": same, "mean_logit_difference": off}
            row["bytes"] = files[key].stat().st_size
            row["speeds"].append(speed)
    return [{**row, "images_per_s": statistics.median(row["speeds"])} for row in rows.values()]


def table(rows: list[disk.Json]) -> str:
    """The rows as Markdown."""
    lines = [
        "| model | graph | variation | same top-1, % | mean logit difference | images/s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        shown = f"| `{row['model']}` | {row['graph']} | {row['variation']} "
        if row["graph"] == "fp32":
            lines.append(f"{shown}| | | {row['images_per_s']:,.0f} |")
            continue
        off = f"{row['mean_logit_difference']:.4f}"
        speed = f"{row['images_per_s']:,.0f}" if row["graph"] == CPU else ""
        lines.append(f"{shown}| {100 * row['same_top1']:.2f} | {off} | {speed} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = common.parser(__doc__)
    parser.add_argument("models", nargs="+", help="trained models, or their folders")
    parser.add_argument("--data-dir", type=Path, help="folder with the data set")
    options = parser.parse_args()
    rows: list[disk.Json] = []
    with tempfile.TemporaryDirectory() as room:
        data_of = find.of_models(None, options.data_dir)
        for model in options.models:
            folder = architectures.folder(model)
            dataset = data_of(folder.name, cards.read_card(folder))
            rows += measure(folder, dataset, Path(room))
    print(table(rows))
    common.keep(options, torch.device("cpu"), {"rows": rows})


if __name__ == "__main__":
    common.run(main)
