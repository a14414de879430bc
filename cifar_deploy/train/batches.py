"""What the steps of a run see: its images in an order of chance, augmented on the device."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cifar_deploy.data import augment as change
from cifar_deploy.data.dataset import SIZE, Dataset, Split
from cifar_deploy.data.device import DeviceSplit
from cifar_deploy.data.folder import VAL
from cifar_deploy.data.folder import VERIFIED as OWN_FOLDER
from cifar_deploy.disk import Json
from cifar_deploy.errors import UserError
from cifar_deploy.recipe import Data, Recipe
from cifar_deploy.train.ranks import Ranks

# What is augmented at once. On a GPU all of CIFAR-10: a few kernels an epoch. A CPU goes batch by
# batch, which stays in its cache.
CHUNK_IMAGES = {"cpu": 0, "cuda": 65_536}


def seed_of(seed: int, what: str, index: int) -> int:
    """A seed for one purpose at one place of a run, independent of all others.

    Every step draws from its own seed, so a resumed run needs no generator state.
    """
    digest = hashlib.sha256(f"{seed}/{what}/{index}".encode()).digest()
    return int.from_bytes(digest[:4])


def reseed(seed: int, device: torch.device) -> None:
    """What torch.manual_seed does, for the CPU and `device` alone.

    That one looks at every backend and formats a stack trace for each that has not begun: 0.2 ms,
    several times a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        begin: Any = torch.cuda.init
        begin()  # without it there is no generator yet
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def check_unseen(model: str, data: Json, dataset: Dataset, sha256: str, wanted: Data) -> None:
    """Raise UserError where what was trained on `data`, of a card, may have seen what is held out.

    `data` is what `initial.learned_from` tells, `sha256` is `dataset`'s, of whose training images
    `wanted.holdout` are held out, or else those in val/. The last of one shuffle are: who held out
    more of them has seen none of these. Of val/ nothing has that was judged by it, or rests on no
    other weights. In a folder of images that has changed since they are others, and a folder of
    other images with the same classes looks no different.
    """
    holdout = wanted.holdout
    option = f"--hold-out {VAL if wanted.val else holdout}"
    if data.get("sha256") == sha256:
        kept_back = 0 if "val_sha256" in data else data.get("holdout_images") or 0
        seen = kept_back < holdout
        if wanted.val and not data.get("whole"):
            seen = data.get("val_sha256") != dataset.val_sha256
        if seen:
            raise UserError(
                f"{model} may have seen the images that are held out, and would tell of them; it "
                f"is to be trained with {option}, too (and --out FOLDER)"
            )
        return
    same = data.get("classes") == list(dataset.classes)
    same = same or data.get("origin") == str(Path(dataset.origin).resolve())
    # A checkpoint does not say whose its images were.
    own = dataset.verified == OWN_FOLDER == data.get("verified", OWN_FOLDER)
    if (holdout or wanted.val) and same and own:
        raise UserError(
            f"{model} was trained on other images, perhaps an earlier state of those in "
            f"{dataset.origin}: it may have seen some that are held out, and would tell of them\n"
            f"Train it on these, with {option}, too (and --out FOLDER); where the two "
            "have no image in common, leave --hold-out out: the test images judge then"
        )


def split_holdout(dataset: Dataset, wanted: Data) -> tuple[Split, Split | None]:
    """The images to train on, and the last `holdout` ones of a fixed shuffle, or those in val/.

    None of both where neither is `wanted`. Raises UserError where that leaves none to train on,
    where both are wanted, and where there is no val/ beside the test images.
    """
    train, count = dataset.train, wanted.holdout
    if wanted.val:
        if count:
            raise UserError(f"data.holdout is {count} and data.val true; one can judge, not both")
        if dataset.val is None:
            raise UserError(
                f"{dataset.origin} has no folder val beside a folder test; name a number of "
                "training images instead, as --hold-out 500"
            )
        return train, dataset.val()
    if not count:
        return train, None
    if count >= len(train):
        raise UserError(
            f"data.holdout is {count}, of {len(train)} training images; leave some to train on"
        )
    generator = torch.Generator().manual_seed(seed_of(0, "holdout", 0))
    order = torch.randperm(len(train), generator=generator).numpy()
    return train.at(order[:-count]), train.at(order[-count:])


class Batches:
    """The batches of a whole run; what chance decides is a matter of the seed and the step."""

    def __init__(
        self,
        split: Split,
        recipe: Recipe,
        device: torch.device,
        ranks: Ranks,
        mean: Sequence[float],
    ) -> None:
        """`mean` is the colour of what is cut out.

        Raises UserError for a batch that the processes cannot share evenly, or too few images.
        """
        self.split, self.recipe, self.device, self.ranks = split, recipe, device, ranks
        self.mean = mean
        self.size = recipe.train.batch_size
        if self.size % ranks.world:
            near = max(1, round(self.size / ranks.world)) * ranks.world
            raise UserError(
                f"{ranks.world} processes cannot share a batch of {self.size} evenly; "
                f"set --batch-size {near}, or another number of processes"
            )
        self.share = self.size // ranks.world  # images of a batch for each process
        self.per_epoch = len(split) // self.size
        if not self.per_epoch:
            raise UserError(
                f"{len(split)} training images are fewer than a batch of {self.size}; "
                "set a smaller --batch-size"
            )
        self._order: tuple[int, torch.Tensor] | None = None  # of which epoch, and the rows
        self._chunk: tuple[int, torch.Tensor, torch.Tensor] | None = None

    @functools.cached_property
    def data(self) -> DeviceSplit:
        """The training images on the device, put there at the first use."""
        return DeviceSplit(self.split, self.device)

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """This process's part of the batch of `step`: images, labels, how they are mixed.

        Images [b, 32, 32, 3], uint8 or, after mixup, float32; int64 [b]; `augment.mix`'s share. On
        a GPU they are cut out of many batches that were augmented together.
        """
        epoch, position = divmod(step, self.per_epoch)
        place = position % self.together(self.size)
        if self._chunk is None or self._chunk[0] != step - place:
            self._chunk = None  # its memory is free for the next one
            self._chunk = (step - place, *self._augmented(epoch, position - place))
        mine = slice(place * self.share, (place + 1) * self.share)
        images, labels = self._chunk[1][mine], self._chunk[2][mine]
        images, share = change.mix(images, self.recipe.augment, self.seed("mix", step))
        return images, labels, share

    def mixes(self, step: int) -> str:
        """Which of "mixup" and "cutmix" the batch of `step` gets; "": neither."""
        return change.mixes(self.recipe.augment, self.seed("mix", step))

    def seed(self, what: str, index: int) -> int:
        """The run's seed for one purpose at one place."""
        return seed_of(self.recipe.train.seed, what, index)

    def together(self, size: int) -> int:
        """How many batches of `size` images are augmented at once."""
        most = CHUNK_IMAGES[self.device.type] // size
        return max(1, min(len(self.split) // size, most))

    def forget(self) -> None:
        """Free what has been augmented."""
        self._chunk = None

    def _augmented(self, epoch: int, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The batches from `position` of `epoch` on, as far as they are this process's.

        Chance falls for the whole batches, so that N processes see what one would see.
        """
        options, device, world = self.recipe.augment, self.device, self.ranks.world
        last = min(position + self.together(self.size), self.per_epoch)
        rows = self._rows(epoch)[position * self.size : last * self.size]
        reseed(self.seed("augment", epoch * self.per_epoch + position), device)
        draws = change.draw(len(rows), SIZE, SIZE, options, device)
        if options.flip and options.alternate:
            reseed(self.seed("flip", 0), device)
            flips = torch.rand(len(self.data), device=device) < 0.5
            draws["flip"] = change.alternating(flips, epoch)[rows][:, None]
        if world > 1:
            places = torch.arange(len(rows), device=device)
            places = places.view(-1, world, self.share)[:, self.ranks.rank].flatten()
            rows = rows[places]
            draws = {name: drawn[places] for name, drawn in draws.items()}
        images, labels = self.data.take(rows)
        return change.apply(images, draws, options, self.mean), labels

    def _rows(self, epoch: int) -> torch.Tensor:
        """The images of `epoch` in its order."""
        if self._order is None or self._order[0] != epoch:
            reseed(self.seed("order", epoch), self.device)
            self._order = (epoch, self.data.order())
        return self._order[1]
