import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_deploy.data.dataset import Dataset, Split
from cifar_deploy.data.preview import CELL, GAP, HEADER, LABELS, MARGIN, ROWS, SCALE, preview
from cifar_deploy.errors import UserError
from cifar_deploy.recipe import Augment

OFF = Augment(flip=False, translate=0)


def cell(page: np.ndarray, row: int, column: int) -> np.ndarray:
    """The image at a place of the grid, back at 32x32. Fails where it is not enlarged exactly."""
    y = HEADER + GAP + row * (CELL + GAP) + (2 * GAP if row else 0)
    x = MARGIN + LABELS + column * (CELL + GAP)
    found = page[y : y + CELL, x : x + CELL]
    small = found[::SCALE, ::SCALE]
    assert np.array_equal(found, small.repeat(SCALE, 0).repeat(SCALE, 1))
    return small


def draw(dataset: Dataset, options: Augment, path: Path, columns: int = 10) -> np.ndarray:
    preview(dataset, options, path, columns)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.array(image)


def test_a_column_is_an_image_of_its_class(small_data: Dataset, tmp_path: Path) -> None:
    page = draw(small_data, OFF, tmp_path / "grid.png")
    train = small_data.train
    for column in range(10):
        original = cell(page, 0, column)
        of_class = train.images[train.labels == column]
        assert (of_class == original).all((1, 2, 3)).any()
        for row in range(1, ROWS + 1):
            assert np.array_equal(cell(page, row, column), original)


def test_rows_are_augmented(small_data: Dataset, tmp_path: Path) -> None:
    page = draw(small_data, Augment(cutout=12), tmp_path / "grid.png")
    colour = [round(255 * m) for m in small_data.normalisation[0]]
    for column in range(10):
        rows = [cell(page, row, column) for row in range(ROWS + 1)]
        assert (rows[0] == colour).all(-1).sum() < 20
        assert all((row == colour).all(-1).sum() >= 144 for row in rows[1:])
        assert len({row.tobytes() for row in rows}) == ROWS + 1


def test_names_are_drawn(small_data: Dataset, tmp_path: Path) -> None:
    # With other names only the line of the names changes.
    names = tuple(c.upper() * 9 for c in "abcdefghij")
    renamed = dataclasses.replace(small_data, classes=names)
    one = draw(small_data, OFF, tmp_path / "one.png")
    two = draw(renamed, OFF, tmp_path / "two.png")
    assert one.shape == two.shape
    rows = np.flatnonzero((one != two).any((1, 2)))
    assert rows.min() >= HEADER - 24
    assert rows.max() <= HEADER


def test_the_augmentation_is_said(small_data: Dataset, tmp_path: Path) -> None:
    options = [{}, {"vertical_flip": True}, {"rotate": 15.0}, {"scale": 0.2}, {"policy": "trivial"}]
    pages = [draw(small_data, Augment(**each), tmp_path / "grid.png", 3) for each in options]
    said = {page[: HEADER - 24].tobytes() for page in pages}
    assert len(said) == len(options)
    for page in pages[1:]:  # the same originals, otherwise augmented
        assert np.array_equal(cell(page, 0, 1), cell(pages[0], 0, 1))
        assert any(not np.array_equal(cell(page, r, 1), cell(pages[0], r, 1)) for r in range(1, 6))


def test_few_and_many_classes(tmp_path: Path, small_data: Dataset) -> None:
    images = small_data.train.images[:40]
    few = Dataset("few", "", ("a", "b"), Split(images, np.arange(40) % 2), small_data.test, "")
    names = tuple(f"class number {i} with a very long name" for i in range(40))
    many = Dataset("many", "", names, Split(images, np.arange(40)), small_data.test, "")
    assert np.array_equal(cell(draw(many, OFF, tmp_path / "m.png"), 0, 9), images[9])
    assert draw(many, OFF, tmp_path / "m.png").shape[1] < 1300
    assert draw(many, OFF, tmp_path / "m.png", columns=12).shape[1] > 1300
    options = Augment(cutout=8, brightness=0.1, contrast=0.1, saturation=0.1)
    page = draw(few, options, tmp_path / "f.png")
    assert (page[:, -MARGIN:] == 255).all()  # the text stays on the page


def test_a_class_without_training_images_stays_black(small_data: Dataset, tmp_path: Path) -> None:
    kept = small_data.train.labels != 3
    train = Split(small_data.train.images[kept], small_data.train.labels[kept])
    page = draw(dataclasses.replace(small_data, train=train), OFF, tmp_path / "grid.png")
    assert not cell(page, 0, 3).any()
    assert cell(page, 0, 4).any()


def test_it_is_repeatable_and_leaves_the_generator(small_data: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = draw(small_data, Augment(), tmp_path / "one.png")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert np.array_equal(draw(small_data, Augment(), tmp_path / "two.png"), one)
    preview(small_data, Augment(), tmp_path / "three.png", seed=1)
    assert not np.array_equal(np.array(Image.open(tmp_path / "three.png")), one)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.png", "three.png", "two.png"]


def test_a_place_that_cannot_be_written(small_data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        preview(small_data, OFF, tmp_path / "file/grid.png")
