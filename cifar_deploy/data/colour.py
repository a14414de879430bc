"""Changes of colour, of whole batches on the device: uint8 [n, h, w, 3] to the same."""

from collections.abc import Mapping

import torch

# Weights of ITU-R BT.601, torchvision's for grey.
GREY = (0.2989, 0.587, 0.114)
JITTER = ("brightness", "contrast", "saturation")


def jitter(images: torch.Tensor, factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Brightness, contrast and saturation by a factor an image, as torchvision's ColorJitter.

    `factors` are float32 [n, 1, 1, 1] by the names in JITTER; 1 leaves an image as it is.
    """
    x = images.float()
    grey = torch.tensor(GREY, device=x.device)
    if "brightness" in factors:
        x = (x * factors["brightness"]).clamp(0, 255)
    if "contrast" in factors:
        middle = (x * grey).sum(-1, keepdim=True).mean((1, 2), keepdim=True)
        x = (middle + (x - middle) * factors["contrast"]).clamp(0, 255)
    if "saturation" in factors:
        colourless = (x * grey).sum(-1, keepdim=True)
        x = (colourless + (x - colourless) * factors["saturation"]).clamp(0, 255)
    return x.round().to(torch.uint8)


def sharpen(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """By `factor`, float32 [n, 1, 1, 1], away from a blurred copy; below 1 towards it.

    Blurred as in Pillow: the mean of 3x3 pixels, the middle one counting five times. The outermost
    pixels stay.
    """
    x = images.float()
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    inner = x[:, 1:-1, 1:-1]
    blurred = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * inner) / 13
    sharp = (blurred + (inner - blurred) * factor).clamp(0, 255)
    changed = images.clone()
    changed[:, 1:-1, 1:-1] = sharp.round().to(torch.uint8)
    return changed


def posterise(images: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """The highest `bits`, 0 to 8 in a float32 [n, 1, 1, 1], of every value."""
    mask = 256 - torch.exp2(8 - bits)
    return images & mask.to(torch.uint8)


def solarise(images: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Values of `threshold`, float32 [n, 1, 1, 1], and more turned to their negative."""
    return torch.where(images >= threshold, 255 - images, images)


def autocontrast(images: torch.Tensor) -> torch.Tensor:
    """Each channel stretched to reach from 0 to 255; one of a single value stays."""
    x = images.int()
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    stretched = 255 * (x - low) // (high - low).clamp(min=1)
    return torch.where(high > low, stretched, x).to(torch.uint8)


def equalise(images: torch.Tensor) -> torch.Tensor:
    """Each channel's values spread so that all are about as frequent, by Pillow's table.

    In it the pixels of the highest value do not count. All in whole numbers.
    """
    n, height, width, channels = images.shape
    values = images.flatten(1, 2).transpose(1, 2).long()  # [n, 3, pixels]
    planes = torch.arange(n * channels, device=images.device).view(n, channels, 1)
    counts = torch.bincount((256 * planes + values).flatten(), minlength=256 * n * channels)
    counts = counts.view(n, channels, 256)
    highest = counts.gather(2, values.amax(2, keepdim=True))
    step = (height * width - highest) // 255
    table = (counts.cumsum(2) - counts + step // 2) // step.clamp(min=1)
    same = torch.arange(256, device=images.device)
    table = torch.where(step > 0, table.clamp(max=255), same).to(torch.uint8)
    return table.gather(2, values).transpose(1, 2).reshape(images.shape)
