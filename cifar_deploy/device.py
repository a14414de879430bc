"""The machine: which device to use, what it can do, and how it is named beside a figure."""

import functools
import math
import os
import platform
import re
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_deploy.errors import UserError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")
# torchrun sets all of them for each of its processes.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MIB = 1 << 20
LIBRARIES = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime-gpu",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "numpy",
    "pillow",
)
# Memory that is full, in the words of cuDNN, cuBLAS, CUDA, torch's allocator for CPUs and oneDNN.
FULL = (
    "unable to find an engine",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "out of memory",
    "can't allocate memory",
    "could not create a primitive",
)


def launched() -> bool:
    """Whether torchrun started this process."""
    return all(name in os.environ for name in TORCHRUN)


def pick(device: "str | int | torch.device" = "auto", threads: int | None = None) -> "torch.device":
    """ "auto" (CUDA where there is a GPU), "cpu", "cuda", "cuda:N" or the number N as a device.

    With `threads` every CPU runtime of this process takes so many: they ask torch. Raises UserError
    for another name, or for CUDA without a GPU.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    name = f"cuda:{device}" if isinstance(device, int) else str(device)
    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and not (kind == "cuda" and index.isdecimal())):
        raise UserError(f"--device {name}: it can be auto, cpu, cuda or cuda:N")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not there):
        return torch.device("cpu")
    if int(index or 0) >= there:
        raise UserError(
            f"--device {name}: torch {torch.__version__} sees {there or 'no'} CUDA GPUs here; "
            "use --device cpu, or see `cifar-deploy doctor`"
        )
    return torch.device("cuda", int(index or 0))


def exhausted(error: BaseException | None) -> bool:
    """Whether `error` is torch's for want of memory: only its allocator on a GPU has a type."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in FULL)
    )


def every_shape() -> AbstractContextManager[None]:
    """Within it torch.compile compiles for any number of shapes and networks.

    Otherwise it does so for eight of a function, which all networks of this program share, and
    runs what comes after eagerly, with no more than a warning.
    """
    import torch._dynamo

    many = 1 << 20
    limits = {"recompile_limit": many, "accumulated_recompile_limit": many}
    within: AbstractContextManager[None] = torch._dynamo.config.patch(limits)
    return within


def quiet_autotune() -> None:
    """From now on torch.compile keeps to itself what "max-autotune" tries.

    Otherwise it prints the times of all kernels of every layer, and a traceback for each of them
    that asks for more than the card has, over any table.
    """
    import logging

    from torch._inductor import config, select_algorithm

    config.max_autotune_report_choices_stats = False
    select_algorithm.PRINT_AUTOTUNE = False
    logging.getLogger(select_algorithm.__name__).setLevel(logging.CRITICAL)


def describe(device: "torch.device") -> str:
    """The device as it stands beside a figure: the GPU's name, or the CPU's with the threads."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def any_threads(described: str) -> str:
    """What `describe` said, without a CPU's number of threads."""
    return re.sub(r", \d+ threads$", "", described)


@functools.cache
def cpu_name(root: Path = Path("/")) -> str:
    """The processor's name as the operating system tells it; on a board with ARM, the board's.

    On ARM the kernel names neither: a board is named in its device tree, and other processors by
    lscpu, from their numbers. `root` is the folder that holds `proc`.
    """
    info, board = root / "proc/cpuinfo", root / "proc/device-tree/model"
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if board.exists() and (name := board.read_text(errors="replace").strip("\0 \n")):
        return name
    return _lscpu(root) or platform.processor() or platform.machine()


def _lscpu(root: Path) -> str:
    """The names of all kinds of cores that lscpu knows; nothing where it is missing or fails."""
    command = ["lscpu", "--sysroot", str(root)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    names = re.findall(r"^ *Model name: +(.+?) *$", done.stdout, re.MULTILINE)
    return " + ".join(name for name in dict.fromkeys(names) if name != "-")


def system() -> str:
    """The operating system and the processor's architecture, as "Linux x86_64"."""
    known = {"AMD64": "x86_64", "arm64": "aarch64"}  # Windows and macOS have their own words
    return f"{platform.system()} {known.get(platform.machine(), platform.machine())}"


def memory_left() -> int | None:
    """Bytes of the host's memory that a process can have now; None where nobody says (Linux does).

    MemAvailable of proc(5), or what a container is allowed, if that is less.
    """
    info, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    found = []
    if info.exists() and (said := re.search(r"MemAvailable: +(\d+) kB", info.read_text())):
        found.append(1024 * int(said[1]))
    if limit.exists() and (most := limit.read_text().strip()).isdigit():
        found.append(int(most))
    return min(found, default=None)


def memory_taken(device: "torch.device", status: Path = Path("/proc/self/status")) -> int | None:
    """Bytes that are taken of a GPU's memory, by whomever; on a CPU, of this process in memory.

    The latter is VmRSS of proc(5), in `status`; None where there is no such file.
    """
    import torch

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    if not status.exists() or not (said := re.search(r"VmRSS:\s+(\d+) kB", status.read_text())):
        return None
    return 1024 * int(said[1])


def gpu_memory_left(device: "torch.device | None" = None) -> str:
    """What is free on a GPU, or on the current one, as the end of a sentence."""
    import torch

    try:
        free, total = torch.cuda.mem_get_info(device)
    except (RuntimeError, ValueError, AssertionError):  # the last is torch's where it has no CUDA
        return "and the GPU does not say what is free"
    return f"{free / MIB:,.0f} of {total / MIB:,.0f} MiB are free"


def threads_allowed(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """How many threads a container's share of the processor is worth; None where it has it all.

    `limit` is the kernel's (cgroup-v2.rst): microseconds of processor time in a period. Libraries
    count the host's cores; with as many threads they are stopped in the middle of every period.
    """
    if not limit.exists():
        return None
    most, _, period = limit.read_text().partition(" ")
    if not (most.isdigit() and period.strip().isdigit()):  # "max"
        return None
    return max(1, math.ceil(int(most) / int(period)))


@functools.cache
def has_bf16(device: "torch.device") -> bool:
    """Whether bf16 is the faster way to train: on GPUs from Ampere on, on CPUs with AMX.

    AVX512-BF16 alone is slower than fp32, which has Winograd's convolutions:
    `benchmarks/train_speed.py precisions`.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_bf16" in info.read_text()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that produce or run models here."""
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
