"""TrivialAugment: every image is changed in one way of fourteen, at a strength of chance.

Müller and Hutter 2021, arXiv:2103.10158, with the strengths of its wide space. It differs from
theirs in how pixels move, which is part of `augment`'s one resampling: bilinear, about the centre,
and what comes in is the recipe's border, where theirs takes the nearest pixel, shears about a
corner, and lets in black.
"""

from collections.abc import Callable

import torch

from cifar_deploy.data import colour

LEVELS = 31  # strengths, evenly from the first value to the last
# What begins at 0 is also done the other way round.
OPS = {
    "identity": (0.0, 0.0),
    "shear_x": (0.0, 0.99),  # the tangent of the angle
    "shear_y": (0.0, 0.99),
    "translate_x": (0.0, 32.0),  # pixels, whole ones
    "translate_y": (0.0, 32.0),
    "rotate": (0.0, 135.0),  # degrees
    "brightness": (0.0, 0.99),  # more than the factor 1, as in the next three
    "color": (0.0, 0.99),
    "contrast": (0.0, 0.99),
    "sharpness": (0.0, 0.99),
    "posterize": (8.0, 2.0),  # bits
    "solarize": (256.0, 0.0),  # the lowest value that is inverted
    "autocontrast": (0.0, 0.0),
    "equalize": (0.0, 0.0),
}
NAMES = tuple(OPS)
WHOLE = ("translate_x", "translate_y", "posterize")

# Of images uint8 [n, h, w, 3] and strengths [n, 1, 1, 1].
RECOLOUR: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "brightness": lambda images, strength: colour.jitter(images, {"brightness": 1 + strength}),
    "color": lambda images, strength: colour.jitter(images, {"saturation": 1 + strength}),
    "contrast": lambda images, strength: colour.jitter(images, {"contrast": 1 + strength}),
    "sharpness": lambda images, strength: colour.sharpen(images, 1 + strength),
    "posterize": colour.posterise,
    "solarize": colour.solarise,
    "autocontrast": lambda images, strength: colour.autocontrast(images),
    "equalize": lambda images, strength: colour.equalise(images),
}


def draw(n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """For `n` images which of NAMES is done, int64 [n], and how strongly, float32 [n]."""
    op = torch.randint(len(OPS), (n,), device=device)
    level = torch.randint(LEVELS, (n,), device=device) / (LEVELS - 1)
    first, last = torch.tensor(list(OPS.values()), device=device).t()[:, op]
    whole = torch.tensor([name in WHOLE for name in NAMES], device=device)[op]
    strength = first + (last - first) * level
    strength = torch.where(whole, strength.round(), strength)
    back = (torch.rand(n, device=device) < 0.5) & (first == 0)
    return op, torch.where(back, -strength, strength)


def recolour(images: torch.Tensor, op: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """`images`, uint8 [n, h, w, 3], with the changes of colour among those that `draw` gave."""
    counts = torch.bincount(op, minlength=len(NAMES)).tolist()  # once for all: a GPU is waited for
    changed = images.clone()
    for name, rows in zip(NAMES, torch.split(op.argsort(), counts), strict=True):
        if name in RECOLOUR and len(rows):
            changed[rows] = RECOLOUR[name](images[rows], strength[rows, None, None, None])
    return changed
