"""torchvision's ResNet-18 with a stem for 32x32 images (He et al. 2015, arXiv:1512.03385)."""

from torch import nn
from torchvision import models

from cifar_deploy.architectures.stems import with_stem


def build(num_classes: int, stem: str = "cifar") -> nn.Module:
    """ResNet-18 for [n, 3, 32, 32]; `stem` as in `stems.with_stem`."""
    network: models.ResNet = models.resnet18(num_classes=num_classes)
    with_stem(network, stem)
    body: nn.Module = network
    return body
