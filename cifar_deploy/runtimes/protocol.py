"""What the validator, the benchmark and `predict` need of a runtime."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from cifar_deploy.data.dataset import Images

if TYPE_CHECKING:
    import torch

Logits = npt.NDArray[np.float32]  # [n, classes]

BATCH = 512  # images a call when a whole set is run


@dataclass(frozen=True)
class Bound:
    """One batch's inference over buffers of its own: copies and computing can be timed apart.

    Several stand beside each other, one a stream or thread. On CUDA everything belongs to the
    stream that was torch's current one when it was bound, and `run` is called with that current.
    """

    # uint8 [n, 32, 32, 3] on the device; what is written into it is the input of the next run.
    given: "torch.Tensor"
    # One inference. Gives float32 [n, classes] on the device, good until the next run. On CUDA it
    # enqueues on torch's current stream and returns; on a CPU it returns when it is done.
    run: "Callable[[], torch.Tensor]"


class Runtime(Protocol):
    """A model, loaded and ready, in one runtime on one device."""

    runtime: str  # its name and version, as "ONNX Runtime 1.31.1"
    provider: str  # what really computes, as "CPUExecutionProvider"
    device: str  # "cpu" or "cuda:0"
    precision: str  # "fp32", "fp16"

    def logits(self, images: Images) -> Logits:
        """Logits, float32 [n, classes], of uint8 images [n, 32, 32, 3]; copies included."""

    def bind(self, images: Images) -> Bound:
        """Buffers for a batch of this size, with `images`, uint8 [n, 32, 32, 3], in them.

        Raises UserError for a batch that the model does not take.
        """


def in_batches(run: Callable[[Images], Logits], images: Images) -> Logits:
    """`run` over `images`, BATCH at a time: float32 [n, classes]."""
    starts = range(0, len(images), BATCH)
    return np.concatenate([run(images[start : start + BATCH]) for start in starts])
