"""torchvision's MobileNetV3-Small with its early strides reduced (Howard et al. 2019)."""

from functools import partial

from torch import nn
from torchvision import models

# Of the five stride-2 stages, the first two keep the resolution: 32x32 images leave the last block
# as 4x4 instead of 1x1.
FULL_RESOLUTION = 2

# Its batch norms with PyTorch's momentum of 0.1. torchvision's 0.01 is for many more steps: after
# three epochs of CIFAR-10 the stored statistics, layer behind layer, are still far behind.
NORM = partial(nn.BatchNorm2d, eps=0.001)


def build(num_classes: int) -> nn.Module:
    """MobileNetV3-Small, total stride 8, for [n, 3, 32, 32]."""
    network: nn.Module = models.mobilenet_v3_small(num_classes=num_classes, norm_layer=NORM)
    strided = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    for convolution in strided[:FULL_RESOLUTION]:
        convolution.stride = (1, 1)
    return network
