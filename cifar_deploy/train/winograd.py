"""3x3 convolutions in fp32 with a quarter of the multiplications (Winograd 1980).

F(4x4, 3x3) of Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks",
https://arxiv.org/abs/1509.09308: tiles of 4x4 outputs are made from 6x6 inputs, both transformed by
small matrices, with one product of matrices [tiles, in] and [in, out] for each of the 36 places
instead of nine for each of the 16 outputs. The transforms are products of matrices, too, so all of
it is the BLAS library's work; the gradients go the same way backwards. Rounding is some ten times
that of the plain sums, 1e-5 of the result.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

TILE, PATCH = 4, 6  # pixels of a side: of a tile of outputs, of the inputs it is made from
CHANNELS = 64  # in and out; with fewer, the transforms cost more than they save

# The article's matrices B', G and A', for the points 0, 1, -1, 2, -2 and infinity.
INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def _both_ways(matrix: tuple[tuple[float, ...], ...]) -> torch.Tensor:
    """The transform of rows and columns as one matrix, on planes written in a line."""
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one).float()


OF_INPUT, OF_FILTER, OF_OUTPUT = _both_ways(INPUT), _both_ways(FILTER), _both_ways(OUTPUT)


def pays(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether x [n, c, h, w] and weight [o, c, 3, 3] are of sizes at which this is the faster way.

    There are channels enough for the transforms, and less than half of the tiles lies outside.
    """
    height, width = x.shape[2:]
    covered = TILE**2 * _tiles(height) * _tiles(width)
    return min(weight.shape[:2]) >= CHANNELS and covered < 2 * height * width


def convolution(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolution 3x3, stride 1, padding 1, of x [n, c, h, w] with weight [o, c, 3, 3], fp32.

    [n, o, h, w], channels-last in memory, which x had better be, too.
    """
    made: torch.Tensor = _Winograd.apply(x, weight)
    return made


def _tiles(pixels: int) -> int:
    return -(-pixels // TILE)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        out = weight.shape[0]
        down, across = _tiles(h), _tiles(w)
        inputs = OF_INPUT @ _patches(x, down, across)
        filters = OF_FILTER @ weight.permute(2, 3, 1, 0).reshape(9, -1)
        inputs, filters = inputs.view(PATCH**2, -1, c), filters.view(PATCH**2, c, out)
        tiles = OF_OUTPUT @ torch.bmm(inputs, filters).view(PATCH**2, -1)
        ctx.save_for_backward(inputs, filters)
        ctx.shape = x.shape
        y = tiles.view(TILE, TILE, n, down, across, out).permute(2, 3, 0, 4, 1, 5)
        return y.reshape(n, down * TILE, across * TILE, out)[:, :h, :w].permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        inputs, filters = ctx.saved_tensors
        n, c, h, w = ctx.shape
        out = filters.shape[2]
        down, across = _tiles(h), _tiles(w)
        grad = grads[0].permute(0, 2, 3, 1)
        grad = F.pad(grad, (0, 0, 0, across * TILE - w, 0, down * TILE - h))
        tiles = grad.reshape(n, down, TILE, across, TILE, out).permute(2, 4, 0, 1, 3, 5)
        products = (OF_OUTPUT.T @ tiles.reshape(TILE**2, -1)).view(PATCH**2, -1, out)
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            sums = torch.bmm(inputs.mT, products).view(PATCH**2, -1)
            of_weight = (OF_FILTER.T @ sums).view(3, 3, c, out).permute(3, 2, 0, 1)
        if ctx.needs_input_grad[0]:
            patches = OF_INPUT.T @ torch.bmm(products, filters.mT).view(PATCH**2, -1)
            of_x = _add_up(patches.view(PATCH, PATCH, n, down, across, c))[:, :, :h, :w]
        return of_x, of_weight


def _patches(x: torch.Tensor, down: int, across: int) -> torch.Tensor:
    """The inputs of each tile, [36, n * down * across * c]; outside of x is 0."""
    n, c, h, w = x.shape
    border = (0, 0, 1, across * TILE - w + 1, 1, down * TILE - h + 1)
    padded = F.pad(x.permute(0, 2, 3, 1), border)
    image, row, pixel, channel = padded.stride()
    strides = (row, pixel, image, TILE * row, TILE * pixel, channel)
    return padded.as_strided((PATCH, PATCH, n, down, across, c), strides).reshape(PATCH**2, -1)


def _add_up(patches: torch.Tensor) -> torch.Tensor:
    """Patches [6, 6, n, down, across, c], added up where they lie: [n, c, 4 * down, 4 * across]."""
    _, _, n, down, across, c = patches.shape
    patches = patches.permute(2, 3, 0, 4, 1, 5)
    # Tiles that begin with the border, and one more, into which the last patches reach.
    total = patches.new_zeros(n, down + 1, TILE, across + 1, TILE, c)
    total[:, :-1, :, :-1] = patches[:, :, :TILE, :, :TILE]
    over = PATCH - TILE
    total[:, 1:, :over, :-1] += patches[:, :, TILE:, :, :TILE]
    total[:, :-1, :, 1:, :over] += patches[:, :, :TILE, :, TILE:]
    total[:, 1:, :over, 1:, :over] += patches[:, :, TILE:, :, TILE:]
    whole = total.view(n, (down + 1) * TILE, (across + 1) * TILE, c)
    return whole[:, 1 : down * TILE + 1, 1 : across * TILE + 1].permute(0, 3, 1, 2)
