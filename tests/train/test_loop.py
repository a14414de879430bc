import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import signal
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from cifar_deploy import __version__, cards, disk, recipe
from cifar_deploy.architectures import weights
from cifar_deploy.cards import read_card
from cifar_deploy.data.dataset import Dataset, Split
from cifar_deploy.disk import Json
from cifar_deploy.errors import UserError
from cifar_deploy.store import ModelFolder
from cifar_deploy.train import batches, checkpoint, loop, seeds
from cifar_deploy.train.batches import split_holdout
from cifar_deploy.train.interrupt import Interrupted
from cifar_deploy.train.loop import Job, Trainer
from cifar_deploy.train.optim import Average, make_optimizer, rate

# The fixtures are conftest's.
MakeJob = Callable[..., Job]
Watching = Any


class Stopped(Trainer):
    """A run that is sent a signal in the middle of its step number `at`."""

    def __init__(self, job: Job, at: int, number: int) -> None:
        super().__init__(job)
        self.at, self.number = at, number

    def step(self) -> None:
        if self.state.step + 1 == self.at:
            os.kill(os.getpid(), self.number)
        super().step()


def interrupt(job: Job, at: int, watch: Watching, number: int = signal.SIGTERM) -> None:
    with pytest.raises(Interrupted) as caught:
        Stopped(job, at, number).run(watch)
    assert (caught.value.signal, caught.value.step) == (number, at)


def resumed(job: Job) -> Job:
    return dataclasses.replace(job, resume=True)


def names(folder: ModelFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir()}


ALL = {"model.safetensors", "card.json", "curves.png", "log.jsonl"}


# --- a whole run --------------------------------------------------------------------------------


def accuracy(folder: ModelFolder, split: Split) -> float:
    """By a reader's own means: the weights through the deployment graph, an image at a time."""
    graph = weights.load(folder).graph()
    with torch.inference_mode():
        answers = [int(graph(torch.from_numpy(image[None])).argmax()) for image in split.images]
    return float((np.array(answers) == split.labels).mean())


@pytest.fixture(scope="module")
def learnt(
    small_data: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Job, Json, list[Json]]:
    """A run long enough to learn something: the job, its card, and what its watch was told."""
    overrides = ["train.epochs=6", "train.batch_size=50", "optimizer.lr=0.001", "train.seed=3"]
    overrides += ["optimizer.name=adamw", "train.precision=fp32", "data.holdout=200"]
    overrides += ["train.label_smoothing=0", "augment.translate=1", "train.storage=fp16"]
    folder = ModelFolder(tmp_path_factory.mktemp("models") / "simple_cnn")
    chosen = recipe.load(None, overrides)
    job = Job("simple_cnn", chosen, small_data, torch.device("cpu"), folder)

    told = []

    class Watch:
        def step(self, done: int, epoch: int, loss: float, accuracy: float, rate: float) -> None:
            assert 0 < done <= 36 * 6
            assert 0 <= epoch < 6
            assert loss > 0
            assert 0 <= accuracy <= 1
            assert rate > 0

        def epoch(self, record: Json) -> None:
            told.append(record)
            # The line is on disk before anyone hears of the epoch.
            assert len(folder.log.read_text().splitlines()) == len(told)

    return job, Trainer(job).run(Watch()), told


def test_it_learns(learnt: tuple[Job, Json, list[Json]]) -> None:
    _, card, told = learnt
    losses = [record["loss"] for record in told]
    assert losses[-1] < losses[0] - 0.3
    assert told[-1]["train_accuracy"] > told[0]["train_accuracy"] + 0.1
    assert card["test_accuracy"] > 0.25  # chance is 0.1
    assert told[-1]["holdout_accuracy"] > 0.25


def test_the_log_has_a_line_an_epoch(learnt: tuple[Job, Json, list[Json]]) -> None:
    job, card, told = learnt
    lines = [json.loads(line) for line in job.folder.log.read_text().splitlines()]
    assert lines == told == card["history"]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(a["seconds"] < b["seconds"] for a, b in itertools.pairwise(lines))


def test_the_card_tells_all(learnt: tuple[Job, Json, list[Json]], small_data: Dataset) -> None:
    job, returned, _ = learnt
    card = disk.read_json(job.folder.card)
    assert card == json.loads(json.dumps(returned))
    assert card["network"] == "simple_cnn"
    assert card["parameters"] == 62_006
    assert card["recipe"] == job.recipe.to_dict()
    assert recipe.parse(card["recipe"], "card") == job.recipe
    assert (card["epochs"], card["seed"], card["precision"]) == (6, 3, "fp32")
    assert card["test_images"] == 500
    assert card["weights"]["sha256"] == disk.sha256_of(job.folder.weights)
    assert card["weights"]["bytes"] == job.folder.weights.stat().st_size
    assert card["weights"]["storage"] == "fp16"
    data = card["data"]
    assert data["sha256"] == small_data.sha256
    assert (data["name"], data["verified"]) == ("synthetic", "generated")
    assert (data["train_images"], data["holdout_images"]) == (1800, 200)
    assert (data["mean"], data["std"]) == small_data.normalisation
    assert data["classes"] == list(small_data.classes)
    assert card["versions"]["torch"] == metadata.version("torch")
    assert card["cifar_deploy"] == __version__
    assert f"{torch.get_num_threads()} threads" in card["device"]
    assert card["wall_seconds"] > 0
    assert card["finished"].endswith("+00:00")


def test_the_cards_accuracy_is_what_a_reader_finds(
    learnt: tuple[Job, Json, list[Json]], small_data: Dataset
) -> None:
    job, card, _ = learnt
    assert accuracy(job.folder, small_data.test) == card["test_accuracy"]


def test_fp16_storage_halves_the_matrices_and_no_more(
    learnt: tuple[Job, Json, list[Json]],
) -> None:
    job, card, _ = learnt
    with safe_open(job.folder.weights, framework="pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert {kind for name, kind in kinds.items() if name.endswith("weight")} == {torch.float16}
    assert {kind for name, kind in kinds.items() if name.endswith("bias")} == {torch.float32}
    assert job.folder.weights.stat().st_size < 62_006 * 2 + 5_000
    assert abs(card["test_accuracy_before_storage"] - card["test_accuracy"]) < 0.02


def test_the_folder_holds_what_it_should(learnt: tuple[Job, Json, list[Json]]) -> None:
    job, _, _ = learnt
    assert names(job.folder) == ALL
    with Image.open(job.folder.curves) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 800
    for name in ALL:  # as any other new file, not its writer's alone
        assert (job.folder.path / name).stat().st_mode == job.folder.card.stat().st_mode


def test_without_an_average_the_network_itself_is_kept(
    make_job: MakeJob, recorder: Watching, few: Dataset
) -> None:
    job = make_job("train.ema=0", "train.epochs=1")
    trainer = Trainer(job)
    card = trainer.run(recorder)
    kept = weights.load(job.folder).network.state_dict()
    own = trainer.network.state_dict()
    assert all(torch.equal(kept[key], own[key]) for key in own)
    assert card["test_accuracy_before_storage"] == card["test_accuracy"]
    assert accuracy(job.folder, few.test) == card["test_accuracy"]


def test_what_is_judged_is_what_is_stored(make_job: MakeJob, recorder: Watching) -> None:
    job = make_job("train.storage=fp16", "train.epochs=1")
    trainer = Trainer(job)
    trainer.run(recorder)
    judged = trainer.best().state_dict()
    stored = weights.load(job.folder).network.state_dict()
    assert all(torch.equal(judged[key], stored[key]) for key in stored)
    assert not torch.equal(trainer.network.state_dict()["0.weight"], stored["0.weight"])


def test_answers_that_storing_changed_are_counted(
    make_job: MakeJob, recorder: Watching, few: Dataset
) -> None:
    class OnTheEdge(Trainer):
        """A network that answers 1 to everything, and in fp16 0."""

        def _finish(self) -> Json:
            with torch.no_grad():
                for name, parameter in self.best().named_parameters():
                    if name.startswith(("9.", "11.")):
                        parameter.zero_()
                    if name == "9.bias":  # the last layer's 84 inputs are all 1
                        parameter.fill_(1.0)
                    if name == "11.weight":
                        parameter[0, :2] = torch.tensor([1.0, 0.0002])
                        parameter[1, 0] = 1.0004  # 1.0 in fp16
            return super()._finish()

    card = OnTheEdge(make_job("train.epochs=1", "train.storage=fp16")).run(recorder)
    ones, zeros = (int((few.test.labels == label).sum()) for label in (1, 0))
    assert ones != zeros
    assert (card["lost_by_storage"], card["gained_by_storage"]) == (ones, zeros)
    assert card["test_accuracy_before_storage"] == ones / 200
    assert card["test_accuracy"] == zeros / 200
    exact = OnTheEdge(make_job("train.epochs=1", "train.storage=fp32")).run(recorder)
    assert (exact["lost_by_storage"], exact["gained_by_storage"]) == (0, 0)


def test_every_step_is_what_the_recipe_says(make_job: MakeJob) -> None:
    """Each group's rate, the averages, and what is random in the network."""
    options = (*MUON, "optimizer.muon_lr=0.05", "train.lookahead=4", "train.epochs=1")
    trainer = Trainer(make_job(*options))
    groups, seeds, together = trainer.optimizer.param_groups, [], []
    assert trainer.lookahead
    trainer.network.register_forward_hook(lambda *_: seeds.append(torch.initial_seed()))
    average = Average(trainer.network, trainer.job.recipe.train.ema)
    for done in range(1, 7):
        trainer.step()
        factor = rate(trainer.job.recipe.schedule, done - 1, 6)
        assert [group["lr"] for group in groups] == [group["peak"] * factor for group in groups]
        together.append(same(trainer.network, trainer.lookahead.network))
        average.update(done)
    assert {group["peak"] for group in groups} == {0.02, 0.05}
    assert len(set(seeds)) == 6
    assert together == [False, False, False, True, False, True]  # at the end, too
    assert same(trainer.best(), average.network)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    found = other.state_dict()
    return all(
        torch.equal(value, found[k])
        for k, value in one.state_dict().items()
        if value.is_floating_point()
    )


def test_what_is_told_is_of_the_epoch_so_far(
    make_job: MakeJob, recorder: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loop.LOOK_SECONDS, "cpu", 0.0)
    trainer, looked = Trainer(make_job("train.epochs=2")), []

    def look(done: int, epoch: int, loss: float, accuracy: float, rate: float) -> None:
        steps = done - 6 * epoch
        summed, correct, _ = trainer.sums.tolist()
        assert (loss, accuracy) == (summed / steps, correct / (100 * steps))
        looked.append(done)

    monkeypatch.setattr(recorder, "step", look)
    card = trainer.run(recorder)
    assert looked == list(range(1, 13))
    ends = [round(0.05 * rate(trainer.job.recipe.schedule, step, 12), 6) for step in (5, 11)]
    assert [record["lr"] for record in card["history"]] == ends


def test_the_seed_makes_the_run(make_job: MakeJob, recorder: Watching) -> None:
    raw = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        job = make_job(f"train.seed={seed}", "train.epochs=1", folder=folder)
        Trainer(job).run(recorder)
        raw.append(job.folder.weights.read_bytes())
    assert raw[0] == raw[1]
    assert raw[0] != raw[2]


def test_a_card_names_what_its_own_run_wrote(
    make_job: MakeJob, recorder: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a disk without locks another run may write its weights there just then.
    save, job = weights.save, make_job("train.epochs=1")
    own: list[bytes] = []

    def save_before_another(path: Path, *what: Any) -> Json:
        written = save(path, *what)
        if path == job.folder.weights:
            own.append(path.read_bytes())
            path.write_bytes(b"another run's weights")
        return written

    monkeypatch.setattr(weights, "save", save_before_another)
    stored = Trainer(job).run(recorder)["weights"]
    assert stored["sha256"] == hashlib.sha256(own[0]).hexdigest()
    assert stored["bytes"] == len(own[0])
    with pytest.raises(UserError, match=r"does not match card\.json"):
        read_card(job.folder)


# --- resuming -----------------------------------------------------------------------------------

SGD = ("optimizer.name=sgd", "optimizer.momentum=0.9")
ADAMW = ("optimizer.name=adamw", "optimizer.lr=0.002")
MUON = ("optimizer.name=muon", "optimizer.lr=0.02")


@pytest.mark.parametrize(
    ("network", "overrides", "at"),
    [
        ("simple_cnn", SGD, 9),
        ("simple_cnn", (*SGD, "train.ema=0", "data.holdout=50"), 8),
        ("simple_cnn", ADAMW, 6),  # the end of an epoch
        ("simple_cnn", (*ADAMW, "train.ema=0"), 17),
        ("simple_cnn", (*ADAMW, "train.precision=bf16"), 18),  # the last step
        ("normed", SGD, 10),
        ("normed", (*SGD, "train.precision=bf16", "augment.cutout=6"), 7),
        ("normed", (*MUON, "train.lookahead=3", "augment.alternate=true"), 8),
        ("normed", (*SGD, "augment.mixup=0.4", "augment.cutmix=1.0"), 9),
        ("simple_cnn", (*SGD, "augment.policy=trivial", "augment.rotate=20"), 8),
        # Measuring the network itself after an epoch must not leave it measuring.
        ("normed", (*ADAMW, "train.ema=0", "data.holdout=50", "train.precision=bf16"), 11),
    ],
)
def test_a_resumed_run_ends_at_the_same_weights(
    make_job: MakeJob,
    recorder: Watching,
    normed: str,
    network: str,
    overrides: tuple[str, ...],
    at: int,
) -> None:
    assert normed == "normed"
    whole = make_job(*overrides, network=network, folder="whole")
    card = Trainer(whole).run(recorder)
    stopped = make_job(*overrides, network=network, folder="stopped")
    interrupt(stopped, at, recorder)
    assert "model.safetensors" not in names(stopped.folder)
    again = Trainer(resumed(stopped)).run(recorder)

    assert stopped.folder.weights.read_bytes() == whole.folder.weights.read_bytes()
    for record in (*card["history"], *again["history"]):
        record.pop("seconds")
    assert again["history"] == card["history"]
    assert again["test_accuracy"] == card["test_accuracy"]
    assert names(stopped.folder) == ALL


@pytest.mark.parametrize("at", [7, 9, 10, 12])
def test_batches_that_were_augmented_together_are_the_same_after_resuming(
    make_job: MakeJob, recorder: Watching, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    # Four batches, then the epoch's other two.
    monkeypatch.setitem(batches.CHUNK_IMAGES, "cpu", 450)
    whole, stopped = make_job(*SGD, folder="whole"), make_job(*SGD, folder="stopped")
    Trainer(whole).run(recorder)
    interrupt(stopped, at, recorder)
    Trainer(resumed(stopped)).run(recorder)
    assert stopped.folder.weights.read_bytes() == whole.folder.weights.read_bytes()


@pytest.mark.parametrize("at", [0, 8])
@pytest.mark.parametrize(
    ("optimizer", "fused"), [(MUON, False), (MUON, True), (SGD, True), (ADAMW, True)]
)
def test_warming_up_leaves_no_trace(
    make_job: MakeJob,
    recorder: Watching,
    monkeypatch: pytest.MonkeyPatch,
    normed: str,
    optimizer: tuple[str, ...],
    fused: bool,
    at: int,
) -> None:
    """Nor with one kernel for all parameters, as on a GPU: AdamW then keeps its steps elsewhere."""

    def made(*arguments: Any) -> torch.optim.Optimizer:
        found = make_optimizer(*arguments)
        for options in (found.defaults, *found.param_groups):
            options["fused"] = fused or None
        return found

    monkeypatch.setattr(loop, "make_optimizer", made)

    class Warmed(Trainer):
        def _prepare(self) -> None:
            super()._prepare()
            before = self.state.step
            self._warm_up()
            assert self.state.step == before

    options = (*optimizer, "augment.mixup=0.4", "augment.cutmix=1.0", "train.lookahead=4")
    plain = make_job(*options, network=normed, folder="plain")
    Trainer(plain).run(recorder)
    job = make_job(*options, network=normed, folder="warmed")
    if at:
        interrupt(job, at, recorder)
        job = resumed(job)
    Warmed(job).run(recorder)
    assert job.folder.weights.read_bytes() == plain.folder.weights.read_bytes()


def test_a_run_may_be_stopped_again_and_again(make_job: MakeJob, recorder: Watching) -> None:
    whole = make_job(folder="whole")
    Trainer(whole).run(recorder)
    job = make_job(folder="stopped")
    interrupt(job, 2, recorder, signal.SIGINT)
    for at in (3, 7, 12, 13):
        interrupt(resumed(job), at, recorder)
    Trainer(resumed(job)).run(recorder)
    assert job.folder.weights.read_bytes() == whole.folder.weights.read_bytes()


@pytest.mark.parametrize("last", [False, True])
def test_a_signal_at_an_epochs_end_stops_the_run(
    make_job: MakeJob, recorder: Watching, last: bool
) -> None:
    class Judged(Trainer):
        def _end_epoch(self, *told: Any) -> None:
            super()._end_epoch(*told)
            if self.state.step == (self.steps if last else self.steps_per_epoch):
                os.kill(os.getpid(), signal.SIGTERM)

    whole = make_job("train.epochs=2", folder="whole")
    Trainer(whole).run(recorder)
    job = make_job("train.epochs=2", folder="judged")
    with pytest.raises(Interrupted):
        Judged(job).run(recorder)
    assert names(job.folder) == {"checkpoint.safetensors", "log.jsonl"}
    Trainer(resumed(job)).run(recorder)
    assert job.folder.weights.read_bytes() == whole.folder.weights.read_bytes()


def test_the_seconds_add_up(make_job: MakeJob, recorder: Watching) -> None:
    job = make_job()
    interrupt(job, 9, recorder)
    before = Trainer(resumed(job)).state.seconds
    assert before > 0
    time.sleep(0.3)  # a pause is no training
    started = time.perf_counter()
    card = Trainer(resumed(job)).run(recorder)
    passed = time.perf_counter() - started
    assert before < card["history"][-1]["seconds"] < before + passed + 0.01


def test_a_long_run_leaves_checkpoints(
    make_job: MakeJob, recorder: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    job = make_job("train.epochs=2")
    seen = []

    class Looking(Trainer):
        def step(self) -> None:
            if self.state.step:
                seen.append(Trainer(resumed(job)).state.step)
            super().step()

    Looking(job).run(recorder)
    assert seen == list(range(1, 12))
    assert names(job.folder) == ALL


def test_a_run_that_dies_after_its_last_step_can_be_finished(
    make_job: MakeJob, recorder: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_job(folder="whole")
    Trainer(whole).run(recorder)
    job = make_job(folder="died")
    with monkeypatch.context() as patch:
        patch.setattr(weights, "stored", None)
        with pytest.raises(TypeError):
            Trainer(job).run(recorder)
    Trainer(resumed(job)).run(recorder)
    assert job.folder.weights.read_bytes() == whole.folder.weights.read_bytes()


@pytest.mark.parametrize("at", [2, 8, 12])
@pytest.mark.parametrize("options", [(), ("train.ema=0",), ("train.ema=0", "train.lookahead=5")])
def test_a_run_may_be_ended_at_its_checkpoint(
    make_job: MakeJob, recorder: Watching, few: Dataset, at: int, options: tuple[str, ...]
) -> None:
    job = make_job("data.holdout=60", "train.batch_size=90", *options)  # six steps an epoch
    interrupt(job, at, recorder)
    there = {name: tensor.float() for name, tensor in checkpoint.read(job.folder)[0].items()}
    job.folder.log.unlink(missing_ok=True)  # or of an epoch that ended after the checkpoint
    made = Trainer(dataclasses.replace(job, resume=True, finish=True)).run(recorder)
    assert made == read_card(job.folder)
    assert (made["stopped"], made["epochs"]) == ({"step": at, "steps": 18}, 3)
    assert cards.stopped(made) == f"stopped at epoch {(at + 5) // 6} of 3"
    assert made["test_accuracy"] == accuracy(job.folder, few.test)
    assert made["holdout_accuracy"] is not None
    lines = job.folder.log.read_text().splitlines()
    assert [json.loads(line) for line in lines] == made["history"]
    assert len(lines) == at // 6
    assert names(job.folder) == ALL
    stored = weights.load(job.folder).network.state_dict()
    for name, tensor in stored.items():
        kept = there[f"{'network' if options else 'average'}.{name}"]
        if len(options) == 2:  # as at the end of a run the slow and the fast weights become one
            kept = torch.lerp(there[f"slow.{name}"], kept, 1 - 0.95**5)
        torch.testing.assert_close(tensor, kept, rtol=1e-6, atol=1e-7)


def test_nothing_is_left_to_end_after_the_last_step(
    make_job: MakeJob, recorder: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("train.epochs=1")
    interrupt(job, 6, recorder)
    made = Trainer(dataclasses.replace(job, resume=True, finish=True)).run(recorder)
    assert "stopped" not in made
    assert cards.stopped(made) == ""


def test_signals_are_given_back(make_job: MakeJob, recorder: Watching) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = list(map(signal.getsignal, numbers))
    interrupt(make_job(), 2, recorder)
    Trainer(make_job("train.epochs=1")).run(recorder)
    assert list(map(signal.getsignal, numbers)) == before


@pytest.mark.parametrize(
    ("number", "raised"),
    # `timeout` sends SIGTERM twice.
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, Interrupted),
        (signal.SIGHUP, Interrupted),
    ],
)
def test_a_second_ctrl_c_ends_at_once_and_no_other_signal(
    make_job: MakeJob, recorder: Watching, number: int, raised: type[BaseException]
) -> None:
    class Twice(Trainer):
        def step(self) -> None:
            super().step()
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    job = make_job()
    with pytest.raises(raised):
        Twice(job).run(recorder)
    assert job.folder.checkpoint.exists() == (raised is Interrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_another_signal_after_ctrl_c_does_not(
    make_job: MakeJob, recorder: Watching, number: int
) -> None:
    class Closed(Trainer):
        def step(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), number)
            super().step()

    job = make_job()
    with pytest.raises(Interrupted):
        Closed(job).run(recorder)
    assert job.folder.checkpoint.exists()


def test_a_signal_that_is_ignored_stays_so(make_job: MakeJob, recorder: Watching) -> None:
    class Hung(Trainer):
        def step(self) -> None:
            os.kill(os.getpid(), signal.SIGHUP)
            super().step()

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        Hung(make_job("train.epochs=1")).run(recorder)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=0.06", "recipe.optimizer.lr = 0.05, not 0.06"),
        ("train.epochs=4", "recipe.train.epochs = 3, not 4"),
        ("train.ema=0", "recipe.train.ema = 0.99, not 0"),
        ("augment.flip=false", "recipe.augment.flip = True, not False"),
        ("optimizer.name=adamw", "recipe.optimizer.name = sgd, not adamw"),
    ],
)
def test_another_recipe_is_not_resumed(
    make_job: MakeJob, recorder: Watching, override: str, said: str
) -> None:
    interrupt(make_job(), 3, recorder)
    with pytest.raises(UserError, match=f"was made with {said}"):
        Trainer(make_job(override, resume=True))


def test_a_run_goes_on_with_the_same_images_in_val(
    make_job: MakeJob, recorder: Watching, few: Dataset
) -> None:
    first = dataclasses.replace(few, val=lambda: few.test)
    other = dataclasses.replace(few, val=lambda: few.test.first(50))
    interrupt(make_job("data.val=true", dataset=first), 3, recorder)
    with pytest.raises(UserError, match=r"are not those that the run in .* began with"):
        Trainer(make_job("data.val=true", dataset=other, resume=True))
    job = make_job("data.val=true", dataset=first, resume=True)
    Trainer(job).run(recorder)
    assert seeds._done(job)
    assert not seeds._done(dataclasses.replace(job, dataset=other))


def test_another_network_or_data_set_is_not_resumed(
    make_job: MakeJob, recorder: Watching, few: Dataset, normed: str
) -> None:
    interrupt(make_job(), 3, recorder)
    with pytest.raises(UserError, match="network = simple_cnn, not normed"):
        Trainer(make_job(network=normed, resume=True))
    other = dataclasses.replace(few, train=few.train.first(599))
    checkpoint = re.escape(str(make_job().folder.checkpoint))
    said = f"images in the first of .* are not those that the run .* removing {checkpoint}$"
    with pytest.raises(UserError, match=said):
        Trainer(make_job(dataset=other, resume=True))


def test_the_command_that_began_a_run_stays_its_command(
    make_job: MakeJob, recorder: Watching
) -> None:
    begun = dataclasses.replace(make_job(), command="cifar-deploy train it --init all")
    interrupt(begun, 2, recorder)
    again = dataclasses.replace(resumed(begun), command="cifar-deploy train it")
    assert Trainer(again).run(recorder)["command"] == begun.command


def test_a_place_that_takes_no_checkpoint_is_told_before_the_first_step(
    make_job: MakeJob, recorder: Watching
) -> None:
    job = make_job()
    job.folder.checkpoint.mkdir(parents=True)
    with pytest.raises(UserError, match=f"cannot write {job.folder.checkpoint}: Is a directory"):
        Trainer(job).run(recorder)
    assert names(job.folder) == {"checkpoint.safetensors"}


def test_there_must_be_a_checkpoint_to_resume(make_job: MakeJob) -> None:
    with pytest.raises(UserError, match=r"there is no checkpoint in .*; start without --resume"):
        Trainer(make_job(resume=True))


@pytest.mark.parametrize("kept", [0, 7, 1000, 500_000])
def test_a_truncated_checkpoint_is_told(make_job: MakeJob, recorder: Watching, kept: int) -> None:
    job = make_job()
    interrupt(job, 3, recorder)
    raw = job.folder.checkpoint.read_bytes()
    assert len(raw) > 500_000
    job.folder.checkpoint.write_bytes(raw[:kept])
    with pytest.raises(UserError, match=r"checkpoint\.safetensors is damaged"):
        Trainer(resumed(job))


def test_weights_are_no_checkpoint(make_job: MakeJob, recorder: Watching) -> None:
    job = make_job("train.epochs=1")
    Trainer(job).run(recorder)
    job.folder.weights.rename(job.folder.checkpoint)
    with pytest.raises(UserError, match=r"--resume: .*/checkpoint\.safetensors is no checkpoint"):
        Trainer(resumed(job))


UNUSED = {"origin": "x", "mean": 0, "std": None}
RECORD = {"epoch": 1, "loss": 1.0, "train_accuracy": 0.5, "lr": 0.1}


@pytest.mark.parametrize(
    "facts",
    [
        *({"step": step} for step in (None, "3", [3], True, 1.5, -1, 10**30)),
        *({"recipe": made} for made in (None, [], {"train": 3})),
        *({"teachers": taught} for taught in (None, [{}], [3])),
        *({"history": told} for told in (None, [{}], [RECORD | {"loss": "low"}])),
        *({"start": start} for start in (3, {}, {"origin": "x"}, {"other": 1}, UNUSED)),
        *({key: value} for key in ("seconds", "bookkeeping") for value in (None, "1", math.nan)),
        {"command": 3},
    ],
)
def test_what_a_checkpoint_says_is_looked_at(
    make_job: MakeJob, recorder: Watching, facts: dict[str, Any]
) -> None:
    job = make_job()
    interrupt(job, 3, recorder)
    tensors, there = weights.read_tensors(job.folder.checkpoint)
    weights.save(job.folder.checkpoint, tensors, there | facts)
    before = job.folder.checkpoint.read_bytes()
    said = r"checkpoint\.safetensors is (no checkpoint|damaged)|the checkpoint in .* is of step 1,0"
    with pytest.raises(UserError, match=said):
        Trainer(resumed(job))
    assert job.folder.checkpoint.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: tensor[:1], "has no momentum_buffer of this network"),
        (lambda tensor: torch.tensor(1), "has no momentum_buffer of this network"),
        (lambda tensor: tensor.int(), "has no momentum_buffer of this network"),
        (lambda tensor: tensor * math.nan, "is not finite; start without"),
    ],
)
def test_the_tensors_of_a_checkpoint_are_looked_at(
    make_job: MakeJob,
    recorder: Watching,
    change: Callable[[torch.Tensor], torch.Tensor],
    said: str,
) -> None:
    job = make_job("optimizer.name=sgd")
    interrupt(job, 3, recorder)
    tensors, facts = weights.read_tensors(job.folder.checkpoint)
    name = next(key for key in tensors if key.endswith(".momentum_buffer"))
    tensors[name] = change(tensors[name])
    weights.save(job.folder.checkpoint, tensors, facts)
    with pytest.raises(UserError, match=said):
        Trainer(resumed(job))


def test_a_run_goes_on_in_the_precision_in_which_it_began(
    make_job: MakeJob, recorder: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("train.precision=auto")
    monkeypatch.setattr(loop.machine, "has_bf16", lambda device: True)
    interrupt(job, 3, recorder)
    monkeypatch.setattr(loop.machine, "has_bf16", lambda device: False)
    assert Trainer(resumed(job)).run(recorder)["precision"] == "bf16"


# --- what is held out ---------------------------------------------------------------------------


def test_held_out_and_test_images_are_never_trained_on(
    make_job: MakeJob, recorder: Watching, few: Dataset
) -> None:
    """Other labels on them change what is measured and not a bit of the weights."""
    options = ("data.holdout=200", "train.batch_size=100")
    _, held = split_holdout(few, recipe.load(None, options).data)
    assert held is not None
    kept_out = {image.tobytes() for image in held.images}
    inside = np.array([image.tobytes() in kept_out for image in few.train.images])
    labels = np.where(inside, (few.train.labels + 1) % 10, few.train.labels)
    wrong_held = dataclasses.replace(few, train=Split(few.train.images, labels))
    turned = Split(few.test.images[::-1].copy(), few.test.labels)
    wrong_test = dataclasses.replace(few, test=turned)

    cards, raw = [], []
    for folder, dataset in (("true", few), ("held", wrong_held), ("test", wrong_test)):
        job = make_job(*options, *ADAMW, "train.ema=0", dataset=dataset, folder=folder)
        cards.append(Trainer(job).run(recorder))
        raw.append(job.folder.weights.read_bytes())
    assert raw[0] == raw[1] == raw[2]
    held_out = [[record["holdout_accuracy"] for record in card["history"]] for card in cards]
    assert held_out[0] == held_out[2] != held_out[1]
    tested = [card["test_accuracy"] for card in cards]
    assert tested[0] == tested[1] != tested[2]


def test_class_weights_are_those_of_what_is_trained_on(make_job: MakeJob, few: Dataset) -> None:
    trainer = Trainer(make_job("data.holdout=200", "train.class_weights=balanced"))
    counts = np.bincount(trainer.train_split.labels)
    assert len(set(counts)) > 1  # though all 600 are as many of each class
    found = trainer.objective.class_weights
    assert found is not None
    assert found.tolist() == pytest.approx(400 / 10 / counts)
    assert Trainer(make_job()).objective.class_weights is None


def test_balanced_classes_are_expected_as_often(
    make_job: MakeJob, recorder: Watching, small_data: Dataset
) -> None:
    """Of one class are ten times as many images as of the other."""

    def two(split: Split, rare: int) -> Split:
        rows = [np.flatnonzero(split.labels == label) for label in (0, 1)]
        chosen = np.concatenate([rows[0], rows[1][:rare]])
        return Split(split.images[chosen], split.labels[chosen])

    train, test = two(small_data.train, 20), two(small_data.test, 50)
    classes = small_data.classes[:2]
    uneven = dataclasses.replace(small_data, classes=classes, train=train, test=test)
    said = []
    for weighed in ("none", "balanced"):
        options = ("train.batch_size=20", "train.epochs=4", f"train.class_weights={weighed}")
        job = make_job(*options, "optimizer.lr=0.01", dataset=uneven, folder=weighed)
        Trainer(job).run(recorder)
        with torch.inference_mode():
            logits = weights.load(job.folder).graph()(torch.from_numpy(test.images))
        said.append(float(logits.softmax(1)[:, 1].mean()))
    assert said == pytest.approx([20 / 220, 1 / 2], abs=0.1)


def test_the_holdout_leaves_something_to_train_on(make_job: MakeJob) -> None:
    with pytest.raises(UserError, match=r"data\.holdout is 600, of 600 training images"):
        Trainer(make_job("data.holdout=600"))


# --- images that grow ---------------------------------------------------------------------------

ANY_SIZE = """
from torch import nn


class Seen(nn.Sequential):
    sides: list[int] = []

    def forward(self, x):
        if self.training:
            self.sides.append(x.shape[-1])
        return super().forward(x)


def build(num_classes: int) -> nn.Module:
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
    return Seen(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *pooled)
"""


def test_images_grow_and_a_resumed_run_knows_how_far(
    make_job: MakeJob, recorder: Watching, register: Callable[[str, str], str]
) -> None:
    register("any_size", ANY_SIZE)
    options = ("schedule.first_size=16", "schedule.grown=0.5")
    whole = Trainer(make_job(*options, network="any_size", folder="whole"))
    sides: Any = whole.network.sides
    whole.run(recorder)
    assert sides == [16] * 4 + [24] * 5 + [32] * 9

    sides.clear()
    stopped = make_job(*options, network="any_size", folder="stopped")
    interrupt(stopped, 6, recorder)
    Trainer(resumed(stopped)).run(recorder)
    assert sides == [16] * 4 + [24] * 5 + [32] * 9
    written = whole.job.folder.weights.read_bytes()
    assert stopped.folder.weights.read_bytes() == written

    sides.clear()
    whole._warm_up()  # a compiled network has met every size before the clock starts
    assert set(sides) == {16, 24, 32}


def test_a_network_of_one_size_is_told(make_job: MakeJob) -> None:
    with pytest.raises(UserError, match="first_size is 16: simple_cnn takes no images so small"):
        Trainer(make_job("schedule.first_size=16"))


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_diverging_run_is_told(make_job: MakeJob, recorder: Watching) -> None:
    job = make_job("optimizer.lr=100", "train.epochs=30", "augment.flip=false")
    with pytest.raises(UserError, match=r"the loss is not a number at step \d+.*lower --lr"):
        Trainer(job).run(recorder)
    assert "model.safetensors" not in names(job.folder)


def test_a_batch_larger_than_the_data_is_told(make_job: MakeJob) -> None:
    with pytest.raises(UserError, match="600 training images are fewer than a batch of 601"):
        Trainer(make_job("train.batch_size=601"))
    with pytest.raises(UserError, match="599 training images are fewer than a batch of 600"):
        Trainer(make_job("train.batch_size=600", "data.holdout=1"))


def test_one_image_at_a_time_is_too_few_for_some_batch_norms(
    make_job: MakeJob, tmp_path: Path
) -> None:
    small = ("train.batch_size=1", "model.stem=imagenet")
    with pytest.raises(UserError, match=r"too few for resnet18's batch norms; set --batch-size 2 "):
        Trainer(make_job(*small, network="resnet18"))
    # Frozen, they go by what they know.
    file = tmp_path / "resnet18.safetensors"
    save_file(torchvision.models.resnet18().state_dict(), file)
    frozen = make_job(*small, 'finetune.freeze="all-but-classifier"', network="resnet18")
    Trainer(dataclasses.replace(frozen, init="imagenet", weights_file=file))
    Trainer(make_job("train.batch_size=1", network="simple_cnn"))


def test_nothing_is_written_before_the_first_step(make_job: MakeJob, tmp_path: Path) -> None:
    Trainer(make_job())
    assert not (tmp_path / "out").exists()


def test_a_file_where_the_folder_should_be_is_told(
    make_job: MakeJob, recorder: Watching, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot make .*/out: File exists"):
        Trainer(make_job()).run(recorder)
    assert (tmp_path / "out").read_text() == "in the way"
