"""Class folders to a data set: some images of each class are kept for testing."""

import os
import shutil
from pathlib import Path

from cifar_deploy import disk
from cifar_deploy.data import folder
from cifar_deploy.errors import UserError, disk_errors

SHARE = 5  # one of so many different images is kept for testing


def split(place: Path, new: Path) -> None:
    """Make `new`, with train/<class>/* and test/<class>/*, of the class folders in `place`.

    They may be in its train/. Files are linked, or copied where they cannot be. A fifth of each
    class is for testing, at least one, chosen by a hash of the bytes: the same ones again for the
    same images, and copies of an image, in whichever class, are on one side.

    Raises UserError where `place` has no two class folders or is split already, a class has fewer
    than two different images, `new` is there, and where the disk refuses.
    """
    root = place / "train" if folder.is_folder(place) else place
    ready = [place / name for name in folder.TEST if root != place and (place / name).is_dir()]
    if ready:
        raise UserError(f"--split: {place} has {ready[0].name}/ already, so it is a data set")
    if new.exists() or new.is_symlink():
        raise UserError(f"--split {new}: it is there already; name a folder that is not")
    if new.resolve().is_relative_to(root.resolve()):
        raise UserError(f"--split {new}: it would be in {root} itself; name a folder elsewhere")
    if not root.is_dir() or len(classes := folder.class_folders(root)) < 2:
        raise UserError(f"--split: {place} does not have two class folders or more")
    contents = {name: _by_content(found) for name, found in classes.items()}
    testing = set().union(
        *(sorted(each)[: max(1, len(each) // SHARE)] for each in contents.values())
    )
    with disk.atomic_folder(new) as part:
        for name, files in contents.items():
            sides = {digest: "test" if digest in testing else "train" for digest in files}
            if len(set(sides.values())) < 2:
                raise UserError(
                    f"{classes[name]} has {len(files)} image{'s' if len(files) > 1 else ''} that "
                    "differ; training and testing need one each"
                )
            for digest, paths in files.items():
                for path in paths:
                    _put(path, part / sides[digest] / classes[name].name / path.name)


def _by_content(found: Path) -> dict[str, list[Path]]:
    """The files of a class's folder by the sha256 of their bytes."""
    files: dict[str, list[Path]] = {}
    for path in folder.images_in(found):
        with disk_errors(path, "read"):
            files.setdefault(disk.sha256_of(path), []).append(path)
    return files


def _put(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), to)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, to)
