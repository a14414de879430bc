"""OpenVINO: ONNX files on a CPU, as the C++ library runs them."""

import contextlib
import functools
import io
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from cifar_deploy.data.dataset import Images
from cifar_deploy.device import system
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes import onnx_interface
from cifar_deploy.runtimes.protocol import Bound, Logits, in_batches

MILLISECOND = timedelta(milliseconds=1)


_importing = threading.RLock()


@functools.cache
def _core() -> Any:
    return library().Core()


def core() -> Any:
    """OpenVINO's one Core of this process, which is never let go.

    The first model that a Core compiles gives the thread a stack for signals, and the Core's end
    puts the stack before it back: of two, that may be one already freed, on which the next signal
    ends the process (seen with OpenVINO 2026.4).
    """
    with _importing:  # of two threads each would make one
        return _core()


def version() -> str:
    """OpenVINO's name and version, without its build's."""
    return f"OpenVINO {library().__version__.partition('-')[0]}"


def library() -> Any:
    """OpenVINO, imported. Raises UserError where it is missing, with the way to it.

    Without its telemetry: importing it starts a process that tells Google Analytics of it. Where
    that package is missing OpenVINO does without.
    """
    telemetry = "openvino_telemetry"
    with _importing:  # of two threads one would take away what keeps the other's import quiet
        mine = sys.modules.setdefault(telemetry, None) is None  # type: ignore[arg-type]
        try:
            import openvino
        except ImportError as error:
            raise UserError(
                f"OpenVINO does not import ({error}); run: pip install 'cifar-deploy[openvino]'"
            ) from error
        finally:
            if mine:
                del sys.modules[telemetry]
        return openvino


class OpenVino:
    """An ONNX file with the deployment interface, loaded into OpenVINO on the CPU.

    With `pixels` also one with another program's interface, before which they are put. Raises
    UserError where OpenVINO is missing, where the file is damaged, foreign or not the one its
    manifest speaks of, and where `device` is not the CPU. With `profile` it knows what its runs
    took, see `layers`; `at_once` are the requests that run at the same time, each with its share of
    the threads; `graph` is the file's, where it has been read already.
    """

    def __init__(
        self,
        path: Path,
        device: torch.device,
        pixels: onnx_interface.Pixels | None = None,
        profile: bool = False,
        at_once: int = 1,
        graph: onnx_interface.Graph | None = None,
    ) -> None:
        try:
            self.runtime = version()
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        if device.type != "cpu":
            raise UserError(f"{path}: OpenVINO does not run on {device.type}; use --device cpu")
        self.graph = graph = graph or onnx_interface.graph(path, pixels)
        self.provider, self.device = "CPU", str(device)
        self.precision, self.batches, self.addition = graph.precision, graph.batches, graph.addition
        self._path = path
        self._streams: list[OpenVino] = []
        self._last: Any = None  # the request that ran last, of bound buffers
        self._runs = 0
        hints = {
            "PERF_COUNT": profile,
            # The hint for latency means one stream.
            **({"NUM_STREAMS": at_once} if at_once > 1 else {"PERFORMANCE_HINT": "LATENCY"}),
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # Else a processor with bf16 rounds more than the file says.
            "INFERENCE_PRECISION_HINT": "f32",
            # On ARM its 8 bits are experimental, and 2026.4 makes linear layers of them that are
            # wrong (github.com/openvinotoolkit/openvino/pull/36764): what the file rounds, in fp32.
            **({"LP_TRANSFORMS_MODE": "NO"} if system().endswith(" aarch64") else {}),
        }
        try:
            model = core().read_model(io.BytesIO(graph.source) if graph.source else path)
            self._compiled = core().compile_model(model, "CPU", hints)
        except RuntimeError as error:
            raise UserError(f"{path}: OpenVINO cannot load it: {_said(error)}") from error

    def streams(self, count: int) -> "list[OpenVino]":
        """One and the same, which is kept, with as many of OpenVINO's streams."""
        if count == 1:
            return [self]
        if len(self._streams) != count:
            device = torch.device(self.device)
            one = OpenVino(self._path, device, at_once=count, graph=self.graph)
            self._streams = [one] * count
        return self._streams

    def layers(self) -> dict[tuple[str, str, str], float]:
        """Milliseconds of all runs of bound buffers, by layer: its name, operator and kernel.

        OpenVINO tells a layer's mean in whole microseconds, and of one below a microsecond that it
        did not run; unlike what is merged into another, or moves nothing, that one has a kernel.
        """
        return {
            (one.node_name, one.node_type, one.exec_type): self._runs
            * (one.real_time / MILLISECOND)
            for one in self._last.profiling_info
            if one.status == type(one.status).EXECUTED
            or not one.exec_type.startswith(("undef", "unknown"))
        }

    def logits(self, images: Images) -> Logits:
        """Float32 [n, classes] of uint8 [n, 32, 32, 3]."""
        request = self._compiled.create_infer_request()

        def run(batch: Images) -> Logits:
            with self._told(len(batch)):
                result: Logits = request.infer({self.graph.input: batch})[0].copy()
            return result

        return in_batches(run, images, self.batches)

    @contextlib.contextmanager
    def _told(self, batch: int) -> Iterator[None]:
        """Turn OpenVINO's refusal, of a fixed batch or for want of memory, into a UserError."""
        try:
            yield
        except RuntimeError as error:
            raise UserError(
                f"{self._path}: OpenVINO cannot run a batch of {batch}: {_said(error)}"
            ) from error

    def bind(self, images: Images) -> Bound:
        """Buffers for a batch of this size, in a request of their own."""
        from openvino import Tensor

        given = torch.from_numpy(images.copy())
        result = torch.empty(len(images), self.graph.classes)
        request = self._compiled.create_infer_request()
        with self._told(len(given)):
            request.set_tensor(self.graph.input, Tensor(given.numpy(), shared_memory=True))
            request.set_tensor(self.graph.output, Tensor(result.numpy(), shared_memory=True))

        def run() -> torch.Tensor:
            with self._told(len(given)):
                request.infer()
            self._last = request
            self._runs += 1
            return result

        return Bound(given, run)


def _said(error: RuntimeError) -> str:
    """What OpenVINO says: its last line; before it stands where in its sources that was."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    return lines[-1] if lines else type(error).__name__
