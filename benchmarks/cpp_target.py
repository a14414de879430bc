"""What packages do in C++ on this machine: the self-test, the whole test set, the latency.

    cmake -S cpp -B build/cpp -D OpenVINO_DIR=... -D ONNXRUNTIME_ROOT=... && cmake --build build/cpp
    python benchmarks/cpp_target.py PACKAGE... --programs build/cpp/bin --device cuda --json FILE

A PACKAGE is what `cifar-deploy package MODEL --target cpp` wrote. The exit status is 1 where one of
them cannot be run, has other answers than its test vectors, or less accuracy than it was proved to
have.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import torch

from cifar_deploy import architectures, cards, disk
from cifar_deploy.data import find
from cifar_deploy.data.records import write_records
from cifar_deploy.device import describe
from cifar_deploy.errors import UserError
from cifar_deploy.package import manifest

Answer = dict[str, Any]


def run(program: Path, package: Path, *options: str) -> tuple[int, str, str]:
    """Exit status of one of the library's programs, what it printed, and its error."""
    try:
        done = subprocess.run(
            [program, package, *options], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise UserError(f"cannot run {program}: {error.strerror}; name its folder") from error
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def measured(given: argparse.Namespace, package: Path, records: Path) -> Answer:
    """What one package does; `ok` is whether it does all that it was proved to."""
    entries = manifest.read(package)
    answer: Answer = {key: entries[key] for key in ("model", "precision", "backend", "sha256")}
    where = ["--device", given.device, *given.options.split()]
    classify = given.programs / "classify"
    for key, options in (
        ("self_test", ["--self-test"]),
        ("evaluation", ["--evaluate", str(records)]),
    ):
        rc, printed, error = run(classify, package, *options, *where)
        answer[key] = {"exit_status": rc, "said": printed or error}
    timing = ["--json", "--seconds", str(given.seconds), "--batch", given.batch]
    rc, printed, error = run(given.programs / "benchmark", package, *timing, *where)
    answer["benchmark"] = json.loads(printed) if rc == 0 else {"exit_status": rc, "said": error}
    said = [answer[key].get("said") for key in ("self_test", "evaluation", "benchmark")]
    for text in filter(None, said):
        print(f"{package.name}: {text}", flush=True)
    proved = answer["evaluation"]["said"].startswith("PASS: ")
    answer["ok"] = proved and answer["self_test"]["exit_status"] == rc == 0
    return answer


def main() -> int:
    """Parse, run, report."""
    parser = common.parser(__doc__)
    parser.add_argument("packages", type=Path, nargs="+", metavar="PACKAGE")
    parser.add_argument("--programs", type=Path, default=Path("build/cpp/bin"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--options", default="", help="more of the programs', as one text")
    parser.add_argument("--batch", default="1,8,32,128")
    parser.add_argument("--seconds", type=float, default=1.0, help="a package and batch")
    parser.add_argument("--model", help="the test images are of the data that it was trained on")
    parser.add_argument("--data-dir", type=Path, help="... or in this folder")
    given = parser.parse_args()
    given.programs = given.programs.absolute()
    report: Answer = {
        "command": " ".join(["python", "benchmarks/cpp_target.py", *sys.argv[1:]]),
        "date": disk.stamp(),
        **describe_machine(given.device),
        "results": [],
    }
    if not_there := [p for p in given.packages if not manifest.is_package(p)]:
        raise UserError(f"{not_there[0]} is no package; cifar-deploy package MODEL writes one")
    with tempfile.TemporaryDirectory() as room:
        records = Path(room) / "test_batch.bin"
        card = cards.read_card(architectures.folder(given.model)) if given.model else {}
        dataset = find.of_models(None, given.data_dir)(given.model or "", card)
        write_records(dataset.test, records)
        for package in given.packages:
            found = measured(given, package, records)
            report["results"].append(found)
            if given.json:  # each time: what comes after may be killed
                disk.write_json(given.json, report)
    return 0 if all(found["ok"] for found in report["results"]) else 1


def describe_machine(device: str) -> Answer:
    """The device that the programs were told to run on; `auto` is what each one says it ran on."""
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    where = torch.device(device if on_gpu else "cpu")
    return {
        "device": device if device == "auto" else describe(where),
        "load_average_1_min": round(os.getloadavg()[0], 2),
    }


if __name__ == "__main__":
    common.run(main)
