"""Where an ONNX file's time goes: what every layer takes, as its runtime tells it, on a CPU.

ONNX Runtime's profiler (SessionOptions.enable_profiling) and OpenVINO's performance counters
(PERF_COUNT), as onnxruntime_perf_test -p and benchmark_app -pc show them. The layers are the
runtime's own: it merges some, and puts others between them.
"""

import bisect
import collections
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cifar_deploy.benchmark.sweep import pixels
from cifar_deploy.errors import TEMPORARY, UserError, disk_errors
from cifar_deploy.runtimes.load import OPENVINO
from cifar_deploy.runtimes.onnx_interface import Pixels
from cifar_deploy.runtimes.onnx_runtime import OnnxRuntime
from cifar_deploy.runtimes.openvino import OpenVino
from cifar_deploy.runtimes.protocol import Runtime, takes, words
from cifar_deploy.timing import Call, Lane, Pool, collect, warm_up

CPU = torch.device("cpu")
MOST_RUNS = 1000  # ONNX Runtime's profiler notes a million events

Took = dict[tuple[str, str, str], float]  # ms by name, operator and kernel, in their order


@dataclass(frozen=True)
class Layer:
    """What one layer takes. `kernel` is the one that OpenVINO chose; ONNX Runtime does not say."""

    name: str
    operator: str
    kernel: str
    ms: float  # the median of the runs, of OpenVINO's the mean
    share: float  # of all layers


@dataclass(frozen=True)
class Profile:
    """All layers in the order in which they run."""

    runtime: str
    batch: int
    runs: int
    ms: float  # a whole run, while it is profiled: the median
    layers: tuple[Layer, ...]
    addition: str  # what was put before a file of another program, in words; else nothing

    def operators(self) -> dict[str, float]:
        """The share of every kind of layer, the largest first."""
        shares: collections.Counter[str] = collections.Counter()
        for layer in self.layers:
            shares[layer.operator] += layer.share  # type: ignore[assignment]
        return dict(shares.most_common())


def profile(path: Path, onnx: str, batch: int, seconds: float) -> Profile:
    """Run `path` in the runtime called `onnx` for about `seconds`, after a warm-up.

    Raises UserError where it cannot be loaded or takes no such batch.
    """
    return (_openvino if onnx == OPENVINO else _onnxruntime)(path, batch, seconds)


def _onnxruntime(path: Path, batch: int, seconds: float) -> Profile:
    with disk_errors(TEMPORARY, "write"), tempfile.TemporaryDirectory() as place:
        runtime = OnnxRuntime(path, CPU, Pixels(), profile=Path(place, "profile"))
        lane = _warm(path, runtime, batch)
        times = _times(lane.call, seconds)
        written = runtime.end_profile().read_text(encoding="utf-8")  # whatever the locale is
    try:
        events = json.loads(written)
    except ValueError as error:  # ONNX Runtime says nothing of a disk that is full
        raise UserError(
            "ONNX Runtime could not write all of its profile to a temporary folder; make room, or "
            "name another with $TMPDIR"
        ) from error
    begins = sorted(event["ts"] for event in events if event["name"] == "model_run")[-len(times) :]
    runs: list[Took] = [{} for _ in begins]
    for event in events:
        if event["cat"] == "Node" and event["ts"] >= begins[0]:
            name = event["name"].removesuffix("_kernel_time")
            run = runs[bisect.bisect(begins, event["ts"]) - 1]
            run[name, event["args"]["op_name"], ""] = event["dur"] / 1000
    took = {key: float(np.median([run.get(key, 0.0) for run in runs])) for key in runs[-1]}
    return _summary(runtime, batch, times, took)


def _openvino(path: Path, batch: int, seconds: float) -> Profile:
    runtime = OpenVino(path, CPU, Pixels(), profile=True)
    lane = _warm(path, runtime, batch)
    before = runtime.layers()
    times = _times(lane.call, seconds)
    # Without what it counted while it warmed up. It counts in whole microseconds.
    took = {
        layer: max(ms - before.get(layer, 0.0), 0.0) / len(times)
        for layer, ms in runtime.layers().items()
    }
    return _summary(runtime, batch, times, took)


def _warm(path: Path, runtime: Runtime, batch: int) -> Lane:
    if not takes(runtime.batches, batch):
        raise UserError(f"{path} takes batches of {words(runtime.batches)} only; give --batch")
    lane = Lane(runtime, Pool(pixels(CPU), CPU, batch), batch)
    warm_up(lane)
    return lane


def _times(one: Callable[[], Call], seconds: float) -> list[float]:
    """Milliseconds of the runs."""
    return [call.host for call in collect(one, seconds, most=MOST_RUNS)]


def _summary(runtime: Runtime, batch: int, times: Sequence[float], took: Took) -> Profile:
    total = sum(took.values())
    layers = tuple(Layer(*layer, ms, ms / total) for layer, ms in took.items())
    ms = float(np.median(times))
    return Profile(runtime.runtime, batch, len(times), ms, layers, runtime.addition)
