"""The CNN of PyTorch's 60-minute blitz: 62,006 parameters."""

from torch import nn


def build(num_classes: int) -> nn.Module:
    """Two 5x5 convolutions with pooling and three linear layers, for [n, 3, 32, 32]."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )
