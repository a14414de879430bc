"""A model without training, and pictures to prove it on."""

from pathlib import Path

import torch
from PIL import Image

from cifar_deploy import architectures
from cifar_deploy.architectures import weights
from cifar_deploy.data import find, synthetic
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.disk import sha256_of, write_json
from cifar_deploy.store import ModelFolder

NAME = "simple_cnn"


def write_pictures(place: Path) -> Dataset:
    """A data set in folders: too few images to train on, enough to prove a margin of 1 point."""
    made = synthetic.generate(train=50, test=500)
    for split, name in ((made.train, "train"), (made.test, "test")):
        for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            path = place / name / made.classes[label] / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return find.load("auto", place)


def write_model(folder: ModelFolder, dataset: Dataset, seed: int) -> None:
    """Weights as they are initialised, and the card that training would write for them."""
    torch.manual_seed(seed)
    mean, std = dataset.normalisation
    facts = weights.header(NAME, "cifar", dataset.classes, mean, std)
    weights.save(folder.weights, architectures.build(NAME).state_dict(), facts)
    stored = {"sha256": sha256_of(folder.weights), "bytes": folder.weights.stat().st_size}
    data = {"name": dataset.name, "sha256": dataset.sha256}
    write_json(folder.card, {"network": NAME, "weights": stored, "data": data})
