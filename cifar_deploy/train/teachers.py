"""Trained models whose answers a run learns from: knowledge distillation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cifar_deploy import architectures
from cifar_deploy.architectures import weights
from cifar_deploy.architectures.deployment import DeploymentGraph
from cifar_deploy.errors import UserError
from cifar_deploy.recipe import Distill, Recipe
from cifar_deploy.store import Json, ModelFolder, sha256_of


@dataclass(frozen=True)
class Teacher:
    """A trained model, by the name it was given, with the sha256 of its weights."""

    model: str
    sha256: str
    graph: DeploymentGraph

    def to_dict(self) -> Json:
        """Which weights it has, for cards and checkpoints."""
        return {"model": self.model, "sha256": self.sha256}


def load(
    recipe: Recipe, folder: ModelFolder, classes: Sequence[str], data_sha256: str
) -> list[Teacher]:
    """The teachers that `recipe` names, on the CPU, for a run on images of `classes`.

    Raises UserError for one that is not there or knows other classes, for the model in `folder`,
    where the run writes, and for one that may have seen the images held out.
    """
    if isinstance(recipe.distill.teachers, str):
        return []
    found = []
    for model in recipe.distill.teachers:
        place = architectures.folder(model)
        if place.path.resolve() == folder.path.resolve():
            raise UserError(
                f"{model} cannot teach what is written over it; write elsewhere with --out"
            )
        trained = weights.load(place)
        if trained.classes != tuple(classes):
            known, wanted = ", ".join(trained.classes), ", ".join(classes)
            raise UserError(f"{model} cannot teach this: it knows {known}, not {wanted}")
        data, holdout = trained.card.get("data", {}), recipe.data.holdout
        # The last of one shuffle are held out: more of them are the same ones and others.
        if data.get("sha256") == data_sha256 and data.get("holdout_images", 0) < holdout:
            raise UserError(
                f"{model} was taught the images that are held out, and would tell of them; train "
                f"it with --hold-out {holdout}, too"
            )
        found.append(Teacher(model, sha256_of(place.weights), trained.graph()))
    return found


def differ(recipe: Recipe, told: Sequence[Json]) -> bool:
    """Whether `told`, the teachers of a run's card, have other weights than `recipe`'s have now."""
    named = () if isinstance(recipe.distill.teachers, str) else recipe.distill.teachers
    files = [architectures.folder(model).weights for model in named]
    now = [sha256_of(file) if file.is_file() else None for file in files]
    return now != [teacher.get("sha256") for teacher in told]


class Lesson:
    """What a step's loss has from the teachers.

    No module, though it holds some: nothing of it is trained, stored, or shared among processes.
    """

    def __init__(self, teachers: Sequence[Teacher], options: Distill, device: torch.device) -> None:
        last = torch.channels_last
        self.graphs = [t.graph.to(device).to(memory_format=last) for t in teachers]
        self.weight = options.weight
        self.temperature = options.temperature

    def loss(self, images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """How far `logits`, float32 [n, classes], are from what the teachers say of `images`.

        `images` are the deployment graph's, uint8 or, mixed, float32 [n, 32, 32, 3]. The mean of
        the teachers' probabilities is the target, the distance Kullback and Leibler's, both at the
        temperature, whose square keeps the gradients' size (Hinton et al. 2015, arXiv:1503.02531).
        """
        with torch.no_grad():
            said = [(graph(images).float() / self.temperature).softmax(1) for graph in self.graphs]
            target = torch.stack(said).mean(0)
        own = (logits / self.temperature).log_softmax(1)
        return self.temperature**2 * F.kl_div(own, target, reduction="batchmean")
