"""How long TensorRT for RTX takes to build an engine of each network, in fp32 and in fp16.

    python benchmarks/engine_builds.py --json engine_builds.json

The weights are as they are initialised: a build without a GPU times nothing and does not look at
them. Each engine is built three times, in turns with the others; the time is that of parsing the
ONNX file and of the build, as `export` prints it.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import common
import torch

from cifar_deploy import architectures, disk, store
from cifar_deploy.architectures import weights
from cifar_deploy.data import cifar10
from cifar_deploy.engines import flavour
from cifar_deploy.engines.options import Options
from cifar_deploy.export.engine import export_engine

PRECISIONS, ROUNDS = ("fp32", "fp16"), 3


def untrained(name: str, room: Path) -> store.ModelFolder:
    """A folder as a training leaves it, of weights that nobody has trained."""
    folder = store.ModelFolder(room / name)
    torch.manual_seed(0)
    half = [0.5, 0.5, 0.5]
    facts = weights.header(name, "cifar", cifar10.CLASSES, mean=half, std=half)
    weights.save(folder.weights, weights.stored(architectures.build(name), "fp16"), facts)
    named = {"file": folder.weights.name, "sha256": disk.sha256_of(folder.weights)}
    disk.write_json(folder.card, {"network": name, "test_accuracy": None, "weights": named})
    return folder


def measure(names: list[str], rtx: flavour.Flavour, room: Path) -> list[disk.Json]:
    """A row for each network and precision."""
    folders = [untrained(name, room) for name in names]
    rows: dict[tuple[str, str], disk.Json] = {}
    for _ in range(ROUNDS):
        for folder in folders:
            for precision in PRECISIONS:
                path = export_engine(folder, precision, rtx, Options())
                built = disk.read_json(store.manifest_path(path))
                named = {"network": folder.name, "precision": precision, "build_seconds": []}
                row = rows.setdefault((folder.name, precision), named)
                row["build_seconds"].append(built["build_seconds"])
                row["bytes"] = built["bytes"]
                print(f"{folder.name}, {precision}: {built['build_seconds']} s", file=sys.stderr)
    return list(rows.values())


def table(rows: list[disk.Json]) -> str:
    """The rows as Markdown."""
    lines = ["| network | precision | MB | median s | s |", "|---|---|---|---|---|"]
    for row in rows:
        times = row["build_seconds"]
        said = ", ".join(f"{seconds:.2f}" for seconds in times)
        lines.append(
            f"| `{row['network']}` | {row['precision']} | {row['bytes'] / 1e6:.1f} "
            f"| {statistics.median(times):.2f} | {said} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = common.parser(__doc__)
    parser.add_argument("networks", nargs="*", type=architectures.canonical, help="else all")
    options = parser.parse_args()
    rtx = flavour.load(flavour.RTX)
    with tempfile.TemporaryDirectory() as room:
        rows = measure(options.networks or list(architectures.NETWORKS), rtx, Path(room))
    print(table(rows))
    common.keep(options, torch.device("cpu"), {"library": str(rtx), "rows": rows})


if __name__ == "__main__":
    common.run(main)
