"""The stem that torchvision's ResNets share for 32x32 images."""

from torch import nn
from torchvision.models import ResNet

from cifar_deploy.errors import UserError

STEMS = ("cifar", "imagenet")


def with_stem(network: ResNet, stem: str) -> None:
    """Give `network` a 3x3 stride-1 stem and no stem pool ("cifar"), or none ("imagenet").

    Raises UserError for another stem.
    """
    if stem not in STEMS:
        raise UserError(f"model.stem is {stem!r}; it can be {' or '.join(STEMS)}")
    if stem == "cifar":
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
