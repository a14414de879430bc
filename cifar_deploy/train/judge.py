"""Which images a network in training gets right: by its deployment graph, as all that follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cifar_deploy.architectures.deployment import DeploymentGraph
from cifar_deploy.data.dataset import Split, tally
from cifar_deploy.data.device import DeviceSplit
from cifar_deploy.disk import Json
from cifar_deploy.train.ranks import Ranks

BATCH = 500


@dataclass(frozen=True)
class Judge:
    """How the networks of one run are judged. Its processes share the images.

    `mean` and `std` are per channel, of pixels in 0..1.
    """

    device: torch.device
    ranks: Ranks
    mean: Sequence[float]
    std: Sequence[float]

    def right(self, network: nn.Module, split: Split) -> torch.Tensor:
        """Which of this process's images of `split` `network` gets right, in fp32; bool [n]."""
        device, ranks = self.device, self.ranks
        ranks.same_buffers(network)
        graph = DeploymentGraph(network, self.mean, self.std).to(device)
        mine = slice(ranks.rank, None, ranks.world)
        part = Split(
            np.ascontiguousarray(split.images[mine]), np.ascontiguousarray(split.labels[mine])
        )
        right = [torch.zeros(0, dtype=torch.bool, device=device)]  # there may be no image for it
        # A search among algorithms, anew for these batches, would take longer than judging does.
        exact: Any = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
        with torch.inference_mode(), exact:
            for images, labels in DeviceSplit(part, device).batches(BATCH):
                right.append(graph(images).argmax(1) == labels)
        return torch.cat(right)

    def count(self, right: torch.Tensor) -> int:
        """How many of all processes' images are marked."""
        return int(self.ranks.total(right.sum()))

    def accuracy(self, network: nn.Module, split: Split) -> float:
        """Share of `split` that `network` gets right."""
        return self.count(self.right(network, split)) / len(split)

    def tally(self, right: torch.Tensor, split: Split, classes: Sequence[str]) -> Json:
        """`tally` of all processes' images, by the marks of this one's."""
        whole = torch.zeros(len(split), dtype=torch.int64, device=right.device)
        whole[self.ranks.rank :: self.ranks.world] = right.long()
        marked = self.ranks.total(whole).bool().cpu().numpy()
        return tally(classes, split.labels, split.labels[marked])
