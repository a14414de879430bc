"""Several seeds, what is held out, and a profile: what the command adds to a run."""

import json
import shutil
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from cifar_deploy import cards, disk, store
from cifar_deploy.cli import app
from cifar_deploy.data.dataset import Split
from cifar_deploy.errors import UserError
from cifar_deploy.store import ModelFolder
from cifar_deploy.train.judge import Judge
from cifar_deploy.train.loop import Trainer
from cifar_deploy.train.profile import Profile


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(store.MODELS_VARIABLE, str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models"


QUICK = ("--epochs", "2", "--batch-size", "80", "--device", "cpu", "--lr", "0.01")


def test_the_card_has_every_seed_and_the_weights_of_the_first(
    pictures: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", "simple_cnn", "--data-dir", pictures, *QUICK, "--seed", "4")
    alone = json.loads(run(*command, "--json", "--out", "alone").stdout)
    folder = ModelFolder(models / "simple_cnn")

    # It dies in the third run, and goes on without doing the first two again.
    real = Trainer.run
    seeds = []

    def dying(trainer: Trainer, watch: object) -> disk.Json:
        seeds.append(trainer.job.recipe.train.seed)
        if len(seeds) == 3:
            raise UserError("killed")
        return real(trainer, watch)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "run", dying)
    with pytest.raises(UserError, match="killed"):
        run(*command, "--seeds", "3")
    done = run(*command, "--seeds", "3", "--resume")
    assert seeds == [4, 5, 6, 6]
    card = cards.read_card(folder)
    assert [entry["seed"] for entry in card["runs"]] == [4, 5, 6]
    found = [entry["test_accuracy"] for entry in card["runs"]]
    assert card["test_accuracy"] == found[0] == alone["test_accuracy"]
    assert card["weights"]["sha256"] == alone["weights"]["sha256"]
    mean, spread = statistics.fmean(found), statistics.stdev(found)
    assert card["test_accuracy_mean"] == pytest.approx(mean)
    assert card["test_accuracy_std"] == pytest.approx(spread)
    assert f"{100 * mean:.2f} ± {100 * spread:.2f} % of 60 test images (3 seeds)" in done.stdout
    assert {p.name for p in folder.path.iterdir()} == {
        *("card.json", "model.safetensors", "curves.png", "log.jsonl")
    }
    listed = run("models").stdout
    assert f"{100 * mean:.2f} ± {100 * spread:.2f} % (2 epochs, 3 seeds)" in listed
    assert f"simple_cnn: {card['command']}, on {card['device']}" in " ".join(listed.split())
    assert json.loads(run("models", "--json").stdout)[0]["seeds"] == 3


def test_what_is_doubtful_about_the_images_is_told_once(pictures: Path, tmp_path: Path) -> None:
    place = tmp_path / "pictures"
    shutil.copytree(pictures, place)
    (place / "train" / "notes.txt").touch()
    command = ("train", "simple_cnn", "--data-dir", place, *QUICK, "--epochs", "1")
    said = run(*command, "--seeds", "2").stderr
    assert said.count(f"1 files in {place / 'train'} itself, in no class, are not used") == 1
    assert said.count("simple_cnn: 240 images") == 2


def test_weights_that_the_first_seed_writes_over_are_no_beginning(
    pictures: Path, models: Path
) -> None:
    command = ("train", "simple_cnn", "--data-dir", pictures, *QUICK, "--epochs", "1")
    assert run(*command).exit_code == 0
    own = models / "simple_cnn"
    before = (own / "model.safetensors").read_bytes()
    for init in (own, own / "model.safetensors"):
        with pytest.raises(UserError, match=f"--seeds 2: the first seed writes over --init {init}"):
            run(*command, "--seeds", "2", "--init", init)
    assert (own / "model.safetensors").read_bytes() == before
    done = run(*command, "--seeds", "2", "--init", own, "--out", "elsewhere")
    assert done.exit_code == 0


def test_a_run_in_the_middle_is_not_written_over(pictures: Path, models: Path) -> None:
    command = ("train", "simple_cnn", "--data-dir", pictures, *QUICK)
    folder = ModelFolder(models / "simple_cnn")
    for checkpoint in (folder.checkpoint, ModelFolder(folder.path / "seeds" / "3").checkpoint):
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_bytes(b"hours of work")
        with pytest.raises(
            UserError, match=f"{checkpoint} is of a run that has not ended; .*--res"
        ):
            run(*command)
        assert checkpoint.read_bytes() == b"hours of work"
        if checkpoint == folder.checkpoint:
            with pytest.raises(UserError, match="no trained weights; its training has not ended"):
                run("export", "simple_cnn")
        checkpoint.unlink()
    assert run(*command).exit_code == 0
    # A seed that is done has no checkpoint.
    seed = ModelFolder(folder.seeds / "1")
    seed.path.mkdir(parents=True, exist_ok=True)
    seed.card.write_text("{}")
    said = rf"{seed.card} .*with --seeds N --resume, .* it and {folder.seeds} to begin"
    with pytest.raises(UserError, match=said):
        run(*command)
    with pytest.raises(UserError, match=r"no checkpoint in .*; give --seeds as before"):
        run(*command, "--resume")
    shutil.rmtree(folder.seeds)
    # What a run that diverged left is a beginning for another one in its place.
    trained = folder.weights.rename(folder.checkpoint)
    with pytest.raises(UserError, match="has not ended"):
        run(*command, "--init", folder.path)
    assert run(*command, "--init", trained).exit_code == 0


def test_held_out_images_are_judged_instead_of_the_test_images(
    pictures: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []
    real = Judge.right

    def looking(judge: Judge, network: nn.Module, split: Split) -> torch.Tensor:
        judged.append(split)
        return real(judge, network, split)

    monkeypatch.setattr(Judge, "right", looking)
    done = run("train", "simple_cnn", "--data-dir", pictures, *QUICK, "--hold-out", "60")
    card = cards.read_card(ModelFolder(models / "simple_cnn"))
    assert card["test_accuracy"] is card["test_accuracy_before_storage"] is None
    assert card["test_images"] == 0
    assert {len(split) for split in judged} == {60}
    assert round(card["holdout_accuracy"], 5) == card["history"][-1]["holdout_accuracy"]
    assert (card["data"]["train_images"], card["data"]["holdout_images"]) == (180, 60)
    said = f"simple_cnn: {100 * card['holdout_accuracy']:.2f} % of 60 held-out images"
    assert said in done.stdout
    assert run("export", "simple_cnn").exit_code == 0


def test_a_second_recipe_writes_to_a_folder_of_its_own(pictures: Path, models: Path) -> None:
    first = ModelFolder(models / "simple_cnn")
    first.path.mkdir(parents=True)
    (first.path / "tiny.toml").write_text("[train]\nepochs = 1\nbatch_size = 60\n")
    done = run("train", "simple_cnn", "--data-dir", pictures, "--recipe", "tiny")
    assert done.exit_code == 0
    second = ModelFolder(models / "simple_cnn-tiny")
    assert cards.read_card(second)["epochs"] == 1
    assert not first.card.exists()
    assert run("export", "simple_cnn-tiny").exit_code == 0
    assert second.onnx("fp32").exists()


def test_a_profile_shows_where_the_time_goes(
    pictures: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Profile.step

    def slow(profile: Profile, *told: Any) -> None:
        time.sleep(0.05)
        real(profile, *told)

    monkeypatch.setattr(Profile, "step", slow)
    plain = run("train", "simple_cnn", "--data-dir", pictures, *QUICK, "--epochs", "4")
    assert plain.exit_code == 0
    folder = ModelFolder(models / "simple_cnn")
    weights = folder.weights.read_bytes()
    done = run("train", "simple_cnn", "--data-dir", pictures, *QUICK, "--epochs", "4", "--profile")
    assert done.exit_code == 0
    lines = done.stderr.splitlines()
    for part in ("images", "forward", "backward", "optimiser", "averages"):
        assert any(line.startswith(f"{part} ") and line.endswith("%") for line in lines)
    assert any("aten::convolution_backward" in line for line in lines)
    assert f"trace: {folder.trace} " in done.stderr
    events = json.loads(folder.trace.read_text())["traceEvents"]
    assert {event.get("name") for event in events} >= {"forward", "backward", "aten::conv2d"}
    assert folder.weights.read_bytes() == weights  # to look changes nothing
    card = cards.read_card(folder)
    assert card["wall_seconds"] - card["train_seconds"] > 12 * 0.05  # nor is it training's time


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_too_short_for_a_profile_says_so(pictures: Path, models: Path, steps: int) -> None:
    quick = ("--epochs", "1", "--batch-size", str(240 // steps), "--device", "cpu")
    done = run("train", "simple_cnn", "--data-dir", pictures, *quick, "--profile")
    assert done.exit_code == 0
    assert f"no profile: that needs 3 steps or more, and there were {steps}" in done.stderr
    assert not ModelFolder(models / "simple_cnn").trace.exists()
    assert not torch._C._autograd._profiler_enabled()  # else the process ends with a crash


def test_a_run_that_fails_while_it_is_profiled_stops_the_profiler(
    pictures: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.step

    def failing(trainer: Trainer) -> None:
        if trainer.state.step == 4:
            assert torch._C._autograd._profiler_enabled()
            raise UserError("no more")
        real(trainer)

    monkeypatch.setattr(Trainer, "step", failing)
    with pytest.raises(UserError, match="no more"):
        run("train", "simple_cnn", "--data-dir", pictures, *QUICK, "--profile")
    assert not torch._C._autograd._profiler_enabled()


def test_to_hold_out_nothing_is_to_test(pictures: Path, models: Path) -> None:
    done = run("train", "simple_cnn", "--data-dir", pictures, *QUICK, "--hold-out", "0")
    card = cards.read_card(ModelFolder(models / "simple_cnn"))
    assert f"{100 * card['test_accuracy']:.2f} % of 60 test images" in done.stdout


def test_what_stops_a_later_seed_is_told_with_its_own_checkpoint(
    pictures: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.step

    def stopped(trainer: Trainer) -> None:
        real(trainer)
        if trainer.job.recipe.train.seed == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "step", stopped)
    done = run("train", "simple_cnn", "--data-dir", pictures, *QUICK, "--seeds", "2")
    checkpoint = ModelFolder(ModelFolder(models / "simple_cnn").seeds / "1").checkpoint
    assert done.exit_code == 128 + signal.SIGTERM
    assert done.stderr.endswith(f"({checkpoint})\n")
    assert checkpoint.exists()


def test_seeds_are_resumed_as_they_began(
    pictures: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ("train", "simple_cnn", "--data-dir", pictures, *QUICK)
    assert run(*quick, "--epochs", "1", "--out", "base").exit_code == 0
    command = (*quick, "--seeds", "2", "--init", "base")
    folder = ModelFolder(models / "simple_cnn")
    real = Trainer.step

    def stopping(seed: int) -> None:
        def step(trainer: Trainer) -> None:
            real(trainer)
            if trainer.job.recipe.train.seed == seed:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(Trainer, "step", step)

    stopping(0)
    assert run(*command).exit_code == 128 + signal.SIGTERM
    monkeypatch.setattr(Trainer, "step", real)
    # The second seed would begin with chance.
    said = r"began from model\.safetensors; with --seeds give its --init again"
    with pytest.raises(UserError, match=said):
        run(*quick, "--seeds", "2", "--resume")
    stopping(1)
    assert run(*command, "--resume").exit_code == 128 + signal.SIGTERM
    monkeypatch.setattr(Trainer, "step", real)
    first = folder.weights.read_bytes()
    for other in ((*quick, "--seeds", "2"), (*command, "--epochs", "3")):
        with pytest.raises(UserError, match=r"the first seed in .* was trained otherwise"):
            run(*other, "--resume")
    assert run(*command, "--resume").exit_code == 0
    assert folder.weights.read_bytes() == first
    assert len(cards.read_card(folder)["runs"]) == 2
    with pytest.raises(UserError, match=r"--resume: all seeds in .* are done"):
        run(*command, "--resume")


def test_one_run_becomes_the_first_of_several(pictures: Path, models: Path) -> None:
    command = ("train", "simple_cnn", "--data-dir", pictures, *QUICK)
    assert run(*command).exit_code == 0
    folder = ModelFolder(models / "simple_cnn")
    first = cards.read_card(folder)
    assert run(*command, "--seeds", "2", "--resume").exit_code == 0
    card = cards.read_card(folder)
    assert card["finished"] == first["finished"]  # it was not trained again
    assert [entry["seed"] for entry in card["runs"]] == [0, 1]
    assert run(*command, "--seeds", "3", "--resume").exit_code == 0
    card = cards.read_card(folder)
    assert card["finished"] == first["finished"]
    assert [entry["seed"] for entry in card["runs"]] == [0, 1, 2]


@pytest.mark.parametrize("link", [False, True])
def test_what_stands_where_other_seeds_go_is_told_before_the_first(
    pictures: Path, models: Path, tmp_path: Path, link: bool
) -> None:
    folder = ModelFolder(models / "simple_cnn")
    folder.path.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    folder.seeds.symlink_to(tmp_path / "elsewhere") if link else folder.seeds.touch()
    with pytest.raises(UserError, match=r"simple_cnn/seeds (cannot be removed|and|is of a run)"):
        run("train", "simple_cnn", "--data-dir", pictures, *QUICK, "--seeds", "2")
    assert not folder.weights.exists()


def test_a_file_of_the_system_among_the_seeds_keeps_no_run_from_its_end(
    pictures: Path, models: Path
) -> None:
    command = ("train", "simple_cnn", "--data-dir", pictures, *QUICK, "--seeds", "2")
    run(*command)
    folder = ModelFolder(models / "simple_cnn")
    (folder.seeds / "1").mkdir(parents=True)  # killed while they were removed
    (folder.seeds / ".DS_Store").touch()
    assert run(*command, "--resume").exit_code == 0
    assert not folder.seeds.exists()
