"""Latency at batch 1: a runtime called from the C++ library, and the same runtime from Python.

    cmake -S cpp -B build/cpp -D OpenVINO_DIR=... -D ONNXRUNTIME_ROOT=... && cmake --build build/cpp
    python benchmarks/cpp_latency.py PACKAGE build/cpp/bin/benchmark --json FILE

PACKAGE is what `cifar-deploy package MODEL --target cpp` wrote. In each round C++ and Python run one
after the other for --seconds, every other round Python first, with as many threads: what the
machine does otherwise falls on both. A call in C++ goes from pixels to a filled prediction, with
softmax and label; a call in Python from a uint8 array to the logits, in the cheapest way that the
runtime's Python package has.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cifar_deploy.device import cpu_name

Call = Callable[[], object]
WARM_UP = 20  # calls; the C++ program goes on until its times are steady


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


def from_python(call: Call, seconds: float) -> list[float]:
    """Times of calls for about `seconds`, in milliseconds."""
    for _ in range(WARM_UP):
        call()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def from_cpp(program: Path, package: Path, backend: str, threads: int, seconds: float) -> Any:
    """What the program `benchmark` measured, as it writes it."""
    command = [program, package, "--backend", backend, "--threads", threads, "--batch", 1]
    command += ["--seconds", seconds, "--json", "--samples"]
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip())
    return json.loads(done.stdout)


def summary(times: list[float]) -> dict[str, float]:
    """Percentiles of a call, in milliseconds."""
    p50, p90, p99 = np.percentile(times, (50, 90, 99))
    found = {"calls": len(times), "min": min(times), "p50": p50, "p90": p90, "p99": p99}
    return {key: round(float(value), 4) for key, value in found.items()}


def compare(given: argparse.Namespace, backend: str) -> dict[str, Any]:
    """Both ways of one runtime, in interleaved rounds."""
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    runtime, call = CALLS[backend](given.package / "model.onnx", given.threads, image)
    cpp: list[float] = []
    python: list[float] = []
    ratios = []
    load = []
    for number in range(given.rounds):
        load.append(os.getloadavg()[0])
        here: list[float] = []
        if number % 2:
            here = from_python(call, given.seconds)
        found = from_cpp(given.program, given.package, backend, given.threads, given.seconds)
        if not number % 2:
            here = from_python(call, given.seconds)
        there = found["sweep"][0]["times"]
        ratios.append(statistics.median(there) / statistics.median(here))
        cpp += there
        python += here
    return {
        "backend": backend,
        "cpp_runtime": found["runtime"],
        "python_runtime": runtime,
        "cpp_ms": summary(cpp),
        "python_ms": summary(python),
        "p50_cpp_over_python": {
            "median_of_rounds": round(statistics.median(ratios), 4),
            "rounds": [round(ratio, 4) for ratio in ratios],
        },
        "load_average_1_min": [round(value, 2) for value in load],
    }


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("program", type=Path, help="cpp/'s benchmark, built with the backends")
    parser.add_argument("--backend", action="append", choices=list(CALLS), help="(both)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0, help="a round and side (2)")
    parser.add_argument("--json", type=Path, help="write the result here as well")
    given = parser.parse_args()
    manifest = dict(
        line.split(" ", 1) for line in (given.package / "manifest.txt").read_text().splitlines()
    )
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": manifest["model"],
        "precision": manifest["precision"],
        "file_sha256": manifest["sha256"],
        "cpu": cpu_name(),
        "threads": given.threads,
        "results": [compare(given, backend) for backend in given.backend or CALLS],
    }
    text = json.dumps(report, indent=2) + "\n"
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
