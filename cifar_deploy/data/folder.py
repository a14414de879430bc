"""A folder of images: `train/<class>/*` and `test/<class>/*`, `val/<class>/*` beside or for it."""

import functools
import hashlib
import os
import shlex
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np

from cifar_deploy.data.dataset import SIZE, Dataset, Split
from cifar_deploy.data.image import may_be_image, read_image, without_warnings
from cifar_deploy.errors import UserError, disk_errors

# Is told now and then, by one thread at a time, of a folder how many of all its images are read.
Watch = Callable[[Path, int, int], None]
MOST_THREADS = 32  # which read images
NAMED = 5  # of the unreadable files, in a message
VERIFIED = "folder of images: no published checksum"
VAL = "val"
TEST = ("test", VAL)  # the first of them that is there
JUDGED_ELSEWHERE = ("valid", "validation", "dev", "eval")  # what others call it
SYSTEM = {"thumbs.db", "desktop.ini"}  # Windows hides them from whoever looks into the folder


def is_folder(place: Path) -> bool:
    """Whether `place` has `train/<class>/` folders."""
    return (place / "train").is_dir() and bool(_folders(place / "train"))


def is_flat(place: Path) -> bool:
    """Whether `place` has class folders itself, two or more with a file that is called an image."""
    if not place.is_dir():
        return False
    named = (path for found in _folders(place) for path in visible(found)[:1])
    return sum(bool(path.suffix) and may_be_image(path) for path in named) > 1


def read(place: Path, watch: Watch | None = None) -> Dataset:
    """The images in `place`, any format Pillow reads, resized to 32x32 RGB where they are not.

    Classes are the sorted names of the folders in `train`; hidden files are skipped. `val` beside
    `test` is read when it is asked for. Raises UserError for fewer than two classes, no test
    images, an empty class, a class only in `test`, and files that are no images, which it names.
    """
    found = class_folders(place / "train")
    if len(found) < 2:
        only = "".join(found)
        raise UserError(f"{place / 'train'} has only the class {only}; it needs two or more")
    test = next((place / n for n in TEST if (place / n).is_dir()), place / "test")
    if not test.is_dir():
        other = [place / name for name in JUDGED_ELSEWHERE if (place / name).is_dir()]
        way_out = f"rename {other[0]} to val" if other else to_split(place)
        raise UserError(f"{test} does not exist; {way_out}")
    classes = tuple(found)
    tested = _of_these(test, classes)
    val = place / VAL

    @functools.cache
    def judged() -> Split:
        return _split(val, classes, _of_these(val, classes), None)

    return Dataset(
        name=_shown(place.resolve().name),
        origin=str(place),
        classes=classes,
        train=_split(place / "train", classes, found, watch),
        test=_split(test, classes, tested, watch),
        verified=VERIFIED,
        val=judged if val != test and val.is_dir() else None,
    )


def _of_these(root: Path, classes: tuple[str, ...]) -> dict[str, Path]:
    """The class folders in `root`. Raises UserError for a class that is none of `classes`."""
    found = class_folders(root)
    if strange := [name for name in found if name not in classes]:
        raise UserError(
            f"{root / strange[0]} is a class that {root.parent / 'train'} does not have"
        )
    return found


def to_split(place: Path) -> str:
    """What to do with class folders none of whose images is kept for testing."""
    command = shlex.join(["cifar-deploy", "data", "--data-dir", str(place), "--split", "NEW"])
    return f"`{command}` makes a data set of it with a fifth of each class for testing"


def class_folders(root: Path) -> dict[str, Path]:
    """The folders in `root` by their classes' names, sorted: composed (NFC), as most systems write.

    macOS may write the same name otherwise. Raises UserError for names that are no UTF-8, have a
    control character, or are two of one class.
    """
    found: dict[str, Path] = {}
    for path in _folders(root):
        name = unicodedata.normalize("NFC", path.name)
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{root}: the folder {_shown(name)} has a name that is no UTF-8; rename it"
            ) from None
        if any(unicodedata.category(letter) == "Cc" for letter in name):
            raise UserError(f"{root}: the folder {name!r} has a control character; rename it")
        if name in found:
            raise UserError(f"{root} has two folders of the class {name}, composed and not; merge")
        found[name] = path
    return dict(sorted(found.items()))


def images_in(folder: Path) -> list[Path]:
    """The files in a class's folder. Raises UserError where it has none, or a folder."""
    inside = visible(folder)
    if not inside:
        raise UserError(f"{folder} holds no images; fill it or remove it")
    others = [path for path in inside if not path.is_file()]
    if nested := [path for path in others if path.is_dir()]:
        raise UserError(f"{nested[0]} is a folder; put its images into {folder} or move it away")
    if strange := [path for path in others if path.exists()]:
        raise UserError(f"{strange[0]} is a pipe or a device; move it away")  # it may never end
    return inside


def _split(
    root: Path, classes: tuple[str, ...], folders: dict[str, Path], watch: Watch | None
) -> Split:
    """All images under `root`, in an order that their names give, as good as a random one.

    So the first ones are a fair sample, and those at any distance from each other. (Where classes
    take turns, a distance that divides their number meets the same ones again and again.)
    """
    files: list[tuple[bytes, int, Path]] = []
    for label, name in enumerate(classes):
        if name not in folders:  # a class without test images
            continue
        inside = images_in(folders[name])
        files += [(hashlib.sha256(os.fsencode(_name(p))).digest(), label, p) for p in inside]
    if not files:
        raise UserError(f"{root} holds no images; put them in {root.name}/<class>/*")
    files.sort()
    images = np.empty((len(files), SIZE, SIZE, 3), np.uint8)

    # As many tasks as threads: ^C while a pool takes a task may leave it locked for ever.
    threads = min((os.cpu_count() or 1) + 4, MOST_THREADS)
    over = threading.Event()

    def read_rows(first: int) -> dict[int, UserError]:
        failed = {}
        for row in range(first, len(files), threads):
            if over.is_set():
                break
            try:
                images[row] = read_image(files[row][2])
            except UserError as error:
                if isinstance(error.__cause__, MemoryError):  # not the file's fault
                    raise
                failed[row] = error
            if watch and not first:  # the others are about as far
                watch(root, row + 1, len(files))
        return failed

    # Pillow decodes without Python's lock.
    with without_warnings(), ThreadPoolExecutor(threads) as pool:
        try:
            failed = dict(
                chain.from_iterable(f.items() for f in pool.map(read_rows, range(threads)))
            )
        finally:
            over.set()
    bad = [failed[row] for row in sorted(failed)]
    if len(bad) > 1:
        named = "; ".join(map(str, bad[:NAMED]))
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise UserError(f"{len(bad)} files in {root} are no images: {named}{more}")
    if bad:
        raise bad[0]
    labels = np.array([label for _, label, _ in files], np.int64)
    return Split(images, labels, tuple(_shown(_name(path)) for _, _, path in files))


def _name(path: Path) -> str:
    """Of an image, with its class's, composed: the same wherever it is."""
    return unicodedata.normalize("NFC", f"{path.parent.name}/{path.name}")


def _shown(name: str) -> str:
    """`name`, of which no byte need be UTF-8, as a text."""
    return name.encode(errors="backslashreplace").decode()


def visible(folder: Path) -> list[Path]:
    """What lies in `folder`, by name, without hidden ones. Raises UserError if it is unreadable."""
    with disk_errors(folder, "read"):
        return sorted(
            path
            for path in folder.iterdir()
            if not path.name.startswith(".") and path.name.lower() not in SYSTEM
        )


def _folders(root: Path) -> list[Path]:
    return [path for path in visible(root) if path.is_dir()]
