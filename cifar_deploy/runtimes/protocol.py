"""What the validator, the benchmark and `predict` need of a runtime."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from cifar_deploy.data.dataset import Images

if TYPE_CHECKING:
    import torch

Logits = npt.NDArray[np.float32]  # [n, classes]

BATCH = 512  # images a call when a whole set is run
REMOTE = "remote"
MOST_CLASSES = 1 << 20  # that a file or a server may claim
ANY = (range(1, 1 << 31),)  # the batches of a model that takes all


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
    device: str  # "cpu" or "cuda:0"; REMOTE: a server's
    precision: str  # "fp32", "fp16"
    batches: Sequence[range]  # the batch sizes that it takes
    addition: str  # what was put before a file that takes no raw pixels, in words; else nothing

    def logits(self, images: Images) -> Logits:
        """Logits, float32 [n, classes], of uint8 images [n, 32, 32, 3]; copies included."""

    def bind(self, images: Images) -> Bound:
        """Buffers for a batch of this size, with `images`, uint8 [n, 32, 32, 3], in them.

        Raises UserError for a batch that the model does not take.
        """

    def streams(self, count: int) -> "Sequence[Runtime]":
        """So many for as many of the host's threads; on a CPU they share this one's threads."""


def unversioned(runtime: str) -> str:
    """A runtime's name as `Runtime.runtime` has it, "ONNX Runtime 1.31.1", without the version."""
    return runtime.rpartition(" ")[0]


def takes(batches: Sequence[range], batch: int) -> bool:
    """Whether a model of these batch sizes takes `batch` images."""
    return any(batch in sizes for sizes in batches)


def words(batches: Sequence[range]) -> str:
    """The batches that a model takes, as "1 to 8, 64"."""
    return ", ".join(f"{b[0]}" if len(b) == 1 else f"{b[0]} to {b[-1]}" for b in batches)


def unanswered(logits: Logits) -> npt.NDArray[np.bool_]:
    """For which images a logit is NaN or infinity, of which no top-1 can be taken.

    Minus infinity is a class that is ruled out, as a log-softmax in fp16 may say.
    """
    return np.asarray((np.isnan(logits) | np.isposinf(logits)).any(1))


def in_batches(
    run: Callable[[Images], Logits], images: Images, batches: Sequence[range] = ANY
) -> Logits:
    """`run` over `images`, about BATCH at a time, in `batches` it takes: float32 [n, classes].

    Where too few images are left they are filled up, and the rest of the answer is cut off.
    """
    step = _holding(min(BATCH, max(taken[-1] for taken in batches)), batches)
    results = []
    for start in range(0, len(images), step):
        part = images[start : start + step]
        count, size = len(part), _holding(len(part), batches)
        filled = part if size == count else np.resize(part, (size, *part.shape[1:]))
        results.append(run(filled)[:count])
    return np.concatenate(results)


def _holding(count: int, batches: Sequence[range]) -> int:
    """The smallest batch that has room for `count` images."""
    return min(max(count, taken[0]) for taken in batches if count <= taken[-1])
