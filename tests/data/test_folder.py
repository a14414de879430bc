import hashlib
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_deploy.data import cifar10, folder
from cifar_deploy.data.dataset import Dataset, Images
from cifar_deploy.errors import UserError


def test_is_folder(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    assert folder.is_folder(picture_folder("pets"))
    assert not folder.is_folder(tmp_path / "nowhere")
    (tmp_path / "bare/train/.hidden").mkdir(parents=True)
    (tmp_path / "bare/train/notes.txt").touch()
    assert not folder.is_folder(tmp_path / "bare")


def test_classes_labels_and_pixels(picture_folder: Callable[..., Path]) -> None:
    place = picture_folder("pets", classes=("wasp", "ant", "bee"), train=3, test=2)
    shutil.rmtree(place / "test/bee")  # a class need not be tested
    (place / "train/bee/2.png").unlink()
    dataset = folder.read(place)
    assert dataset.name == "pets"
    assert dataset.classes == ("ant", "bee", "wasp")
    assert dataset.verified == "folder of images: no published checksum"
    assert sorted(dataset.test.labels.tolist()) == [0, 0, 2, 2]
    names = [f"{kind}/{n}.png" for kind in dataset.classes for n in range(3)]
    names.remove("bee/2.png")
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    assert dataset.train.labels.tolist() == [dataset.classes.index(n.split("/")[0]) for n in names]
    assert [dataset.train.first(4).file(i) for i in range(4)] == names[:4]
    for image, name in zip(dataset.train.images, names, strict=True):
        assert np.array_equal(image, np.array(Image.open(place / "train" / name)))
    assert dataset.train.labels.dtype == np.int64
    assert dataset.train.images.flags.writeable


def test_any_part_is_a_fair_sample(picture_folder: Callable[..., Path]) -> None:
    place = picture_folder("pets", train=128, test=100)
    for n in range(10, 100):
        (place / f"test/bee/{n}.png").unlink()
    dataset = folder.read(place)
    for count in (16, 32, 64, 128):
        for part in (dataset.train.spread(count), dataset.train.without(count)):
            assert 0.1 < part.labels.mean() < 0.9, count
    assert dataset.test.first(44).labels.sum() < 12  # 4 would be its share


@pytest.mark.skipif(sys.platform != "linux", reason="its file systems take any name")
def test_a_name_that_is_no_text_is_shown_all_the_same(picture_folder: Callable[..., Path]) -> None:
    place = picture_folder("pets")
    odd = place.with_name(os.fsdecode(b"m\xfcll"))
    place.rename(odd)
    (odd / "train/ant/0.png").rename(odd / "train/ant" / os.fsdecode(b"\xff.png"))
    dataset = folder.read(odd)
    assert dataset.name == "m\\udcfcll"
    files = [dataset.train.file(i) for i in range(len(dataset.train))]
    assert "ant/\\udcff.png" in files


def test_warnings_stay_as_they_were(picture_folder: Callable[..., Path]) -> None:
    place = picture_folder("pets", train=60)
    before = list(warnings.filters)
    folder.read(place)  # by several threads
    assert warnings.filters == before


def test_val_does_where_there_is_no_test(picture_folder: Callable[..., Path]) -> None:
    place = picture_folder("pets", train=3, test=2)
    wanted = folder.read(place).sha256
    shutil.copytree(place / "train", place / "val")
    assert folder.read(place).sha256 == wanted  # not looked at beside test
    shutil.rmtree(place / "val")
    (place / "test").rename(place / "val")
    assert folder.read(place).sha256 == wanted


def test_hidden_files_are_skipped(picture_folder: Callable[..., Path]) -> None:
    place = picture_folder("pets")
    before = folder.read(place).sha256
    for name in ("train/.DS_Store", "train/ant/.DS_Store", "test/bee/.0.png", "train/labels.txt"):
        (place / name).write_bytes(b"x")
    (place / "test/.cache").mkdir()
    assert folder.read(place).sha256 == before


def test_ctrl_c_ends_the_reading(
    picture_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    ctrl_c: Callable[[], None],
) -> None:
    place = picture_folder("many", train=150, test=1)
    begun = list[Path]()

    def slow(path: Path) -> Images:
        begun.append(path)
        if len(begun) == 10:
            ctrl_c()
        time.sleep(0.005)
        return np.zeros((32, 32, 3), np.uint8)

    monkeypatch.setattr(folder, "read_image", slow)
    with pytest.raises(KeyboardInterrupt):
        folder.read(place)
    assert len(begun) < 150


def test_memory_that_is_short_is_no_fault_of_the_image(
    picture_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object) -> None:
        raise MemoryError

    place = picture_folder("large", train=3, test=1)
    monkeypatch.setattr(Image.Image, "load", short)
    with pytest.raises(UserError, match=r"\.png: memory is short; make it smaller, or free some$"):
        folder.read(place)


def test_what_is_wrong_is_named(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    place = picture_folder("no-test")
    shutil.rmtree(place / "test")
    with pytest.raises(UserError, match="no-test/test does not exist"):
        folder.read(place)
    (place / "test").mkdir()
    with pytest.raises(UserError, match="no-test/test holds no images"):
        folder.read(place)

    place = picture_folder("empty")
    (place / "train/cow").mkdir()
    (place / "train/cow/.gitkeep").touch()
    with pytest.raises(UserError, match="train/cow holds no images"):
        folder.read(place)

    place = picture_folder("strange")
    (place / "test/Ant").mkdir()
    with pytest.raises(UserError, match=r"test/Ant is a class that .*train does not have"):
        folder.read(place)

    with pytest.raises(UserError, match="has only the class cat; it needs two"):
        folder.read(picture_folder("single", classes=["cat"]))

    place = picture_folder("foreign")
    (place / "train/bee/Thumbs.db").write_bytes(b"x")  # which Windows hides
    folder.read(place)
    (place / "train/bee/notes.db").write_bytes(b"x")
    with pytest.raises(UserError, match=r"train/bee/notes\.db is not an image"):
        folder.read(place)
    for number in range(7):
        (place / f"train/ant/{number}.txt").write_text("no image")
    with pytest.raises(
        UserError, match=r"8 files in .*train are no images: .*0\.txt is not"
    ) as one:
        folder.read(place)
    assert len(str(one.value).splitlines()) == 1
    assert str(one.value).endswith("; and 3 more")
    place = picture_folder("nested")
    (place / "train/bee/more").mkdir()
    with pytest.raises(UserError, match="train/bee/more is a folder; put its images into"):
        folder.read(place)
    place = picture_folder("endless")
    os.mkfifo(place / "test/bee/pipe.png")  # whoever opens it waits for ever
    with pytest.raises(UserError, match=r"test/bee/pipe\.png is a pipe or a device; move it away"):
        folder.read(place)


def test_real_images_in_a_folder_stay_as_they_are(real_data: Dataset, tmp_path: Path) -> None:
    assert tuple(sorted(cifar10.CLASSES)) == cifar10.CLASSES  # so the labels stay too
    for split, where in (
        (real_data.train.first(200), "train"),
        (real_data.test.first(200), "test"),
    ):
        for n, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            path = tmp_path / where / real_data.classes[label] / f"{n:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    dataset = folder.read(tmp_path)
    assert dataset.classes == real_data.classes
    for mine, real in ((dataset.train, real_data.train), (dataset.test, real_data.test)):
        assert len(mine) == 200
        first = real.first(200)
        pairs = zip(first.images, first.labels, strict=True)
        expected = {image.tobytes(): label for image, label in pairs}
        assert {i.tobytes(): n for i, n in zip(mine.images, mine.labels, strict=True)} == expected
