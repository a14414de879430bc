"""Where an ONNX file's time goes: what every layer takes, as its runtime tells it, on a CPU.

ONNX Runtime's profiler (SessionOptions.enable_profiling) and OpenVINO's performance counters
(PERF_COUNT), as onnxruntime_perf_test -p and benchmark_app -pc show them. The layers are the
runtime's own: it merges some, and puts others between them.
"""

import collections
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cifar_deploy.benchmark.sweep import pixels
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes.load import OPENVINO
from cifar_deploy.runtimes.onnx_interface import Pixels
from cifar_deploy.runtimes.onnx_runtime import OnnxRuntime
from cifar_deploy.runtimes.openvino import OpenVino
from cifar_deploy.runtimes.protocol import Runtime, words
from cifar_deploy.timing import Lane, Pool, collect, warm_up

CPU = torch.device("cpu")
# What ONNX Runtime adds to a node's name, for itself.
ADDED = re.compile(r"(_token_\d+)?(_nchwc)?_kernel_time$")


@dataclass(frozen=True)
class Layer:
    """What one layer takes. `kernel` is the one that OpenVINO chose; ONNX Runtime does not say."""

    name: str
    operator: str
    kernel: str
    ms: float  # the median of the runs
    share: float  # of all layers


@dataclass(frozen=True)
class Profile:
    """All layers in the order in which they run."""

    runtime: str
    batch: int
    runs: int
    ms: float  # a whole run, while it is profiled: the median
    layers: tuple[Layer, ...]

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
    with tempfile.TemporaryDirectory() as place:
        runtime = OnnxRuntime(path, CPU, Pixels(), profile=Path(place, "profile"))
        times = _run(path, runtime, batch, seconds)
        events = json.loads(runtime.end_profile().read_text())
    nodes = [event for event in events if event["cat"] == "Node"]
    whole = [event for event in events if event["name"] == "model_run"][-len(times) :]
    runs = []
    for run in whole:
        begin, end = run["ts"], run["ts"] + run["dur"]
        mine = [node for node in nodes if begin <= node["ts"] <= end]
        runs.append([(_node(node), node["dur"] / 1000) for node in mine])
    return _summary(runtime, batch, times, runs)


def _node(event: Any) -> tuple[str, str, str]:
    return ADDED.sub("", event["name"]), event["args"]["op_name"], ""


def _openvino(path: Path, batch: int, seconds: float) -> Profile:
    told: list[Any] = []
    runtime = OpenVino(path, CPU, Pixels(), profile=told.append)
    times = _run(path, runtime, batch, seconds)
    runs = [
        [
            (
                (info.node_name, info.node_type, info.exec_type),
                info.real_time.total_seconds() * 1000,
            )
            for info in run
            if info.status == type(info.status).EXECUTED
        ]
        for run in told[-len(times) :]
    ]
    return _summary(runtime, batch, times, runs)


def _run(path: Path, runtime: Runtime, batch: int, seconds: float) -> list[float]:
    """Milliseconds of the runs after the warm-up."""
    if not any(batch in sizes for sizes in runtime.batches):
        raise UserError(f"{path} takes batches of {words(runtime.batches)} only; give --batch")
    lane = Lane(runtime, Pool(pixels(CPU), CPU, batch), batch)
    warm_up(lane)
    return [call.host for call in collect(lane.call, seconds)]


def _summary(
    runtime: Runtime,
    batch: int,
    times: Sequence[float],
    runs: Sequence[Sequence[tuple[tuple[str, str, str], float]]],
) -> Profile:
    # In the order of the last run; a name may stand there twice.
    spent: dict[tuple[str, str, str], list[float]] = {key: [] for key, _ in runs[-1]}
    for run in runs:
        mine: collections.Counter[tuple[str, str, str]] = collections.Counter()
        for key, ms in run:
            mine[key] += ms  # type: ignore[assignment]
        for key in spent:
            spent[key].append(mine[key])
    medians = {key: float(np.median(values)) for key, values in spent.items()}
    total = sum(medians.values())
    layers = tuple(Layer(*key, ms, ms / total) for key, ms in medians.items())
    return Profile(runtime.runtime, batch, len(runs), float(np.median(times)), layers)
