import json
import os
import re
import shlex
import signal
from pathlib import Path

import pytest
import torch
from processes import command_line, refusing
from typer.testing import CliRunner, Result

from cifar_deploy import cards, disk, store
from cifar_deploy.cli import app
from cifar_deploy.errors import UserError
from cifar_deploy.store import ModelFolder
from cifar_deploy.train import loop


def run(*arguments: str | Path) -> Result:
    """The command's answer; what it raises is raised here."""
    return CliRunner().invoke(app, ["train", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `train` writes when it is not told."""
    place = tmp_path / "models"
    monkeypatch.setenv(store.MODELS_VARIABLE, str(place))
    monkeypatch.chdir(tmp_path)
    return place


QUICK = ("--epochs", "1", "--batch-size", "120", "--device", "cpu")


def test_the_flags_reach_the_recipe(pictures: Path, tmp_path: Path) -> None:
    done = run(
        *("simple_cnn", "--data-dir", pictures, *QUICK, "--lr", "0.02", "--seed", "4"),
        *("--set", "train.ema=0", "--set", "schedule.name=cosine", "--out", "here", "--json"),
    )
    assert done.exit_code == 0
    card = json.loads(done.stdout)
    folder = ModelFolder(tmp_path / "here")
    assert Path(card["weights"].pop("path")).read_bytes() == folder.weights.read_bytes()
    assert card == cards.read_card(folder)
    recipe = card["recipe"]
    found = {key: recipe["train"][key] for key in ("epochs", "batch_size", "seed", "ema")}
    assert found == {"epochs": 1, "batch_size": 120, "seed": 4, "ema": 0.0}
    assert recipe["optimizer"]["lr"] == 0.02
    # The rest is the network's own, and the defaults.
    own = {"warmup": 0.25, "first_size": 0, "grown": 0.6}
    assert recipe["schedule"] == {"name": "cosine", **own}
    assert recipe["train"]["precision"] == "fp32"
    assert card["data"]["train_images"] == 240
    first = done.stderr.splitlines()[0]
    assert first.startswith("simple_cnn: 240 images, 2 steps in 1 epoch, seed 4, fp32 on ")
    assert first.endswith("; checkpoints in here")


def test_the_cards_command_begins_with_the_same_weights_or_not_at_all(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = command_line(monkeypatch, capsys)
    train = ("train", "simple_cnn", "--data-dir", pictures, *QUICK)
    assert call(*train, "--out", "first")[0] == 0
    sha256 = cards.read_card(ModelFolder(Path("first")))["weights"]["sha256"]
    for given in (("--init", "first"), ("--init=first",)):
        assert call(*train, *given, "--out", "second")[0] == 0
        command = cards.read_card(ModelFolder(Path("second")))["command"]
        assert f" {' '.join(given)}@{sha256[:12]} --out second" in command
    again = shlex.split(command)[1:]
    assert call(*again)[0] == 0
    assert cards.read_card(ModelFolder(Path("second")))["command"] == command
    assert call(*train, "--seed", "1", "--out", "first")[0] == 0
    status, _, said = call(*again)
    assert status == 2
    assert re.search(
        r"^error: --init first@.* first/model.safetensors holds other weights", said, re.M
    )


def test_a_run_that_is_stopped_may_be_ended_there(
    pictures: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call = command_line(monkeypatch, capsys)
    refused = refusing(call)
    options = ("--data-dir", pictures, "--epochs", "3", "--batch-size", "120", "--device", "cpu")
    train = ("train", "simple_cnn", *options)
    assert "--finish ends a run at its checkpoint: give it with --resume" in refused(
        *train, "--finish"
    )
    end = ("--resume", "--finish")
    models.mkdir()
    assert "there is no checkpoint in" in refused(*train, *end)
    assert "--finish ends one run: seeds" in refused(*train, *end, "--seeds", "2")
    step = loop.Trainer.step

    def stopping(trainer: loop.Trainer) -> None:
        if trainer.state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", stopping)
        stopped = call(*train)
    assert stopped.status == 128 + signal.SIGTERM
    said = "stopped after step 3; go on with the same command and --resume, or end the run there"
    assert f"{said} with --resume --finish (" in stopped.err
    ended = call(*train, *end)
    assert ended.status == 0
    assert "6 steps in 3 epochs, ended after step 3, seed 0" in ended.err
    folder = ModelFolder(models / "simple_cnn")
    card = cards.read_card(folder)
    accuracy = f"{100 * card['test_accuracy']:.2f} %"
    said = "stopped at epoch 2 of 3"
    assert f"simple_cnn: {accuracy} of 60 test images, {said}, " in ended.out
    assert card["command"].endswith("--device cpu")  # which gives the whole run
    assert card["stopped"] == {"step": 3, "steps": 6}
    shown = " ".join(call("models").out.split())
    assert f"{accuracy} ({said}, 1 seed)" in shown
    assert call(*train, "--init", folder.path, "--out", models / "next").status == 0
    shown = " ".join(call("models").out.split())
    assert "% (2 + 3 epochs, 1 seed)" in shown
    assert f"; {said}, " in shown.partition("begun with")[2]
    differs = call("models", folder.path, models / "next").out
    assert re.search(rf"^ *stopped +{said} +- *$", differs, re.M)
    # A seed that was ended early is not done.
    whole = call(*train, "--seeds", "2", "--resume")
    assert f"{accuracy} of 60 test images {said} on" in whole.err
    assert "stopped" not in cards.read_card(folder)


def test_weights_of_other_data_are_replaced_with_a_word(pictures: Path, models: Path) -> None:
    run("simple_cnn", "--data-dir", pictures, *QUICK)
    again = run("simple_cnn", "--data-dir", pictures, *QUICK)
    assert "is replaced" not in again.stderr
    longer = run("simple_cnn", "--data-dir", pictures, *QUICK, "--lr", "0.01")
    assert re.search(
        r"model\.safetensors, [\d.]+ % of 60 test images after 1 epoch on ", longer.stderr
    )
    assert "is replaced at the end" in longer.stderr
    card = ModelFolder(models / "simple_cnn").card
    disk.write_json(card, {**disk.read_json(card), "data": {"name": "CIFAR-10", "sha256": "0"}})
    done = run("simple_cnn", "--data-dir", pictures, *QUICK)
    assert done.exit_code == 0
    weights = models / "simple_cnn" / "model.safetensors"
    assert f"{weights}, of CIFAR-10, is replaced at the end; --out" in done.stderr
    disk.write_json(card, {**disk.read_json(card), "imported": {"from": "their.pth"}})
    assert "of their.pth, is replaced" in run("simple_cnn", "--data-dir", pictures, *QUICK).stderr


def test_a_card_without_its_weights_is_replaced_with_a_word(pictures: Path, models: Path) -> None:
    run("simple_cnn", "--data-dir", pictures, *QUICK)
    folder = ModelFolder(models / "simple_cnn")
    folder.weights.unlink()
    assert "is replaced" not in run("simple_cnn", "--data-dir", pictures, *QUICK).stderr
    folder.weights.unlink()
    disk.write_json(folder.card, {**disk.read_json(folder.card), "device": "NVIDIA H200"})
    done = run("simple_cnn", "--data-dir", pictures, *QUICK)
    assert done.exit_code == 0
    said = (
        rf"{folder.card}, [\d.]+ % of 60 test images after 1 epoch on NVIDIA H200, is replaced at "
    )
    assert re.search(said, done.stderr)


def test_weights_go_among_the_models(pictures: Path, models: Path) -> None:
    own = ModelFolder(models / "simple_cnn")
    own.path.mkdir(parents=True)
    own.recipe.write_text("[train]\nseed = 11\nepochs = 7\n")
    done = run("simple_cnn", "--data-dir", pictures, *QUICK)
    assert done.exit_code == 0
    card = cards.read_card(own)
    assert (card["seed"], card["epochs"]) == (11, 1)  # the folder's recipe, the flag over it
    said = f"simple_cnn: {100 * card['test_accuracy']:.2f} % of 60 test images"
    assert said in done.stdout
    assert str(own.weights) in done.stdout


def test_another_recipe(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[train]\nseed = 12\n[optimizer]\nname = 'adamw'\n")
    done = run("simple_cnn", "--data-dir", pictures, *QUICK, "--recipe", "mine.toml", "--json")
    recipe = json.loads(done.stdout)["recipe"]
    assert (recipe["train"]["seed"], recipe["optimizer"]["name"]) == (12, "adamw")


def test_a_card_trains_the_same_again(pictures: Path, tmp_path: Path) -> None:
    changes = ("--lr", "0.02", "--seed", "4", "--set", "augment.cutout=8", "--set", "train.ema=0.5")
    assert run("simple_cnn", "--data-dir", pictures, *QUICK, *changes, "--out", "a").exit_code == 0
    first = cards.read_card(ModelFolder(tmp_path / "a"))
    again = ("simple_cnn", "--data-dir", pictures, "--device", "cpu", "--recipe", "a/card.json")
    assert run(*again, "--out", "b").exit_code == 0
    second = cards.read_card(ModelFolder(tmp_path / "b"))
    assert second["recipe"] == first["recipe"]
    assert second["weights"] == first["weights"]
    assert run(*again, "--seed", "5", "--out", "c").exit_code == 0
    third = cards.read_card(ModelFolder(tmp_path / "c"))
    assert third["recipe"]["train"] == first["recipe"]["train"] | {"seed": 5}
    assert third["weights"] != first["weights"]


BAD = [
    (("resnet19x",), "no network is called 'resnet19x'; did you mean resnet"),
    (("simple_cnn", "--epochs", "0"), "train.epochs is 0"),
    (("simple_cnn", "--lr", "nan"), "optimizer.lr is nan"),
    (("simple_cnn", "--seed", "-1"), "train.seed is -1"),
    (("simple_cnn", "--set", "train.epoch=1"), "did you mean epochs"),
    (("simple_cnn", "--set", "model.stem=imagenet"), "simple_cnn has no 'imagenet' stem"),
    (("simple_cnn", "--recipe", "absent.toml"), "cannot read absent.toml: No such file"),
    (("simple_cnn", "--recipe", "absent/card.json"), "cannot read absent/card.json: No such file"),
    (("simple_cnn", "--device", "tpu"), "--device tpu: it can be auto, cpu, cuda or cuda:N"),
    (("simple_cnn", "--device", "cuda:99"), "--device cuda:99: torch .* CUDA GPUs here"),
    (("simple_cnn", "--data-dir", "absent"), "--data-dir: absent does not exist"),
    (("simple_cnn", "--batch-size", "241"), "240 training images are fewer than a batch of 241"),
    (("simple_cnn", "--set", "data.holdout=240"), "data.holdout is 240, of 240"),
    (("simple_cnn", "--resume"), "there is no checkpoint in "),
    (
        ("simple_cnn", "--recipe", "fast"),
        r"simple_cnn has no fast\.toml; name a file or another recipe \(it has only its own",
    ),
    (("cnn9", "--recipe", "fast"), r"another recipe \(.*short"),
    (
        ("simple_cnn", "--init", "imagenet"),
        "torchvision has no weights of simple_cnn; it has those",
    ),
    (("simple_cnn", "--init", "absent"), r"--init: absent does not exist; .* imagenet"),
    (("simple_cnn", "--weights-file", "x.pth"), "--weights-file goes with --init imagenet"),
    (
        ("resnet18", "--batch-size", "9", "--init", "imagenet", "--weights-file", "absent.pth"),
        r"--weights-file: absent\.pth does not exist",
    ),
    (("simple_cnn", "--set", "finetune.freeze=all-but-classifier"), "name them with --init"),
    (("simple_cnn", "--set", "finetune.freeze=all"), "'all'; it is none, all-but-last-block, all"),
    (("simple_cnn", "--hold-out", "240"), r"data\.holdout is 240, of 240"),
]


@pytest.mark.parametrize("out", [(), ("--out", "here")], ids=["models", "out"])
@pytest.mark.parametrize(("arguments", "said"), BAD, ids=lambda value: str(value)[:40])
def test_bad_arguments_are_told_and_nothing_is_written(
    pictures: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    said: str,
    out: tuple[str, ...],
) -> None:
    there = () if "--data-dir" in arguments else ("--data-dir", pictures)
    with pytest.raises(UserError, match=said) as caught:
        run(*arguments, *there, *out)
    assert len(str(caught.value).splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_told(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sees no CUDA GPUs here; use --device cpu"):
        run("simple_cnn", "--data-dir", pictures, "--device", "cuda")
    assert list(tmp_path.iterdir()) == []
