"""ONNX Runtime: the CUDA provider where there is a GPU, else the CPU provider, never in silence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cifar_deploy.data.dataset import Images
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes import onnx_interface
from cifar_deploy.runtimes.protocol import Logits, in_batches
from cifar_deploy.store import read_manifest

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class OnnxRuntime:
    """An ONNX file with the deployment interface, loaded into ONNX Runtime.

    Raises UserError where the file is damaged, foreign or not the one its manifest speaks of, and
    where `device` is CUDA and not every node of the graph can run there.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        import onnxruntime

        read_manifest(path)
        facts = onnx_interface.inspect(path)
        self.runtime = f"ONNX Runtime {onnxruntime.__version__}"
        self.device = str(device)
        self.precision: str = facts["precision"]
        self._path = path
        self._torch_device = device
        self._input: str = facts["inputs"][0]["name"]
        self._output: str = facts["outputs"][0]["name"]
        self._classes = int(facts["outputs"][0]["shape"][-1])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; they reach the user through the exception
        options.intra_op_num_threads = torch.get_num_threads()
        providers: list[Any] = [CPU]
        if device.type == "cuda":
            onnxruntime.preload_dlls()
            # A node that only the CPU can run is then an error and not a hidden copy.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            stream = str(torch.cuda.current_stream(device).cuda_stream)
            providers = [(CUDA, {"device_id": device.index or 0, "user_compute_stream": stream})]
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions share no base but this
            raise UserError(f"{path}: ONNX Runtime cannot load it: {_first_line(error)}") from error
        self.provider: str = self._session.get_providers()[0]
        wanted = CUDA if device.type == "cuda" else CPU
        if self.provider != wanted:
            raise UserError(
                f"ONNX Runtime has no {wanted} here (it offers {self.provider}); "
                "see `cifar-deploy doctor`, or use --device cpu"
            )

    def logits(self, images: Images) -> Logits:
        """Float32 [n, classes] of uint8 [n, 32, 32, 3]."""

        def run(batch: Images) -> Logits:
            try:
                result: Logits = self._session.run([self._output], {self._input: batch})[0]
            except Exception as error:  # a fixed batch, or no memory left
                raise UserError(
                    f"{self._path}: ONNX Runtime cannot run a batch of {len(batch)}: "
                    f"{_first_line(error)}"
                ) from error
            return result

        return in_batches(run, images)

    def bind(self, images: Images) -> Callable[[], object]:
        """One inference on `images`; on CUDA with input and output bound to device memory."""
        if self._torch_device.type == "cpu":
            feed, wanted = {self._input: images}, [self._output]
            return lambda: self._session.run(wanted, feed)
        given = torch.from_numpy(images).to(self._torch_device)
        result = torch.empty(len(images), self._classes, device=self._torch_device)
        binding = self._session.io_binding()
        index = self._torch_device.index or 0
        binding.bind_input(
            self._input, "cuda", index, "uint8", tuple(given.shape), given.data_ptr()
        )
        binding.bind_output(
            self._output, "cuda", index, "float32", tuple(result.shape), result.data_ptr()
        )
        # The closure keeps the tensors whose addresses are bound.
        kept = (given, result)
        return lambda: (self._session.run_with_iobinding(binding), kept)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
