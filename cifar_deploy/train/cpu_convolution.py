"""Five kinds of convolution whose kernels for CPUs are slow, done otherwise.

oneDNN's kernels do well where there are many pixels to a weight. The late layers of a network for
32x32 images have up to 4x4 pixels a channel and millions of weights. With 2x2 pixels no filter
leaves one out: the layer is a fully connected one, whose weights are the filters' taps, each in
several places. In bf16 there is more to gain: with up to 4x4 pixels the gradient of the weights
runs at a tenth of what the same multiplications reach as one matrix product (im2col; Chellapilla et
al. 2006), and the other two passes at half. A 1x1 convolution of channels-last images is a matrix
product as it stands, without a copy. Depthwise convolutions take many times as long as in fp32.
`benchmarks/train_speed.py convolutions` measures all five, those of fp32 with --fp32.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from cifar_deploy.train import winograd

LARGEST = 4 * 4  # pixels of a plane; from 8x8 on, copying the patches costs more than it saves
CONNECTED = 2  # pixels of a side; with three, a third of the connections would be zeros


class CpuConvolutions(TorchFunctionMode):
    """While it is entered, these convolutions are done the faster way.

    The results are the same up to rounding, in bf16 where bf16 autocast is on. Everything else
    stays as it is.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """`func`, or what takes its place."""
        if func is torch.conv2d and not kwargs:
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
    bf16 = torch.is_autocast_enabled("cpu")
    if bf16 and 1 < groups == x.shape[1]:
        with torch.autocast("cpu", enabled=False):
            bias = None if bias is None else bias.float()
            y = torch.conv2d(x.float(), weight.float(), bias, stride, padding, dilation, groups)
        return y.bfloat16()
    step = _square(stride)
    if x.dim() == 4 and groups == 1 and step and _square(dilation) == 1:
        kind = (*weight.shape[2:], _square(padding))
        if bf16 and kind == (1, 1, 0):
            pixels = x.permute(0, 2, 3, 1)[:, ::step, ::step]
            return F.linear(pixels, weight.flatten(1), bias).permute(0, 3, 1, 2)
        if kind == (3, 3, 1):
            # In bf16 before what follows, so that autocast's cast is part of the graph, and once.
            dtype = torch.bfloat16 if bf16 else x.dtype
            product: torch.Tensor | None = None
            if max(x.shape[2:]) <= CONNECTED:
                product = _connected(x.to(dtype), weight.to(dtype), step)
            elif bf16 and x.shape[2] * x.shape[3] <= LARGEST:
                product = _Product.apply(x.to(dtype), weight.to(dtype), step)
            elif dtype == torch.float32 and step == 1 and winograd.pays(x, weight):
                product = winograd.convolution(x, weight)
            if product is not None:
                return product if bias is None else product + bias.to(dtype).view(-1, 1, 1)
    return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _square(value: Any) -> int | None:
    """The number that a convolution's setting is in both directions, None where it is no such."""
    if isinstance(value, int):
        return value
    return value[0] if len(set(value)) == 1 and isinstance(value[0], int) else None


def _connected(x: torch.Tensor, weight: torch.Tensor, step: int) -> torch.Tensor:
    """Convolution 3x3, padding 1, any stride, of x [n, c, h, w] with h and w up to `CONNECTED`."""
    n, _, h, w = x.shape
    rows, columns = range(0, h, step), range(0, w, step)
    taps = weight.permute(2, 3, 0, 1).contiguous()
    connections = [
        torch.cat([taps[i - row + 1, j - column + 1] for i in range(h) for j in range(w)], 1)
        for row in rows
        for column in columns
    ]
    pixels = x.permute(0, 2, 3, 1).reshape(n, -1)
    made = F.linear(pixels, torch.cat(connections))  # [n, h * w * o], channels last
    return made.view(n, len(rows), len(columns), -1).permute(0, 3, 1, 2)


def _patches(x: torch.Tensor, step: int) -> torch.Tensor:
    """[n, h, w, c] to the 3x3 surroundings of any `step`th pixel, [pixels, 9 * c]; outside is 0."""
    n, h, w, c = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    image, row, pixel, _ = padded.stride()
    # Three pixels in a row lie side by side: runs of 3 * c numbers.
    shape = (n, -(-h // step), -(-w // step), 3, 3 * c)
    return padded.as_strided(shape, (image, step * row, step * pixel, row, 1)).reshape(-1, 9 * c)


class _Product(torch.autograd.Function):
    """Convolution 3x3, padding 1, any stride: x [n, c, h, w], weight [o, c, 3, 3], both bf16."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, step: int) -> torch.Tensor:
        n, c, h, w = x.shape
        patches = _patches(x.permute(0, 2, 3, 1).contiguous(), step)
        ctx.save_for_backward(patches, weight)
        ctx.shape, ctx.step = x.shape, step
        y = patches @ weight.permute(0, 2, 3, 1).reshape(-1, 9 * c).T
        return y.view(n, -(-h // step), -(-w // step), -1).permute(0, 3, 1, 2)  # channels-last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        patches, weight = ctx.saved_tensors
        n, c, h, w = ctx.shape
        out = weight.shape[0]
        grad = grads[0].permute(0, 2, 3, 1).contiguous()
        of_weight = (grad.view(-1, out).T @ patches).view(out, 3, 3, c).permute(0, 3, 1, 2)
        if ctx.step > 1:  # the pixels between have no gradient
            sparse = grad.new_zeros(n, h, w, out)
            sparse[:, :: ctx.step, :: ctx.step] = grad
            grad = sparse
        # The gradient of x is the convolution of `grad` with the filters turned round.
        turned = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(9 * out, c)
        of_x = (_patches(grad, 1) @ turned).view(n, h, w, c).permute(0, 3, 1, 2)
        return of_x, of_weight, None
