"""Find a data set, whichever of its forms is there."""

import os
from pathlib import Path

from cifar_deploy.data import cifar10, folder, synthetic
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.errors import UserError

DATA_VARIABLE = "CIFAR_DEPLOY_DATA"
SOURCES = ("auto", "synthetic")


def load(source: str = "auto", data_dir: Path | None = None, download: bool = True) -> Dataset:
    """The data set to work on.

    "synthetic" is the generated one. "auto" looks in `data_dir`, else in $CIFAR_DEPLOY_DATA, else
    in `data/`; where none was named and nothing is there, CIFAR-10 is downloaded to `data/`.
    Raises UserError where a named folder holds no data set, where what is found is damaged, and
    where there is neither data nor network.
    """
    if source == "synthetic":
        return synthetic.generate()
    if source != "auto":
        raise UserError(f"--data {source}: it can be {' or '.join(SOURCES)}")
    named = data_dir or (Path(v) if (v := os.environ.get(DATA_VARIABLE)) else None)
    place = named or Path("data")
    if found := _read(place):
        return found
    if named:
        origin = "--data-dir" if data_dir else f"${DATA_VARIABLE}"
        missing = "does not exist" if not place.exists() else "holds no data set"
        raise UserError(
            f"{origin}: {place} {missing}; it should hold cifar-10-batches-py, "
            "cifar-10-batches-bin, or train/<class>/* and test/<class>/*"
        )
    if not download:
        raise UserError(
            f"no data set in {place}/; name one with --data-dir or ${DATA_VARIABLE}, "
            "or use --data synthetic"
        )
    return _download(place)


def _read(place: Path) -> Dataset | None:
    for candidate in (place / "cifar-10-batches-py", place / "cifar-10-batches-bin", place):
        if cifar10.is_python(candidate):
            return cifar10.read_python(candidate)
        if cifar10.is_binary(candidate):
            return cifar10.read_binary(candidate)
    return folder.read(place) if folder.is_folder(place) else None


def _download(place: Path) -> Dataset:
    """Let torchvision fetch the official archive into `place` and check its MD5."""
    from torchvision.datasets import CIFAR10

    try:
        CIFAR10(str(place), download=True)
    except Exception as error:  # whatever the network, the archive or the disk objects to
        raise UserError(
            f"no CIFAR-10 in {place}/ and none could be downloaded ({error}); "
            f"name a copy with --data-dir or ${DATA_VARIABLE}, or use --data synthetic"
        ) from error
    return cifar10.read_python(place / "cifar-10-batches-py")
