"""What only a GPU can show: no host work in a step, compilation, resuming, the speed recipe."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cifar_deploy import recipe, store
from cifar_deploy.architectures import weights
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.store import ModelFolder
from cifar_deploy.train.loop import Job, Trainer

pytestmark = pytest.mark.gpu
MakeJob = Callable[..., Job]
ALL = (
    *("augment.cutout=8", "augment.alternate=true", "augment.mixup=0.2", "augment.cutmix=1.0"),
    *("optimizer.name=muon", "train.lookahead=2", "train.precision=bf16"),
)


def on_gpu(job: Job) -> Job:
    return dataclasses.replace(job, device=torch.device("cuda", 0))


@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize(
    ("options", "taught"),
    [((), False), (ALL, True), (("optimizer.name=adamw",), False)],
    ids=["sgd", "all", "adamw"],
)
def test_a_step_does_not_make_the_host_wait(
    make_job: MakeJob, recorder: Any, compiled: str, options: tuple[str, ...], taught: bool
) -> None:
    if taught:
        teacher = make_job(folder="teacher")
        Trainer(teacher).run(recorder)
        options += (f'distill.teachers=["{teacher.folder.path}"]',)
    trainer = Trainer(
        on_gpu(make_job(*options, f"train.compile={compiled}", network="custom_resnet"))
    )
    trainer._prepare()
    trainer.step()  # the epoch is augmented here
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.loss is not None
    assert trainer.loss.isfinite()


def test_compilation_comes_before_the_clock_and_changes_little(
    make_job: MakeJob, recorder: Any
) -> None:
    class Warm(Trainer):
        def _prepare(self) -> None:
            super()._prepare()
            torch.compiler.set_stance("fail_on_recompile")

    cards = []
    for compiled in ("off", "on"):
        options = (f"train.compile={compiled}", "train.epochs=2", "optimizer.lr=0.02")
        job = on_gpu(make_job(*options, network="custom_resnet", folder=compiled))
        try:
            cards.append(Warm(job).run(recorder))
        finally:
            torch.compiler.set_stance("default")
    plain, fast = cards
    assert (plain["compiled"], fast["compiled"]) == (False, True)
    for mine, theirs in zip(plain["history"], fast["history"], strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=0.02)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_run_goes_on_where_it_was_stopped(
    make_job: MakeJob, recorder: Any, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU sums need not be in a fixed order, so the weights are near and not the same.

    How near two runs come is what the same run shows that is made twice.
    """
    # Otherwise either distance is chance, and grows with every step.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    options = (f"optimizer.name={optimizer}", "optimizer.lr=0.01", "train.lookahead=4")
    whole, twin = (on_gpu(make_job(*options, network="cnn9", folder=f)) for f in ("whole", "twin"))
    card = Trainer(whole).run(recorder)
    Trainer(twin).run(recorder)

    class Stopped(Trainer):
        def step(self) -> None:
            if self.state.step == 8 and self.warmup_seconds:
                self._save()
                raise KeyboardInterrupt
            super().step()

    stopped = on_gpu(make_job(*options, network="cnn9", folder="stopped"))
    with pytest.raises(KeyboardInterrupt):
        Stopped(stopped).run(recorder)
    again = Trainer(dataclasses.replace(stopped, resume=True)).run(recorder)
    for mine, theirs in zip(card["history"], again["history"], strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=0.01)
    mine, same, theirs = (
        weights.load(job.folder).network.state_dict() for job in (whole, twin, stopped)
    )
    for key, value in mine.items():
        if value.is_floating_point():
            distance, chance = ((other[key] - value).norm() for other in (theirs, same))
            assert distance < max(0.05 * (value.norm() + 1e-6), 3 * chance), key


def test_a_profile_names_kernels(make_job: MakeJob, recorder: Any, capsys: Any) -> None:
    job = dataclasses.replace(on_gpu(make_job(network="custom_resnet")), profile=True)
    Trainer(job).run(recorder)
    said = capsys.readouterr().err
    assert "kernel" in said
    assert all(part in said for part in ("images", "forward", "backward", "optimiser"))
    assert job.folder.trace.stat().st_size > 10_000


def test_the_speed_recipe_learns(real_data: Dataset, tmp_path: Any, recorder: Any) -> None:
    """Not its accuracy, which benchmarks/train_speed.py measures: that nothing in it is broken."""
    found = store.packaged_recipe("custom_resnet", "speed.toml")
    chosen = recipe.load(found, ["train.compile=off"])
    folder = ModelFolder(tmp_path / "custom_resnet")
    job = Job("custom_resnet", chosen, real_data, torch.device("cuda", 0), folder)
    card = Trainer(job).run(recorder)
    losses = [record["loss"] for record in card["history"]]
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert card["test_accuracy"] > 0.9
    assert card["train_seconds"] < card["wall_seconds"]
