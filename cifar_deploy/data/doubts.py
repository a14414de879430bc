"""What makes an accuracy say less than it seems: the images, and what it hides."""

import hashlib
from pathlib import Path

import numpy as np

from cifar_deploy.data import folder
from cifar_deploy.data.dataset import Dataset, Images, Labels, Split, balance
from cifar_deploy.errors import few

NAMED = 3  # of the classes without a right answer, in a line


def doubts(dataset: Dataset, val: bool = False) -> list[str]:
    """A line for each thing about `dataset` that whoever made it would want to know.

    `val`: the images in val/ beside the test images are used, too.
    """
    said = []
    if lost := dataset.missing(dataset.test):
        said.append(f"{dataset.origin} has no test image of {few(lost)}: no accuracy tells of them")
    if dataset.verified == folder.VERIFIED:  # of published sets it is known
        said += _of_the_images(dataset) + _of_the_folder(Path(dataset.origin), val)
    if val and dataset.val and (line := of_val(dataset, dataset.val())):
        said.append(line)
    return said


def _of_the_images(dataset: Dataset) -> list[str]:
    said = []
    if line := worthless(dataset.train, dataset.test, "test images"):
        said.append(line)
    if len(plain := _plain(dataset.train.images)):
        said.append(
            f"{len(plain):,} of {len(dataset.train):,} training images have one colour only "
            f"({dataset.train.file(int(plain[0]))}): transparency, which may be what they show, is "
            "not read"
        )
    return said


def _of_the_folder(place: Path, val: bool) -> list[str]:
    said = []
    first, *others = (place / name for name in folder.TEST if (place / name).is_dir())
    used = [place / "train", first, *(others if val else [])]
    said += [
        f"{other} is not used, since there is {first}, but by train --hold-out val"
        for other in others
        if other not in used
    ]
    for root in used:
        if loose := [path for path in folder.visible(root) if path.is_file()]:
            said.append(f"{len(loose):,} files in {root} itself, in no class, are not used")
    return said


def of_val(dataset: Dataset, val: Split) -> str:
    """What is to be known of images in val/: classes without any, training images; else ""."""
    lost = dataset.missing(val)
    missing = f"no image of {few(lost)} is in val" if lost else ""
    return "; ".join(filter(None, (missing, leaked(dataset.train, val, "images in val"))))


def worthless(train: Split, judged: Split, what: str) -> str:
    """What `leaked` says, and what follows for an accuracy by the images of `judged`."""
    leak = leaked(train, judged, what)
    return leak and f"{leak}: an accuracy by them says little of new images"


def leaked(train: Split, judged: Split, what: str) -> str:
    """How many images of `judged`, called `what`, are training images, too; "" where none is."""
    again = repeated(train, judged)
    if not len(again):
        return ""
    first = judged.file(int(again[0]))
    return f"{len(again):,} of {len(judged):,} {what} are training images as well ({first})"


def repeated(train: Split, judged: Split) -> Labels:
    """Which images of `judged` are training images, too, pixel by pixel: int64 [n]."""
    known = set(_digests(train.images))
    return np.flatnonzero([digest in known for digest in _digests(judged.images)])


def _digests(images: Images) -> list[bytes]:
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]


def _plain(images: Images) -> Labels:
    """Which images have one colour only: int64 [n]."""
    return np.flatnonzero((images == images[:, :1, :1]).all(axis=(1, 2, 3)))


def doubtful(classes: dict[str, list[int]]) -> str:
    """What in a `tally` an accuracy hides; "" for nothing.

    That one answer to all images would be as good, and of which classes, that have images, none is
    right; then also the balanced accuracy, where it is another.
    """
    right, images = (sum(counts) for counts in zip(*classes.values(), strict=True))
    name, most = max(((n, count) for n, (_, count) in classes.items()), key=lambda one: one[1])
    said = []
    if images and right <= most:
        said.append(f"no better than answering {name} to all ({100 * most / images:.2f} %)")
    lost = [
        f"{n}: 0 of {count:,} right" for n, (got, count) in classes.items() if count and not got
    ]
    said += lost[:NAMED]
    if more := len(lost[NAMED:]):
        said.append(f"nor any of {more} more class{'es' * (more > 1)}")
    if said and (fair := balance(classes)):
        said.append(f"balanced accuracy {100 * fair['balanced_accuracy']:.2f} %")
    return "; ".join(said)
