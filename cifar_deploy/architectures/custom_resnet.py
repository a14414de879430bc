"""ResNet-9 of the DAWNBench kind (Page 2018, "How to train your ResNet"): 6,573,130 parameters."""

import torch
from torch import nn

# The DAWNBench network's factor on the logits: it keeps the linear layer's gradients in step.
LOGIT_SCALE = 0.125


class ConvBlock(nn.Sequential):
    """3x3 convolution without bias, an optional 2x2 max pool, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, pool: bool = False) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            # Pooling before the batch norm: a quarter of its work, the same accuracy.
            nn.MaxPool2d(2) if pool else nn.Identity(),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class Residual(nn.Module):
    """x + block(block(x)), the channels unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pair = nn.Sequential(ConvBlock(channels, channels), ConvBlock(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, channels, h, w] -> the same shape."""
        changed: torch.Tensor = self.pair(x)
        return x + changed


class CustomResNet(nn.Module):
    """[n, 3, 32, 32] -> logits [n, num_classes]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvBlock(3, 64),
            ConvBlock(64, 128, pool=True),
            Residual(128),
            ConvBlock(128, 256, pool=True),
            ConvBlock(256, 512, pool=True),
            Residual(512),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised images, float [n, 3, 32, 32], to logits [n, num_classes]."""
        logits: torch.Tensor = self.classifier(self.features(x)) * LOGIT_SCALE
        return logits


def build(num_classes: int) -> nn.Module:
    """ResNet-9: two residual pairs, three pooled stages, for [n, 3, 32, 32]."""
    return CustomResNet(num_classes)
