"""The networks: one file each, and this registry.

A network's file has `build(num_classes)`, or `build(num_classes, stem)` where the network knows
more than one stem, and returns an untrained `nn.Module` that maps normalised images, float
[n, 3, 32, 32], to logits, float [n, num_classes]. Importing this module does not import torch.
"""

import difflib
import importlib
import inspect
import os
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_deploy import cards, disk, store
from cifar_deploy.errors import UserError

if TYPE_CHECKING:
    from torch import nn

# name as users type it -> the module that builds it
NETWORKS: dict[str, str] = {
    "simple_cnn": "cifar_deploy.architectures.simple_cnn",
    "cnn9": "cifar_deploy.architectures.cnn9",
    "custom_resnet": "cifar_deploy.architectures.custom_resnet",
    "vgg19": "cifar_deploy.architectures.vgg19",
    "resnet18": "cifar_deploy.architectures.resnet18",
    "resnet50": "cifar_deploy.architectures.resnet50",
    "mobilenet_v3_small": "cifar_deploy.architectures.mobilenet_v3_small",
}
LONGEST_NAME = 255  # bytes of a file's name, on the usual disks
ALIASES = {"resnet9": "custom_resnet", "mobilenetv3": "mobilenet_v3_small"}


def canonical(name: str) -> str:
    """The registry's name for `name` or its alias. Raises UserError with the nearest, or all."""
    if name in NETWORKS:
        return name
    if name in ALIASES:
        return ALIASES[name]
    near = difflib.get_close_matches(name.lower(), [*NETWORKS, *ALIASES], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(NETWORKS)}"
    raise UserError(f"no network is called {name!r}; {hint}")


def named(model: object) -> str:
    """The name or path that an argument is. Raises UserError where it is neither."""
    if not isinstance(model, str | PathLike):
        raise UserError(f"a {type(model).__name__} is no model; give a name or a path")
    name = str(model)
    try:
        parts = os.fsencode(name).split(b"/")
    except UnicodeEncodeError:
        parts = [b"\0"]
    if any(b"\0" in part or len(part) > LONGEST_NAME for part in parts):
        raise UserError(f"{name[:100]!r} is no name of a model or a file")
    return name


def folder(model: str) -> store.ModelFolder:
    """The folder of a model given by name, alias or path.

    Raises UserError for an unknown name, a file of a model, a package, and another folder.
    """
    if Path(model).suffix in store.EXPORTED or Path(model).is_file():
        raise UserError(f"{model} is a file; here goes a trained model, by its name or folder")
    if "/" in model or Path(model, store.CARD).is_file():
        _check_no_package(Path(model))
        return store.ModelFolder(Path(model))
    second = store.ModelFolder(store.models_root() / model)
    if second.card.is_file() or (model and store.training(second)):
        return second  # custom_resnet-speed, say
    if model not in ("", *NETWORKS, *ALIASES) and Path(model).is_dir():
        _check_no_package(Path(model))
        raise UserError(f"{model} is a folder, but no trained model's: it holds no {store.CARD}")
    return store.ModelFolder(store.models_root() / canonical(model))


def _check_no_package(folder: Path) -> None:
    if file := store.packaged(folder):
        way = f"name the model, or the file in it: {file}"
        if file.suffix not in store.EXPORTED:  # what Triton calls an engine
            way = "name the model that it was made of"
        raise UserError(f"{folder} is what `cifar-deploy package` wrote, no trained model; {way}")


def network_of(model: str) -> str:
    """The network of that name or alias, or of the trained model of that name or folder.

    Its weights need not be there. Raises UserError as `folder` and `canonical` do, and, as
    `cards.read_card` does, for the folder of a model without a card.
    """
    if model not in NETWORKS:
        found = folder(model)
        if found.card.is_file():
            return canonical(str(disk.read_json(found.card).get("network")))
        if model not in ALIASES:
            cards.read_card(found)  # tells what its training lacks
    return canonical(model)


def has_stems(name: str) -> bool:
    """Whether the network `name` can have the published stem, too."""
    module = importlib.import_module(NETWORKS[canonical(name)])
    return "stem" in inspect.signature(module.build).parameters


def build(name: str, num_classes: int = 10, stem: str = "cifar") -> "nn.Module":
    """The untrained network `name` for float input [n, 3, 32, 32], logits [n, num_classes].

    `stem` is "cifar" (for 32x32) or "imagenet" (the published stem); raises UserError for a name
    that is not registered or a stem that the network does not have.
    """
    name = canonical(name)
    network: nn.Module
    builder = importlib.import_module(NETWORKS[name]).build
    if has_stems(name):
        network = builder(num_classes, stem)
    elif stem != "cifar":
        raise UserError(f"{name} has no {stem!r} stem; leave model.stem out of its recipe")
    else:
        network = builder(num_classes)
    return network
