"""The training loop: data on the device, one step after another, a card at the end."""

import contextlib
import copy
import gc
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cifar_deploy import __version__, architectures
from cifar_deploy import device as machine
from cifar_deploy.architectures import weights
from cifar_deploy.architectures.deployment import DeploymentGraph
from cifar_deploy.architectures.stages import freeze
from cifar_deploy.cards import pinned
from cifar_deploy.data.augment import ways_to_mix
from cifar_deploy.data.dataset import SIZE, Dataset, balance
from cifar_deploy.disk import Json, check_place, write_json, write_text
from cifar_deploy.errors import UserError, disk_errors, one_line
from cifar_deploy.recipe import Recipe
from cifar_deploy.store import ModelFolder
from cifar_deploy.train import card, checkpoint, initial, teachers
from cifar_deploy.train.batches import Batches, check_unseen, reseed, seed_of, split_holdout
from cifar_deploy.train.interrupt import Interrupted, signals
from cifar_deploy.train.judge import Judge
from cifar_deploy.train.memory import in_memory
from cifar_deploy.train.norms import synchronise
from cifar_deploy.train.objective import Objective, balanced
from cifar_deploy.train.optim import Average, Lookahead, make_optimizer, rate, sizes
from cifar_deploy.train.profile import Profile
from cifar_deploy.train.ranks import ALONE, Ranks

CHECKPOINT_SECONDS = 240.0  # a checkpoint at least every five minutes
LOOK_SECONDS = {"cpu": 0.5, "cuda": 2.0}  # reading back waits for the device: seldom
COMPILE_STEPS = 2_000  # below that, torch.compile costs more than it saves
WARM_UP_STEPS = 3


class Diverged(UserError):
    """A loss or weight that is no number any more: the same run would end so again."""


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
    finish: bool = False  # end at the checkpoint
    init: str | None = None  # "imagenet", or a file of weights
    weights_file: Path | None = None
    ranks: Ranks = ALONE
    profile: bool = False
    command: str = ""  # that gives this run again
    data_seconds: float = 0.0  # that it took to read the data set


@dataclass
class State:
    """Where a run stands, apart from its tensors."""

    step: int = 0
    seconds: float = 0.0  # of the loop, over all sittings
    bookkeeping: float = 0.0  # of them, for logs, checkpoints and held-out images
    history: list[Json] = field(default_factory=list)


class Trainer:
    """One training run."""

    def __init__(self, job: Job) -> None:
        gc.collect()  # a run before this one, of this process, may hold its memory until then
        self.job = job
        recipe, device = job.recipe, job.device
        self.ranks = job.ranks
        self.mean, self.std = job.dataset.normalisation
        self.train_split, self.holdout = split_holdout(job.dataset, recipe.data)
        self.val_sha256 = job.dataset.val_sha256 if recipe.data.val else None
        self.batches = Batches(self.train_split, recipe, device, self.ranks, self.mean)
        self.steps_per_epoch = self.batches.per_epoch
        self.steps = recipe.train.epochs * self.steps_per_epoch
        self.data_sha256 = job.dataset.sha256
        self.teachers = teachers.load(recipe, job.dataset, self.data_sha256)
        self.data_seconds = self.warmup_seconds = 0.0
        self.state = State()
        self.saved: int | None = None  # the step of the last checkpoint
        self._there = self._read_checkpoint() if job.resume else None
        self.ranks.same(
            {
                "version": __version__,
                "network and recipe": [job.network, recipe.to_dict()],
                "images": [self.data_sha256, self.val_sha256],
                "teachers": [teacher.sha256 for teacher in self.teachers],
                "--init": bool(job.init),
                "checkpoint": self._there and self._there[1]["step"],
                "--finish": job.finish,
            }
        )
        started = time.perf_counter()
        self.network, self.start = self._build()
        self.init_seconds = time.perf_counter() - started
        self._check_first_size()
        if self.ranks.world > 1:
            self.network = synchronise(self.network, device)
        factors = initial.rates(self.network, self.start, recipe.finetune)
        self.frozen = freeze(self.network, recipe.finetune.freeze)
        self._check_batch()
        self.network = self.network.to(device).to(memory_format=torch.channels_last)
        self.average = Average(self.network, recipe.train.ema) if recipe.train.ema else None
        ahead = recipe.train.lookahead
        self.lookahead = Lookahead(self.network, ahead) if ahead else None
        self.optimizer = make_optimizer(self.network, recipe.optimizer, factors)
        self.bf16 = use_bf16(recipe, device)
        # Of the epoch: loss, correct answers, and steps before the loss was no number; this
        # process's part of each.
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.command = pinned(
            job.command,
            self.start.sha256 if self.start else None,
            [teacher.to_dict() for teacher in self.teachers],
        )
        if self._there:
            self._restore(*self._there)
            self._there = None  # it is as large as the run's memory
        self.ranks.same(
            {
                "the weights that they begin with": self.start and self.start.sha256,
                "train.precision": self.bf16,  # by "auto", each one's own
            }
        )
        # Rounded as the deployment graph rounds it: one multiplication and one addition a pixel.
        graph = DeploymentGraph(nn.Identity(), self.mean, self.std)
        self.judge = Judge(device, self.ranks, self.mean, self.std)
        smoothing = recipe.train.label_smoothing
        lesson = teachers.Lesson(self.teachers, recipe.distill, device) if self.teachers else None
        weighed = recipe.train.class_weights == "balanced"
        classes = len(job.dataset.classes)
        self.objective = Objective(
            *(self.network, graph.scale, graph.shift, smoothing, self.bf16, lesson),
            class_weights=balanced(self.train_split.labels, classes) if weighed else None,
        )
        self.objective.to(device)
        self.compiled = self._compiled()
        self.forward: Any = self.objective
        if self.ranks.world > 1:
            ids = [device.index] if device.type == "cuda" else None
            # The norms agree on theirs; of others the first process's are used (same_buffers).
            self.forward = DistributedDataParallel(self.objective, device_ids=ids)
            self.forward.broadcast_buffers = False  # the argument is deprecated from torch 2.13 on
        if self.compiled:
            mode = None
            if recipe.train.compile == "max":
                mode = "max-autotune-no-cudagraphs"
                machine.quiet_autotune()
            # The few sizes of images are met while warming up; kernels for any size are slower.
            self.forward = torch.compile(self.forward, mode=mode, dynamic=False)
        self.factor: Callable[[int], float] = partial(rate, recipe.schedule, steps=self.steps)
        self.sizes = sizes(recipe.schedule, self.steps, SIZE)
        self.profile = Profile(device) if job.profile and self.ranks.main else None
        self.loss: torch.Tensor | None = None  # of the last step, on the device

    @property
    def early(self) -> bool:
        """Whether there are steps left to do."""
        return self.state.step < self.steps

    def _build(self) -> tuple[nn.Module, initial.Start | None]:
        """The network before its first step, and where its weights come from if not from chance."""
        job, model = self.job, self.job.recipe.model
        torch.manual_seed(seed_of(job.recipe.train.seed, "init", 0))
        network = architectures.build(job.network, len(job.dataset.classes), model.stem)
        if self._there:  # the checkpoint holds the weights
            kept = self._there[1].get("start")
            start = initial.Start(**kept) if kept else None
            if job.init and initial.differs(start, job.init, job.weights_file, job.folder.path):
                origin = f"from {start.origin}" if start else "with weights of chance"
                raise UserError(
                    f"--resume: the run in {job.folder.path} did not begin from this --init but "
                    f"{origin}; leave --init out, or start anew"
                )
            return network, self._known(start) if start else None
        if model.init == "dirac":
            initial.dirac(network)
        if model.init == "zero-gamma":
            initial.zero_gamma(network)
        if model.whiten:
            initial.whiten(network, self.train_split.images, self.mean, self.std, job.device)
        if not job.init:
            if job.weights_file:
                raise UserError(f"--weights-file goes with --init {initial.IMAGENET}")
            return network, None
        classes = job.dataset.classes
        with self.ranks.one_after_the_other():  # only one of a machine's processes downloads
            found = initial.load(network, job.network, job.init, job.weights_file, classes)
        check_unseen(job.init, found.data, job.dataset, self.data_sha256, job.recipe.data)
        return network, self._known(found)

    def _check_first_size(self) -> None:
        size = self.job.recipe.schedule.first_size
        if not size:
            return
        self.network.eval()
        try:
            with torch.inference_mode():
                self.network(torch.zeros(1, 3, size, size))
        except RuntimeError as error:
            raise UserError(
                f"schedule.first_size is {size}: {self.job.network} takes no images so "
                f"small; set a larger one, or 0 for {SIZE}x{SIZE} throughout"
            ) from error

    def _check_batch(self) -> None:
        """Raise UserError where a batch norm would see a single number a channel."""
        if self.batches.size > 1:  # those of all processes count
            return
        self._train_mode()
        network = copy.deepcopy(self.network)  # its batch norms remember what they see
        size = self.job.recipe.schedule.first_size or SIZE
        try:
            with torch.no_grad():
                network(torch.zeros(1, 3, size, size))
        except ValueError as error:
            raise UserError(
                f"one image at a time is too few for {self.job.network}'s batch norms; set "
                "--batch-size 2 or more"
            ) from error

    def _known(self, start: initial.Start) -> initial.Start:
        """Normalise the pixels as those were that the weights are used to."""
        self.mean, self.std = start.mean, start.std
        self.batches.mean = start.mean
        return start

    def _compiled(self) -> bool:
        wish = self.job.recipe.train.compile
        worth = self.job.device.type == "cuda" and self.steps >= COMPILE_STEPS
        return wish in ("on", "max") or (wish == "auto" and worth and self.ranks.world == 1)

    def networks(self) -> dict[str, nn.Module]:
        """The one that is trained and those that follow it, as a checkpoint calls them."""
        networks: dict[str, nn.Module] = {"network": self.network}
        if self.average:
            networks["average"] = self.average.network
        if self.lookahead:
            networks["slow"] = self.lookahead.network
        return networks

    def _train_mode(self) -> None:
        self.network.train()
        for module in self.frozen:  # its batch norms keep their statistics
            module.eval()

    # --- the loop ---

    def run(self, watch: Watch) -> Json:
        """Train to the end, write weights, card, curves and log. Returns the card.

        With `job.finish` the end is the checkpoint's step, and the card tells so.
        Raises Interrupted after SIGINT, SIGTERM or SIGHUP with a checkpoint written, and UserError
        where the loss is no longer a number, the device's memory or the disk is full.
        """
        return in_memory(self, lambda: self._run(watch))

    def _run(self, watch: Watch) -> Json:
        job, state = self.job, self.state
        teachers.check_apart(job.recipe, job.folder)
        if self.ranks.main:
            with disk_errors(job.folder.path, "make"):
                job.folder.path.mkdir(parents=True, exist_ok=True)
            check_place(job.folder.checkpoint)  # now, and not after the first epoch
        if job.finish:
            if self.early and self.lookahead:
                self.lookahead.update(state.step, state.step)
            return self._finish()
        self._prepare()
        started = last_checkpoint = last_look = time.perf_counter()
        before, seen = state.seconds, 0
        profiling = contextlib.closing(self.profile) if self.profile else contextlib.nullcontext()
        alone = self.ranks.world == 1
        with signals(impatient=alone) as caught, machine.every_shape(), profiling:
            while self.early:
                epoch, position = divmod(state.step, self.steps_per_epoch)
                if position == 0:
                    self.sums.zero_()
                self.step()
                seen += job.recipe.train.batch_size
                now = time.perf_counter()
                state.seconds = before + now - started
                stop, look, due = self.ranks.agree(
                    [
                        caught(),
                        self.ranks.main and now - last_look > LOOK_SECONDS[job.device.type],
                        self.ranks.main and now - last_checkpoint > CHECKPOINT_SECONDS,
                    ]
                )
                if self.profile:
                    last, now = state.step == self.steps, time.perf_counter()
                    self.profile.step(
                        job.folder.trace, last, lambda text: print(text, file=sys.stderr)
                    )
                    state.bookkeeping += time.perf_counter() - now
                    state.seconds = before + time.perf_counter() - started
                if look:
                    loss, accuracy = self._read_back(position + 1)
                    last_look = now
                    watch.step(state.step, epoch, loss, accuracy, seen / (now - started))
                if position + 1 == self.steps_per_epoch:
                    loss, accuracy = self._read_back(self.steps_per_epoch)
                    now = time.perf_counter()  # now the device has done it, too
                    state.seconds = before + now - started
                    self._end_epoch(epoch, loss, accuracy, watch)
                    state.bookkeeping += time.perf_counter() - now
                    state.seconds = before + time.perf_counter() - started
                # After the last step too: what follows takes a while and can then be repeated.
                if stop or due or state.step == self.steps:
                    self._read_back(position + 1)  # a loss that is no number is told by its step
                    now = time.perf_counter()
                    self._save()
                    last_checkpoint = time.perf_counter()
                    state.bookkeeping += last_checkpoint - now
                    state.seconds = before + last_checkpoint - started
                if stop:
                    raise Interrupted(stop, state.step, job.folder.checkpoint)
            # One that came while the last epoch was judged or its checkpoint written.
            (late,) = self.ranks.agree([caught()])
            if late:
                raise Interrupted(late, state.step, job.folder.checkpoint)
        # A signal may end what follows: the checkpoint is there.
        return self._finish()

    def _prepare(self) -> None:
        """Everything that takes time once: the data to the device, compilation, first launches.

        Nothing of it is left in the weights.
        """
        device = self.job.device
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        started = time.perf_counter()
        self._wait_for(self.batches.data.images)
        self.data_seconds = time.perf_counter() - started
        self._train_mode()
        if self.early and (device.type == "cuda" or self.compiled):
            started = time.perf_counter()
            self._warm_up()
            self._wait_for(self.sums)
            self.warmup_seconds = time.perf_counter() - started

    def _warm_up(self) -> None:
        tensors = [t for n in self.networks().values() for t in n.state_dict().values()]
        kept = [tensor.clone() for tensor in (*tensors, self.sums)]
        optimizer = copy.deepcopy(self.optimizer.state_dict())
        step = self.state.step
        try:
            with machine.every_shape():
                self._warm_up_steps()
        except Exception as error:
            if not self.compiled or machine.exhausted(error):
                raise
            reason = f"{type(error).__name__}: {one_line(error)}"
            if self.job.recipe.train.compile != "auto":
                raise UserError(
                    f"torch.compile does not work here ({reason}); --set train.compile=off"
                ) from error
            print(f"going on without torch.compile ({reason})", file=sys.stderr)
            self.compiled, self.forward = False, self.objective
        with torch.no_grad():
            for tensor, value in zip((*tensors, self.sums), kept, strict=True):
                tensor.copy_(value)
        self.optimizer.zero_grad()
        self.optimizer.load_state_dict(optimizer)
        self.state.step = step
        self.batches.forget()

    def _warm_up_steps(self) -> None:
        wanted = ways_to_mix(self.job.recipe.augment)
        # As many steps as it takes to meet every size and way of mixing: compiled one by one.
        for first in self.sizes:
            done: set[str] = set()
            for step in range(first, first + 1_000):
                if step >= first + WARM_UP_STEPS and self.batches.mixes(step) in done:
                    continue
                self.state.step = step
                self.step()
                done.add(self.batches.mixes(step))
                if step + 1 >= first + WARM_UP_STEPS and wanted <= done:
                    break

    def _size(self) -> int:
        """Pixels each way of the present step's images."""
        return next(side for step, side in reversed(self.sizes.items()) if step <= self.state.step)

    def _wait_for(self, tensor: torch.Tensor) -> None:
        if tensor.is_cuda:
            torch.cuda.synchronize(tensor.device)

    def step(self) -> None:
        """The next step of the run."""
        state = self.state
        with self._part("images"):
            images, labels, share = self.batches.at(state.step)
        factor = self.factor(state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        # What is random in the network, such as dropout, differs from process to process.
        rank = self.ranks.rank
        reseed(self.batches.seed(f"step/{rank}" if rank else "step", state.step), self.job.device)
        with self._part("forward"):
            loss, statistics = self.forward(images, labels, share, self._size())
        with self._part("backward"):
            loss.backward()
        with self._part("optimiser"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        with self._part("averages"), torch.no_grad():
            if self.lookahead:
                self.lookahead.update(state.step + 1, self.steps)
            if self.average:
                self.average.update(state.step + 1)
            self.loss = loss.detach()
            world = self.ranks.world  # a process's loss is the mean of its part of the batch
            self.sums[0] += statistics[0] / world
            self.sums[1] += statistics[1]
            self.sums[2] += self.sums[0].isfinite() / world
        state.step += 1

    def _part(self, name: str) -> contextlib.AbstractContextManager[None]:
        return self.profile.part(name) if self.profile else contextlib.nullcontext()

    def _read_back(self, batches: int) -> tuple[float, float]:
        """Mean loss and accuracy of the epoch so far. Raises Diverged for a loss that is nan."""
        loss, correct, finite = self.ranks.total(self.sums).tolist()
        if not math.isfinite(loss):
            epoch = (self.state.step - 1) // self.steps_per_epoch
            step = epoch * self.steps_per_epoch + round(finite) + 1
            raise self._diverged(f"the loss is not a number at step {step}")
        images = batches * self.job.recipe.train.batch_size
        return loss / batches, correct / images

    def _diverged(self, what: str) -> Diverged:
        place, options = self.job.folder.checkpoint, self.job.recipe.optimizer
        said = f"{what}: the training diverged; lower --lr (it is {options.lr:g})"
        if options.name == "muon":
            said += f", or optimizer.muon_lr, that of the filters ({options.muon_lr:g})"
        if self.saved is None:
            return Diverged(f"{said}\nThere is no checkpoint of this run yet.")
        return Diverged(
            f"{said}\nThe last good checkpoint is of step {self.saved}; go on from its weights "
            f"with --init {place}"
        )

    def _end_epoch(self, epoch: int, loss: float, accuracy: float, watch: Watch) -> None:
        state = self.state
        record: Json = {
            "epoch": epoch + 1,
            "loss": round(loss, 5),
            "train_accuracy": round(accuracy, 5),
            "lr": round(self.job.recipe.optimizer.lr * self.factor(state.step - 1), 6),
            "seconds": round(state.seconds, 2),
        }
        if self.holdout:
            record["holdout_accuracy"] = round(self.judge.accuracy(self.best(), self.holdout), 5)
            self._train_mode()
        state.history.append(record)
        # A finished model keeps its log until this run has ended, as it does its weights and card.
        if self.ranks.main and not self.job.folder.card.exists():
            self._write_log()
        watch.epoch(record)

    def _write_log(self) -> None:
        lines = "".join(f"{json.dumps(entry)}\n" for entry in self.state.history)
        write_text(self.job.folder.log, lines)

    # --- what is kept ---

    def best(self) -> nn.Module:
        """The network that is kept: the averaged one where the recipe averages."""
        return self.average.network if self.average else self.network

    def _facts(self) -> Json:
        job = self.job
        stem, classes = job.recipe.model.stem, job.dataset.classes
        return weights.header(job.network, stem, classes, self.mean, self.std)

    def _save(self) -> None:
        """Write a checkpoint. Raises Diverged, and writes none, where a weight is not finite."""
        sums = self.ranks.total(self.sums)
        if self.ranks.main:
            facts = {
                **self._facts(),
                "recipe": self.job.recipe.to_dict(),
                "data_sha256": self.data_sha256,
                "val_sha256": self.val_sha256,
                "step": self.state.step,
                "seconds": self.state.seconds,
                "bookkeeping": self.state.bookkeeping,
                "history": self.state.history,
                "bf16": self.bf16,
                "start": self.start.to_dict() if self.start else None,
                "teachers": [teacher.to_dict() for teacher in self.teachers],
                "command": self.command,
            }
            try:
                checkpoint.save(self.job.folder, self.networks(), self.optimizer, sums, facts)
            except checkpoint.NotFinite as error:
                what = f"{error} is not finite after step {self.state.step}"
                raise self._diverged(what) from error
        self.saved = self.state.step

    def _read_checkpoint(self) -> tuple[checkpoint.Tensors, Json]:
        tensors, facts = checkpoint.read(self.job.folder)
        taught = [teacher.sha256 for teacher in self.teachers]
        made = self.job.recipe.to_dict()
        run = checkpoint.told(self.job.network, self.data_sha256, self.val_sha256, made, taught)
        checkpoint.check(self.job.folder, facts, run, self.job.dataset.origin, self.steps)
        return tensors, facts

    def _restore(self, tensors: checkpoint.Tensors, facts: Json) -> None:
        folder = self.job.folder
        checkpoint.restore(folder, tensors, self.networks(), self.optimizer, self.sums)
        if not self.ranks.main:  # they are all processes' together
            self.sums.zero_()
        spent = facts.get("bookkeeping", 0.0)
        self.state = State(
            facts["step"], facts.get("seconds", 0.0), spent, facts.get("history", [])
        )
        if self.job.recipe.train.precision == "auto":  # not this machine's, but that it began with
            self.bf16 = bool(facts.get("bf16", self.bf16))
        self.command = facts.get("command") or self.command  # what began it may have said more
        self.saved = self.state.step

    def _finish(self) -> Json:
        from cifar_deploy.train import curves

        job, recipe, judge = self.job, self.job.recipe, self.judge
        kept, classes = self.best(), self.job.dataset.classes
        tested = job.dataset.test if recipe.data.test else None
        before = judge.right(kept, tested) if tested else None
        state = weights.stored(kept, recipe.train.storage)
        weights.fill(kept, state, job.folder.weights)
        accuracies: Json = {**dict.fromkeys(card.JUDGED), "test_images": 0}
        if tested and before is not None:
            after = judge.right(kept, tested)
            accuracies |= {
                "test_accuracy": judge.count(after) / len(tested),
                "test_accuracy_before_storage": judge.count(before) / len(tested),
                "test_images": len(tested),
                "lost_by_storage": judge.count(before & ~after),
                "gained_by_storage": judge.count(after & ~before),
                "classes": judge.tally(after, tested, classes),
            }
        if self.holdout:
            right = judge.right(kept, self.holdout)
            accuracies["holdout_accuracy"] = judge.count(right) / len(self.holdout)
            if not tested:
                accuracies["classes"] = judge.tally(right, self.holdout, classes)
        accuracies |= balance(accuracies["classes"])
        if not self.ranks.main:
            self.ranks.wait()
            return accuracies
        written = weights.save(job.folder.weights, state, self._facts())
        made = card.make(self, accuracies, written)
        curves.draw(job.folder.curves, job.network, self.state.history, accuracies["test_accuracy"])
        self._write_log()
        write_json(job.folder.card, made)
        # The last to go: until the card is written, --resume can finish the run again.
        job.folder.checkpoint.unlink(missing_ok=True)
        self.ranks.wait()
        return made


def use_bf16(recipe: Recipe, device: torch.device) -> bool:
    """Whether to train in bf16 autocast on `device`."""
    wish = recipe.train.precision
    return wish == "bf16" or (wish == "auto" and machine.has_bf16(device))
