from collections.abc import Sequence

import pytest
import torch

from cifar_deploy import recipe
from cifar_deploy.data.dataset import Dataset, Split
from cifar_deploy.train import batches
from cifar_deploy.train.batches import Batches, split_holdout
from cifar_deploy.train.ranks import ALONE, Ranks

GREY = (0.5, 0.5, 0.5)
NEWER = (
    *("augment.vertical_flip=true", "augment.rotate=20", "augment.scale=0.2"),
    "augment.policy=trivial",
)
PLAIN = ("augment.flip=false", "augment.translate=0")


def of(data: Dataset, options: Sequence[str] = (), ranks: Ranks = ALONE) -> Batches:
    """Six batches of 100 an epoch."""
    chosen = recipe.load(None, ["train.batch_size=100", *options])
    return Batches(data.train, chosen, torch.device("cpu"), ranks, GREY)


def ids(split: Split) -> set[bytes]:
    return {image.tobytes() for image in split.images}


def test_the_holdout_is_a_part_of_the_training_images(few: Dataset) -> None:
    parts = []
    classes = set()
    for seed in (0, 1):
        chosen = recipe.load(None, ["data.holdout=150", f"train.seed={seed}"])
        train, held = split_holdout(few, chosen.data)
        assert held is not None
        assert (len(train), len(held)) == (450, 150)
        assert ids(train).isdisjoint(ids(held))
        assert ids(train) | ids(held) == ids(few.train)
        parts.append(ids(held))
        classes = set(held.labels.tolist())
    assert parts[0] == parts[1]  # the same for every seed: runs can be compared
    assert classes == set(range(10))
    assert split_holdout(few, recipe.load(None).data) == (few.train, None)


def test_reseeding_gives_what_torchs_own_seed_gives() -> None:
    for seed in (0, 7, 2**32 - 1):
        torch.manual_seed(seed)
        expected = torch.rand(5)
        torch.rand(3)
        batches.reseed(seed, torch.device("cpu"))
        assert torch.equal(torch.rand(5), expected)


@pytest.mark.gpu
def test_reseeding_gives_what_torchs_own_seed_gives_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    torch.manual_seed(7)
    expected = torch.rand(5), torch.rand(5, device=device)
    batches.reseed(7, device)
    assert torch.equal(torch.rand(5), expected[0])
    assert torch.equal(torch.rand(5, device=device), expected[1])


def test_an_epoch_has_every_image_once_in_an_order_of_its_own(few: Dataset) -> None:
    run = of(few, PLAIN)
    assert run.per_epoch == 6
    epochs = []
    for epoch in range(2):
        taken = [run.at(6 * epoch + position) for position in range(6)]
        images = torch.cat([images for images, _, _ in taken]).numpy()
        labels = torch.cat([labels for _, labels, _ in taken]).tolist()
        seen = [(image.tobytes(), label) for image, label in zip(images, labels, strict=True)]
        stored = zip(few.train.images, few.train.labels.tolist(), strict=True)
        assert sorted(seen) == sorted((image.tobytes(), label) for image, label in stored)
        epochs.append(seen)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("together", [0, 450])
def test_every_epoch_flips_others_or_all_those_that_the_last_did_not(
    few: Dataset, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setitem(batches.CHUNK_IMAGES, "cpu", together)
    stored = ids(few.train)

    def flips(run: Batches, epoch: int) -> tuple[set[bytes], list[bool]]:
        """The images that are flipped, and which places of the batches they have."""
        images = torch.cat([run.at(6 * epoch + position)[0] for position in range(6)])
        places = [image.tobytes() not in stored for image in images.numpy()]
        turned = images.flip(2).numpy()[places]
        return {image.tobytes() for image in turned}, places

    run = of(few, ("augment.translate=0",))
    (first, places), (second, others) = flips(run, 0), flips(run, 1)
    assert places != others
    assert len(first & second) > 100
    run = of(few, ("augment.translate=0", "augment.alternate=true"))
    first, second, third = (flips(run, epoch)[0] for epoch in range(3))
    assert second == stored - first
    assert third == first
    assert 200 < len(first) < 400


@pytest.mark.parametrize("together", [0, 200, 450])
def test_a_batch_is_the_same_whenever_it_is_asked_for(
    few: Dataset, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setitem(batches.CHUNK_IMAGES, "cpu", together)
    options = ("augment.alternate=true", "augment.cutout=8", "augment.mixup=0.4", *NEWER)
    there, back = of(few, options), of(few, options)
    expected = [there.at(step) for step in range(18)]
    for step in reversed(range(18)):
        images, labels, share = back.at(step)
        assert torch.equal(images, expected[step][0])
        assert torch.equal(labels, expected[step][1])
        assert share == expected[step][2]
        assert back.mixes(step) == "mixup"


@pytest.mark.parametrize("together", [0, 200])
def test_the_parts_of_all_processes_are_the_whole_batch(
    few: Dataset, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setitem(batches.CHUNK_IMAGES, "cpu", together)
    options = ("augment.cutout=8", "augment.brightness=0.3", "augment.alternate=true", *NEWER)
    whole = of(few, options)
    parts = [of(few, options, Ranks(rank, 4, rank)) for rank in range(4)]
    assert [part.share for part in parts] == [25] * 4
    for step in (8, 9):
        images, labels, _ = whole.at(step)
        assert torch.equal(torch.cat([part.at(step)[0] for part in parts]), images)
        assert torch.equal(torch.cat([part.at(step)[1] for part in parts]), labels)
