"""The card: what a reader needs to trust a trained model."""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cifar_deploy import __version__
from cifar_deploy import device as machine
from cifar_deploy.architectures.weights import Trained
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.data.folder import VERIFIED as OWN_FOLDER
from cifar_deploy.disk import Json, sha256_of, stamp
from cifar_deploy.store import ModelFolder

if TYPE_CHECKING:
    from cifar_deploy.train.loop import Trainer


# What comes first in a card. The accuracy is that of the weights as stored; `lost_by_storage` are
# test images whose answer was right before and wrong as stored, `gained_by_storage` the others.
# `classes` has the right answers and the images of each class: of the test images, or of those held
# out where only they are judged; where classes have not all as many, `balanced_accuracy` follows.
JUDGED = (
    *("test_accuracy", "test_accuracy_before_storage", "test_images"),
    *("lost_by_storage", "gained_by_storage", "classes"),
)
# What a card's `init` says of the run that the weights came from, by its own card: what it cost,
# what came of it, and what it began with and learned from itself.
OF_INIT = (
    *("command", "epochs", "stopped", "wall_seconds", "device", "test_accuracy", "init"),
    *("imported", "teachers", "teachers_from"),
)


def make(trainer: "Trainer", accuracies: Json, written: Json) -> Json:
    """The card of a finished run. `accuracies`, JUDGED, come first.

    `written`: what `weights.save` said of its weights.
    """
    job, recipe, state = trainer.job, trainer.job.recipe, trainer.state
    start = trainer.start
    dataset = job.dataset
    card: Json = {
        "network": job.network,
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        **accuracies,
        "epochs": recipe.train.epochs,
        **({"stopped": {"step": state.step, "steps": trainer.steps}} if trainer.early else {}),
        "seed": recipe.train.seed,
        # All of the loop, and without the judging of held-out images, logs and checkpoints; what
        # comes before it is told apart.
        "wall_seconds": round(state.seconds, 3),
        "train_seconds": round(state.seconds - state.bookkeeping, 3),
        "init_seconds": round(trainer.init_seconds, 3),
        "warmup_seconds": round(trainer.warmup_seconds, 3),
        "data_seconds": round(job.data_seconds + trainer.data_seconds, 3),
        "command": trainer.command,
        "device": machine.describe(job.device),
        "processes": job.ranks.world,
        "precision": "bf16" if trainer.bf16 else "fp32",
        "compiled": trainer.compiled,
        "weights": _weights(job.folder, written, recipe.train.storage),
        "data": {
            **_data(dataset, trainer.data_sha256, trainer.mean, trainer.std),
            "train_images": len(trainer.train_split),
            "holdout_images": len(trainer.holdout) if trainer.holdout else 0,
            **({"val_sha256": trainer.val_sha256} if trainer.val_sha256 else {}),
        },
        "recipe": recipe.to_dict(),
        **_made(),
        "history": state.history,
    }
    if trainer.teachers:
        card["teachers"] = [teacher.to_dict() for teacher in trainer.teachers]
        if theirs := [origin for teacher in trainer.teachers for origin in teacher.origins]:
            card["teachers_from"] = list(dict.fromkeys(theirs))
    if start:
        card["init"] = {"from": start.origin, "sha256": start.sha256}
        trainable = sum(p.numel() for p in trainer.network.parameters() if p.requires_grad)
        card["init"]["trained_parameters"] = trainable
        card["init"] |= start.run
    return card


def of_init(card: Json) -> Json:
    """What `card`, of weights that another run begins with, adds to that run's `init`."""
    return {key: card[key] for key in OF_INIT if card.get(key) is not None}


def imported(
    trained: Trained,
    stem: str,
    source: Path,
    folder: ModelFolder,
    written: Json,
    dataset: Dataset,
    accuracies: Json,
    command: str,
    device: torch.device,
) -> Json:
    """The card of weights from `source` that another program trained and `folder` now has.

    `written`: what `weights.save` said of them. `accuracies` come as in `make`, as far as they are
    known.
    """
    return {
        "network": trained.name,
        "stem": stem,
        "parameters": sum(p.numel() for p in trained.network.parameters()),
        **accuracies,
        "imported": {"from": source.name, "sha256": sha256_of(source)},
        "command": command,
        "device": machine.describe(device),
        "weights": _weights(folder, written, "fp32"),
        "data": _data(dataset, dataset.sha256, trained.mean, trained.std),
        **_made(),
    }


def with_seeds(card: Json, others: list[Json]) -> Json:
    """`card` with the accuracies of the runs with other seeds, their mean and their spread.

    The weights, and `test_accuracy`, stay those of the first seed: the best by test would be a
    choice made on the test images.
    """
    runs = [
        {
            key: run.get(key)
            for key in ("seed", "test_accuracy", "holdout_accuracy", "wall_seconds")
            if run.get(key) is not None
        }
        for run in (card, *others)
    ]
    result = {**card, "runs": runs}
    for key in ("test_accuracy", "holdout_accuracy"):
        found: list[float] = [value for run in runs if (value := run.get(key)) is not None]
        if len(found) == len(runs):
            spread = statistics.stdev(found) if len(found) > 1 else None
            result[f"{key}_mean"] = statistics.fmean(found)
            result[f"{key}_std"] = spread
    return result


def _weights(folder: ModelFolder, written: Json, storage: str) -> Json:
    return {"file": folder.weights.name, **written, "storage": storage}


def _data(dataset: Dataset, sha256: str, mean: list[float], std: list[float]) -> Json:
    facts: Json = {
        "name": dataset.name,
        "verified": dataset.verified,
        "sha256": sha256,
        "test_sha256": dataset.test_sha256,
        "mean": mean,
        "std": std,
        "classes": list(dataset.classes),
    }
    if dataset.verified == OWN_FOLDER:  # where export and validate find the images again
        facts["origin"] = str(Path(dataset.origin).resolve())
    return facts


def _made() -> Json:
    """With what the card was made, and when."""
    return {
        "versions": machine.versions(),
        "cifar_deploy": __version__,
        "finished": stamp(),
    }
