"""What the validator and `predict` need of a runtime."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cifar_deploy.data.dataset import Images

Logits = npt.NDArray[np.float32]  # [n, classes]

BATCH = 512  # images a call when a whole set is run


class Runtime(Protocol):
    """A model, loaded and ready, in one runtime on one device."""

    runtime: str  # its name and version, as "ONNX Runtime 1.31.1"
    provider: str  # what really computes, as "CPUExecutionProvider"
    device: str  # "cpu" or "cuda:0"
    precision: str  # "fp32", "fp16"

    def logits(self, images: Images) -> Logits:
        """Logits, float32 [n, classes], of uint8 images [n, 32, 32, 3]; copies included."""

    def bind(self, images: Images) -> Callable[[], object]:
        """A call that runs one inference on `images`, which already lie on the device.

        The output stays on the device. On CUDA the call enqueues on torch's current stream and
        returns; on a CPU it returns when it is done.
        """


def in_batches(run: Callable[[Images], Logits], images: Images) -> Logits:
    """`run` over `images`, BATCH at a time: float32 [n, classes]."""
    starts = range(0, len(images), BATCH)
    return np.concatenate([run(images[start : start + BATCH]) for start in starts])
