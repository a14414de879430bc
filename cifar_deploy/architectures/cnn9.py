"""Nine layers: six 3x3 convolutions in three pairs, then three linear layers. 4.6 M parameters."""

from torch import nn

WIDTHS = (96, 256, 512)


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def build(num_classes: int) -> nn.Module:
    """Three pairs of convolutions with batch norm, pooling between them, for [n, 3, 32, 32]."""
    first, second, third = WIDTHS
    return nn.Sequential(
        *_conv(3, first),
        *_conv(first, first),
        nn.MaxPool2d(2),
        *_conv(first, second),
        *_conv(second, second),
        nn.MaxPool2d(2),
        *_conv(second, third),
        *_conv(third, third),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(third, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )
