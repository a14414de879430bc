"""A training run in the middle: all that going on from there needs, in one safetensors file."""

from collections.abc import Iterator

import torch
from torch import nn

from cifar_deploy import recipe
from cifar_deploy.architectures import weights
from cifar_deploy.disk import Json, is_number
from cifar_deploy.errors import UserError
from cifar_deploy.store import ModelFolder
from cifar_deploy.train import initial

Tensors = dict[str, torch.Tensor]
CURVES = ("epoch", "loss", "train_accuracy", "lr")  # what an epoch's record has for the curves
OF_ONE = ("step", "norm")  # what an optimizer keeps as one number of a parameter


class NotFinite(Exception):
    """What was to be saved holds a number that is none; nothing was written."""


def save(
    folder: ModelFolder,
    networks: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    sums: torch.Tensor,
    facts: Json,
) -> None:
    """Write the state of `networks` (by prefix), of `optimizer` and `sums`, and `facts`.

    Raises NotFinite instead where any of it is inf or nan: a good checkpoint is not replaced by a
    useless one.
    """
    tensors = {"sums": sums.cpu()}
    for prefix, network in networks.items():
        for name, value in network.state_dict().items():
            tensors[f"{prefix}.{name}"] = value.detach().cpu().contiguous()
    for index, parameter in _parameters(optimizer):
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{key}"] = value.detach().cpu().contiguous()
    if lost := weights.not_finite(tensors):
        raise NotFinite(lost)
    weights.save(folder.checkpoint, tensors, facts)


def read(folder: ModelFolder) -> tuple[Tensors, Json]:
    """The checkpoint's tensors and facts. Raises UserError where there is none or it is damaged."""
    if not folder.checkpoint.exists():
        way = "give --seeds as before" if folder.seeds.exists() else "start without --resume"
        raise UserError(f"--resume: there is no checkpoint in {folder.path}; {way}")
    tensors, facts = weights.read_tensors(folder.checkpoint)
    if not _whole(facts):
        raise UserError(f"--resume: {folder.checkpoint} is no checkpoint; start without")
    if lost := weights.not_finite(tensors):
        raise UserError(f"--resume: {lost} in {folder.checkpoint} is not finite; start without")
    return tensors, facts


def _whole(facts: Json) -> bool:
    """Whether `facts` are those that a run wrote: some came later, and are not in older ones."""
    history, taught = facts.get("history", []), facts.get("teachers", [])
    step, start, made = facts.get("step"), facts.get("start"), facts.get("recipe")
    return (
        (type(step) is int and step >= 0)
        and (start is None or initial.is_start(start))
        and (_sections(history) and _sections(taught))
        and all(is_number(record.get(key)) for record in history for key in CURVES)
        and all(isinstance(teacher.get("sha256"), str) for teacher in taught)
        and (isinstance(made, dict) and _sections(list(made.values())))
        and all(is_number(facts.get(key, 0.0)) for key in ("seconds", "bookkeeping"))
        and isinstance(facts.get("command", ""), str)
    )


def _sections(value: object) -> bool:
    """Whether this is a list of JSON's objects."""
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def told(
    network: str | None, data_sha256: str, val_sha256: str | None, made: Json, taught: list[str]
) -> Json:
    """What has to be the same where a run goes on, by the words for it.

    `made` is the recipe's, `taught` the sha256 of the teachers.
    """
    flat = {
        f"recipe.{section}.{key}": value
        for section, values in made.items()
        for key, value in values.items()
    }
    return {
        "network": network,
        "data_sha256": data_sha256,
        **flat,
        "val_sha256": val_sha256,
        "teachers' weights": taught,
    }


def check(folder: ModelFolder, facts: Json, run: Json, images: str, steps: int) -> None:
    """Raise UserError where the checkpoint with `facts` is not of `run`, which `told` tells.

    `images` says where the run's are, `steps` how many it has.
    """
    made = recipe.completed(facts.get("recipe", {}))
    taught = [teacher["sha256"] for teacher in facts.get("teachers", [])]
    data_sha256, val_sha256 = facts.get("data_sha256", ""), facts.get("val_sha256")
    there = told(facts.get("network"), data_sha256, val_sha256, made, taught)
    for key, value in run.items():
        if there.get(key) == value:
            continue
        if key in ("data_sha256", "val_sha256") and there[key]:
            raise UserError(
                f"--resume: the images in {images} are not those that the run "
                f"in {folder.path} began with; bring those back, or begin anew without "
                f"--resume: elsewhere, with --out, or after removing {folder.checkpoint}"
            )
        raise UserError(
            f"--resume: the checkpoint in {folder.path} was made with {key} = "
            f"{there.get(key)}, not {value}; resume with the same, or start anew"
        )
    if facts["step"] > steps:
        raise UserError(
            f"--resume: the checkpoint in {folder.path} is of step {facts['step']:,}, and the run "
            f"has {steps:,}; start without"
        )


def restore(
    folder: ModelFolder,
    tensors: Tensors,
    networks: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    sums: torch.Tensor,
) -> None:
    """Put the tensors of `read` back. Raises UserError where they are another network's."""
    for prefix, network in networks.items():
        start = f"{prefix}."
        mine = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        weights.fill(network, mine, folder.checkpoint)
    for index, parameter in _parameters(optimizer):
        start = f"optimizer.{index}."
        for name, value in tensors.items():
            if not name.startswith(start):
                continue
            key = name.removeprefix(start)
            same = value.shape == parameter.shape and value.is_floating_point()
            if not same and (key not in OF_ONE or value.ndim):
                raise UserError(f"{folder.checkpoint} has no {key} of this network; start without")
            # The parameter's strides (channels-last) and device, so that nothing is slower after.
            kept = torch.empty_like(parameter).copy_(value) if same else value
            if not same and fused(optimizer):  # its counters of steps lie on the device
                kept = value.to(parameter.device)
            optimizer.state[parameter][key] = kept.detach()
    if "sums" not in tensors or tensors["sums"].shape != sums.shape:
        raise UserError(
            f"{folder.checkpoint} was written by an older version; start without --resume, with "
            f"--init {folder.checkpoint} for its weights"
        )
    sums.copy_(tensors["sums"])


def fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether one kernel updates all parameters."""
    return bool(optimizer.defaults.get("fused"))


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[int, torch.Tensor]]:
    return enumerate(p for group in optimizer.param_groups for p in group["params"])
