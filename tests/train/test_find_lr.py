import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from processes import command_line
from typer.testing import CliRunner

from cifar_deploy.cli import app
from cifar_deploy.errors import UserError
from cifar_deploy.train import find_lr
from cifar_deploy.train.loop import Job, Trainer

MakeJob = Callable[..., Job]


def test_a_curve_is_judged() -> None:
    rates = [10 ** (-4 + step / 25) for step in range(101)]  # to 1

    def loss(rate: float) -> float:
        """Falls most steeply at 0.001, is lowest at 0.1, and then rises."""
        fall = 2.3 - 1 / (1 + math.exp(-4 * math.log10(rate / 0.001)))
        return fall + max(0.0, math.log10(rate / 0.1))

    found = find_lr.judged(rates, [loss(rate) for rate in rates], whole=True)
    assert found.steepest == pytest.approx(0.001, rel=0.1)
    assert found.lowest == pytest.approx(0.1, rel=0.1)
    assert found.suggested == pytest.approx(found.lowest / 10)


def test_a_range_that_ends_while_the_loss_falls_is_told() -> None:
    rates = [1e-4 * 1.05**step for step in range(100)]
    falling = [2.3 - 0.01 * step for step in range(100)]
    assert find_lr.judged(rates, falling, whole=True).falling
    rising = [*falling, *[falling[-1] + 0.01 * step for step in range(30)]]
    more = [1e-4 * 1.05**step for step in range(130)]
    assert not find_lr.judged(more, rising, whole=True).falling
    late = [*falling, *[falling[-1] + 0.1 * step for step in range(10)]]
    assert not find_lr.judged(more[:110], late, whole=True).falling
    # Where it diverges at once the range has shown all there is.
    assert not find_lr.judged(rates, falling, whole=False).falling


def test_a_curve_that_does_not_fall_suggests_nothing() -> None:
    rates = [1e-4 * 1.1**step for step in range(50)]
    flat = [2.3 + 0.02 / (step + 1) for step in range(50)]  # chance that is averaged away
    with pytest.raises(UserError, match=r"did not fall at rates from 0\.0001 to .* --steps"):
        find_lr.judged(rates, flat, whole=True)


def test_the_mean_is_without_bias_and_ends_where_the_loss_explodes() -> None:
    assert find_lr.smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
    raw = [2.0] * 30 + [1000.0] * 5
    assert len(find_lr.smoothed(raw)) == 30
    assert len(find_lr.smoothed([2.0, math.nan, 2.0])) == 1
    assert find_lr.smoothed([3.0, 2.0])[1] == pytest.approx((0.95 * 3 + 2) / 1.95)


def test_it_is_of_whole_images(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe whose images begin small would be tested on small ones."""
    seen = set()
    real = Trainer.step

    def looking(trainer: Trainer) -> None:
        seen.add(trainer._size())
        real(trainer)

    monkeypatch.setattr(Trainer, "step", looking)
    job = make_job("schedule.first_size=16", "train.batch_size=20", network="cnn9")
    find_lr.find(job, 1e-4, 0.1, 12)
    assert seen == {32}


def test_the_command_draws_and_suggests(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_DEPLOY_MODELS", str(tmp_path / "models"))
    options = ["--data-dir", str(pictures), "--batch-size", "60", "--device", "cpu", "--json"]
    command = ["find-lr", "simple_cnn", *options, "--steps", "80", "--high", "30"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "step 20 of 80: rate 0." in done.stderr
    answer = json.loads(done.stdout)
    assert answer["rates"][0] == pytest.approx(1e-4)
    assert len(answer["rates"]) == len(answer["losses"]) <= 80
    assert len(answer["losses"]) < 80  # at 30 it has diverged
    growth = [b / a for a, b in zip(answer["rates"], answer["rates"][1:], strict=False)]
    assert growth == pytest.approx([growth[0]] * len(growth))
    assert answer["suggested"] == pytest.approx(answer["lowest"] / 10)
    picture = tmp_path / "models" / "simple_cnn" / "find-lr.png"
    assert answer["picture"] == str(picture)
    with Image.open(picture) as image:
        image.load()
    assert [path.name for path in picture.parent.iterdir()] == ["find-lr.png"]


def test_muons_rate_is_suggested_with_it(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_DEPLOY_MODELS", str(tmp_path / "models"))
    options = ["--data-dir", str(pictures), "--batch-size", "60", "--device", "cpu"]
    rates = ["optimizer.name=muon", "optimizer.lr=0.1", "optimizer.muon_lr=0.04"]
    command = ["find-lr", "simple_cnn", *options, "--steps", "80"]
    command += [part for rate in rates for part in ("--set", rate)]
    done = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    answer = json.loads(done.stdout)
    assert answer["suggested_muon_lr"] == pytest.approx(0.4 * answer["suggested"])
    said = CliRunner().invoke(app, command).stdout
    assert f"--lr {answer['suggested']:.2g} --set optimizer.muon_lr=" in said


def test_a_range_is_checked_before_the_data_are_read() -> None:
    command = ["find-lr", "simple_cnn", "--data-dir", "absent", "--low", "1", "--high", "0.1"]
    with pytest.raises(UserError, match="the range runs upwards"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_too_few_steps_are_refused_before_the_data_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = command_line(monkeypatch, capsys)
    status, out, err = run("find-lr", "simple_cnn", "--data-dir", "absent", "--steps", "20")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "'--steps'" in err
    assert " 60;" in err


def test_a_range_that_shows_nothing_is_told(make_job: MakeJob) -> None:
    with pytest.raises(UserError, match=r"--low 1 --high 0\.1: the range runs upwards"):
        find_lr.find(make_job(), 1.0, 0.1, 50)
    with pytest.raises(UserError, match=r"--low 0\.1 --high inf: the range runs upwards"):
        find_lr.find(make_job(), 0.1, math.inf, 50)
    with pytest.raises(UserError, match=r"the loss was no number after .* set a lower --low"):
        find_lr.find(make_job(), 1e20, 1e25, 50)
