"""What a step computes: raw pixels and labels to a loss, in one graph that torch.compile takes."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from cifar_deploy.train.cpu_convolution import CpuConvolutions
from cifar_deploy.train.teachers import Lesson


class Objective(nn.Module):
    """uint8 (or, mixed, float) images [n, h, w, 3] and int64 labels [n] to loss and statistics.

    Normalises, runs `network` under bf16 autocast where `bf16`, and takes the cross-entropy in
    fp32, with the share of `lesson`, if any. Nothing here makes the host wait.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        scale: torch.Tensor,
        shift: torch.Tensor,
        label_smoothing: float,
        bf16: bool,
        lesson: Lesson | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
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
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if share is not None:
            others = F.cross_entropy(logits, labels.flip(0), label_smoothing=self.label_smoothing)
            loss = share * loss + (1 - share) * others
        if self.lesson:  # by whole images, also where the network's are small
            with self._autocast(images), self._convolutions(images):
                taught = self.lesson.loss(images, logits)
            loss = torch.lerp(loss, taught, self.lesson.weight)
        correct = (logits.detach().argmax(1) == labels).sum()
        return loss, torch.stack([loss.detach().double(), correct.double()])

    def _autocast(self, x: torch.Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16)

    def _convolutions(self, x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
        fits = x.device.type == "cpu" and not torch.compiler.is_compiling()
        return CpuConvolutions() if fits else contextlib.nullcontext()
