"""Latency at batch 1: a runtime called from the C++ library, and the same runtime from Python.

    cmake -S cpp -B build/cpp -D OpenVINO_DIR=... -D ONNXRUNTIME_ROOT=... && cmake --build build/cpp
    python benchmarks/cpp_latency.py PACKAGE... --threads 1 --json FILE

A PACKAGE is what `cifar-deploy package MODEL --target cpp` wrote. C++ and Python take turns
of a few calls, each with as many threads, so that what else the machine does falls on both; a pair
of turns gives one ratio. A call in C++ goes from pixels to a filled prediction, with
softmax and label; a call in Python from a uint8 array to the logits, in the cheapest way that the
runtime's Python package has.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

from cifar_deploy import disk
from cifar_deploy.device import cpu_name
from cifar_deploy.package import manifest

Call = Callable[[], object]
WARM_UP = 50  # calls
CALLS_A_TURN = 9


def openvino_call(model: Path, threads: int, image: np.ndarray) -> tuple[str, Call]:
    """One inference with OpenVINO, with the C++ library's settings."""
    import openvino as ov

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = ov.Core().compile_model(str(model), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(image, shared_memory=True))

    def call() -> object:
        request.infer()
        return request.get_output_tensor().data

    return f"OpenVINO {ov.__version__}", call


def onnxruntime_call(model: Path, threads: int, image: np.ndarray) -> tuple[str, Call]:
    """One inference with ONNX Runtime on the CPU, as `validate` makes it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(model), options, providers=providers)
    feed = {session.get_inputs()[0].name: image}
    return f"ONNX Runtime {onnxruntime.__version__}", lambda: session.run(None, feed)


CALLS = {"openvino": openvino_call, "onnxruntime": onnxruntime_call}


def from_python(call: Call, calls: int) -> list[float]:
    """Times of `calls` calls, in milliseconds."""
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


class FromCpp:
    """The program `benchmark`, which times as many calls as it is told to."""

    def __init__(self, given: argparse.Namespace, package: Path, backend: str) -> None:
        command = [given.program, package, "--backend", backend, "--on-request"]
        command += ["--threads", given.threads, "--batch", 1]
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, calls: int) -> list[float]:
        """Times of `calls` calls, in milliseconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{calls}\n")
        self._process.stdin.flush()
        times = [float(word) for word in self._process.stdout.readline().split()]
        if len(times) != calls:
            sys.exit(f"{self._process.args!r} ended early")
        return times

    def close(self) -> None:
        """End the program."""
        self._process.communicate()


def summary(times: list[float]) -> dict[str, float]:
    """Percentiles of a call, in milliseconds."""
    p50, p90, p99 = np.percentile(times, (50, 90, 99))
    found = {"min": min(times), "p50": p50, "p90": p90, "p99": p99}
    return {"calls": len(times), **{key: round(float(value), 4) for key, value in found.items()}}


def compare(given: argparse.Namespace, package: Path, backend: str) -> dict[str, Any]:
    """Both ways of one runtime, in turns."""
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    runtime, call = CALLS[backend](package / "model.onnx", given.threads, image)
    cpp = FromCpp(given, package, backend)
    ways: dict[str, Callable[[int], list[float]]] = {
        "cpp": cpp,
        "python": lambda calls: from_python(call, calls),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    medians: dict[str, list[float]] = {way: [] for way in ways}
    load = [os.getloadavg()[0]]
    for way in ways.values():
        way(WARM_UP)
    for number in range(given.turns):
        for name in sorted(ways, reverse=bool(number % 2)):
            ways[name](1)  # the other way's threads come to rest
            found = ways[name](CALLS_A_TURN)
            times[name] += found
            medians[name].append(statistics.median(found))
    cpp.close()
    load.append(os.getloadavg()[0])
    pairs = np.array(medians["cpp"]) / np.array(medians["python"])
    # The median ratio and its 95 % interval, from resampled turns.
    resampled = np.random.default_rng(0).choice(pairs, (2000, len(pairs)))
    low, high = np.percentile(np.median(resampled, 1), (2.5, 97.5))
    return {
        "backend": backend,
        "runtime": runtime,
        "cpp_ms": summary(times["cpp"]),
        "python_ms": summary(times["python"]),
        "cpp_over_python": {
            "median_of_turns": round(float(np.median(pairs)), 4),
            "interval_95": [round(float(low), 4), round(float(high), 4)],
        },
        "load_average_1_min": [round(value, 2) for value in load],
    }


def main() -> None:
    """Parse, measure, report."""
    parser = common.parser(__doc__)
    parser.add_argument("packages", type=Path, nargs="+", metavar="PACKAGE")
    parser.add_argument("--program", type=Path, default=Path("build/cpp/bin/benchmark"))
    parser.add_argument("--backend", action="append", choices=list(CALLS), help="(both)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--turns", type=int, default=200, help="of each way (200)")
    given = parser.parse_args()
    results = []
    for package in given.packages:
        entries = manifest.read(package)
        said = {key: entries[key] for key in ("model", "precision", "sha256")}
        for backend in given.backend or CALLS:
            results.append({**said, **compare(given, package, backend)})
    report = {
        "date": disk.stamp(),
        "cpu": cpu_name(),
        "threads": given.threads,
        "turns": given.turns,
        "calls_a_turn": CALLS_A_TURN,
        "results": results,
    }
    if given.json:
        disk.write_json(given.json, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    common.run(main)
