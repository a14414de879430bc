"""The training loop: data on the device, one step after another, a card at the end."""

import contextlib
import datetime
import hashlib
import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from cifar_deploy import __version__, architectures
from cifar_deploy import device as machine
from cifar_deploy.architectures import weights
from cifar_deploy.architectures.deployment import DeploymentGraph
from cifar_deploy.data.augment import augment
from cifar_deploy.data.dataset import Dataset, Split
from cifar_deploy.data.device import DeviceSplit
from cifar_deploy.errors import UserError, disk_errors
from cifar_deploy.recipe import Recipe
from cifar_deploy.store import Json, ModelFolder, sha256_of, write_json, write_text
from cifar_deploy.train import checkpoint
from cifar_deploy.train.optim import Average, make_optimizer, rate

CHECKPOINT_SECONDS = 240.0  # a checkpoint at least every five minutes
COMPILE_STEPS = 2_000  # below that, torch.compile costs more than it saves
EVALUATION_BATCH = 500


class Interrupted(Exception):
    """A signal ended the run after `step`; a checkpoint holds it. `signal` is its number."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by signal {number} after step {step}")
        self.signal, self.step = number, step


class Watch(Protocol):
    """Who looks on: a progress bar, or a test."""

    def step(self, done: int, epoch: int, loss: float, accuracy: float, rate: float) -> None:
        """`done` steps of the run are done; loss and accuracy so far in this epoch; images/s."""

    def epoch(self, record: Json) -> None:
        """An epoch has ended."""


@dataclass(frozen=True)
class Job:
    """What to train, on what, where to."""

    network: str
    recipe: Recipe
    dataset: Dataset
    device: torch.device
    folder: ModelFolder
    resume: bool = False


@dataclass
class State:
    """Where a run stands, apart from its tensors."""

    step: int = 0
    seconds: float = 0.0  # of training, over all sittings
    history: list[Json] = field(default_factory=list)


def seed_of(seed: int, what: str, index: int) -> int:
    """A seed for one purpose at one place of a run, independent of all others.

    Every step draws from its own seed, so a resumed run needs no generator state.
    """
    digest = hashlib.sha256(f"{seed}/{what}/{index}".encode()).digest()
    return int.from_bytes(digest[:4])


class Trainer:
    """One training run."""

    def __init__(self, job: Job) -> None:
        self.job = job
        recipe, device = job.recipe, job.device
        self.mean, self.std = job.dataset.normalisation()
        self.train_split, self.holdout = split_holdout(job.dataset.train, recipe)
        self.steps_per_epoch = len(self.train_split) // recipe.train.batch_size
        if not self.steps_per_epoch:
            raise UserError(
                f"{len(self.train_split)} training images are fewer than a batch of "
                f"{recipe.train.batch_size}; set a smaller --batch-size"
            )
        self.steps = recipe.train.epochs * self.steps_per_epoch
        torch.manual_seed(seed_of(recipe.train.seed, "init", 0))
        network = architectures.build(job.network, len(job.dataset.classes), recipe.model.stem)
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.average = Average(self.network, recipe.train.ema) if recipe.train.ema else None
        self.optimizer = make_optimizer(self.network, recipe.optimizer)
        self.bf16 = use_bf16(recipe, device)
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss, correct answers
        self.state = State()
        self.data_sha256 = job.dataset.sha256()
        if job.resume:
            self._restore()
        # Rounded as the deployment graph rounds it: one multiplication and one addition a pixel.
        graph = DeploymentGraph(nn.Identity(), self.mean, self.std).to(device)
        self.scale, self.shift = graph.scale, graph.shift
        self.forward: Any = torch.compile(self.network) if self._compiled() else self.network

    def _compiled(self) -> bool:
        wish = self.job.recipe.train.compile
        worth = self.job.device.type == "cuda" and self.steps - self.state.step >= COMPILE_STEPS
        return wish == "on" or (wish == "auto" and worth)

    def _networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {"network": self.network}
        if self.average:
            networks["average"] = self.average.network
        return networks

    # --- the loop ---

    def run(self, watch: Watch) -> Json:
        """Train to the end, write weights, card, curves and log. Returns the card.

        Raises Interrupted after SIGINT or SIGTERM with a checkpoint written, and UserError where
        the loss is no longer a number or the disk refuses.
        """
        job, state = self.job, self.state
        with disk_errors(job.folder.path, "make"):
            job.folder.path.mkdir(parents=True, exist_ok=True)
        order = self._order(state.step // self.steps_per_epoch)
        started = last_checkpoint = last_look = time.perf_counter()
        before, seen = state.seconds, 0
        self.network.train()
        with _signals() as caught:
            while state.step < self.steps:
                epoch, position = divmod(state.step, self.steps_per_epoch)
                if position == 0:
                    order = self._order(epoch)
                    self.sums.zero_()
                self._step(order, position)
                state.step += 1
                seen += job.recipe.train.batch_size
                now = time.perf_counter()
                state.seconds = before + now - started
                if now - last_look > 0.5:  # reading back waits for the device: seldom
                    loss, accuracy = self._read_back(position + 1)
                    last_look = now
                    watch.step(state.step, epoch, loss, accuracy, seen / (now - started))
                if position + 1 == self.steps_per_epoch:
                    self._end_epoch(epoch, watch)
                due = now - last_checkpoint > CHECKPOINT_SECONDS
                # After the last step too: what follows takes a while and can then be repeated.
                if caught or due or state.step == self.steps:
                    self._save()
                    last_checkpoint = time.perf_counter()
                if caught:
                    raise Interrupted(caught[0], state.step)
            return self._finish()

    def _step(self, order: torch.Tensor, position: int) -> None:
        recipe, state = self.job.recipe, self.state
        size = recipe.train.batch_size
        torch.manual_seed(seed_of(recipe.train.seed, "step", state.step))
        images, labels = self.data.take(order[position * size : (position + 1) * size])
        images = augment(images, recipe.augment, self.mean)
        factor = rate(recipe.schedule, state.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * factor
        x = images.permute(0, 3, 1, 2).float() * self.scale + self.shift
        with torch.autocast(self.job.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.forward(x)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.train.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update()
        with torch.no_grad():
            self.sums += torch.stack([loss.double(), (logits.argmax(1) == labels).sum().double()])

    @property
    def data(self) -> DeviceSplit:
        """The training images on the device, put there at the first use."""
        if not hasattr(self, "_data"):
            self._data = DeviceSplit(self.train_split, self.job.device)
        return self._data

    def _order(self, epoch: int) -> torch.Tensor:
        torch.manual_seed(seed_of(self.job.recipe.train.seed, "order", epoch))
        return self.data.order()

    def _read_back(self, batches: int) -> tuple[float, float]:
        """Mean loss and accuracy of the epoch so far. Raises UserError for a loss that is nan."""
        loss, correct = self.sums.tolist()
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is not a number at step {self.state.step}: the training diverged; "
                f"lower --lr (it is {self.job.recipe.optimizer.lr:g})"
            )
        return loss / batches, correct / (batches * self.job.recipe.train.batch_size)

    def _end_epoch(self, epoch: int, watch: Watch) -> None:
        state = self.state
        loss, accuracy = self._read_back(self.steps_per_epoch)
        record: Json = {
            "epoch": epoch + 1,
            "loss": round(loss, 5),
            "train_accuracy": round(accuracy, 5),
            "lr": round(self.optimizer.param_groups[0]["lr"], 6),
            "seconds": round(state.seconds, 2),
        }
        if self.holdout:
            record["holdout_accuracy"] = round(self.accuracy(self.best(), self.holdout), 5)
            self.network.train()
        state.history.append(record)
        lines = "".join(f"{_line(entry)}\n" for entry in state.history)
        write_text(self.job.folder.log, lines)
        watch.epoch(record)

    # --- what is kept ---

    def best(self) -> nn.Module:
        """The network that is kept: the averaged one where the recipe averages."""
        return self.average.network if self.average else self.network

    def accuracy(self, network: nn.Module, split: Split) -> float:
        """Share of `split` that `network` gets right, in fp32 through the deployment graph."""
        graph = DeploymentGraph(network, self.mean, self.std).to(self.job.device)
        correct = 0
        with torch.inference_mode():
            for images, labels in DeviceSplit(split, self.job.device).batches(EVALUATION_BATCH):
                correct += int((graph(images).argmax(1) == labels).sum())
        return correct / len(split)

    def _facts(self) -> Json:
        recipe = self.job.recipe
        return {
            "network": self.job.network,
            "stem": recipe.model.stem,
            "classes": list(self.job.dataset.classes),
            "mean": self.mean,
            "std": self.std,
        }

    def _save(self) -> None:
        facts = {
            **self._facts(),
            "recipe": self.job.recipe.to_dict(),
            "data_sha256": self.data_sha256,
            "step": self.state.step,
            "seconds": self.state.seconds,
            "history": self.state.history,
        }
        checkpoint.save(self.job.folder, self._networks(), self.optimizer, self.sums, facts)

    def _restore(self) -> None:
        folder = self.job.folder
        tensors, facts = checkpoint.read(folder)
        asked = {
            "network": self.job.network,
            "data_sha256": self.data_sha256,
            **{f"recipe.{k}": v for k, v in _flat(self.job.recipe.to_dict())},
        }
        there = {
            "network": facts.get("network"),
            "data_sha256": facts.get("data_sha256"),
            **{f"recipe.{k}": v for k, v in _flat(facts.get("recipe", {}))},
        }
        for key, value in asked.items():
            if there.get(key) != value:
                raise UserError(
                    f"--resume: the checkpoint in {folder.path} was made with {key} = "
                    f"{there.get(key)}, not {value}; resume with the same, or start anew"
                )
        checkpoint.restore(folder, tensors, self._networks(), self.optimizer, self.sums)
        self.state = State(facts["step"], facts["seconds"], facts["history"])

    def _finish(self) -> Json:
        from cifar_deploy.train import curves

        job, recipe = self.job, self.job.recipe
        kept = self.best()
        trained_accuracy = self.accuracy(kept, job.dataset.test)
        state = weights.stored(kept, recipe.train.storage)
        weights.fill(kept, state, job.folder.weights)
        test_accuracy = self.accuracy(kept, job.dataset.test)
        weights.save(job.folder.weights, state, self._facts())
        card: Json = {
            "network": job.network,
            "parameters": sum(p.numel() for p in kept.parameters()),
            "test_accuracy": test_accuracy,
            "test_accuracy_before_storage": trained_accuracy,
            "test_images": len(job.dataset.test),
            "epochs": recipe.train.epochs,
            "seed": recipe.train.seed,
            "wall_seconds": round(self.state.seconds, 1),
            "device": machine.describe(job.device),
            "precision": "bf16" if self.bf16 else "fp32",
            "weights": {
                "file": job.folder.weights.name,
                "sha256": sha256_of(job.folder.weights),
                "bytes": job.folder.weights.stat().st_size,
                "storage": recipe.train.storage,
            },
            "data": {
                "name": job.dataset.name,
                "verified": job.dataset.verified,
                "sha256": self.data_sha256,
                "train_images": len(self.train_split),
                "holdout_images": len(self.holdout) if self.holdout else 0,
                "mean": self.mean,
                "std": self.std,
                "classes": list(job.dataset.classes),
            },
            "recipe": recipe.to_dict(),
            "versions": machine.versions(),
            "cifar_deploy": __version__,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "history": self.state.history,
        }
        curves.draw(job.folder.curves, job.network, self.state.history, test_accuracy)
        write_json(job.folder.card, card)
        # The last to go: until the card is written, --resume can finish the run again.
        job.folder.checkpoint.unlink(missing_ok=True)
        return card


def split_holdout(train: Split, recipe: Recipe) -> tuple[Split, Split | None]:
    """The images to train on, and the last `data.holdout` ones of a fixed shuffle, if any."""
    count = recipe.data.holdout
    if not count:
        return train, None
    if count >= len(train):
        raise UserError(
            f"data.holdout is {count}, of {len(train)} training images; leave some to train on"
        )
    generator = torch.Generator().manual_seed(seed_of(0, "holdout", 0))
    order = torch.randperm(len(train), generator=generator).numpy()
    kept, held = order[:-count], order[-count:]
    return (
        Split(train.images[kept], train.labels[kept]),
        Split(train.images[held], train.labels[held]),
    )


def use_bf16(recipe: Recipe, device: torch.device) -> bool:
    """Whether to train in bf16 autocast on `device`."""
    wish = recipe.train.precision
    return wish == "bf16" or (wish == "auto" and machine.has_bf16(device))


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one ends the process."""
    caught: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: signals are another's business
        previous.clear()
    try:
        yield caught
    finally:
        restore()


def _flat(sections: Json) -> list[tuple[str, Any]]:
    return [(f"{s}.{k}", v) for s, values in sections.items() for k, v in values.items()]


def _line(record: Json) -> str:
    return json.dumps(record)
