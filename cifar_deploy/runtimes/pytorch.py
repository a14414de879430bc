"""PyTorch: the reference, in fp32 unless told otherwise; eager, or compiled to be timed."""

import copy
from collections.abc import Sequence

import torch

from cifar_deploy.architectures.weights import Trained
from cifar_deploy.data.dataset import Images
from cifar_deploy.device import every_shape, exhausted, quiet_autotune
from cifar_deploy.errors import UserError, one_line
from cifar_deploy.runtimes.cuda import cuda_errors
from cifar_deploy.runtimes.protocol import ANY, Bound, Logits, in_batches

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
MODE = "max-autotune"  # Triton kernels where they are faster, the whole in a CUDA graph


class PyTorch:
    """The deployment graph of a trained network, channels-last."""

    def __init__(
        self,
        trained: Trained,
        device: torch.device,
        precision: str = "fp32",
        compiled: bool = False,
    ) -> None:
        # TF32, or bf16 on a CPU, would make the reference less exact than the files it judges.
        torch.set_float32_matmul_precision("highest")
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False
        self.runtime = f"{'torch.compile' if compiled else 'PyTorch'} {torch.__version__}"
        self.provider = "CUDA" if device.type == "cuda" else "CPU"
        self.device = str(device)
        self.precision = precision
        self.batches: Sequence[range] = ANY
        self.addition = ""
        self._name = trained.name
        if precision != "fp32":  # the graph converts the network that it is given
            trained = copy.deepcopy(trained)
        graph = trained.graph(DTYPES[precision]).to(device).to(memory_format=torch.channels_last)
        self._compiled = compiled
        if compiled:
            quiet_autotune()
        self._graph = torch.compile(graph, mode=MODE, dynamic=False) if compiled else graph
        if device.type == "cuda":
            # Other streams may use it. To wait for the whole device would break what another
            # thread captures meanwhile.
            torch.cuda.current_stream(device).synchronize()

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self._graph(images)
            return logits

    def streams(self, count: int) -> "list[PyTorch]":
        """Itself: torch's number of threads is the calling thread's (torch.set_num_threads)."""
        return [self] * count

    def logits(self, images: Images) -> Logits:
        """Float32 [n, classes] of uint8 [n, 32, 32, 3]."""

        def run(batch: Images) -> Logits:
            with cuda_errors(self._name, torch.device(self.device), len(batch)):
                result: Logits = self._run(torch.from_numpy(batch).to(self.device)).cpu().numpy()
            return result

        return in_batches(run, images)

    def bind(self, images: Images) -> Bound:
        """Buffers for a batch of this size; compiled here, where it is.

        Raises UserError where this machine cannot compile the network.
        """
        given = torch.from_numpy(images).to(self.device, copy=True)
        if self._compiled:
            try:
                with every_shape():
                    self._run(given)
            except Exception as error:  # the compiler's own, and of what it calls
                if exhausted(error):
                    raise
                raise UserError(
                    f"torch.compile cannot compile {self._name}: {one_line(error)}"
                ) from error
        return Bound(given, lambda: self._run(given))
