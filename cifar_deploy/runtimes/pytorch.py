"""PyTorch: the reference, in fp32 unless told otherwise."""

import torch

from cifar_deploy.architectures.weights import Trained
from cifar_deploy.data.dataset import Images
from cifar_deploy.runtimes.protocol import Bound, Logits, in_batches


class PyTorch:
    """The deployment graph of a trained network, eager, channels-last."""

    def __init__(self, trained: Trained, device: torch.device) -> None:
        # TF32 would make the reference less exact than the files it judges.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self.runtime = f"PyTorch {torch.__version__}"
        self.provider = "CUDA" if device.type == "cuda" else "CPU"
        self.device = str(device)
        self.precision = "fp32"
        self._graph = trained.graph().to(device).to(memory_format=torch.channels_last)

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self._graph(images)
            return logits

    def logits(self, images: Images) -> Logits:
        """Float32 [n, classes] of uint8 [n, 32, 32, 3]."""

        def run(batch: Images) -> Logits:
            result: Logits = self._run(torch.from_numpy(batch).to(self.device)).cpu().numpy()
            return result

        return in_batches(run, images)

    def bind(self, images: Images) -> Bound:
        """Buffers for a batch of this size; the output is a new tensor each time."""
        given = torch.from_numpy(images).to(self.device, copy=True)
        return Bound(given, lambda: self._run(given))
