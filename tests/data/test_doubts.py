import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cifar_deploy.data import folder, synthetic
from cifar_deploy.data.doubts import doubts, repeated
from cifar_deploy.errors import UserError


def test_of_a_good_folder_and_of_generated_images_there_are_none(
    picture_folder: Callable[..., Path],
) -> None:
    assert doubts(folder.read(picture_folder("pets"))) == []
    assert doubts(synthetic.generate(train=200, test=100)) == []


def test_test_images_that_are_training_images_are_counted(
    picture_folder: Callable[..., Path],
) -> None:
    place = picture_folder("pets", train=6, test=4)
    shutil.copy(place / "train/ant/3.png", place / "test/bee/of another class.png")
    with Image.open(place / "train/bee/2.png") as image:
        image.save(place / "test/bee/as.bmp")  # other bytes, the same pixels
    dataset = folder.read(place)
    assert {dataset.test.file(int(i)) for i in repeated(dataset.train, dataset.test)} == {
        "bee/of another class.png",
        "bee/as.bmp",
    }
    (said,) = doubts(dataset)
    assert said.startswith("2 of 10 test images are training images as well (bee/")


def test_images_of_one_colour_are_counted(picture_folder: Callable[..., Path]) -> None:
    place = picture_folder("icons")
    drawn = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    drawn.paste((200, 0, 0, 255), (16, 16, 48, 48))  # red on nothing
    drawn.save(place / "train/ant/icon.png")
    (said,) = doubts(folder.read(place))
    assert "training images have one colour only (ant/icon.png): transparency" in said


TRAIN = "train --hold-out val"


def test_what_is_not_used_is_told(picture_folder: Callable[..., Path]) -> None:
    place = picture_folder("pets")
    shutil.copytree(place / "test", place / "val")
    (place / "train/notes.txt").touch()
    unused, loose = doubts(folder.read(place))
    assert unused == f"{place / 'val'} is not used, since there is {place / 'test'}, but by {TRAIN}"
    (place / "val/notes.txt").touch()
    (seen,) = (line for line in doubts(folder.read(place), val=True) if str(place / "val") in line)
    assert seen == f"1 files in {place / 'val'} itself, in no class, are not used"
    assert loose == f"1 files in {place / 'train'} itself, in no class, are not used"


def test_a_class_is_the_same_however_its_name_is_composed(
    picture_folder: Callable[..., Path],
) -> None:
    place = picture_folder("pets", classes=("Äpfel", "bee"))
    before = folder.read(place)
    apart = unicodedata.normalize("NFD", "Äpfel")
    for split in ("train", "test"):
        (place / split / unicodedata.normalize("NFC", "Äpfel")).rename(place / split / apart)
    dataset = folder.read(place)
    assert dataset.classes == before.classes == ("bee", unicodedata.normalize("NFC", "Äpfel"))
    assert dataset.sha256 == before.sha256
    assert dataset.test.names == before.test.names
    shutil.copytree(place / "train" / apart, place / "train" / dataset.classes[1])
    with pytest.raises(UserError, match="has two folders of the class Äpfel"):
        folder.read(place)


def test_a_name_with_a_line_break_is_refused(picture_folder: Callable[..., Path]) -> None:
    place = picture_folder("pets", classes=("a\nb", "bee"))
    with pytest.raises(UserError, match=r"'a\\nb' has a control character; rename it"):
        folder.read(place)
