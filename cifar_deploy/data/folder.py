"""A folder of images: `train/<class>/*` and `test/<class>/*` (else `val/<class>/*`)."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cifar_deploy.data.dataset import SIZE, Dataset, Split
from cifar_deploy.data.image import read_image, without_warnings
from cifar_deploy.errors import UserError, disk_errors

NAMED = 5  # of the unreadable files, in a message
VERIFIED = "folder of images: no published checksum"


def is_folder(place: Path) -> bool:
    """Whether `place` has `train/<class>/` folders."""
    return (place / "train").is_dir() and bool(_folders(place / "train"))


def read(place: Path) -> Dataset:
    """The images in `place`, any format Pillow reads, resized to 32x32 RGB where they are not.

    Classes are the sorted names of the folders in `train`; hidden files are skipped. Raises
    UserError for fewer than two classes, no test images, an empty class, a class only in `test`,
    and files that are no images, which it names.
    """
    classes = tuple(folder.name for folder in _folders(place / "train"))
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{place / 'train'}: the folder {_shown(name)} has a name that is no UTF-8; "
                "rename it"
            ) from None
    if len(classes) < 2:
        raise UserError(f"{place / 'train'} has only the class {classes[0]}; it needs two or more")
    test = next((place / n for n in ("test", "val") if (place / n).is_dir()), place / "test")
    if not test.is_dir():
        raise UserError(f"{test} does not exist; put test images in test/<class>/* beside train")
    strange = [folder.name for folder in _folders(test) if folder.name not in classes]
    if strange:
        raise UserError(f"{test / strange[0]} is a class that {place / 'train'} does not have")
    return Dataset(
        name=_shown(place.resolve().name),
        origin=str(place),
        classes=classes,
        train=_split(place / "train", classes),
        test=_split(test, classes),
        verified=VERIFIED,
    )


def _split(root: Path, classes: tuple[str, ...]) -> Split:
    """All images under `root`, in an order that their names give, as good as a random one.

    So the first ones are a fair sample, and those at any distance from each other. (Where classes
    take turns, a distance that divides their number meets the same ones again and again.)
    """
    files: list[tuple[bytes, int, Path]] = []
    for label, name in enumerate(classes):
        if not (root / name).exists():  # a class without test images
            continue
        inside = visible(root / name)
        if not inside:
            raise UserError(f"{root / name} holds no images; fill it or remove it")
        files += [(hashlib.sha256(os.fsencode(_name(p))).digest(), label, p) for p in inside]
    if not files:
        raise UserError(f"{root} holds no images; put them in {root.name}/<class>/*")
    files.sort()
    images = np.empty((len(files), SIZE, SIZE, 3), np.uint8)

    def read_row(row: int) -> UserError | None:
        try:
            images[row] = read_image(files[row][2])
        except UserError as error:
            return error
        return None

    with without_warnings(), ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
        bad = [error for error in pool.map(read_row, range(len(files))) if error]
    if len(bad) > 1:
        named = "; ".join(map(str, bad[:NAMED]))
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise UserError(f"{len(bad)} files in {root} are no images: {named}{more}")
    if bad:
        raise bad[0]
    labels = np.array([label for _, label, _ in files], np.int64)
    return Split(images, labels, tuple(_shown(_name(path)) for _, _, path in files))


def _name(path: Path) -> str:
    """Of an image, with its class's."""
    return f"{path.parent.name}/{path.name}"


def _shown(name: str) -> str:
    """`name`, of which no byte need be UTF-8, as a text."""
    return name.encode(errors="backslashreplace").decode()


def visible(folder: Path) -> list[Path]:
    """What lies in `folder`, by name, without hidden ones. Raises UserError if it is unreadable."""
    with disk_errors(folder, "read"):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folders(root: Path) -> list[Path]:
    return [path for path in visible(root) if path.is_dir()]
