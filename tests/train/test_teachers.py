"""Learning from trained models' answers."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from cifar_deploy import cards, disk, store
from cifar_deploy.architectures import weights
from cifar_deploy.cli import app
from cifar_deploy.data.dataset import Dataset, Split
from cifar_deploy.errors import UserError
from cifar_deploy.recipe import Distill, Recipe
from cifar_deploy.train import seeds
from cifar_deploy.train.interrupt import Interrupted
from cifar_deploy.train.loop import Job, Trainer
from cifar_deploy.train.objective import Objective
from cifar_deploy.train.teachers import Lesson, Teacher

MakeJob = Callable[..., Job]
CPU = torch.device("cpu")
GOOD = ("train.epochs=12", "train.batch_size=50", "optimizer.name=adamw", "optimizer.lr=0.003")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are found, and written, in the test's own folder."""
    monkeypatch.setenv(store.MODELS_VARIABLE, str(tmp_path))
    monkeypatch.chdir(tmp_path)


def train(job: Job, recorder: Any) -> disk.Json:
    return Trainer(job).run(recorder)


def by(*models: str) -> str:
    return f"distill.teachers={json.dumps(models)}"


def state(folder: str) -> dict[str, torch.Tensor]:
    return weights.load(store.ModelFolder(Path(folder))).network.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def test_a_pupil_learns_what_its_labels_do_not_say(
    make_job: MakeJob, recorder: Any, few: Dataset
) -> None:
    teacher = train(make_job(*GOOD, folder="teacher"), recorder)
    chance = np.random.default_rng(0).permutation(few.train.labels)
    nonsense = dataclasses.replace(few, train=Split(few.train.images, chance))
    options = GOOD
    lost = train(make_job(*options, dataset=nonsense, folder="lost"), recorder)
    options += (by("teacher"), "distill.temperature=2", "distill.weight=1")
    job = make_job(*options, dataset=nonsense, folder="pupil")
    command = "cifar-deploy train simple_cnn --teacher teacher"
    taught = train(dataclasses.replace(job, command=command), recorder)
    assert teacher["test_accuracy"] > lost["test_accuracy"] + 0.25
    assert taught["test_accuracy"] > lost["test_accuracy"] + 0.2
    assert "teachers" not in lost
    sha256 = cards.read_card(store.ModelFolder(Path("teacher")))["weights"]["sha256"]
    assert taught["teachers"] == [{"model": "teacher", "sha256": sha256}]
    # What the card says is not followed with other weights of that name.
    assert taught["command"] == f"{command}@{sha256[:12]}"
    pinned = f"teacher@{sha256[:8]}"
    assert Trainer(make_job(by(pinned), folder="again")).teachers[0].sha256 == sha256
    with pytest.raises(
        UserError, match=rf"^--teacher teacher@{'0' * 8}: teacher has other weights"
    ):
        Trainer(make_job(by(f"teacher@{'0' * 8}"), folder="again"))


def test_a_card_tells_what_its_teachers_began_with(make_job: MakeJob, recorder: Any) -> None:
    train(make_job(folder="theirs"), recorder)
    weights = store.ModelFolder(Path("theirs"))
    disk.write_json(weights.card, cards.read_card(weights) | {"imported": {"from": "their.pth"}})
    begun = make_job(folder="teacher")
    assert "teachers_from" not in train(dataclasses.replace(begun, init="theirs"), recorder)
    card = train(make_job(by("teacher"), folder="pupil"), recorder)
    assert card["teachers_from"] == ["their.pth"]
    once_more = dataclasses.replace(make_job(folder="again"), init="pupil")
    card = train(once_more, recorder)
    assert [cards.begun(card), *cards.taught_from(card)] == [None, "their.pth"]
    assert [teacher["model"] for teacher in card["init"]["teachers"]] == ["teacher"]


def test_teachers_without_weight_change_nothing(make_job: MakeJob, recorder: Any) -> None:
    train(make_job(folder="teacher"), recorder)
    train(make_job(folder="alone"), recorder)
    train(make_job(by("teacher"), "distill.weight=0", folder="ignoring"), recorder)
    train(make_job(by("teacher"), folder="listening"), recorder)
    assert same(state("alone"), state("ignoring"))
    assert not same(state("alone"), state("listening"))
    assert same(state("alone"), state("teacher"))  # it is the same run, and learnt nothing since


class Says(nn.Module):
    """Some logits, whatever it sees."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.seen: list[tuple[torch.Size, torch.dtype]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append((images.shape, images.dtype))
        return self.logits


def lesson(options: Distill, *said: torch.Tensor) -> Lesson:
    asked: list[Any] = [Teacher("", "", Says(logits)) for logits in said]  # type: ignore[arg-type]
    return Lesson(asked, options, CPU)


def test_the_loss_is_the_distance_at_the_temperature() -> None:
    torch.manual_seed(0)
    one, other, own = (3 * torch.randn(5, 4) for _ in range(3))
    own.requires_grad_()
    taught = lesson(Distill(temperature=2.5), one, other)
    images = torch.zeros(5, 32, 32, 3, dtype=torch.uint8)
    loss = taught.loss(images, own)

    def softened(logits: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
        powers = np.exp(logits.detach().numpy().astype(np.float64) / 2.5)
        return powers / powers.sum(1, keepdims=True)

    target = (softened(one) + softened(other)) / 2
    distance = (target * np.log(target / softened(own))).sum(1).mean()
    assert loss.item() == pytest.approx(2.5**2 * distance, rel=1e-5)
    loss.backward()
    assert own.grad is not None
    assert own.grad.abs().sum() > 0
    assert all(parameter.grad is None for g in taught.graphs for parameter in g.parameters())
    agreed = lesson(Distill(temperature=2.5), one).loss(images, one)
    assert agreed.item() == pytest.approx(0, abs=1e-6)


def test_the_weight_shares_the_loss_out_and_teachers_see_whole_images() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([1, 0, 3])
    pupil, teacher = torch.randn(3, 4), torch.randn(3, 4)
    images = torch.zeros(3, 32, 32, 3, dtype=torch.uint8)
    one = torch.ones(3, 1, 1)

    def loss(taught: Lesson | None) -> float:
        network = Says(pupil)
        objective = Objective(network, one, 0 * one, 0.1, bf16=False, lesson=taught)
        found: torch.Tensor = objective(images, labels, size=16)[0]
        assert network.seen == [((3, 3, 16, 16), torch.float32)]
        return found.item()

    taught = lesson(Distill(weight=0.3, temperature=1.5), teacher)
    alone, wholly = loss(None), taught.loss(images, pupil).item()
    assert loss(taught) == pytest.approx(0.7 * alone + 0.3 * wholly, rel=1e-5)
    (says,) = taught.graphs
    assert isinstance(says, Says)
    assert says.seen == 2 * [((3, 32, 32, 3), torch.uint8)]


def test_a_teacher_takes_mixed_images_and_a_growing_pupil(
    make_job: MakeJob, recorder: Any, few: Dataset
) -> None:
    train(make_job(folder="teacher"), recorder)  # simple_cnn takes no small images
    fewer = dataclasses.replace(few, train=few.train.first(40), test=few.test.first(10))
    options = ("schedule.first_size=16", "augment.mixup=0.5", "augment.cutmix=1", "train.epochs=2")
    card = train(
        make_job(
            *(*options, by("teacher"), "train.batch_size=10", "train.precision=bf16"),
            network="cnn9",
            dataset=fewer,
        ),
        recorder,
    )
    assert all(0 < record["loss"] < 20 for record in card["history"])


class Stopped(Trainer):
    """A run that ends after eight steps."""

    def step(self) -> None:
        super().step()
        if self.state.step == 8:
            self._save()
            raise Interrupted(15, 8, self.job.folder.checkpoint)


def test_a_taught_run_goes_on_with_the_same_teachers(make_job: MakeJob, recorder: Any) -> None:
    for seed in (0, 1):
        train(make_job(f"train.seed={seed}", folder=f"teacher{seed}"), recorder)
    taught = by("teacher0", "teacher1")
    train(make_job(taught, folder="whole"), recorder)
    job = make_job(taught)
    with pytest.raises(Interrupted):
        Stopped(job).run(recorder)
    resumed = dataclasses.replace(job, resume=True)
    shutil.copytree("teacher1", "kept")
    train(make_job("train.seed=2", folder="teacher1"), recorder)
    with pytest.raises(UserError, match=r"made with teachers' weights = \['\w{64}', '\w{64}'\]"):
        Trainer(resumed)
    with pytest.raises(
        UserError, match=r"with recipe.distill.teachers = \['teacher0', 'teacher1'\]"
    ):
        Trainer(make_job(resume=True))
    shutil.rmtree("teacher1")
    Path("kept").rename("teacher1")
    train(resumed, recorder)
    assert same(state("out"), state("whole"))


def test_seeds_that_are_done_are_done_again_with_other_teachers(
    make_job: MakeJob, recorder: Any
) -> None:
    train(make_job(folder="teacher"), recorder)
    job = make_job(by("teacher"))
    train(job, recorder)
    assert seeds._done(job)
    train(make_job("train.seed=1", folder="teacher"), recorder)
    assert not seeds._done(job)
    Path("teacher", "model.safetensors").unlink()
    assert not seeds._done(job)


def test_weights_from_elsewhere_are_no_seed_that_is_done(make_job: MakeJob, recorder: Any) -> None:
    job = make_job()
    train(job, recorder)
    assert seeds._done(job)
    defaults = dataclasses.replace(job, recipe=Recipe())
    card = disk.read_json(job.folder.card)
    for recipe in (None, "damaged"):  # an imported model's card has none
        disk.write_json(job.folder.card, {**card, "recipe": recipe})
        assert not seeds._done(defaults)
    del card["recipe"]
    disk.write_json(job.folder.card, card)
    assert not seeds._done(defaults)


def test_who_cannot_teach_is_told(make_job: MakeJob, recorder: Any, few: Dataset) -> None:
    def refused(said: str, *options: str, **more: Any) -> None:
        with pytest.raises(UserError, match=said) as caught:
            Trainer(make_job(*options, **more))
        assert "\n" not in str(caught.value)
        assert not Path("out").exists()

    refused("no network is called 'nobody'", by("nobody"))
    refused("vgg19 has no trained weights", by("vgg19"))
    train(make_job("data.holdout=100", folder="teacher"), recorder)
    before = Path("teacher", "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="write elsewhere with --out"):
        train(make_job(by("teacher"), folder="teacher"), recorder)
    assert Path("teacher", "model.safetensors").read_bytes() == before
    others = dataclasses.replace(few, classes=(*few.classes[:9], "other"))
    refused("it knows .*, not .*, other$", by("teacher"), dataset=others)
    refused("is to be trained with --hold-out 101, too", by("teacher"), "data.holdout=101")
    refused("of no use without teachers; name them with --teacher", "distill.weight=0.5")
    refused("distill.teachers is 'teacher'; it is none or a list", "distill.teachers=teacher")
    # One that had fewer images than that to learn from has seen none of these.
    assert len(Trainer(make_job(by("teacher"), "data.holdout=50")).teachers) == 1


def test_the_command_takes_teachers(pictures: Path) -> None:
    def run(*arguments: str) -> Any:
        quick = ("--data-dir", str(pictures), "--epochs", "1", "--batch-size", "120")
        return CliRunner().invoke(
            app, ["train", *arguments, *quick, "--device", "cpu"], catch_exceptions=False
        )

    assert run("simple_cnn", "--out", "my teacher").exit_code == 0
    taught = ("simple_cnn", "--teacher", "my teacher", "--teacher", "./my teacher", "--json")
    first, again = run(*taught), run(*taught)
    card = json.loads(again.stdout)
    assert card["recipe"]["distill"]["teachers"] == ["my teacher", "./my teacher"]
    assert [teacher["model"] for teacher in card["teachers"]] == ["my teacher", "./my teacher"]
    assert "is replaced" not in first.stderr + again.stderr
    # An earlier version knew no teachers: its card is of the same run as one without.
    run("simple_cnn", "--out", "plain")
    place = store.ModelFolder(Path("plain")).card
    before = disk.read_json(place)
    del before["recipe"]["distill"]
    disk.write_json(place, before)
    assert "is replaced" not in run("simple_cnn", "--out", "plain").stderr
    other = run("simple_cnn", "--out", "plain", "--teacher", "my teacher")
    assert "is replaced at the end" in other.stderr
