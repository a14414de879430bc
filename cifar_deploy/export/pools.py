"""Pools over the whole image, in a form that every exporter writes as one node."""

import torch
import torch.nn.functional as F
from torch import nn


class GlobalAverage(nn.Module):
    """[n, channels, height, width] -> [n, channels, 1, 1], the mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The mean of each channel."""
        return x.mean((2, 3), keepdim=True)


class GlobalMax(nn.Module):
    """[n, channels, height, width] -> [n, channels, 1, 1], the largest."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The largest value of each channel."""
        return F.max_pool2d(x, x.shape[2:])


def plain_pools(network: nn.Module) -> None:
    """Replace, in place, the adaptive pools of `network` whose output is 1x1.

    torch.export breaks AdaptiveAvgPool2d(1) into a mean and an as_strided, which reaches ONNX as
    shape arithmetic and a Gather; AdaptiveMaxPool2d(1) becomes an amax in fp32, also in fp16
    graphs.
    """
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if getattr(module, "output_size", None) not in (1, (1, 1), [1, 1]):
            continue
        if isinstance(module, nn.AdaptiveAvgPool2d):
            network.set_submodule(name, GlobalAverage())
        elif isinstance(module, nn.AdaptiveMaxPool2d) and not module.return_indices:
            network.set_submodule(name, GlobalMax())
