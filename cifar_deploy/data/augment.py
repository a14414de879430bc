"""Augmentation of whole batches, or of a whole epoch, on the device. No per-image Python.

What is random is drawn first (`draw`) and done after (`apply`): a part of a batch can be changed as
it would be among all of it. Random numbers come from torch's default generators, which the
training loop seeds.
"""

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from cifar_deploy.data import policy
from cifar_deploy.data.colour import JITTER, jitter
from cifar_deploy.recipe import Augment

# By name, a row an image: flips bool [n, 1]; shifts and corners int64 [n, 1]; factors [n, 1, 1, 1];
# the warp [n, 6]; the policy's op int64 [n] and strength [n].
Draws = dict[str, torch.Tensor]


def augment(images: torch.Tensor, options: Augment, mean: Sequence[float]) -> torch.Tensor:
    """A randomly changed copy of `images`, uint8 [n, h, w, 3] on any device.

    `mean`, per channel of 0..1, is what cutout paints.
    """
    n, height, width, _ = images.shape
    return apply(images, draw(n, height, width, options, images.device), options, mean)


def draw(n: int, height: int, width: int, options: Augment, device: torch.device) -> Draws:
    """What `options` leave to chance for `n` images."""
    draws: Draws = {}
    if options.flip:
        draws["flip"] = torch.rand(n, 1, device=device) < 0.5
    if options.translate:
        reach = options.translate
        draws["down"] = torch.randint(-reach, reach + 1, (n, 1), device=device)
        draws["right"] = torch.randint(-reach, reach + 1, (n, 1), device=device)
    for name in JITTER:
        if strength := getattr(options, name):
            factor = 1 + strength * (2 * torch.rand(n, 1, 1, 1, device=device) - 1)
            draws[name] = factor
    if side := options.cutout:
        for name, size in (("top", height), ("left", width)):
            draws[name] = torch.randint(0, max(size - side, 0) + 1, (n, 1), device=device)
    # What came later is drawn later, so that older recipes see the images that they saw.
    if options.vertical_flip:
        draws["vertical_flip"] = torch.rand(n, 1, device=device) < 0.5
    if options.policy == "trivial":
        draws["op"], draws["strength"] = policy.draw(n, device)
    if options.rotate or options.scale or "op" in draws:
        draws["warp"] = _draw_warp(n, options, draws, device)
    return draws


def _draw_warp(n: int, options: Augment, draws: Draws, device: torch.device) -> torch.Tensor:
    """Where the pixels of `n` images come from: float32 [n, 6], the matrix [[a, b, c], [d, e, f]].

    It takes a pixel's place (x, y, 1), in pixels from the centre, to that in the image before:
    zoomed and turned, and then what the policy does.
    """

    def around_zero(reach: float) -> torch.Tensor:
        if not reach:
            return torch.zeros(n, device=device)
        return reach * (2 * torch.rand(n, device=device) - 1)

    def of_policy(name: str) -> torch.Tensor:
        if "op" not in draws:
            return torch.zeros(n, device=device)
        return draws["strength"] * (draws["op"] == policy.NAMES.index(name))

    angle = torch.deg2rad(around_zero(options.rotate) + of_policy("rotate"))
    zoom = 1 + around_zero(options.scale)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    shear_x, shear_y = of_policy("shear_x"), of_policy("shear_y")
    right, down = of_policy("translate_x"), of_policy("translate_y")
    x = cos - sin * shear_y, cos * shear_x - sin, sin * down - cos * right
    y = sin + cos * shear_y, sin * shear_x + cos, -sin * right - cos * down
    return torch.stack((*x, *y), 1)


def apply(
    images: torch.Tensor, draws: Draws, options: Augment, mean: Sequence[float]
) -> torch.Tensor:
    """`images`, uint8 [n, h, w, 3], changed as `draws` say.

    Flips and translation are one gather; rotation, scale and what the policy moves one resampling.
    """
    images = _shift(images, draws, options.border)
    if "warp" in draws:
        images = _warp(images, draws["warp"], options.border)
    if any(name in draws for name in JITTER):
        images = jitter(images, draws)
    if "op" in draws:
        images = policy.recolour(images, draws["op"], draws["strength"])
    if "top" in draws:
        images = _cutout(images, draws, options.cutout, mean)
    return images


def alternating(first: torch.Tensor, epoch: int) -> torch.Tensor:
    """Which images to flip in `epoch` when each is to be the other way round every time.

    `first` says which are flipped in epoch 0; bool of any shape. Keller Jordan 2024,
    arXiv:2404.00498: more different images in the same time than flips at random.
    """
    return first.logical_not() if epoch % 2 else first


def ways_to_mix(options: Augment) -> set[str]:
    """All that `mixes` may say of a batch."""
    names = set(_mixing(options)) if options.mix_rate else set()
    return names | {""} if options.mix_rate < 1 or not names else names


def _mixing(options: Augment) -> list[str]:
    return [name for name in ("mixup", "cutmix") if getattr(options, name)]


def mixes(options: Augment, seed: int) -> str:
    """Which of "mixup" and "cutmix" the batch of `seed` gets; "": neither."""
    names = _mixing(options)
    chance = random.Random(seed)
    name = chance.choice(names) if names else ""
    return name if chance.random() < options.mix_rate else ""


def mix(
    images: torch.Tensor, options: Augment, seed: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mix every image of a batch with another one of it, by mixup or by cutmix.

    The other one is the batch's in reverse. `images` is uint8 [n, h, w, 3]; returns them (float
    after mixup) and the share of the first one, a 0-dimensional float32; the labels' shares are the
    same. Where only some batches are mixed the others' share is 1, so that one compiled step does
    for both; where none is, it is None. Zhang et al. 2017, arXiv:1710.09412; Yun et al. 2019,
    arXiv:1905.04899.
    """
    name = mixes(options, seed)
    if not name:
        some = ways_to_mix(options) != {""}
        return images, torch.ones((), device=images.device) if some else None
    chance = random.Random(seed + 1)
    alpha = getattr(options, name)
    share = chance.betavariate(alpha, alpha)
    if name == "mixup":
        images = torch.lerp(images.flip(0).float(), images.float(), share)
    else:
        _, height, width, _ = images.shape
        rows, columns = (round(size * (1 - share) ** 0.5) for size in (height, width))
        y, x = chance.randint(0, height - rows), chance.randint(0, width - columns)
        box = (slice(None), slice(y, y + rows), slice(x, x + columns))
        pasted = images.flip(0)[box]
        images = images.clone()
        images[box] = pasted
        share = 1 - rows * columns / (height * width)
    return images, torch.full((), share, device=images.device)


def _shift(images: torch.Tensor, draws: Draws, border: str) -> torch.Tensor:
    n, height, width, _ = images.shape
    device = images.device
    if not ("flip" in draws or "vertical_flip" in draws or "down" in draws):
        return images
    rows = torch.arange(height, device=device).expand(n, height)
    columns = torch.arange(width, device=device).expand(n, width)
    if "flip" in draws:
        columns = torch.where(draws["flip"], width - 1 - columns, columns)
    if "vertical_flip" in draws:
        rows = torch.where(draws["vertical_flip"], height - 1 - rows, rows)
    if "down" in draws:
        rows = rows + draws["down"]
        columns = columns + draws["right"]
    batch = torch.arange(n, device=device)[:, None, None]
    moved = images[batch, _reflect(rows, height)[:, :, None], _reflect(columns, width)[:, None, :]]
    if "down" in draws and border == "zero":
        inside = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :]
        moved = moved * inside[..., None]
    return moved


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    """Indices mirrored at the borders without repeating the edge, as reflection padding does."""
    last = size - 1
    return last - (last - index.abs()).abs()


def _inside(index: torch.Tensor, size: int) -> torch.Tensor:
    return (index >= 0) & (index < size)


# Resampled at once, in float32: some 200 MB, where a whole epoch would take twelve times that.
WARPED_IMAGES = 4096


def _warp(images: torch.Tensor, warp: torch.Tensor, border: str) -> torch.Tensor:
    """Bilinear samples at the places of `_draw_warp`. Images that nothing moves stay exactly."""
    _, height, width, _ = images.shape
    device = images.device
    right = torch.arange(width, device=device) - (width - 1) / 2
    down = torch.arange(height, device=device)[:, None] - (height - 1) / 2
    mode = "reflection" if border == "reflect" else "zeros"
    still = torch.tensor([1.0, 0, 0, 0, 1, 0], device=device)
    warped = images.clone()
    moved = (warp != still).any(1).nonzero()[:, 0]
    for rows in torch.split(moved, WARPED_IMAGES):
        a, b, c, d, e, f = warp[rows].t()[..., None, None]
        x = a * right + (b * down + c)
        y = d * right + (e * down + f)
        # From -1 to 1 between the centres of the outermost pixels, about which `_reflect` mirrors.
        places = torch.stack((x * (2 / (width - 1)), y * (2 / (height - 1))), -1)
        pixels = images[rows].permute(0, 3, 1, 2).float()
        sampled = F.grid_sample(pixels, places, "bilinear", mode, align_corners=True)
        warped[rows] = sampled.permute(0, 2, 3, 1).round().to(torch.uint8)
    return warped


def _cutout(images: torch.Tensor, draws: Draws, side: int, mean: Sequence[float]) -> torch.Tensor:
    """A square of `side` pixels, wholly inside the image, painted with the mean colour.

    DeVries and Taylor 2017, arXiv:1708.04552.
    """
    _, height, width, _ = images.shape
    device = images.device
    colour = torch.tensor([round(255 * m) for m in mean], dtype=torch.uint8, device=device)

    def covered(size: int, start: torch.Tensor) -> torch.Tensor:
        index = torch.arange(size, device=device)
        return (index >= start) & (index < start + side)

    square = covered(height, draws["top"])[:, :, None] & covered(width, draws["left"])[:, None, :]
    return torch.where(square[..., None], colour, images)
