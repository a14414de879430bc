"""Who takes part in a benchmark: a model's files and PyTorch, opened, and what is said of them."""

import contextlib
import copy
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cifar_deploy import device as machine
from cifar_deploy.address import Address
from cifar_deploy.architectures import weights
from cifar_deploy.benchmark.memory import Memory
from cifar_deploy.device import quiet_autotune
from cifar_deploy.errors import UserError, one_line
from cifar_deploy.runtimes.cuda import failed, needed, refusal, whose
from cifar_deploy.runtimes.load import ONNXRUNTIME, import_library, open_runtime
from cifar_deploy.runtimes.onnx_interface import Pixels
from cifar_deploy.runtimes.protocol import REMOTE, Runtime, takes, words
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.store import ModelFolder
from cifar_deploy.timing import stream


@dataclass(frozen=True)
class Who:
    """What was measured: all that is told of it when it is no longer loaded."""

    model: str
    name: str  # of the file, or how PyTorch runs
    runtime: str
    provider: str
    device: str
    precision: str


@dataclass(frozen=True)
class Contender:
    """One runtime with one model. `one_stream`: its batches in flight must share a stream."""

    model: str
    name: str  # of the file, or how PyTorch runs
    runtime: Runtime
    one_stream: bool = False
    open_s: float | None = None  # seconds from the file until it was ready; None: not known
    memory: Memory = field(default_factory=Memory)
    named: bool = True  # for itself; else it comes with its model

    @property
    def who(self) -> Who:
        """What is told of it."""
        one = self.runtime
        return Who(self.model, self.name, one.runtime, one.provider, one.device, one.precision)


@dataclass(frozen=True)
class Failure:
    """What could not be measured here, and why."""

    model: str
    name: str
    reason: str
    batch: int | None = None  # None: at no batch


def contenders(
    work: Sequence[tuple[ModelFolder, Sequence[Path | Address], bool]],
    device: torch.device,
    compiled: bool,
    trust: bool = False,
    pixels: Pixels | None = None,
    onnx: Sequence[str] = (ONNXRUNTIME,),
) -> tuple[list[Contender], list[Failure]]:
    """What takes part: of each folder the files and, where the flag says so, PyTorch.

    PyTorch runs in fp32, and on a GPU also in fp16 where a file does, or where there is none; with
    `compiled` each of them also through torch.compile. `trust`: engines without a matching manifest
    too; `pixels`: ONNX files with another program's interface too; `onnx`: what runs ONNX files,
    each of them. A file, or served model, that this machine cannot run becomes a failure.
    """
    found: list[Contender] = []
    failures: list[Failure] = []
    for folder, files, with_pytorch in work:
        opened, lost = _of_files(folder, files, not with_pytorch, device, trust, pixels, onnx)
        failures += lost
        if with_pytorch:
            half = not files or any(folder.is_of(file.name, "fp16") for file in files)
            halves = ["fp16"] if device.type == "cuda" and half else []
            found += _in_pytorch(folder, ["fp32", *halves], device, compiled)
        found += opened
    return found, failures


def _of_files(
    folder: ModelFolder,
    files: Sequence[Path | Address],
    named: bool,
    device: torch.device,
    trust: bool,
    pixels: Pixels | None,
    onnx: Sequence[str],
) -> tuple[list[Contender], list[Failure]]:
    """The files, each in all that runs it, and those that this machine cannot run."""
    opened = []
    failures = []
    for file in files:
        is_onnx = file.name.endswith(".onnx")
        for how in onnx if is_onnx else onnx[:1]:
            name = f"{file.name}, {how}" if is_onnx and len(onnx) > 1 else file.name
            import_library(file, device, trust, how)
            memory = Memory(device)
            try:
                with memory.step(), _opening(device) as seconds:
                    runtime = open_runtime(file, device, trust, pixels=pixels, onnx=how)
            except UserError as error:
                reason = str(error).removeprefix(f"{file}: ")
                failures.append(Failure(folder.name, name, reason))
                continue
            spent = sum(seconds)
            opened.append(
                Contender(folder.name, name, runtime, open_s=spent, memory=memory, named=named)
            )
    return opened, failures


def _in_pytorch(
    folder: ModelFolder, precisions: Sequence[str], device: torch.device, compiled: bool
) -> list[Contender]:
    """The model in PyTorch in each precision, eager and, with `compiled`, through torch.compile.

    Raises UserError where the weights cannot be loaded, and where the device refuses them.
    """
    if compiled:
        quiet_autotune()  # imports the compiler
    read = Memory(device)
    with read.step():
        begin = time.perf_counter()
        trained = weights.load(folder)
        reading = time.perf_counter() - begin
    opened = []
    for precision, fused in itertools.product(precisions, [False, True] if compiled else [False]):
        name = f"{'torch.compile' if fused else 'PyTorch eager'} {precision}"
        memory = copy.copy(read)
        try:
            with memory.step(), _opening(device) as seconds:
                runtime = PyTorch(trained, device, precision, fused)
        except RuntimeError as error:
            if not (told := refusal(error)):
                raise
            raise UserError(told) from error  # what was measured before is kept
        spent = reading + sum(seconds)
        opened.append(Contender(folder.name, name, runtime, fused, spent, memory))
    return opened


@contextlib.contextmanager
def _opening(device: torch.device) -> Iterator[list[float]]:
    """Time what is opened meanwhile: the list has the seconds when the device is through with it.

    On a GPU it is opened on a Lane's stream: ONNX Runtime makes a session for each stream it sees,
    and another one would then be made at the first call.
    """
    seconds: list[float] = []
    with torch.cuda.stream(stream(str(device), 0) if device.type == "cuda" else None):
        begin = _through(device)
        yield seconds
        seconds.append(_through(device) - begin)


def _through(device: torch.device) -> float:
    """The host's clock, in seconds, when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def additions(entered: Sequence[Contender]) -> list[str]:
    """What was put around files of other programs, and is timed with them."""
    return [
        f"{one.name} {one.runtime.addition}, and timed with it"
        for one in entered
        if one.runtime.addition
    ]


def are_remote(entered: Sequence[Contender]) -> list[bool]:
    """Which of them a server has."""
    return [one.runtime.device == REMOTE for one in entered]


def left_out(entered: Sequence[Contender], batches: Sequence[int]) -> list[str]:
    """What is said of a model's own files at those of `batches` that they do not take.

    That is no failure: who asked for the model did not ask for each of its files.
    """
    said = []
    for one in entered:
        lost = [size for size in batches if not takes(one.runtime.batches, size)]
        if lost and not one.named:
            sizes = f"batch{'es' if len(lost) > 1 else ''} {', '.join(map(str, lost))}"
            said.append(f"{one.name} was left out at {sizes}: {not_taken(one)}")
    return said


def not_taken(who: Contender) -> str:
    """What is said of a batch that a contender does not take."""
    said = f"it takes batches of {words(who.runtime.batches)} only"
    if who.name.endswith(".engine"):
        said += "; export it with another --batch-profile"
    return said


def failure(who: Contender, batch: int, error: UserError | RuntimeError) -> Failure:
    """What `who` could not do at a batch size, in one line: a full GPU, or a runtime's own refusal.

    Raises UserError where the GPU itself failed: nothing else will run on it either.
    """
    if failed(error):
        raise UserError(
            f"{who.model}, {who.name}: the GPU failed: {one_line(error)}; see nvidia-smi"
        ) from error
    if failed(error.__cause__):
        raise UserError(str(error)) from error
    reason = one_line(error)
    if machine.exhausted(error):
        need = needed(error)
        said = f" (tried to allocate {need})" if need else ""
        reason = f"{whose(error)} is exhausted{said}; try a smaller batch or --in-flight 1"
    return Failure(who.model, who.name, reason, batch)
