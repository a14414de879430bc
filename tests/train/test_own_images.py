"""Anybody's images: a folder of three classes goes through the whole line."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_deploy import cli
from cifar_deploy.cards import read_card
from cifar_deploy.data import find
from cifar_deploy.data.folder import VERIFIED
from cifar_deploy.disk import Json
from cifar_deploy.errors import UserError
from cifar_deploy.store import ModelFolder, proof_path

COLOURS = {"leaf": (60, 160, 70), "rust": (170, 80, 40), "sky": (90, 140, 210)}


@pytest.fixture
def garden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of many sizes and two formats, 40 a class to train on, 10 to test."""
    chance = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "garden" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = chance.integers(20, 90, 2)
                noise = chance.normal(0, 30, (height, width, 3))
                pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
                form = "png" if number % 2 else "jpg"
                Image.fromarray(pixels).save(folder / f"{number}.{form}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIFAR_DEPLOY_DATA", raising=False)
    monkeypatch.delenv("CIFAR_DEPLOY_MODELS", raising=False)
    return tmp_path / "garden"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cifar-deploy", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code if isinstance(stop.value.code, int) else 0


def test_a_model_of_ones_own_images_finds_them_again(
    garden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def card(name: str = "garden") -> Json:
        return {"data": {"name": name, "verified": VERIFIED, "origin": "garden"}}

    assert find.trained_on(card()) == ("auto", Path("garden"))
    # Whatever else this machine has, and whatever the folder is called.
    monkeypatch.setenv("CIFAR_DEPLOY_DATA", str(tmp_path))
    assert find.trained_on(card("synthetic")) == ("auto", Path("garden"))
    assert find.trained_on(card(), data_dir=tmp_path) == ("auto", tmp_path)
    generated = {"data": {"verified": "generated"}}
    assert find.trained_on(generated) == ("synthetic", None)
    assert find.trained_on(generated, data_dir=tmp_path) == ("auto", tmp_path)
    data_of = find.of_models(data_dir=garden)
    dataset = data_of("mine", {})
    assert data_of("other", {"data": {"classes": [*dataset.classes]}}) is dataset
    with pytest.raises(UserError, match=r"^mine was trained on the classes cat, dog; .*garden has"):
        data_of("mine", {"data": {"classes": ["cat", "dog"]}})
    garden.rename(tmp_path / "moved")
    assert find.trained_on(card()) == ("auto", None)
    monkeypatch.delenv("CIFAR_DEPLOY_DATA")
    with pytest.raises(UserError, match=r"are not in garden any more; name .* --data-dir"):
        find.trained_on(card())


def test_a_class_whose_name_is_no_utf8_is_refused(garden: Path) -> None:
    (garden / "train/sky").rename(garden / "train/caf\udce9")
    (garden / "test/sky").rename(garden / "test/caf\udce9")
    with pytest.raises(UserError, match=r"the folder caf\\udce9 has a name that is no UTF-8"):
        find.load(data_dir=garden)


def test_three_classes_go_the_whole_way(
    garden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--batch-size", "20", "--epochs", "12", "--lr", "0.03")
    command = ("train", "simple_cnn", "--data-dir", "garden", *options)
    assert run(monkeypatch, *command) == 0
    assert "only 72 steps of 20 images: a smaller --batch-size" in capsys.readouterr().err
    folder = ModelFolder(Path("models/simple_cnn"))
    card = read_card(folder)
    assert card["data"]["classes"] == sorted(COLOURS)
    assert card["data"]["origin"] == str(garden)  # found again from any folder
    assert card["command"] == " ".join(["cifar-deploy", *command])
    assert card["data"]["mean"] == pytest.approx(
        [sum(c[i] for c in COLOURS.values()) / 3 / 255 for i in range(3)], abs=0.02
    )
    assert card["test_accuracy"] > 0.9

    assert run(monkeypatch, "export", "simple_cnn") == 0
    # Without a word about where the images are. 30 are too few for the usual margin.
    judged = ("--max-drop", "20", "--no-latency", "--json", "validation.json")
    assert run(monkeypatch, "validate", "simple_cnn", *judged) == 0
    capsys.readouterr()
    picture = str(garden / "test" / "rust" / "0.jpg")
    assert run(monkeypatch, "predict", "simple_cnn", picture, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["top"][0]["class"] == "rust"


def test_classes_without_a_test_image_are_told(
    garden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("leaf", "sky"):
        shutil.rmtree(garden / "test" / name)
    said = "garden has no test image of leaf, sky: no accuracy tells of them"
    data = ("--data-dir", "garden")
    options = ("--batch-size", "20", "--epochs", "1", "--lr", "0.03")
    judged = ("--max-drop", "50", "--no-latency")
    for command in (
        ("data", *data),
        ("train", "simple_cnn", *data, *options),
        ("export", "simple_cnn"),
        ("validate", "simple_cnn", *judged),
    ):
        run(monkeypatch, *command)
        assert (said in capsys.readouterr().err) == (command[0] != "export")


def test_how_the_held_out_images_fall_is_told(
    garden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*more: str) -> str:
        capsys.readouterr()
        options = ("--data-dir", "garden", "--epochs", "1", "--out", f"held{more[1]}")
        assert run(monkeypatch, "train", "simple_cnn", *options, "--hold-out", *more) == 0
        return capsys.readouterr().err

    whole = told("40", "--batch-size", "40")
    assert "chance" not in whole
    assert "as well" not in whole
    for name in ("rust", "sky"):
        for picture in sorted((garden / "train" / name).iterdir())[1:]:
            picture.unlink()
    none = "no image of rust, sky is held out: chance drew them from all 42 together\n"
    assert none in told("2", "--batch-size", "20")
    every = "all images of rust, sky are held out, and none is left to train on: chance drew"
    assert every in told("39", "--batch-size", "3")
    # The held-out ones of copies are trained on.
    for picture in (garden / "train" / "sky").iterdir():
        for number in range(20):
            shutil.copy(picture, picture.with_name(f"again{number}.jpg"))
    seen = told("30", "--batch-size", "20")
    said = re.search(r"\n(\d+) of 30 held-out images are training images as well \(sky/", seen)
    assert said
    assert 0 < int(said[1]) < 30


def test_images_in_val_judge_a_run_where_they_are_asked_to(
    garden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*more: str, status: int = 0) -> str:
        capsys.readouterr()
        options = ("--data-dir", "garden", "--batch-size", "40", "--epochs", "3", "--lr", "0.03")
        assert run(monkeypatch, "train", "simple_cnn", *options, *more) == status
        return capsys.readouterr().err

    def card(model: str) -> Json:
        return read_card(ModelFolder(Path(model)))

    by_val = ("--hold-out", "val", "--out", "chosen")
    assert "garden has no folder val beside a folder test; name a number of" in told(
        *by_val, status=2
    )
    # Of every test image the class after its own: whoever judges by them is seen.
    names = sorted(COLOURS)
    for name, after in zip(names, [*names[1:], names[0]], strict=True):
        shutil.copytree(garden / "test" / name, garden / "val" / after)
    assert "garden/val is not used, since there is " in told("--out", "tested")
    told(*by_val)
    chosen, tested = card("chosen"), card("tested")
    assert chosen["test_accuracy"] is None
    assert "holdout_accuracy" not in tested
    right = tested["test_accuracy"]
    assert chosen["holdout_accuracy"] <= 1 - right
    assert all("holdout_accuracy" in record for record in chosen["history"])
    images = sum(file.is_file() for file in (garden / "val").rglob("*"))
    facts = {"train_images": 120, "holdout_images": images}
    assert chosen["data"].items() >= facts.items()
    assert chosen["recipe"]["data"] == {"holdout": 0, "val": True, "test": False}
    assert chosen["weights"]["sha256"] == tested["weights"]["sha256"]  # nothing is held back
    # The test images, too, where they are asked for; and with a teacher that val judged.
    both = ("--set", "data.test=true", "--teacher", "./chosen", "--out", "both")
    told(*by_val[:2], *both)
    assert card("both")["test_accuracy"] is not None
    assert card("both")["data"]["val_sha256"] == chosen["data"]["val_sha256"]
    seen = told("--hold-out", "6", "--teacher", "./chosen", "--out", "held", status=2)
    assert "./chosen may have seen the images that are held out" in seen
    # Cards of val and of training images held back are not compared.
    told("--hold-out", str(images), "--out", "held")
    assert run(monkeypatch, "models", "./chosen", "./held") == 0
    assert "were not judged by the same images" in capsys.readouterr().out
    assert run(monkeypatch, "models", "./chosen", "./both") == 0
    assert "against ./chosen: " in capsys.readouterr().out

    # What rests on others may have seen them, whoever its own card says it was trained on.
    told("--init", "tested", "--out", "further")
    for way in ("--init", "--teacher"):
        seen = told(*by_val[:2], way, "./further", "--out", "held", status=2)
        assert "./further" in seen
        assert "is to be trained with --hold-out val, too" in seen
        told(*by_val[:2], way, "./both", "--out", "held")
    shutil.copy(garden / "train" / names[0] / "0.jpg", garden / "val" / names[0] / "again.jpg")
    shutil.rmtree(garden / "val" / names[1])
    assert (
        f"no image of {names[1]} is in val; 1 of {images - 10 + 1} images in val are training "
        f"images as well ({names[0]}/again.jpg)"
    ) in (said := told(*by_val))
    assert "is not used" not in said
    (garden / "val" / "moss").mkdir()
    shutil.copy(garden / "train" / names[0] / "0.jpg", garden / "val" / "moss")
    assert "val/moss is a class that" in told(*by_val, status=2)
    assert "--hold-out half: a number of training images, or val" in told(
        "--hold-out", "half", status=2
    )
    mixed = ("--set", "data.holdout=5", "--set", "data.val=true", "--out", "mixed")
    assert "data.holdout is 5 and data.val true" in told(*mixed, status=2)


def test_the_advice_for_few_steps_is_the_optimisers(
    garden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--data-dir", "garden", "--epochs", "1", "--batch-size", "60")
    for name, advice in (("sgd", ", and --lr with it, or"), ("muon", " or")):
        named = ("--set", f"optimizer.name={name}", "--out", name)
        assert run(monkeypatch, "train", "simple_cnn", *options, *named) == 0
        said = f"of 60 images: a smaller --batch-size{advice} more --epochs would train more\n"
        assert said in capsys.readouterr().err


def test_an_accuracy_that_one_answer_to_all_would_have_is_told(
    garden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, kept in (("train", 3), ("test", 1)):
        for name in ("rust", "sky"):
            shutil.rmtree(garden / split / name)
        (garden / split / "sky").mkdir()
        for number in range(kept):  # as like the others as can be
            shutil.copy(garden / split / "leaf" / f"{2 * number}.jpg", garden / split / "sky")
    said = "simple_cnn: no better than answering leaf to all (90.91 %); sky: 0 of 1 right"
    said += "; balanced accuracy 50.00 %"
    options = ("--batch-size", "10", "--epochs", "6", "--lr", "0.01")
    train = ("train", "simple_cnn", "--data-dir", "garden", *options)
    assert run(monkeypatch, *train, "--json") == 0
    answer = capsys.readouterr()
    assert said in answer.err
    classes = {"leaf": [10, 10], "sky": [0, 1]}
    card = json.loads(answer.out)
    assert (card["classes"], card["balanced_accuracy"]) == (classes, 0.5)
    assert run(monkeypatch, "models", "simple_cnn") == 0
    assert "right by class: leaf 10 of 10, sky 0 of 1" in capsys.readouterr().out
    assert run(monkeypatch, "export", "simple_cnn") == 0
    judged = ("--max-drop", "50", "--no-latency", "--json")
    run(monkeypatch, "validate", "simple_cnn", *judged, "found.json")
    assert f"{said}." in capsys.readouterr().out
    (found,) = json.loads(Path("found.json").read_text())["models"]
    assert [row["classes"] for row in found["rows"]] == [classes] * 2
    assert [row["balanced_accuracy"] for row in found["rows"]] == [0.5] * 2
    # What is held out is told of where nothing else judges.
    assert run(monkeypatch, *train, "--hold-out", "9", "--out", "held") == 0
    told = read_card(ModelFolder(Path("held")))["classes"]
    assert sum(images for _, images in told.values()) == 9
    # A card from before has none, and is as good.
    path = Path("models/simple_cnn/card.json")
    old = json.loads(path.read_text())
    del old["classes"]
    path.write_text(json.dumps(old))
    capsys.readouterr()
    assert run(monkeypatch, "models", "simple_cnn") == 0
    assert "right by class" not in capsys.readouterr().out
    assert run(monkeypatch, "validate", "simple_cnn", *judged, "-") == 0


def test_what_proves_are_the_test_images(
    garden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        return run(monkeypatch, *arguments), capsys.readouterr().err

    options = ("--batch-size", "20", "--epochs", "1", "--lr", "0.03")
    assert run(monkeypatch, "train", "simple_cnn", "--data-dir", "garden", *options) == 0
    assert run(monkeypatch, "export", "simple_cnn") == 0
    folder = ModelFolder(Path("models/simple_cnn"))
    proof = proof_path(folder.onnx("fp32"))
    validate = ("validate", "simple_cnn", "--max-drop", "20", "--no-latency", "--json", "v.json")
    package = ("package", "simple_cnn", "--force")

    # Training images may come and go.
    shutil.copytree(garden, "before")
    (garden / "train/sky/0.jpg").rename(garden / "train/sky/cloud.jpg")
    shutil.copy(garden / "train/sky/1.png", garden / "train/sky/new.png")
    status, said = answer(*validate)
    assert (status, "no proof" in said, proof.exists()) == (0, False, True)
    facts = json.loads(Path("v.json").read_text())["models"][0]["data"]
    assert (facts["same_as_training"], facts["test_set_of_training"]) == (False, True)
    assert facts["test_sha256"] == read_card(folder)["data"]["test_sha256"]
    assert facts["test_sha256"] == find.load(data_dir=Path("before")).test_sha256
    assert answer(*package)[0] == 0
    proof.unlink()

    # Where the test images did, both say so, and what helps.
    (garden / "test/sky/0.jpg").rename(garden / "test/sky/cloud.jpg")
    reason = (
        f"test images in {garden} were added, removed, renamed or changed since simple_cnn was "
        "trained; train again, or name the old copy with --data-dir"
    )
    status, said = answer(*validate)
    assert (status, proof.exists()) == (0, False)
    assert f"no proof was left beside the files: {reason}\n" in said
    status, said = answer(*package)
    assert status == 2
    assert f"is not proved: {reason}: cifar-deploy validate {folder.onnx('fp32')}\n" in said
    assert answer(*validate, "--data-dir", "before")[0] == 0
    assert proof.exists()
    assert answer(*package)[0] == 0
    proof.unlink()

    # A card that has the sha256 of all images alone goes by that.
    card = json.loads(folder.card.read_text())
    del card["data"]["test_sha256"]
    folder.card.write_text(json.dumps(card))
    (garden / "test/sky/cloud.jpg").rename(garden / "test/sky/0.jpg")
    assert reason.removeprefix("test ") in answer(*validate)[1]
    assert not proof.exists()
    answer(*validate, "--data-dir", "before")
    assert proof.exists()


def test_what_is_wrong_with_a_folder_is_told_before_the_run_starts(
    garden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*more: str) -> str:
        capsys.readouterr()
        assert run(monkeypatch, "train", "simple_cnn", "--data-dir", "garden", *more) == 2
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1
        assert not os.path.lexists("models")
        return said

    assert "120 training images are fewer than a batch of 128" in refused()
    (garden / "test" / "sea").mkdir()
    assert "test/sea is a class that garden/train does not have" in refused()
    (garden / "test" / "sea").rmdir()
    (garden / "train" / "sea").mkdir()
    assert "train/sea holds no images; fill it or remove it" in refused()
    (garden / "train" / "sea").rmdir()
    (garden / "train" / "sky" / "3.png").write_bytes(b"nothing")
    assert "train/sky/3.png is not an image" in refused()
