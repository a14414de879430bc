"""The deployment graph: what an application feeds and what it gets."""

from collections.abc import Sequence

import torch
from torch import nn


class DeploymentGraph(nn.Module):
    """Raw pixels to logits: uint8 [n, 32, 32, 3], RGB -> float32 [n, classes].

    The preprocessing is part of the graph, in float32; the network runs in `dtype`.
    `mean` and `std` are per channel, of pixels scaled to 0..1. `network` by itself takes normalised
    images, [n, 3, 32, 32]; `classes` are the logits' names, where they are known.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    classes: tuple[str, ...] = ()

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.network = network.to(dtype).eval()
        self.mean, self.std, self.dtype = list(mean), list(std), dtype
        cpu = torch.device("cpu")  # whatever the default is; the graph is moved as a whole
        deviation = torch.tensor(std, dtype=torch.float64, device=cpu)
        scale = 1 / (255 * deviation)
        shift = -torch.tensor(mean, dtype=torch.float64, device=cpu) / deviation
        self.register_buffer("scale", scale.float().view(1, -1, 1, 1))
        self.register_buffer("shift", shift.float().view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Uint8 [n, 32, 32, 3] to logits, float32 [n, classes]."""
        # Cast first: TensorRT refuses to transpose uint8.
        x = images.to(torch.float32).permute(0, 3, 1, 2)
        logits: torch.Tensor = self.network((x * self.scale + self.shift).to(self.dtype))
        return logits.to(torch.float32)
