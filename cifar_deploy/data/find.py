"""Find a data set, whichever of its forms is there."""

import contextlib
import functools
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cifar_deploy.data import cifar10, folder, synthetic
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.disk import Json, is_abandoned, this_process
from cifar_deploy.errors import UserError, disk_errors

DATA_VARIABLE = "CIFAR_DEPLOY_DATA"
SOURCES = ("auto", "synthetic")
PATIENCE = 30.0  # seconds that a silent network is waited for


def named(data_dir: Path | None = None) -> Path | None:
    """The folder that the user named: `data_dir`, else $CIFAR_DEPLOY_DATA."""
    variable = os.environ.get(DATA_VARIABLE)
    return data_dir or (Path(variable) if variable else None)


def load(
    source: str = "auto",
    data_dir: Path | None = None,
    download: bool = True,
    watch: folder.Watch | None = None,
) -> Dataset:
    """The data set to work on. `watch` is told how far a folder of images is read.

    "synthetic" is the generated one. "auto" looks in `data_dir`, else in $CIFAR_DEPLOY_DATA, else
    in `data/`; where none was named and nothing is there, CIFAR-10 is downloaded to `data/`.
    Raises UserError where a named folder holds no data set, where what is found is damaged, where
    there is neither data nor network, and where a folder is named beside the set that is in none.
    """
    if source == "synthetic":
        if data_dir:
            raise UserError(
                f"--data synthetic is generated and --data-dir {data_dir} is a folder; leave one "
                "out"
            )
        return synthetic.generate()
    if source != "auto":
        raise UserError(f"--data {source}: it can be {' or '.join(SOURCES)}")
    chosen = named(data_dir)
    place = chosen or Path("data")
    if found := _read(place, watch):
        return found
    if chosen:
        origin = "--data-dir" if data_dir else f"${DATA_VARIABLE}"
        if folder.is_flat(place):
            raise UserError(
                f"{origin}: {place} has classes, but no train/ and test/; {folder.to_split(place)}"
            )
        missing = "does not exist" if not place.exists() else "holds no data set"
        raise UserError(
            f"{origin}: {place} {missing}; it should hold cifar-10-batches-py, "
            "cifar-10-batches-bin, or train/<class>/* and test/<class>/* (or val/<class>/*)"
        )
    if not download:
        raise UserError(
            f"no data set in {place}/; name one with --data-dir or ${DATA_VARIABLE}, "
            "or train with --data synthetic"
        )
    return _download(place)


def trained_on(
    card: Json, source: str | None = None, data_dir: Path | None = None
) -> tuple[str, Path | None]:
    """Where to `load` the data set that a model was trained on, by its card.

    A model of one's own images finds them where they were, one of the generated set has it
    generated again; `source` or `data_dir` asks for another set. Raises UserError where the images
    are not there any more and no other folder is named.
    """
    data = card.get("data", {})
    if source or data_dir:
        return source or "auto", data_dir
    if data.get("verified") == synthetic.VERIFIED:
        return "synthetic", None
    origin = data.get("origin")
    if not origin:
        return "auto", None
    if not Path(origin).is_dir():
        if named():
            return "auto", None
        raise UserError(
            f"the images that the model was trained on are not in {origin} any more; name their "
            "folder with --data-dir"
        )
    return "auto", Path(origin)


def of_models(
    source: str | None = None, data_dir: Path | None = None
) -> Callable[[str, Json], Dataset]:
    """What gives each model, by its name and card, the data set it was trained on; each read once.

    `source` and `data_dir` are as in `trained_on`. What comes of it raises UserError as that does,
    as `load` does, and where the card names other classes; a card that is empty names none.
    """
    read = functools.cache(load)

    def of(model: str, card: Json) -> Dataset:
        dataset = read(*trained_on(card, source, data_dir))
        dataset.expect_classes(model, tuple(card.get("data", {}).get("classes", dataset.classes)))
        return dataset

    return of


def _read(place: Path, watch: folder.Watch | None) -> Dataset | None:
    with disk_errors(place, "read"):
        for candidate in (place / "cifar-10-batches-py", place / "cifar-10-batches-bin", place):
            if cifar10.is_python(candidate):
                return cifar10.read_python(candidate)
            if cifar10.is_binary(candidate):
                return cifar10.read_binary(candidate)
        return folder.read(place, watch) if folder.is_folder(place) else None


def _download(place: Path) -> Dataset:
    """Let torchvision fetch the official archive, check its MD5 and unpack it into `place`.

    All of it happens in a folder of its own that goes away again: what stands in `place` is whole.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_and_extract_archive

    unpacked = place / CIFAR10.base_folder
    new = not place.exists()
    try:
        place.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        with (
            tempfile.TemporaryDirectory(dir=place, prefix=f".download-{this_process()}-") as room,
            contextlib.redirect_stdout(sys.stderr),  # the answer of --json stays alone on stdout
            patience(),
        ):
            download_and_extract_archive(
                CIFAR10.url, room, filename=CIFAR10.filename, md5=CIFAR10.tgz_md5
            )
            with contextlib.suppress(OSError):  # another process was quicker, whose it is then
                (Path(room) / CIFAR10.base_folder).rename(unpacked)
    except Exception as error:  # whatever the network, the archive or the disk objects to
        raise UserError(
            f"no CIFAR-10 in {place}/ and none could be downloaded ({error}); "
            f"name a copy with --data-dir or ${DATA_VARIABLE}, or train with --data synthetic"
        ) from error
    finally:
        if new:
            with contextlib.suppress(OSError):  # not empty: the data is there
                place.rmdir()
    return cifar10.read_python(unpacked)


def _sweep(place: Path) -> None:
    """Remove what killed downloads left in `place`."""
    for room in place.glob(".download-*-*"):
        if is_abandoned(room, room.name.split("-")[1]):
            shutil.rmtree(room, ignore_errors=True)


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Give up on a connection that says nothing; by default Python waits without end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
