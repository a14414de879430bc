import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cifar_deploy import architectures
from cifar_deploy.export.fold import Sign, fold_batch_norms

# fp32 rounds at 6e-8; these networks sum and cascade it. Relative to the largest output.
ROUNDING = 2e-5


def norm(channels: int, negative: bool = True, flat: bool = False) -> nn.Module:
    made: nn.Module = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(channels)
    for name, tensor in made.state_dict().items():
        if name == "running_var":
            tensor.uniform_(0.1, 4.0)
        elif name != "num_batches_tracked":
            tensor.normal_(0.0, 1.0)
    with torch.no_grad():
        made.weight[0] = 0.0
        made.weight[1] = -1.5 if negative else 1.5
        if not negative:
            made.weight.abs_()
    return made


def kinds(network: nn.Module) -> list[type[nn.Module]]:
    return [type(module) for module in network.modules() if not list(module.children())]


def difference(network: nn.Module, folded: nn.Module) -> float:
    x = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected, found = copy.deepcopy(network).eval()(x), folded(x)
    return float((expected - found).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", architectures.NETWORKS)
def test_networks_stay_the_same(name: str, trained_like: Callable[[str], nn.Module]) -> None:
    network = trained_like(name)
    before = copy.deepcopy(network.state_dict())
    folded = fold_batch_norms(network.train())
    assert difference(network, folded) < ROUNDING
    assert not folded.training
    assert not any(isinstance(m, _BatchNorm | nn.Identity | nn.Dropout) for m in folded.modules())
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_only_pooled_blocks_with_negative_scales_keep_a_sign(
    trained_like: Callable[[str], nn.Module],
) -> None:
    network = trained_like("custom_resnet")
    assert kinds(fold_batch_norms(network)).count(Sign) == 3
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.abs_()
    folded = fold_batch_norms(network)
    assert kinds(folded).count(Sign) == 0
    assert difference(network, folded) < ROUNDING


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("negative", [True, False])
@pytest.mark.parametrize(
    "pool",
    [nn.Identity(), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, padding=1), nn.AdaptiveMaxPool2d(2)],
    ids=["none", "pool", "padded", "adaptive"],
)
def test_convolution_pool_norm(pool: nn.Module, negative: bool, bias: bool) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), pool, norm(8, negative))
    folded = fold_batch_norms(network)
    assert difference(network, folded) < ROUNDING
    pooled = not isinstance(pool, nn.Identity)
    signs = [Sign] if pooled and negative else []
    assert kinds(folded) == [nn.Conv2d, *([type(pool)] if pooled else []), *signs]


def test_grouped_convolution_and_linear() -> None:
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3, stride=2),
        norm(6),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(6 * 15 * 15, 9),
        norm(9, flat=True),
    )
    folded = fold_batch_norms(network)
    assert difference(network, folded) < ROUNDING
    assert kinds(folded) == [nn.Conv2d, nn.Flatten, nn.Linear]


def test_norm_without_weights() -> None:
    torch.manual_seed(3)
    plain = nn.BatchNorm2d(4, affine=False)
    assert plain.running_mean is not None
    plain.running_mean.normal_()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), plain)
    folded = fold_batch_norms(network)
    assert difference(network, folded) < ROUNDING
    assert kinds(folded) == [nn.Conv2d, nn.MaxPool2d]


class ReadTwice(nn.Module):
    """The convolution, or the pool behind it, is read by the batch norm and beside it."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.conv, self.pool, self.norm, self.where = (
            nn.Conv2d(3, 4, 3),
            nn.MaxPool2d(2),
            norm(4),
            where,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if self.where == "convolution":
            return torch.cat([self.norm(y), y], 1)
        z = self.pool(y)
        if self.where == "before the pool":
            return torch.cat([self.norm(z), y[..., :15, :15]], 1)
        return torch.cat([self.norm(z), z], 1)


class CalledTwice(nn.Module):
    """One convolution before two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 3), norm(3), norm(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.conv(self.first(self.conv(x))))
        return y


class WeightRead(nn.Module):
    """The convolution's weight is used again without it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), norm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.conv(x)) + torch.conv2d(x, self.conv.weight)
        return y


class OfTheBatch(nn.Sequential):
    """Without running statistics it takes those of each batch."""

    def __init__(self) -> None:
        plain = nn.BatchNorm2d(4, track_running_stats=False)
        super().__init__(nn.Conv2d(3, 4, 3), plain)


class OtherChannels(nn.Module):
    """Batch norm over the tokens, not over the linear layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(1024, 3), norm(3, flat=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.linear(x.flatten(2)))
        return y


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (ReadTwice, ["convolution"]),
        (ReadTwice, ["before the pool"]),
        (ReadTwice, ["after the pool"]),
        (CalledTwice, []),
        (WeightRead, []),
        (OtherChannels, []),
        (OfTheBatch, []),
    ],
)
def test_what_cannot_be_folded_stays(kind: Callable[..., nn.Module], arguments: list[str]) -> None:
    torch.manual_seed(4)
    network = kind(*arguments)
    folded = fold_batch_norms(network)
    assert difference(network, folded) == 0.0
    assert any(isinstance(module, _BatchNorm) for module in folded.modules())


def test_one_norm_after_two_convolutions() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.pool = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)
            self.norm = norm(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.norm(self.pool(self.a(x))) + self.norm(self.pool(self.b(x)))
            return y

    torch.manual_seed(5)
    network = Shared()
    folded = fold_batch_norms(network)
    assert difference(network, folded) < ROUNDING
    assert nn.BatchNorm2d not in kinds(folded)


def test_untraceable_network_is_an_eval_copy() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), norm(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.norm(self.conv(x))
            return y if y.sum() > 0 else -y

    network = Branches()
    folded = fold_batch_norms(network)
    assert folded is not network
    assert not folded.training
    assert network.training
    assert difference(network, folded) == 0.0
