"""Two kinds of convolution whose bf16 kernels for CPUs are slow, done otherwise.

oneDNN's kernels do well where there are many pixels to a weight. The late layers of a network for
32x32 images have up to 4x4 pixels a channel and millions of weights: there the gradient of the
weights runs at a tenth of what the same multiplications reach as one matrix product (im2col;
Chellapilla et al. 2006), and the other two passes at half. Depthwise convolutions in bf16 take many
times as long as in fp32. `benchmarks/train_speed.py convolutions` measures both.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

LARGEST = 4 * 4  # pixels of a plane; from 8x8 on, copying the patches costs more than it saves
# A plane of one pixel is for oneDNN: eight ninths of its patches are border.
SMALLEST = 2 * 2


class CpuConvolutions(TorchFunctionMode):
    """While it is entered, bf16 autocast does these convolutions the faster way.

    The results are the same up to bf16's rounding. Everything else stays as it is.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """`func`, or what takes its place."""
        if func is torch.conv2d and not kwargs and torch.is_autocast_enabled("cpu"):
            return _convolution(*args)
        return func(*args, **(kwargs or {}))


def _convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    if 1 < groups == x.shape[1]:
        with torch.autocast("cpu", enabled=False):
            bias = None if bias is None else bias.float()
            y = torch.conv2d(x.float(), weight.float(), bias, stride, padding, dilation, groups)
        return y.bfloat16()
    if (
        x.dim() == 4
        and SMALLEST <= x.shape[2] * x.shape[3] <= LARGEST
        and tuple(weight.shape[2:]) == (3, 3)
        and groups == 1
        and (_pair(stride), _pair(padding), _pair(dilation)) == ((1, 1), (1, 1), (1, 1))
    ):
        # In bf16 before the Function, so that autocast's cast is part of the graph.
        product: torch.Tensor = _Product.apply(x.bfloat16(), weight.bfloat16())
        return product if bias is None else product + bias.bfloat16().view(-1, 1, 1)
    return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else tuple(value)


def _patches(x: torch.Tensor) -> torch.Tensor:
    """[n, h, w, c] to the 3x3 surroundings of every pixel, [n * h * w, 9 * c]; outside is 0."""
    n, h, w, c = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    image, row, pixel, _ = padded.stride()
    # Three pixels in a row lie side by side: runs of 3 * c numbers.
    return padded.as_strided((n, h, w, 3, 3 * c), (image, row, pixel, row, 1)).reshape(-1, 9 * c)


class _Product(torch.autograd.Function):
    """Convolution 3x3, stride 1, padding 1: x [n, c, h, w], weight [o, c, 3, 3], both bf16."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        patches = _patches(x.permute(0, 2, 3, 1).contiguous())
        ctx.save_for_backward(patches, weight)
        ctx.shape = x.shape
        y = patches @ weight.permute(0, 2, 3, 1).reshape(-1, 9 * c).T
        return y.view(n, h, w, -1).permute(0, 3, 1, 2)  # channels-last

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        patches, weight = ctx.saved_tensors
        n, c, h, w = ctx.shape
        out = weight.shape[0]
        grad = grads[0].permute(0, 2, 3, 1).contiguous()
        # The gradient of x is the convolution of `grad` with the filters turned round.
        turned = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(9 * out, c)
        of_x = (_patches(grad) @ turned).view(n, h, w, c).permute(0, 3, 1, 2)
        of_weight = (grad.view(-1, out).T @ patches).view(out, 3, 3, c).permute(0, 3, 1, 2)
        return of_x, of_weight
