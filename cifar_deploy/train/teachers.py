"""Trained models whose answers a run learns from: knowledge distillation."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from cifar_deploy import architectures
from cifar_deploy.architectures import weights
from cifar_deploy.architectures.deployment import DeploymentGraph
from cifar_deploy.cards import PIN, begun, split_pin, taught_from
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.disk import Json, sha256_of
from cifar_deploy.errors import UserError
from cifar_deploy.recipe import Distill, Recipe
from cifar_deploy.store import ModelFolder
from cifar_deploy.train.batches import check_unseen
from cifar_deploy.train.initial import learned_from


@dataclass(frozen=True)
class Teacher:
    """A trained model, by the name it was given, with the sha256 of its weights.

    `origins` are weights of others that it goes back to.
    """

    model: str
    sha256: str
    graph: DeploymentGraph
    origins: list[str] = field(default_factory=list)

    def to_dict(self) -> Json:
        """Which weights it has, for cards and checkpoints."""
        return {"model": self.model, "sha256": self.sha256}


def facts(recipe: Recipe) -> list[Json]:
    """Which weights the teachers that `recipe` names have now; a sha256 of None: none."""
    found = [(model, architectures.folder(model).weights) for model, _ in _named(recipe)]
    return [
        {"model": model, "sha256": sha256_of(file) if file.is_file() else None}
        for model, file in found
    ]


def load(recipe: Recipe, dataset: Dataset, data_sha256: str) -> list[Teacher]:
    """The teachers that `recipe` names, on the CPU, for a run on `dataset`, of that sha256.

    Raises UserError for one that is not there or knows other classes, for one that may have seen
    the images held out, and for a weight or temperature of nobody's.
    """
    if not _named(recipe) and recipe.distill != Distill():
        raise UserError("[distill] is of no use without teachers; name them with --teacher")
    found = []
    for model, asked in _named(recipe):
        trained = weights.load(architectures.folder(model))
        sha256 = trained.card["weights"]["sha256"]
        if not sha256.startswith(asked):
            raise UserError(
                f"--teacher {model}@{asked}: {model} has other weights, of sha256 {sha256[:PIN]}…; "
                f"bring those back that are asked for, or learn from these by --teacher {model}"
            )
        if trained.classes != dataset.classes:
            known, wanted = ", ".join(trained.classes), ", ".join(dataset.classes)
            raise UserError(f"{model} cannot teach this: it knows {known}, not {wanted}")
        check_unseen(model, learned_from(trained.card), dataset, data_sha256, recipe.data)
        theirs = [*filter(None, [begun(trained.card)]), *taught_from(trained.card)]
        found.append(Teacher(model, sha256, trained.graph(), theirs))
    return found


def check_apart(recipe: Recipe, folder: ModelFolder) -> None:
    """Raise UserError where a teacher is the model in `folder`, which the run writes over."""
    for model, _ in _named(recipe):
        if architectures.folder(model).path.resolve() == folder.path.resolve():
            raise UserError(
                f"{model} cannot teach what is written over it; write elsewhere with --out"
            )


def _named(recipe: Recipe) -> list[tuple[str, str]]:
    """Each teacher's model, and the beginning of the sha256 that is asked for, if any."""
    named = recipe.distill.teachers
    return [] if isinstance(named, str) else [split_pin(model) for model in named]


class Lesson:
    """What a step's loss has from the teachers.

    No module, though it holds some: nothing of it is trained, stored, or shared among processes.
    """

    def __init__(self, teachers: Sequence[Teacher], options: Distill, device: torch.device) -> None:
        last = torch.channels_last
        self.graphs = [t.graph.to(device).to(memory_format=last) for t in teachers]
        for graph in self.graphs:
            graph.requires_grad_(False)
        self.weight = options.weight
        self.temperature = options.temperature

    def loss(self, images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """How far `logits`, float32 [n, classes], are from what the teachers say of `images`.

        `images` are the deployment graph's, uint8 or, mixed, float32 [n, 32, 32, 3]. The mean of
        the teachers' probabilities is the target, the distance Kullback and Leibler's, both at the
        temperature, whose square keeps the gradients' size (Hinton et al. 2015, arXiv:1503.02531).
        """
        said = [(graph(images) / self.temperature).softmax(1) for graph in self.graphs]
        target = torch.stack(said).mean(0)
        own = (logits / self.temperature).log_softmax(1)
        return self.temperature**2 * F.kl_div(own, target, reduction="batchmean")
