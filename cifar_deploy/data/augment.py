"""Augmentation of whole batches on the device. No per-image Python.

Random numbers come from torch's default generators, which the training loop seeds at every step.
"""

from collections.abc import Sequence

import torch

from cifar_deploy.recipe import Augment

# Weights of ITU-R BT.601, torchvision's for grey.
GREY = (0.2989, 0.587, 0.114)


def augment(images: torch.Tensor, options: Augment, mean: Sequence[float]) -> torch.Tensor:
    """A randomly changed copy of `images`, uint8 [n, h, w, 3] on any device.

    Flip and translation are one gather. `mean`, per channel of 0..1, is what cutout paints.
    """
    images = _shift(images, options)
    if options.brightness or options.contrast or options.saturation:
        images = _jitter(images, options)
    if options.cutout:
        images = _cutout(images, options.cutout, mean)
    return images


def _shift(images: torch.Tensor, options: Augment) -> torch.Tensor:
    n, height, width, _ = images.shape
    reach, device = options.translate, images.device
    if not (reach or options.flip):
        return images
    rows = torch.arange(height, device=device).expand(n, height)
    columns = torch.arange(width, device=device).expand(n, width)
    if options.flip:
        flipped = torch.rand(n, 1, device=device) < 0.5
        columns = torch.where(flipped, width - 1 - columns, columns)
    if reach:
        rows = rows + torch.randint(-reach, reach + 1, (n, 1), device=device)
        columns = columns + torch.randint(-reach, reach + 1, (n, 1), device=device)
    batch = torch.arange(n, device=device)[:, None, None]
    moved = images[batch, _reflect(rows, height)[:, :, None], _reflect(columns, width)[:, None, :]]
    if reach and options.border == "zero":
        inside = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :]
        moved = moved * inside[..., None]
    return moved


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    """Indices mirrored at the borders without repeating the edge, as reflection padding does."""
    last = size - 1
    return last - (last - index.abs()).abs()


def _inside(index: torch.Tensor, size: int) -> torch.Tensor:
    return (index >= 0) & (index < size)


def _jitter(images: torch.Tensor, options: Augment) -> torch.Tensor:
    """Brightness, contrast and saturation by a factor an image, as torchvision's ColorJitter."""
    x = images.float()
    grey = torch.tensor(GREY, device=x.device)

    def factor(strength: float) -> torch.Tensor:
        return 1 + strength * (2 * torch.rand(len(x), 1, 1, 1, device=x.device) - 1)

    if options.brightness:
        x = (x * factor(options.brightness)).clamp(0, 255)
    if options.contrast:
        middle = (x * grey).sum(-1, keepdim=True).mean((1, 2), keepdim=True)
        x = (middle + (x - middle) * factor(options.contrast)).clamp(0, 255)
    if options.saturation:
        colourless = (x * grey).sum(-1, keepdim=True)
        x = (colourless + (x - colourless) * factor(options.saturation)).clamp(0, 255)
    return x.round().to(torch.uint8)


def _cutout(images: torch.Tensor, side: int, mean: Sequence[float]) -> torch.Tensor:
    """A square of `side` pixels, wholly inside the image, painted with the mean colour.

    DeVries and Taylor 2017, arXiv:1708.04552.
    """
    n, height, width, _ = images.shape
    device = images.device
    colour = torch.tensor([round(255 * m) for m in mean], dtype=torch.uint8, device=device)

    def covered(size: int) -> torch.Tensor:
        start = torch.randint(0, max(size - side, 0) + 1, (n, 1), device=device)
        index = torch.arange(size, device=device)
        return (index >= start) & (index < start + side)

    square = covered(height)[:, :, None] & covered(width)[:, None, :]
    return torch.where(square[..., None], colour, images)
