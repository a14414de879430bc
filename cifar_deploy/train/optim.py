"""Optimisers, learning-rate schedules, and the running average of the weights."""

import copy
import math

import torch
from torch import nn

from cifar_deploy.recipe import Optimizer, Schedule


def make_optimizer(network: nn.Module, options: Optimizer) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW; norms and biases (vectors) go without weight decay."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if options.name == "adamw":
        return torch.optim.AdamW(groups, lr=options.lr, betas=(options.momentum, 0.999))
    nesterov = options.momentum > 0
    return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=nesterov)


def rate(schedule: Schedule, step: int, steps: int) -> float:
    """The learning rate at `step` of `steps` as a factor, 0..1, of its peak.

    triangular: straight up and straight down to 0 (Page 2018). onecycle: cosine from 1/25 up and
    down to 1/10,000 (Smith 2018, arXiv:1803.09820; torch's OneCycleLR). cosine: straight up, cosine
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


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


class Average:
    """An exponential moving average of a network's parameters and float buffers."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        mine, theirs = self.network.state_dict(), network.state_dict()
        floats = [k for k in mine if mine[k].is_floating_point()]
        self._mine, self._theirs = [mine[k] for k in floats], [theirs[k] for k in floats]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's weights as they are now."""
        torch._foreach_lerp_(self._mine, self._theirs, 1 - self.decay)
