"""Which versions of the runtimes load packaged files, and whether they give the same answers.

    python benchmarks/runtime_versions.py PACKAGE... \\
        --runtime onnxruntime==1.15.1 openvino==2023.3.0 --json runtime_versions.json

PACKAGE is what `cifar-deploy package --target cpp` wrote of an ONNX file. pip installs each runtime
into a folder of its own (without a version: the one that is installed here), and it answers the
package's test vectors on the CPU in a process of its own.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import common

from cifar_deploy import device
from cifar_deploy.disk import Json, write_json
from cifar_deploy.package import manifest

# What a process of its own runs: file, images and logits in, what it found out.
TRIAL = """
import json, sys
import numpy as np
runtime, model, images, logits = sys.argv[1:]
images = np.fromfile(images, np.uint8).reshape(-1, 32, 32, 3)
wanted = np.fromfile(logits, "<f4").reshape(len(images), -1)
if runtime == "onnxruntime":
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    version, found = onnxruntime.__version__, session.run(None, {"images": images})[0]
else:
    import openvino
    core, version = openvino.Core(), openvino.__version__.partition("-")[0]
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    found = core.compile_model(core.read_model(model), "CPU", hints)(images)[0]
same = int((found.argmax(1) == wanted.argmax(1)).sum())
difference = float(np.abs(found - wanted).max())
print(json.dumps({"version": version, "same_top1": same, "max_logit_difference": difference}))
"""


def install(runtime: str, room: Path) -> str | None:
    """Have pip put `name==version` into a folder; why it could not, or None."""
    # Those of before 2024 were compiled against numpy 1.
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(room)]
    done = subprocess.run([*pip, runtime, "numpy<2"], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or ["pip failed"])[-1]


def trial(runtime: str, package: Path, room: Path | None) -> Json:
    """What one runtime, of the folder `room` or of this environment, makes of a package."""
    facts = manifest.read(package)
    row: Json = {key: facts[key] for key in ("model", "precision", "sha256")}
    row |= {"images": int(facts["vectors_count"]), "vectors_from": facts["vectors_from"]}
    names = (facts["file"], "vectors/images.rgb", "vectors/logits.f32")
    where = {"PYTHONPATH": str(room)} if room else {}
    done = subprocess.run(
        [sys.executable, "-c", TRIAL, runtime, *(str(package / name) for name in names)],
        env={**os.environ, **where},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        return row | {"error": lines[-1].replace(str(package), package.name)}
    found: Json = json.loads(done.stdout.splitlines()[-1])
    return row | found


def measure(runtimes: list[str], packages: list[Path]) -> list[Json]:
    """A row for each runtime and package."""
    rows = []
    for runtime in runtimes:
        name, _, version = runtime.partition("==")
        with tempfile.TemporaryDirectory() as folder:
            room = Path(folder) if version else None
            reason = install(runtime, room) if room else None
            for package in packages:
                found = {"error": reason} if reason else trial(name, package, room)
                rows.append({"runtime": name, "version": version, "package": package.name} | found)
                print(rows[-1], file=sys.stderr)
    return rows


def table(rows: list[Json]) -> str:
    """A line for each runtime: images of the same top-1 and the largest difference of a logit."""
    packages = list(dict.fromkeys(str(row["package"]) for row in rows))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        said = row.get("error") or (
            f"{row['same_top1']} of {row['images']}, {row['max_logit_difference']:.1g}"
        )
        lines.setdefault((row["runtime"], row["version"]), {})[row["package"]] = said
    text = ["", *packages], ["---"] * (len(packages) + 1)
    body = [[" ".join(key), *(cells[name] for name in packages)] for key, cells in lines.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (*text, *body))


def main() -> None:
    """The script."""
    parser = common.parser(__doc__)
    parser.add_argument("packages", nargs="+", type=Path, metavar="PACKAGE")
    parser.add_argument("--runtime", nargs="+", required=True, metavar="NAME==VERSION")
    arguments = parser.parse_args()
    for runtime in arguments.runtime:
        if not re.fullmatch(r"(onnxruntime|openvino)(==[\w.]+)?", runtime):
            parser.error(f"--runtime {runtime}: it can be onnxruntime or openvino, with ==VERSION")
    rows = measure(arguments.runtime, arguments.packages)
    print(table(rows))
    if arguments.json:
        command = "python benchmarks/runtime_versions.py PACKAGE... --runtime "
        facts: Json = {
            "command": command + " ".join(arguments.runtime),
            "cpu": device.cpu_name(),
            "python": platform.python_version(),
            "rows": rows,
        }
        write_json(arguments.json, facts)


if __name__ == "__main__":
    common.run(main)
