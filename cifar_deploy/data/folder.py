"""A folder of images: `train/<class>/*` and `test/<class>/*`."""

from pathlib import Path

from cifar_deploy.data.dataset import Dataset


def is_folder(place: Path) -> bool:
    """Whether `place` has `train/<class>/` folders."""
    raise NotImplementedError


def read(place: Path) -> Dataset:
    """Read the folder."""
    raise NotImplementedError
