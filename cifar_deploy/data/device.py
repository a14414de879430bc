"""A split on the training device, and the order in which an epoch sees it."""

from collections.abc import Iterator

import torch

from cifar_deploy.data.dataset import Split


class DeviceSplit:
    """uint8 images [n, 32, 32, 3] and int64 labels [n] that stay on `device`.

    NHWC in memory is what channels-last means: permuting a batch to NCHW copies nothing.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.images = torch.from_numpy(split.images).to(device)
        self.labels = torch.from_numpy(split.labels).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def order(self) -> torch.Tensor:
        """A random order of all images, int64 [n], from torch's default generator."""
        return torch.randperm(len(self), device=self.images.device)

    def take(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The images and labels at `index`, int64 [b]."""
        return self.images[index], self.labels[index]

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All images in order, `size` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.images[start : start + size], self.labels[start : start + size]
