"""What a step computes: raw pixels and labels to a loss, in one graph that torch.compile takes."""

import contextlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cifar_deploy.data.dataset import Labels
from cifar_deploy.train.cpu_convolution import CpuConvolutions
from cifar_deploy.train.teachers import Lesson


def balanced(labels: Labels, classes: int) -> torch.Tensor:
    """Each class's weight, float32 [classes], with which all classes that have images count alike.

    N / (K n_class) of N `labels`, int64 [N], of K classes: scikit-learn's "balanced"
    (`compute_class_weight`; King and Zeng 2001). The mean over the labels is 1. A class without
    any has 0, and is none of the K.
    """
    counts = np.bincount(labels, minlength=classes)
    whole = len(labels) / np.count_nonzero(counts)
    weights = np.divide(whole, counts, where=counts > 0, out=np.zeros(classes))
    return torch.from_numpy(weights).float()


class Objective(nn.Module):
    """uint8 (or, mixed, float) images [n, h, w, 3] and int64 labels [n] to loss and statistics.

    Normalises, runs `network` under bf16 autocast where `bf16`, and takes the cross-entropy in
    fp32, with the share of `lesson`, if any. Nothing here makes the host wait.

    `class_weights`, [classes], weigh what each image's label says, the smoothed part of it, too.
    The mean is that over the images, not, as torch's, that over the weights of the batch at hand:
    with weights whose mean is 1 it is the same on the average, and processes that each have a part
    of a batch agree with one that has all of it. What teachers say is of no one class, and not
    weighed.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    class_weights: torch.Tensor | None

    def __init__(
        self,
        network: nn.Module,
        scale: torch.Tensor,
        shift: torch.Tensor,
        label_smoothing: float,
        bf16: bool,
        lesson: Lesson | None = None,
        class_weights: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.label_smoothing = label_smoothing
        self.bf16 = bf16
        self.lesson = lesson

    def forward(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        share: torch.Tensor | None = None,
        size: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and float64 [2]: the loss again and the number of correct answers.

        `share`, where images are mixed with those of the batch in reverse, is the first one's
        part in the loss (`data.augment.mix`). With `size` the images are made smaller first, to so
        many pixels each way.
        """
        # NHWC in memory is channels-last: the permutation copies nothing.
        x = images.permute(0, 3, 1, 2).float() * self.scale + self.shift
        if size is not None and size != x.shape[-1]:
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        with self._autocast(x), self._convolutions(x):
            logits = self.network(x)
        logits = logits.float()
        loss = self._entropy(logits, labels)
        if share is not None:  # each label with its own weight
            others = self._entropy(logits, labels.flip(0))
            loss = share * loss + (1 - share) * others
        if self.lesson:  # by whole images, also where the network's are small
            with self._autocast(images), self._convolutions(images):
                taught = self.lesson.loss(images, logits)
            loss = torch.lerp(loss, taught, self.lesson.weight)
        correct = (logits.detach().argmax(1) == labels).sum()
        return loss, torch.stack([loss.detach().double(), correct.double()])

    def _entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        smoothing = self.label_smoothing
        if self.class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        return (self.class_weights[labels] * losses).mean()

    def _autocast(self, x: torch.Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16)

    def _convolutions(self, x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
        fits = x.device.type == "cpu" and not torch.compiler.is_compiling()
        return CpuConvolutions() if fits else contextlib.nullcontext()
