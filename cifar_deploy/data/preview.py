"""A picture of a data set: a grid of images before and after augmentation."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from cifar_deploy.data.augment import augment
from cifar_deploy.data.colour import JITTER
from cifar_deploy.data.dataset import SIZE, Dataset, Images
from cifar_deploy.disk import atomic_path
from cifar_deploy.recipe import Augment

ROWS = 5  # of augmented images
SCALE = 3
CELL = SIZE * SCALE
GAP = 6
MARGIN = 18
LABELS = 96  # width of the row labels
HEADER = 74  # height of the title and the class names
PAPER, INK, FAINT = (255, 255, 255), (33, 37, 41), (120, 128, 136)


def preview(
    dataset: Dataset, augment_options: Augment, path: Path, columns: int = 10, seed: int = 0
) -> None:
    """Write a PNG to `path`: a column for each of the first `columns` classes.

    On top stands a random training image of the class, below it the same image augmented in
    different ways. `seed` picks the images and the changes; torch's generator is left as it was.
    Raises UserError where the disk refuses.
    """
    classes = list(dataset.classes[:columns])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        originals = _one_of_each(dataset, len(classes))
        rows = [originals] + [
            augment(torch.from_numpy(originals), augment_options, dataset.normalisation[0]).numpy()
            for _ in range(ROWS)
        ]
    step = CELL + GAP
    top = HEADER + GAP  # between the original and the augmented images there is more room
    title = f"{dataset.name}: {len(dataset.train):,} training images, {len(dataset.test):,} test"
    subtitle = _said(augment_options)
    said = _font(18).getlength(title) + 2 * MARGIN + _font(13).getlength(subtitle)
    width = 2 * MARGIN + max(LABELS + len(classes) * step - GAP, math.ceil(said))
    height = top + len(rows) * step + GAP + MARGIN
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN), title, INK, _font(18))
    draw.text((width - MARGIN, MARGIN + 4), subtitle, FAINT, _font(13), anchor="ra")
    for column, name in enumerate(classes):
        centre = MARGIN + LABELS + column * step + CELL // 2
        draw.text((centre, HEADER - 4), *_fitted(name, CELL), anchor="ms")
    for row, images in enumerate(rows):
        y = top + row * step + (2 * GAP if row else 0)
        row_label = "original" if row == 0 else f"augmented {row}"
        draw.text((MARGIN, y + CELL // 2), row_label, FAINT, _font(13), anchor="lm")
        for column, image in enumerate(images):
            cell = Image.fromarray(image).resize((CELL, CELL), Image.Resampling.NEAREST)
            page.paste(cell, (MARGIN + LABELS + column * step, y))
    with atomic_path(path) as part:
        page.save(part, format="PNG")


def _one_of_each(dataset: Dataset, count: int) -> Images:
    """A random training image of each of the first `count` classes, uint8 [count, 32, 32, 3].

    One that has none stays black.
    """
    picked = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    for label in range(count):
        mine = np.flatnonzero(dataset.train.labels == label)
        if len(mine):
            picked[label] = dataset.train.images[mine[int(torch.randint(len(mine), ()))]]
    return picked


def _said(options: Augment) -> str:
    """The augmentation in words."""
    words = ["alternating flip" if options.alternate else "flip"] if options.flip else []
    if options.vertical_flip:
        words.append("vertical flip")
    if options.translate:
        words.append(f"translate {options.translate} ({options.border})")
    if options.cutout:
        words.append(f"cutout {options.cutout}")
    words += [
        f"{name} {value:g}"
        for name in ("rotate", "scale", *JITTER, "mixup", "cutmix")
        if (value := getattr(options, name))
    ]
    if options.policy != "none":
        words.append(f"policy {options.policy}")
    return "augmentation: " + (", ".join(words) or "none")


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(
    name: str, room: int
) -> tuple[str, tuple[int, int, int], ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """`name` as it fits into `room` pixels: smaller or cut short; with its colour and font."""
    for size in (15, 14, 13, 12, 11):
        if _font(size).getlength(name) <= room:
            return name, INK, _font(size)
    while name and _font(11).getlength(name + "…") > room:
        name = name[:-1]
    return name + "…", INK, _font(11)
