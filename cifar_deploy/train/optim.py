"""Optimisers, learning-rate schedules, and the running average of the weights."""

import copy
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cifar_deploy.recipe import Optimizer, Schedule
from cifar_deploy.train.muon import Muon

SIZE_STEP = 8  # pixels by which images grow
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def make_optimizer(
    network: nn.Module, options: Optimizer, factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, AdamW, or Muon with such an SGD for the rest.

    Norms and biases (vectors) go without weight decay. Muon takes the filters of all convolutions
    but the first and those in groups. `factors` are those of the learning rate of what was
    pretrained, by name. A group's `peak` is its learning rate at the schedule's top.
    """
    factors = factors or {}
    norm_biases = {
        f"{name}.bias" for name, module in network.named_modules() if isinstance(module, NORMS)
    }
    convolutions = {n: m.groups for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    by_kind: dict[tuple[str, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = factors.get(name, 1.0)
        kind = "matrix" if parameter.ndim > 1 else "vector"
        if name in norm_biases:
            factor *= options.norm_bias_factor
        elif options.name == "muon" and _is_filter(name, parameter, convolutions):
            kind = "filter kept" if name in factors else "filter"
        by_kind[kind, factor].append(parameter)
    groups: list[dict[str, Any]] = []
    for (kind, factor), parameters in sorted(by_kind.items()):
        decay = options.weight_decay if kind == "matrix" else 0.0
        filters = kind.startswith("filter")
        peak = factor * (options.muon_lr if filters else options.lr)
        groups.append({"params": parameters, "weight_decay": decay, "lr": peak, "peak": peak})
        if filters:
            groups[-1] |= {"muon": True, "momentum": options.muon_momentum}
            groups[-1]["keep_norm"] = kind == "filter kept"
    fused = all(p.is_cuda for p in network.parameters()) or None
    if options.name == "adamw":
        betas = (options.momentum, 0.999)
        return torch.optim.AdamW(groups, lr=options.lr, betas=betas, fused=fused)
    kind_of_sgd = Muon if options.name == "muon" else torch.optim.SGD
    nesterov = options.momentum > 0
    return kind_of_sgd(
        groups, lr=options.lr, momentum=options.momentum, nesterov=nesterov, fused=fused
    )


def _is_filter(name: str, parameter: nn.Parameter, convolutions: dict[str, int]) -> bool:
    """Whether a parameter is Muon's: not what meets the pixels, nothing in groups.

    `convolutions` are the groups of each. Filters of several groups are several matrices.
    """
    module = name.removesuffix(".weight")
    first = next(iter(convolutions), "")
    return parameter.ndim == 4 and module != first and convolutions.get(module) == 1


def rate(schedule: Schedule, step: int, steps: int) -> float:
    """The learning rate at `step` of `steps` as a factor, 0..1, of its peak.

    triangular: straight up and straight down to 0 (Page 2018). onecycle: cosine from 1/25 up and
    down to 1/10,000 of the peak (Smith 2018, arXiv:1803.09820). cosine: straight up, cosine
    down to 0 (Loshchilov and Hutter 2016, arXiv:1608.03983).
    """
    rise = schedule.warmup * steps
    peak = max(rise - 1, 0)
    rising = step < peak
    # A single step is a peak.
    done = (step + 1) / rise if rising else (step - peak) / ((steps - 1 - peak) or 1)
    done = min(done, 1.0)
    if schedule.name == "triangular":
        return done if rising else 1 - done
    if schedule.name == "cosine":
        return done if rising else _cosine(1, 0, done)
    return _cosine(1 / 25, 1, done) if rising else _cosine(1, 1e-4, done)


def sizes(schedule: Schedule, steps: int, whole: int) -> dict[int, int]:
    """The sides of the images, in pixels, by the step from which on they hold; the last is `whole`.

    Training on smaller images first is progressive resizing (Howard et al. 2018, fast.ai's
    DAWNBench entry; Tan and Le 2021, arXiv:2104.00298): most of a run's arithmetic is saved in its
    first part, where the pictures' coarse features are learned.
    """
    smaller = range(schedule.first_size or whole, whole, SIZE_STEP)
    grown = round(schedule.grown * steps) if smaller else 0
    found = {grown * i // len(smaller): size for i, size in enumerate(smaller)}
    return {**found, grown: whole}


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


class Average:
    """An exponential moving average of a network's parameters and float buffers."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self._mine, self._theirs = _floats(self.network, network)

    @torch.no_grad()
    def update(self, done: int | None = None) -> None:
        """Move the average towards the network's weights as they are now.

        After `done` steps no decay is above (1 + done) / (10 + done): in a short run the weights of
        the beginning would otherwise be most of the average.
        """
        decay = self.decay if done is None else min(self.decay, (1 + done) / (10 + done))
        torch._foreach_lerp_(self._mine, self._theirs, 1 - decay)


class Lookahead:
    """Slow weights behind the fast ones, which go back to them every `every` steps.

    Zhang et al. 2019, arXiv:1907.08610, with the decay that grows through the run of Jordan 2024,
    arXiv:2404.00498: at the end the slow weights hardly move, but for the last time then too.
    """

    def __init__(self, network: nn.Module, every: int) -> None:
        self.every = every
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self._slow, self._fast = _floats(self.network, network)

    @torch.no_grad()
    def update(self, done: int, steps: int) -> None:
        """After step `done` of `steps`: every so often, and at the end, the two become one."""
        if done % self.every == 0 or done == steps:
            decay = 0.95**self.every * (done / steps) ** 3
            torch._foreach_lerp_(self._slow, self._fast, 1 - decay)
            torch._foreach_copy_(self._fast, self._slow)


def _floats(mine: nn.Module, theirs: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Parameters and float buffers of two alike networks, in the same order."""
    own, other = mine.state_dict(), theirs.state_dict()
    names = [name for name, value in own.items() if value.is_floating_point()]
    return [own[n] for n in names], [other[n] for n in names]
