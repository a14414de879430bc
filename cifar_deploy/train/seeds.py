"""The same run with several seeds: how far the accuracy is chance."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager

from cifar_deploy.cards import read_card
from cifar_deploy.disk import Json, write_json
from cifar_deploy.errors import UserError
from cifar_deploy.recipe import completed
from cifar_deploy.store import ModelFolder
from cifar_deploy.train import card, initial, teachers
from cifar_deploy.train.loop import Job, Trainer, Watch

Watching = Callable[[Trainer], AbstractContextManager[Watch]]


def run(job: Job, count: int, watching: Watching) -> Json:
    """Train with `count` seeds from the recipe's on; returns the card, which has them all.

    The weights are those of the first seed. The other runs stand in `seeds/` in the model's folder
    until all are done; with `job.resume`, those that are done are not done again. Raises UserError
    for initial weights that the first of them would write over.
    """
    job.ranks.same({"--seeds": count, "--resume": job.resume})
    if count == 1:
        return _train(job, watching)
    if job.init and initial.within(job.folder.path, job.init):
        raise UserError(
            f"--seeds {count}: the first seed writes over --init {job.init}; copy it elsewhere, or "
            "write to another folder with --out"
        )
    if not job.resume and job.ranks.main:
        shutil.rmtree(job.folder.seeds, ignore_errors=True)
        if os.path.lexists(job.folder.seeds):  # a file, a link, or of somebody else
            raise UserError(f"{job.folder.seeds} cannot be removed, and other seeds go there")
    job.ranks.wait()
    jobs = [job] + [_with_seed(job, job.recipe.train.seed + more) for more in range(1, count)]
    if job.resume:
        jobs = [dataclasses.replace(one, resume=one.folder.checkpoint.exists()) for one in jobs]
        done = [None if one.resume else _done(one) for one in jobs]
        complete = _complete(jobs[0], done[0], count)
        job.ranks.wait()  # until all have looked
        if complete:
            if job.ranks.main:
                shutil.rmtree(job.folder.seeds, ignore_errors=True)
            return complete
    else:
        done = [None] * count
    cards = [found or _train(one, watching, True) for one, found in zip(jobs, done, strict=True)]
    if not job.ranks.main:
        return cards[0]
    whole = card.with_seeds(cards[0], cards[1:]) | {"command": job.command}
    write_json(job.folder.card, whole)
    shutil.rmtree(job.folder.seeds, ignore_errors=True)
    return whole


def _with_seed(job: Job, seed: int) -> Job:
    train = dataclasses.replace(job.recipe.train, seed=seed)
    recipe = dataclasses.replace(job.recipe, train=train)
    return dataclasses.replace(job, recipe=recipe, folder=ModelFolder(job.folder.seeds / str(seed)))


def _complete(job: Job, done: Json | None, count: int) -> Json | None:
    """The card of a run that was killed while its seeds' folders were removed; else None.

    Raises UserError where `--resume` would train the first seed anew, over its weights, and where
    there is nothing left to do for `count` seeds.
    """
    if done and len(done.get("runs", ())) >= count:
        counted = {str(run.get("seed")) for run in done["runs"]}
        left = [*job.folder.seeds.glob("*/")]
        # Of a run with more seeds they are to be gone on with.
        begun = any(ModelFolder(seed).checkpoint.exists() for seed in left)
        if left and not begun and {seed.name for seed in left} <= counted:
            return done
        raise UserError(f"--resume: all seeds in {job.folder.path} are done")
    if job.folder.seeds.exists() and not (job.resume or done):
        raise UserError(
            f"--resume: the first seed in {job.folder.path} was trained otherwise (recipe, data, "
            f"teachers or --init); give the same command, or remove {job.folder.seeds}"
        )
    return None


def _done(job: Job) -> Json | None:
    """The card of a run that is over; None where there is none of this recipe."""
    try:
        there = read_card(job.folder)
    except UserError:
        return None
    made = completed(there.get("recipe"))
    same = made == job.recipe.to_dict() and there.get("network") == job.network
    same = same and there.get("teachers", []) == teachers.facts(job.recipe)
    same = same and "stopped" not in there
    init = there.get("init") or {}
    same = same and bool(init) == bool(job.init)
    if job.init:
        begun = initial.Start(str(init.get("from")), [], [], sha256=init.get("sha256"))
        same = same and not initial.differs(begun, job.init, job.weights_file, job.folder.path)
    images = there.get("data", {})
    same = same and images.get("sha256") == job.dataset.sha256
    if same and job.recipe.data.val:
        same = images.get("val_sha256") == job.dataset.val_sha256
    return there if same else None


def _train(job: Job, watching: Watching, several: bool = False) -> Json:
    trainer = Trainer(job)
    if several and trainer.start and not job.init:  # the seeds after it would begin with chance
        raise UserError(
            f"--resume: the run in {job.folder.path} began from {trainer.start.origin}; with "
            "--seeds give its --init again"
        )
    with watching(trainer) as watch:
        return trainer.run(watch)
