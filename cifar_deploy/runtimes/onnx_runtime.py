"""ONNX Runtime: the CUDA provider where there is a GPU, else the CPU provider, never in silence."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cifar_deploy.data.dataset import Images
from cifar_deploy.errors import UserError, one_line
from cifar_deploy.runtimes import onnx_interface
from cifar_deploy.runtimes.protocol import Bound, Logits, in_batches

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
ERROR, FATAL = 3, 4  # of ONNX Runtime's severities


def preload() -> None:
    """Load the libraries that the CUDA provider needs; what is missing is told on stderr."""
    import onnxruntime

    with contextlib.redirect_stdout(sys.stderr):  # it prints, and stdout may be a JSON answer
        onnxruntime.preload_dlls()


class OnnxRuntime:
    """An ONNX file with the deployment interface, loaded into ONNX Runtime.

    With `pixels` also one with another program's interface, before which they are put. Raises
    UserError where the file is damaged, foreign or not the one its manifest speaks of, and where
    `device` is CUDA and not every node of the graph can run there. `profile` begins the name of the
    file that ONNX Runtime notes the time of every node in, until `end_profile`. `threads` are a
    CPU's, by default as many as torch's; `graph` is the file's, where it has been read already.
    """

    def __init__(
        self,
        path: Path,
        device: torch.device,
        pixels: onnx_interface.Pixels | None = None,
        profile: Path | None = None,
        threads: int | None = None,
        graph: onnx_interface.Graph | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                f"{path}: ONNX Runtime does not import ({error}); run: pip install onnxruntime-gpu "
                "(without a GPU onnxruntime)"
            ) from error

        self.graph = graph = graph or onnx_interface.graph(path, pixels)
        self.runtime = f"ONNX Runtime {onnxruntime.__version__}"
        self.device = str(device)
        self.precision, self.batches, self.addition = graph.precision, graph.batches, graph.addition
        self._path, self._profile = path, profile
        self._threads, self._torch_device = threads or torch.get_num_threads(), device
        self._sessions: dict[int, Any] = {}
        self._streams: list[OnnxRuntime] = []
        self._expect_provider(onnxruntime.get_available_providers())
        self.provider: str = self._session().get_providers()[0]
        self._expect_provider([self.provider])

    def _expect_provider(self, offered: Sequence[str]) -> None:
        wanted = CUDA if self._torch_device.type == "cuda" else CPU
        if wanted not in offered:
            raise UserError(
                f"ONNX Runtime has no {wanted} here (it offers {', '.join(offered)}); "
                "see `cifar-deploy doctor`, or use --device cpu"
            )

    def _stream(self) -> int:
        """Torch's current CUDA stream; 0 is the default one, and what stands for the CPU."""
        if self._torch_device.type == "cpu":
            return 0
        return int(torch.cuda.current_stream(self._torch_device).cuda_stream)

    def _session(self) -> Any:
        """The session of torch's current stream, made at its first use: one session, one stream."""
        import onnxruntime

        stream, device = self._stream(), self._torch_device
        if stream in self._sessions:
            return self._sessions[stream]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL  # errors reach the user through the exception
        options.intra_op_num_threads = self._threads
        if self._profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(self._profile)
        providers: list[Any] = [CPU]
        if device.type == "cuda":
            preload()
            # It warns of every provider that is no plugin. Why one does not load is an error.
            onnxruntime.set_default_logger_severity(ERROR)
            # A node that only the CPU can run is then an error and not a hidden copy.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            # Of int8 graphs it has no convolutions, nor int32 biases, which ONNX Runtime adds by
            # itself: what is between two roundings is computed in fp32, as the graph says.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            # A stream 0 means one of ONNX Runtime's own.
            chosen = {
                "device_id": device.index or 0,
                "user_compute_stream": str(stream),
                "use_tf32": "0",  # fp32 means fp32
            }
            if self.precision == "fp16":
                # Without TF32 its convolutions have no tensor cores either: docs/benchmark.md.
                chosen |= {"use_tf32": "1", "cudnn_conv_algo_search": "HEURISTIC"}
            providers = [(CUDA, chosen)]
        try:
            session = onnxruntime.InferenceSession(
                self.graph.source or str(self._path),
                options,
                providers=providers,
                enable_fallback=0,
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base but this
            # What kept CUDA's provider itself from loading does not stand in the exception.
            where = "; see `cifar-deploy doctor`" if device.type == "cuda" else ""
            raise UserError(
                f"{self._path}: ONNX Runtime cannot load it: {one_line(error)}{where}"
            ) from error
        if device.type == "cuda":
            # While it runs, the provider tells the default logger of each plan that cuDNN does not
            # have, as an error. Not before: why the provider did not load is told there, too.
            onnxruntime.set_default_logger_severity(FATAL)
        self._sessions[stream] = session
        return session

    def streams(self, count: int) -> "list[OnnxRuntime]":
        """On a GPU itself; on a CPU so many sessions, which are kept, that share the threads."""
        if self._torch_device.type != "cpu" or count == 1:
            return [self] * count
        if len(self._streams) != count:
            threads = max(1, self._threads // count)
            path, device, graph = self._path, self._torch_device, self.graph
            self._streams = [
                OnnxRuntime(path, device, threads=threads, graph=graph) for _ in range(count)
            ]
        return self._streams

    def end_profile(self) -> Path:
        """Write what was noted of the current stream's session, and tell where it is."""
        return Path(self._session().end_profiling())

    def logits(self, images: Images) -> Logits:
        """Float32 [n, classes] of uint8 [n, 32, 32, 3]."""
        session = self._session()

        def run(batch: Images) -> Logits:
            try:
                result: Logits = session.run([self.graph.output], {self.graph.input: batch})[0]
            except Exception as error:  # no memory left
                raise self._cannot(len(batch), error) from error
            return result

        return in_batches(run, images, self.batches)

    def _cannot(self, batch: int, error: Exception) -> UserError:
        return UserError(
            f"{self._path}: ONNX Runtime cannot run a batch of {batch}: {one_line(error)}"
        )

    def bind(self, images: Images) -> Bound:
        """Buffers for a batch of this size, input and output bound to torch's memory."""
        import onnxruntime

        device, session, stream = self._torch_device, self._session(), self._stream()
        given = torch.from_numpy(images).to(device, copy=True)
        result = torch.empty(len(images), self.graph.classes, device=device)
        binding = session.io_binding()
        place = (device.type, device.index or 0)
        binding.bind_input(self.graph.input, *place, np.uint8, tuple(given.shape), given.data_ptr())
        binding.bind_output(
            self.graph.output, *place, np.float32, tuple(result.shape), result.data_ptr()
        )
        options = onnxruntime.RunOptions()
        if stream:  # enqueue and return: the stream is torch's, and torch waits for it
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")

        def run() -> torch.Tensor:
            if device.type == "cuda" and not stream:
                torch.cuda.current_stream(device).synchronize()  # ONNX Runtime does not wait for it
            try:
                session.run_with_iobinding(binding, options)
            except Exception as error:  # a fixed batch, or no memory left
                raise self._cannot(len(given), error) from error
            return result

        return Bound(given, run)
