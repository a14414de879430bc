"""Weights that another program trained, brought in: from then on a model like any other."""

import dataclasses
import math
import re
import sys
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from cifar_deploy import architectures
from cifar_deploy.architectures import weights
from cifar_deploy.architectures.weights import Trained
from cifar_deploy.data.dataset import Dataset, Split, balance, tally
from cifar_deploy.disk import Json, write_json
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.store import ModelFolder
from cifar_deploy.train import card, initial

# What DataParallel, torch.compile and the usual wrappers put before every name.
WRAPPED = re.compile(r"(module|_orig_mod|model|network|net)\.")
# Mean and std of the pixels as programs that train such networks have them.
USUAL = {
    "CIFAR-10's own normalisation": ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]),
    "pytorch-cifar's normalisation": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.201]),
    "ImageNet's normalisation": (initial.IMAGENET_MEAN, initial.IMAGENET_STD),
    "pixels from -1 to 1": ([0.5] * 3, [0.5] * 3),
    "pixels from 0 to 1": ([0.0] * 3, [1.0] * 3),
}
TRIED = 1_000  # training images that are looked at with each of them
SURE = 3.0  # standard errors by which one has to be better


def bring(
    name: str,
    source: Path,
    dataset: Dataset,
    device: torch.device,
    folder: ModelFolder,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    command: str = "",
) -> Json:
    """Write the weights in `source`, of the network `name`, and their card to `folder`.

    `source` is a state dict in a safetensors file or in one of torch's, by torchvision's names of
    the parts. `mean` and `std` are those, per channel of pixels scaled to 0..1, with which the
    pixels were normalised in training; by default what a file written here says of it, else the
    data set's own; where training images fit clearly better with another usual one, that is told
    on standard error. The test accuracy is measured here. Returns the card.

    Raises UserError for a file that cannot be read, weights of another network (with what is
    missing and what is extra) or for other classes, and where the disk refuses.
    """
    state, facts = weights.read_state(source), weights.own_facts(source)
    dataset.expect_classes(str(source), tuple(facts.get("classes", dataset.classes)))
    own_mean, own_std = dataset.normalisation
    stem = _stem(name, state)
    network = architectures.build(name, len(dataset.classes), stem)
    wanted = network.state_dict()
    state = _unwrapped(state, list(dict(network.named_parameters())))
    state = {_our_name(key, wanted, state): value for key, value in state.items()}
    if (count := _classes(state, wanted)) not in (None, len(dataset.classes)):
        raise UserError(
            f"{source} answers with {count} classes, {dataset.origin} has "
            f"{len(dataset.classes)}; name the data set it was trained on with --data-dir"
        )
    initial.fill(network, state, [], str(source))
    if lost := weights.not_finite(network.state_dict()):
        raise UserError(f"{source}: {lost} is not finite; its training diverged")
    given = (
        list(mean or facts.get("mean", own_mean)),
        list(std or facts.get("std", own_std)),
    )
    trained = Trained(name, network.eval(), dataset.classes, *given, card={})
    logits = PyTorch(trained, device).logits(dataset.test.images)
    if not np.isfinite(logits).all():
        raise UserError(
            f"{source}: its answers are no finite numbers; the weights, or --mean and --std, are "
            "too large or too small"
        )
    labels = dataset.test.labels
    right = logits.argmax(1) == labels
    accuracies: Json = {
        "test_accuracy": float(right.mean()),
        "test_images": len(labels),
        "classes": tally(dataset.classes, labels, labels[right]),
    }
    accuracies |= balance(accuracies["classes"])
    if not (mean or std or facts) and (hint := _hint(trained, dataset.train.spread(TRIED), device)):
        print(hint, file=sys.stderr)
    header = weights.header(name, stem, dataset.classes, *given)
    written = weights.save(folder.weights, weights.stored(network, "fp32"), header)
    made = card.imported(
        *(trained, stem, source, folder, written, dataset, accuracies, command, device)
    )
    write_json(folder.card, made)
    return made


def _hint(trained: Trained, part: Split, device: torch.device) -> str:
    """What to tell where `part` fits clearly better with another normalisation; else nothing.

    By each image's cross-entropy, which is finer than right and wrong. Test images would be a
    choice made on them.
    """

    def losses(mean: list[float], std: list[float]) -> torch.Tensor:
        so = dataclasses.replace(trained, mean=mean, std=std)
        logits = torch.from_numpy(PyTorch(so, device).logits(part.images))
        return F.cross_entropy(logits, torch.from_numpy(part.labels), reduction="none").double()

    taken, hint = losses(trained.mean, trained.std), ""
    # Worse than chance is no fit: there fainter pixels look better, since less is claimed of them.
    least = min(float(taken.mean()), math.log(len(trained.classes)))
    for what, (mean, std) in USUAL.items():
        if (mean, std) == (trained.mean, trained.std):
            continue
        other = losses(mean, std)
        gain = taken - other
        clear = float(gain.mean()) > SURE * float(gain.std()) / math.sqrt(len(part))
        if clear and float(other.mean()) < least:
            least = float(other.mean())
            hint = (
                f"the training images fit better with {what}; if the network was trained so, "
                f"import it with --mean {listed(mean)} --std {listed(std)}"
            )
    return hint


def listed(values: list[float]) -> str:
    """Three numbers as `--mean` and `--std` take them."""
    return ",".join(f"{value:g}" for value in values)


def _unwrapped(state: dict[str, torch.Tensor], wanted: Sequence[str]) -> dict[str, torch.Tensor]:
    """`state` without wrappers' prefixes, and without what stands beside the wrapped network.

    That is a loss with weights, a metric, torch's counter of averaged models. `wanted` are the
    network's parameters, in order.
    """
    first = wanted[0]
    # Of several networks the first one in the file.
    prefixes = dict.fromkeys(key.removesuffix(first) for key in state if key.endswith(first))
    for prefix in sorted(prefixes, key=len):
        inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if {_our_name(key, wanted, inner) for key in inner} >= set(wanted):
            return inner
    while state and all(WRAPPED.match(key) for key in state):  # for what is told of them
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return state


def _our_name(key: str, known: Container[str], theirs: Container[str]) -> str:
    """How the part that another program calls `key` is called here, where that is known.

    kuangliu's pytorch-cifar and what descends from it have their own words in the ResNets.
    """
    ours = re.sub(r"^linear\.", "fc.", key).replace(".shortcut.", ".downsample.")
    return ours if ours in known and ours not in theirs else key


def _classes(state: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> int | None:
    """How many classes `state` answers with, where nothing but their number differs."""
    others = {
        k: state[k].shape for k, v in wanted.items() if k in state and state[k].shape != v.shape
    }
    last = list(wanted)[-1].rpartition(".")[0]  # the layer that answers
    counts = {shape[0] for shape in others.values() if len(shape)}
    same = all(
        key.rpartition(".")[0] == last and shape[1:] == wanted[key].shape[1:]
        for key, shape in others.items()
    )
    return counts.pop() if len(counts) == 1 and same else None


def _stem(name: str, state: dict[str, torch.Tensor]) -> str:
    """torchvision's 7x7 stem, where the network can have it, or the one for 32x32 images."""
    sizes = {value.shape[2:] for key, value in state.items() if key.endswith("conv1.weight")}
    return "imagenet" if (7, 7) in sizes and architectures.has_stems(name) else "cifar"
