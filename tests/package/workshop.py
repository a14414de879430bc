"""A model without training, pictures to prove it on, and the program to call."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from cifar_deploy import architectures, cli
from cifar_deploy.architectures import weights
from cifar_deploy.data import find, synthetic
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.store import ModelFolder, sha256_of, write_json

NAME = "simple_cnn"


@dataclass
class Answer:
    status: int
    out: str
    err: str


Run = Callable[..., Answer]
Refused = Callable[..., str]


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
    mean, std = dataset.normalisation()
    facts = {
        "network": NAME,
        "stem": "cifar",
        "classes": list(dataset.classes),
        "mean": mean,
        "std": std,
    }
    weights.save(folder.weights, architectures.build(NAME).state_dict(), facts)
    stored = {"sha256": sha256_of(folder.weights), "bytes": folder.weights.stat().st_size}
    data = {"name": dataset.name, "sha256": dataset.sha256()}
    write_json(folder.card, {"network": NAME, "weights": stored, "data": data})


def call(patch: pytest.MonkeyPatch, *arguments: object) -> int:
    patch.setattr(sys, "argv", ["cifar-deploy", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code if isinstance(stop.value.code, int) else 0


def snapshot() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(Path().rglob("*")) if p.is_file()}
