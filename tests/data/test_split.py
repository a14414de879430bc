import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import command_line

from cifar_deploy.data import find, folder
from cifar_deploy.data.split import split
from cifar_deploy.errors import UserError


@pytest.fixture
def flat(picture_folder: Callable[..., Path]) -> Path:
    """Two class folders of 10 images each, no more."""
    place = picture_folder("pets", train=10)
    shutil.rmtree(place / "test")
    for name in ("ant", "bee"):
        (place / "train" / name).rename(place / name)
    (place / "train").rmdir()
    return place


def names(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


def test_a_fifth_of_each_class_is_for_testing(flat: Path, tmp_path: Path) -> None:
    split(flat, tmp_path / "new")
    dataset = folder.read(tmp_path / "new")
    assert dataset.classes == ("ant", "bee")
    assert sorted(dataset.test.labels.tolist()) == [0, 0, 1, 1]
    assert len(dataset.train) == 16
    both = {n.split("/", 1)[1] for n in names(tmp_path / "new")}
    assert both == names(flat)  # each is on one side, and there still
    split(flat, tmp_path / "again")
    assert names(tmp_path / "again") == names(tmp_path / "new")


def test_what_lies_in_train_alone_is_split_alike(flat: Path, tmp_path: Path) -> None:
    split(flat, tmp_path / "new")
    (flat / "train").mkdir()
    for name in ("ant", "bee"):
        (flat / name).rename(flat / "train" / name)
    split(flat, tmp_path / "again")
    assert names(tmp_path / "again") == names(tmp_path / "new")


def test_copies_of_an_image_are_on_one_side(flat: Path, tmp_path: Path) -> None:
    for n in range(10):
        shutil.copy(flat / f"ant/{n}.png", flat / f"ant/copy of {n}.png")
        shutil.copy(flat / f"ant/{n}.png", flat / f"bee/ant {n}.png")
    split(flat, tmp_path / "new")
    for n in range(10):
        new = tmp_path / "new"
        copies = [*new.glob(f"*/ant/*{n}.png"), *new.glob(f"*/bee/ant {n}.png")]
        assert len(copies) == 3
        assert len({path.parts[-3] for path in copies}) == 1


def test_without_links_files_are_copied(
    flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("Invalid cross-device link")

    split(flat, tmp_path / "linked")
    monkeypatch.setattr(os, "link", refuse)
    split(flat, tmp_path / "copied")
    for name in names(tmp_path / "copied"):
        one, other = tmp_path / "linked" / name, tmp_path / "copied" / name
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_nlink > other.stat().st_nlink == 1


def test_what_cannot_be_split_is_refused(
    flat: Path, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    def refused(place: Path, new: Path, said: str) -> None:
        before = names(tmp_path)
        with pytest.raises(UserError, match=said):
            split(place, new)
        assert names(tmp_path) == before

    (tmp_path / "there").mkdir()
    refused(flat, tmp_path / "there", "it is there already")
    refused(flat, flat / "bee" / "new", "it would be in .*pets itself")
    refused(picture_folder("whole"), tmp_path / "new", "whole has test/ already")
    refused(tmp_path / "nowhere", tmp_path / "new", "does not have two class folders")
    for n in range(1, 10):
        (flat / f"bee/{n}.png").unlink()
    refused(flat, tmp_path / "new", "bee has 1 image that differ")
    shutil.copy(flat / "bee/0.png", flat / "bee/1.png")
    refused(flat, tmp_path / "new", "bee has 1 image that differ")


def test_the_command_is_told_and_does_it(
    flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = command_line(monkeypatch, capsys)
    with pytest.raises(UserError, match="has classes, but no train/ and test/; `cifar-deploy data"):
        find.load(data_dir=flat)
    status, _, said = run("data", "--split", tmp_path / "new")
    assert status == 2
    assert "--split needs --data-dir" in said
    status, out, _ = run("data", "--data-dir", flat, "--split", tmp_path / "new")
    assert status == 0
    assert "train     16 images: ant 8, bee 8" in out


def test_a_fifth_and_at_least_one_whatever_they_are_called(
    picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    place = picture_folder("many", train=20) / "train"
    for n in range(3, 20):
        (place / f"bee/{n}.png").unlink()
    split(place, tmp_path / "new")
    labels = folder.read(tmp_path / "new").test.labels
    assert sorted(labels.tolist()) == [0, 0, 0, 0, 1]
    before = {path.read_bytes() for path in (tmp_path / "new/test").rglob("*.png")}
    for n in range(20):
        (place / f"ant/{n}.png").rename(place / f"ant/{chr(122 - n)}.png")
    split(place, tmp_path / "renamed")
    assert {path.read_bytes() for path in (tmp_path / "renamed/test").rglob("*.png")} == before


def test_links_are_no_way_around_what_is_refused(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="it is there already"):
        split(flat, tmp_path / "gone")
    (tmp_path / "other").symlink_to(flat)
    with pytest.raises(UserError, match=r"it would be in .*pets itself"):
        split(flat, tmp_path / "other" / "new")
    shutil.rmtree(flat / "bee")
    with pytest.raises(UserError, match="does not have two class folders"):
        split(flat, tmp_path / "new")


def test_a_link_to_an_image_becomes_the_image(flat: Path, tmp_path: Path) -> None:
    (flat / "ant/0.png").rename(tmp_path / "elsewhere.png")
    (flat / "ant/0.png").symlink_to("../../elsewhere.png")
    split(flat, tmp_path / "deep" / "new")
    assert len(folder.read(tmp_path / "deep" / "new").train) == 16
