"""Other ways to the same convolutions: the same numbers, and only where they are faster."""

import copy

import pytest
import torch
from torch import nn

from cifar_deploy.train.cpu_convolution import CpuConvolutions
from cifar_deploy.train.objective import Objective

LAST = torch.channels_last


def passes(
    layer: nn.Conv2d,
    x: torch.Tensor,
    grad: torch.Tensor,
    other: bool,
    dtype: torch.dtype,
    bf16: bool = True,
) -> tuple[list[torch.Tensor], str]:
    """Output and all gradients as fp64, and the name of what made the output.

    Of an fp32 layer under bf16 autocast, where not `bf16=False`.
    """
    layer = layer.to(dtype)
    layer.zero_grad()
    x = x.to(dtype).clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and dtype == torch.float32):
        if other:
            with CpuConvolutions():
                y = layer(x)
        else:
            y = layer(x)
    y.backward(grad.to(y.dtype))
    assert y.grad_fn is not None
    of_parameters = [p.grad for p in layer.parameters() if p.grad is not None]
    assert x.grad is not None
    return [t.detach().double() for t in (y, x.grad, *of_parameters)], y.grad_fn.name()


def case(layer: nn.Conv2d, plane: int, n: int = 8) -> tuple[nn.Conv2d, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    layer = layer.to(memory_format=LAST)
    x = torch.randn(n, layer.in_channels, plane, plane, generator=generator)
    x = x.contiguous(memory_format=LAST)
    shape = layer(x).shape
    return layer, x, torch.randn(shape, generator=generator).contiguous(memory_format=LAST)


def rounded(
    layer: nn.Conv2d, x: torch.Tensor, grad: torch.Tensor
) -> tuple[nn.Conv2d, torch.Tensor, torch.Tensor]:
    """The same case with numbers that bf16 holds."""
    layer = copy.deepcopy(layer).float()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16())
    return layer, x.bfloat16().float(), grad.bfloat16().float()


def assert_as_near(
    ours: list[torch.Tensor],
    theirs: list[torch.Tensor],
    truth: list[torch.Tensor],
    bound: float,
) -> None:
    """Ours are about as far from the truth as `theirs`, and no number by more than `bound`."""
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        assert mine.shape == true.shape
        scale = true.abs().max()
        assert (mine - true).abs().max() / scale < bound
        assert (mine - true).norm() < 1.5 * (other - true).norm() + 1e-6 * scale


@pytest.mark.parametrize(
    ("side", "plane"), [(3, 1), (3, 2), (3, 3), (3, 4), (1, 1), (1, 7), (1, 16)], ids=str
)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_as_near_the_truth_as_bf16_can_be(
    side: int, plane: int, stride: int, bias: bool
) -> None:
    torch.manual_seed(0)
    made = case(nn.Conv2d(24, 40, side, stride, side // 2, bias=bias), plane)
    ours, name = passes(*made, other=True, dtype=torch.float32)
    _, theirs_name = passes(*made, other=False, dtype=torch.float32)
    # Not torch's own: on CPUs with AVX-512 oneDNN 3.12 leaves all but the middle tap of the
    # filters' gradient uninitialised where the plane is 1x1 and the stride 2.
    exact, _ = passes(*rounded(*made), other=False, dtype=torch.float64)
    best = [numbers.bfloat16().double() for numbers in exact]
    truth, _ = passes(*made, other=False, dtype=torch.float64)
    assert name != theirs_name
    assert_as_near(ours, best, truth, 2**-7)


@pytest.mark.parametrize("plane", [(1, 1), (1, 2), (2, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_small_planes_in_fp32_are_as_near_the_truth_as_torchs(
    plane: tuple[int, int], stride: int, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(24, 40, 3, stride, 1, bias=bias).to(memory_format=LAST)
    x = torch.randn(8, 24, *plane).contiguous(memory_format=LAST)
    grad = torch.randn(layer(x).shape)
    ours, name = passes(layer, x, grad, other=True, dtype=torch.float32, bf16=False)
    theirs, theirs_name = passes(layer, x, grad, other=False, dtype=torch.float32, bf16=False)
    truth, _ = passes(layer, x, grad, other=False, dtype=torch.float64)
    assert name != theirs_name
    assert_as_near(ours, theirs, truth, 2**-20)


@pytest.mark.parametrize("plane", [(4, 4), (3, 8), (7, 6), (16, 3), (32, 32)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_winograds_way_in_fp32_is_near_the_truth(plane: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 72, 3, padding=1, bias=bias).to(memory_format=LAST)
    x = torch.randn(3, 64, *plane).contiguous(memory_format=LAST)
    grad = torch.randn(layer(x).shape)
    ours, name = passes(layer, x, grad, other=True, dtype=torch.float32, bf16=False)
    truth, _ = passes(layer, x, grad, other=False, dtype=torch.float64)
    assert name.startswith("_Winograd" if not bias else "Add")
    for mine, true in zip(ours, truth, strict=True):
        assert mine.shape == true.shape
        assert (mine - true).abs().max() < 2**-15 * true.abs().max()


@pytest.mark.parametrize("frozen", ["weight", "input"])
def test_winograds_way_makes_only_the_gradients_that_are_wanted(frozen: str) -> None:
    x = torch.randn(2, 64, 4, 4, requires_grad=frozen != "input")
    weight = torch.randn(64, 64, 3, 3, requires_grad=frozen != "weight")
    with CpuConvolutions():
        y = torch.conv2d(x, weight, None, 1, 1)
    y.sum().backward()
    assert (x.grad is None) == (frozen == "input")
    assert (weight.grad is None) == (frozen == "weight")


@pytest.mark.parametrize(("side", "stride"), [(3, 1), (5, 2)])
def test_depthwise_ones_are_nearer_the_truth(side: int, stride: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, side, stride, side // 2, groups=16, bias=False)
    made = case(layer, 8)
    ours, _ = passes(*made, other=True, dtype=torch.float32)
    theirs, _ = passes(*made, other=False, dtype=torch.float32)
    truth, _ = passes(*made, other=False, dtype=torch.float64)
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        assert (mine - true).norm() <= 1.01 * (other - true).norm()


@pytest.mark.parametrize(
    ("layer", "plane"),
    [
        (nn.Conv2d(8, 8, 3, padding=1), 5),
        (nn.Conv2d(8, 8, 3, stride=2, padding=1), 8),
        (nn.Conv2d(8, 8, 3, stride=(1, 2), padding=1), 4),
        (nn.Conv2d(8, 8, 3), 4),
        (nn.Conv2d(8, 8, 3, padding="same"), 4),
        (nn.Conv2d(8, 8, 3, padding=1, dilation=2), 4),
        (nn.Conv2d(8, 8, 3, padding=1, groups=2), 4),
        (nn.Conv2d(8, 8, 1, groups=2), 4),
        (nn.Conv2d(8, 8, 1, padding=1), 4),
    ],
    ids=str,
)
def test_all_others_stay_as_they_are(layer: nn.Conv2d, plane: int) -> None:
    made = case(layer, plane)
    ours, name = passes(*made, other=True, dtype=torch.float32)
    theirs, expected = passes(*made, other=False, dtype=torch.float32)
    assert name == expected
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("layer", "plane"),
    [
        (nn.Conv2d(8, 8, 3, padding=1), 3),
        (nn.Conv2d(8, 8, 3, padding=1), 4),
        (nn.Conv2d(63, 64, 3, padding=1), 4),
        (nn.Conv2d(64, 63, 3, padding=1), 4),
        (nn.Conv2d(64, 64, 3, padding=1), 5),
        (nn.Conv2d(64, 64, 3, stride=2, padding=1), 8),
        (nn.Conv2d(64, 64, 3), 8),
        (nn.Conv2d(8, 8, 3), 3),
        (nn.Conv2d(8, 8, 3, padding=1, groups=2), 2),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), 2),
        (nn.Conv2d(8, 8, 5, padding=2), 2),
        (nn.Conv2d(8, 8, 1), 2),
    ],
    ids=str,
)
def test_all_others_stay_as_they_are_in_fp32(layer: nn.Conv2d, plane: int) -> None:
    made = case(layer, plane)
    ours, name = passes(*made, other=True, dtype=torch.float32, bf16=False)
    theirs, expected = passes(*made, other=False, dtype=torch.float32, bf16=False)
    assert name == expected
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("bf16", "channels", "plane", "expected"),
    [
        (True, 8, 4, "_Product"),
        (False, 8, 4, "Convolution"),
        (True, 64, 8, "Convolution"),
        (False, 64, 8, "_Winograd"),
        (True, 64, 2, "Permute"),
        (False, 64, 2, "Permute"),
    ],
)
def test_training_on_a_cpu_does_it_so(bf16: bool, channels: int, plane: int, expected: str) -> None:
    first = nn.Conv2d(3, channels, 1, bias=False)
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    made: list[str] = []

    def look(_module: nn.Module, _args: object, y: torch.Tensor) -> None:
        assert y.grad_fn is not None
        made.append(y.grad_fn.name())

    layer.register_forward_hook(look)
    network = nn.Sequential(first, layer, nn.Flatten(), nn.Linear(channels * plane**2, 10))
    objective = Objective(network, torch.tensor(1 / 255), torch.tensor(0.0), 0.0, bf16)
    images = torch.zeros(2, plane, plane, 3, dtype=torch.uint8)
    objective(images, torch.zeros(2, dtype=torch.int64))
    (name,) = made
    assert name.startswith(expected)
