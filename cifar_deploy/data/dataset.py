"""A data set in memory, and what can be said about it."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cifar_deploy.disk import Json
from cifar_deploy.errors import UserError, few

Images = npt.NDArray[np.uint8]  # [n, 32, 32, 3], RGB
Labels = npt.NDArray[np.int64]  # [n]

SIZE = 32


def tally(classes: Sequence[str], labels: Labels, right: Labels) -> dict[str, list[int]]:
    """How many images of each class were answered right, and how many there are, by its name.

    `labels`, int64 [n], are of all images; `right`, int64 [r], of those answered right.
    """
    counts = (np.bincount(of, minlength=len(classes)).tolist() for of in (right, labels))
    return {name: [*count] for name, *count in zip(classes, *counts, strict=True)}


def balance(classes: dict[str, list[int]] | None) -> Json:
    """`balanced_accuracy` by a `tally`; nothing where it is the accuracy, or there is no tally.

    The mean of the classes' shares of right answers (their recall), of those that have images, as
    scikit-learn's `balanced_accuracy_score`. Where all classes have as many it is the accuracy.
    """
    counts = [(right, images) for right, images in (classes or {}).values() if images]
    if len({images for _, images in counts}) < 2:
        return {}
    return {"balanced_accuracy": sum(right / images for right, images in counts) / len(counts)}


@dataclass(frozen=True)
class Split:
    """Images, uint8 [n, 32, 32, 3] RGB, and labels, int64 [n]. Its arrays are not changed.

    `names` are those of the images' files, n, or none where they have no files of their own.
    """

    images: Images
    labels: Labels
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def file(self, index: int) -> str | None:
        """The file that an image comes from, as class/name; None where it has none of its own."""
        return self.names[index] if self.names else None

    @functools.cached_property
    def set_sha256(self) -> str:
        """SHA-256 of the images with their labels, the same in whatever order they are.

        Of the sorted SHA-256 of all of them, in hexadecimal: each of an image's pixels and then its
        label in four bytes, little-endian. The C++ library's Evaluator makes the same.
        """
        ends = self.labels.astype("<u4")
        each = sorted(
            hashlib.sha256(image.tobytes() + end.tobytes()).hexdigest()
            for image, end in zip(self.images, ends, strict=True)
        )
        return hashlib.sha256("".join(each).encode()).hexdigest()

    def first(self, count: int) -> "Split":
        """The first `count` images and labels."""
        return Split(self.images[:count], self.labels[:count], self.names[:count])

    def at(self, rows: Labels) -> "Split":
        """The images and labels of `rows`, int64 [m], in that order."""
        names = tuple(self.names[row] for row in rows) if self.names else ()
        return Split(self.images[rows], self.labels[rows], names)

    def spread(self, count: int) -> "Split":
        """`count` images and labels, evenly spread over all; all where there are fewer."""
        return self.at(self._spread(count))

    def without(self, count: int) -> "Split":
        """What `spread(count)` leaves."""
        return self.at(np.delete(np.arange(len(self)), self._spread(count)))

    def _spread(self, count: int) -> Labels:
        count = min(count, len(self))
        return np.arange(count) * len(self) // max(count, 1)


@dataclass(frozen=True)
class Dataset:
    """Training and test images of one set of classes.

    `origin` says where it was read; `verified` what its checksums showed. Its arrays are not
    changed: checksums, mean and std are computed once. `val` reads what is there to judge a run by
    beside the test images, None where nothing is.
    """

    name: str
    origin: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    verified: str
    val: Callable[[], Split] | None = None

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of all pixels and labels, training first: the same for every form on disk."""
        return self._sha256(self.train, self.test)

    @functools.cached_property
    def test_sha256(self) -> str:
        """The same of the test images and their labels alone."""
        return self._sha256(self.test)

    @functools.cached_property
    def val_sha256(self) -> str | None:
        """The same of the images of `val`; None where there are none."""
        return self._sha256(self.val()) if self.val else None

    def same_test(self, seen: Json) -> bool | None:
        """Whether the test images are those of `seen`, a card's `data`; None where it says nothing.

        A card from before it had `test_sha256` speaks of all images together.
        """
        if "test_sha256" in seen:
            return bool(self.test_sha256 == seen["test_sha256"])
        return bool(self.sha256 == seen["sha256"]) if "sha256" in seen else None

    def changed(self, model: str, seen: Json) -> str:
        """What to tell where this folder had other test images when `model` was trained on it.

        `seen` is its card's `data`; "" where they are the same, or of another folder.
        """
        here = seen.get("origin") == str(Path(self.origin).resolve())
        if not here or self.same_test(seen) is not False:
            return ""
        what = "test images" if "test_sha256" in seen else "images"
        return (
            f"{what} in {self.origin} were added, removed, renamed or changed since {model} was "
            "trained; train again, or name the old copy with --data-dir"
        )

    def _sha256(self, *splits: Split) -> str:
        digest = hashlib.sha256()
        for split in splits:
            digest.update(np.ascontiguousarray(split.images).data)
            few = len(self.classes) <= 256
            digest.update(split.labels.astype(np.uint8 if few else np.int64).tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the training pixels per channel, scaled to 0..1.

        Rounded to four digits, as they are commonly printed.
        """
        mean, std = [], []
        for channel in range(3):
            counts = np.bincount(self.train.images[..., channel].ravel(), minlength=256)
            values = np.arange(256) / 255
            average = float((counts * values).sum() / counts.sum())
            spread = float(np.sqrt((counts * (values - average) ** 2).sum() / counts.sum()))
            mean.append(round(average, 4))
            std.append(round(max(spread, 1e-3), 4))
        return mean, std

    def expect_classes(self, model: str, classes: tuple[str, ...]) -> None:
        """Raise UserError where `model` knows other classes than the data set."""
        if self.classes != classes:
            raise UserError(
                f"{model} was trained on the classes {few(classes)}; "
                f"{self.origin} has {few(self.classes)}: name its data set with --data-dir"
            )

    def missing(self, split: Split) -> tuple[str, ...]:
        """The classes of which `split` has no image."""
        return tuple(name for name, count in self._balance(split).items() if not count)

    def _balance(self, split: Split) -> dict[str, int]:
        counts = np.bincount(split.labels, minlength=len(self.classes))
        return {name: int(n) for name, n in zip(self.classes, counts, strict=True)}

    def describe(self) -> Json:
        """Counts, class balance, checksum, mean and std, ready for JSON.

        `val` is there where images are to judge a run by beside the test images.
        """
        mean, std = self.normalisation
        splits = {"train": self.train, "test": self.test} | (
            {"val": self.val()} if self.val else {}
        )
        return {
            "name": self.name,
            "origin": self.origin,
            "verified": self.verified,
            "sha256": self.sha256,
            "classes": list(self.classes),
            **{
                name: {"images": len(split), "per_class": self._balance(split)}
                for name, split in splits.items()
            },
            "mean": mean,
            "std": std,
        }
