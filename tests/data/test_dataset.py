import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cifar_deploy.data.dataset import Dataset, Split, balance, tally
from cifar_deploy.data.device import DeviceSplit
from cifar_deploy.data.doubts import doubtful
from cifar_deploy.errors import UserError


def test_real_statistics(real_data: Dataset) -> None:
    assert real_data.normalisation == ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])


def test_describe_real_data(real_data: Dataset) -> None:
    facts = real_data.describe()
    assert facts["train"] == {
        "images": 50_000,
        "per_class": dict.fromkeys(real_data.classes, 5_000),
    }
    assert facts["test"]["per_class"] == dict.fromkeys(real_data.classes, 1_000)
    assert facts["mean"] == [0.4914, 0.4822, 0.4465]
    assert len(facts["sha256"]) == 64


def test_the_balanced_accuracy_is_the_mean_of_the_classes() -> None:
    counts = {"a": [9, 10], "b": [1, 4], "none": [0, 0]}
    assert balance(counts) == {"balanced_accuracy": pytest.approx((0.9 + 0.25) / 2)}
    assert balance({"a": [9, 10], "b": [1, 10], "none": [0, 0]}) == balance(None) == {}


def test_describe_counts_every_class_and_is_json() -> None:
    images = np.zeros((5, 32, 32, 3), np.uint8)
    train = Split(images, np.array([0, 2, 2, 2, 0]))
    dataset = Dataset("d", "o", ("a", "b", "c"), train, train.first(1), "v")
    facts = json.loads(json.dumps(dataset.describe()))
    assert facts["train"] == {"images": 5, "per_class": {"a": 2, "b": 0, "c": 3}}
    assert facts["test"] == {"images": 1, "per_class": {"a": 1, "b": 0, "c": 0}}
    assert facts["classes"] == ["a", "b", "c"]
    assert (facts["name"], facts["origin"], facts["verified"]) == ("d", "o", "v")
    assert facts["std"] == [0.001] * 3  # of one colour only: not 0, it is divided by


def test_normalisation_is_numpys(small_data: Dataset) -> None:
    pixels = small_data.train.images.astype(np.float64) / 255
    mean, std = small_data.normalisation
    assert np.allclose(mean, pixels.mean((0, 1, 2)), atol=6e-5, rtol=0)
    assert np.allclose(std, pixels.std((0, 1, 2)), atol=6e-5, rtol=0)


def test_a_spread_and_what_it_leaves_are_all(small_data: Dataset) -> None:
    images = small_data.train.images
    count = len(images)
    train = Split(images, np.arange(count))  # each its number
    for chosen in (0, 1, 512, 1_999, 5_000):
        spread, left = train.spread(chosen), train.without(chosen)
        assert len(spread) == min(chosen, count)
        assert sorted([*spread.labels, *left.labels]) == list(range(count))
        for part in (spread, left):
            assert (part.images == images[part.labels]).all()
        if len(spread) > 1:  # a folder has its classes one after another
            assert np.diff(spread.labels).max() <= -(-count // len(spread))
            assert spread.labels[-1] >= count - -(-count // len(spread))


def test_the_checksum_sees_every_pixel_and_label(small_data: Dataset) -> None:
    def changed(part: str, pixel: bool) -> str:
        split = getattr(small_data, part)
        images, labels = split.images.copy(), split.labels.copy()
        if pixel:
            images[-1, 31, 31, 2] ^= 1
        else:
            labels[-1] = (labels[-1] + 1) % 10
        return dataclasses.replace(small_data, **{part: Split(images, labels)}).sha256

    sums = {changed(part, pixel) for part in ("train", "test") for pixel in (True, False)}
    assert len(sums | {small_data.sha256}) == 5
    fortran = Split(np.asfortranarray(small_data.train.images), small_data.train.labels)
    assert dataclasses.replace(small_data, train=fortran).sha256 == small_data.sha256


def test_the_images_are_hashed_once(small_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = dataclasses.replace(small_data)
    seen = {"sha256": dataset.sha256, "origin": str(Path(dataset.origin).resolve())}
    test = dataset.test_sha256
    monkeypatch.delattr(Dataset, "_sha256")
    assert (dataset.sha256, dataset.test_sha256) == (seen["sha256"], test)
    # As `validate` does: by all images where a card is from before `test_sha256`.
    assert dataset.same_test(seen)
    assert dataset.same_test({"test_sha256": test})
    assert "were added" in dataset.changed("m", {**seen, "sha256": "0" * 64})


def test_device_split(small_data: Dataset) -> None:
    split = DeviceSplit(small_data.test, torch.device("cpu"))
    assert len(split) == 500
    torch.manual_seed(0)
    order = split.order()
    assert order.sort().values.tolist() == list(range(500))
    assert order.tolist() != list(range(500))
    images, labels = split.take(order[:7])
    assert np.array_equal(images.numpy(), small_data.test.images[order[:7].numpy()])
    assert np.array_equal(labels.numpy(), small_data.test.labels[order[:7].numpy()])
    batches = list(split.batches(120))
    assert [len(b[1]) for b in batches] == [120, 120, 120, 120, 20]
    assert np.array_equal(torch.cat([b[0] for b in batches]).numpy(), small_data.test.images)
    assert np.array_equal(torch.cat([b[1] for b in batches]).numpy(), small_data.test.labels)
    nchw = images.permute(0, 3, 1, 2)
    assert nchw.is_contiguous(memory_format=torch.channels_last)


def test_what_an_accuracy_hides() -> None:
    labels = np.array([0] * 5 + [1] * 3 + [2] * 2)
    found = tally(("ant", "bee", "cow", "dog"), labels, labels[[0, 1, 5, 6, 7, 9]])
    assert found == {"ant": [2, 5], "bee": [3, 3], "cow": [1, 2], "dog": [0, 0]}
    assert doubtful(found) == ""
    said = "no better than answering ant to all (50.00 %); balanced accuracy 56.67 %"
    assert doubtful({**found, "ant": [1, 5]}) == said
    assert doubtful({**found, "ant": [5, 5], "cow": [0, 2]}) == (
        "cow: 0 of 2 right; balanced accuracy 66.67 %"
    )
    assert doubtful({name: [0, 0] for name in found}) == ""
    none = {str(n): [0, 1_000] for n in range(5)}
    assert doubtful({**none, "ant": [1_000, 1_000]}) == (
        "no better than answering 0 to all (16.67 %); 0: 0 of 1,000 right; 1: 0 of 1,000 right; "
        "2: 0 of 1,000 right; nor any of 2 more classes"
    )


def test_the_digest_of_a_set_knows_images_and_labels_and_no_order() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    labels = np.array([0, 1, 2, 299, 0])
    split = Split(images, labels)
    turned = Split(images[::-1], labels[::-1])
    assert split.set_sha256 == turned.set_sha256
    others = [
        Split(images, labels[::-1]),
        split.first(4),
        Split(images, np.array([0, 1, 2, 43, 0])),
    ]
    assert len({split.set_sha256, *(other.set_sha256 for other in others)}) == 4
    each = [images[i].tobytes() + int(labels[i]).to_bytes(4, "little") for i in range(5)]
    text = "".join(sorted(hashlib.sha256(one).hexdigest() for one in each))
    assert split.set_sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_classes_are_the_same_in_the_same_order(small_data: Dataset) -> None:
    small_data.expect_classes("m", small_data.classes)
    for other in (small_data.classes[::-1], (*small_data.classes[:-1], "zebra")):
        with pytest.raises(UserError, match="m was trained on the classes"):
            small_data.expect_classes("m", other)


def test_the_checksum_sees_labels_beyond_a_byte() -> None:
    def checksum(label: int) -> str:
        split = Split(np.zeros((1, 32, 32, 3), np.uint8), np.array([label]))
        return Dataset("d", "o", tuple(map(str, range(300))), split, split, "v").sha256

    assert checksum(43) != checksum(299)


def test_the_test_images_are_known_again(small_data: Dataset) -> None:
    seen = {
        "test_sha256": small_data.test_sha256,
        "origin": str(Path(small_data.origin).resolve()),
    }
    less = dataclasses.replace(small_data, test=small_data.test.first(499))
    fewer = dataclasses.replace(small_data, train=small_data.train.first(99))
    assert [one.same_test(seen) for one in (small_data, less, fewer)] == [True, False, True]
    told = [bool(one.changed("m", seen)) for one in (small_data, less, fewer)]
    assert told == [False, True, False]
    assert less.changed("m", {**seen, "origin": "/elsewhere"}) == ""
    assert small_data.same_test({}) is None


def test_the_first_images_have_their_names() -> None:
    split = Split(np.zeros((3, 32, 32, 3), np.uint8), np.arange(3), ("a/1", "a/2", "b/1"))
    assert split.first(2).names == ("a/1", "a/2")
