"""How ONNX Runtime's CUDA provider is best told to compute convolutions.

    python benchmarks/onnx_cuda.py models/cnn9/cnn9.fp16.onnx --json onnx_cuda.json

Times exported files with TF32 and without (which bars fp16's convolutions from tensor cores, too),
with each way to choose cuDNN's plans (`cudnn_conv_algo_search`, by default EXHAUSTIVE, which since
ONNX Runtime 1.20 tries nothing out, but asks another of cuDNN's heuristics than HEURISTIC does),
channels-last (`prefer_nhwc`) and not, on noise that lies on the GPU. Two rounds of all ways, the
faster counts. Says by how much the logits differ from the first way's.
"""

import math
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import onnxruntime
import torch

from cifar_deploy import device as machine
from cifar_deploy import disk
from cifar_deploy.data.dataset import SIZE
from cifar_deploy.runtimes.onnx_runtime import CUDA, preload

WAYS: dict[str, dict[str, str]] = {
    f"{search}{layout}{tf32}": {"cudnn_conv_algo_search": search.upper(), **nhwc, **rounding}
    for tf32, rounding in ((", no TF32", {"use_tf32": "0"}), ("", {"use_tf32": "1"}))
    for layout, nhwc in (("", {}), (", nhwc", {"prefer_nhwc": "1"}))
    for search in ("exhaustive", "heuristic")
}
BATCHES = (1, 32, 256, 1024)
ROUNDS = 2


def bound(path: Path, way: dict[str, str], images: torch.Tensor) -> tuple[Any, Any, torch.Tensor]:
    """A session of `path`, its binding to `images` on the GPU, and the logits' tensor."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    chosen = {"device_id": images.device.index or 0, **way}
    session = onnxruntime.InferenceSession(
        str(path), options, providers=[(CUDA, chosen)], enable_fallback=0
    )
    (given,), (asked,) = session.get_inputs(), session.get_outputs()
    logits = torch.empty(len(images), asked.shape[-1], device=images.device)
    binding = session.io_binding()
    place = (images.device.type, images.device.index or 0)
    for bind, name, kind, tensor in (
        (binding.bind_input, given.name, np.uint8, images),
        (binding.bind_output, asked.name, np.float32, logits),
    ):
        bind(name, *place, kind, tuple(tensor.shape), tensor.data_ptr())
    return session, binding, logits


def measure(path: Path, batch: int, seconds: float, device: torch.device) -> list[disk.Json]:
    """A row for each of the ways: milliseconds a batch, of the faster round's mean."""
    torch.manual_seed(0)
    noise = torch.randint(256, (batch, SIZE, SIZE, 3), dtype=torch.uint8).to(device)
    there = {name: bound(path, way, noise) for name, way in WAYS.items()}
    onnxruntime.set_default_logger_severity(4)  # of plans that cuDNN does not have
    found = dict.fromkeys(there, math.inf)
    for _ in range(ROUNDS):
        for name, (session, binding, _) in there.items():
            pace(session, binding, seconds / 2)  # the clocks, too, warm up
            found[name] = min(found[name], pace(session, binding, seconds))
    first = next(iter(there.values()))[2]
    rows: list[disk.Json] = []
    for name, (_, _, logits) in there.items():
        apart = (logits - first).abs().max().item()
        row = {"file": path.name, "batch": batch, "way": name, "ms": found[name], "apart": apart}
        rows.append(row)
        print(f"{path.name} {batch:5} {name:26} {found[name]:8.3f} ms  apart {apart:.5f}")
    return rows


def pace(session: Any, binding: Any, seconds: float) -> float:
    """Milliseconds a batch, the mean over so many seconds."""
    done, start = 0, time.perf_counter()
    while not done or time.perf_counter() - start < seconds:
        session.run_with_iobinding(binding)  # waits for the GPU
        done += 1
    return 1000 * (time.perf_counter() - start) / done


def main() -> None:
    """Measure, print, write the JSON."""
    parser = common.parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="with the deployment interface")
    parser.add_argument("--seconds", type=float, default=0.15, help="of every row, 0.15")
    options = parser.parse_args()
    device = machine.pick("cuda")
    preload()
    rows = [
        row
        for path in options.files
        for batch in BATCHES
        for row in measure(path, batch, options.seconds, device)
    ]
    common.keep(options, device, {"rows": rows})


if __name__ == "__main__":
    common.run(main)
