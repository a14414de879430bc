"""The loss of a step by its definition: of raw pixels, of smoothed and of mixed labels."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_deploy.train.objective import Objective, balanced

IMAGES = torch.tensor([[10, 200, 40], [90, 20, 60], [5, 5, 250]], dtype=torch.uint8)
SCALE, SHIFT = torch.tensor([0.02, 0.01, 0.03]), torch.tensor([-1.0, 0.5, 0.2])
LABELS = torch.tensor([0, 2, 2])


def test_the_loss_by_hand() -> None:
    """Images of one pixel, whose normalised colours are the logits of three classes."""
    channels = (3, 1, 1)
    objective = Objective(nn.Flatten(), SCALE.view(channels), SHIFT.view(channels), 0.1, bf16=False)
    likelihoods = (IMAGES.double() * SCALE + SHIFT).log_softmax(1)

    def entropy(labels: torch.Tensor) -> float:
        wanted = 0.9 * F.one_hot(labels, 3) + 0.1 / 3
        return float(-(wanted * likelihoods).sum(1).mean())

    loss, statistics = objective(IMAGES[:, None, None], LABELS)
    assert loss.item() == pytest.approx(entropy(LABELS), rel=1e-5)
    assert statistics.tolist() == [loss.item(), 2]
    mixed, _ = objective(IMAGES[:, None, None], LABELS, torch.tensor(0.3))
    wanted = 0.3 * entropy(LABELS) + 0.7 * entropy(LABELS.flip(0))
    assert mixed.item() == pytest.approx(wanted, rel=1e-5)


def test_balanced_weights_are_scikit_learns() -> None:
    # The example in the documentation of its compute_class_weight.
    assert balanced(np.array([1, 1, 1, 1, 0, 0]), 2).tolist() == [1.5, 0.75]
    labels = np.array([0, 2, 2, 2, 2, 4, 4])
    weights = balanced(labels, 5)
    assert weights.tolist() == pytest.approx([7 / 3, 0, 7 / 12, 0, 7 / 6])
    assert float(weights[labels].mean()) == pytest.approx(1)


class Answers:
    """Teachers who are three units away from everything."""

    weight = 0.25

    def loss(self, images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return torch.tensor(3.0)


def test_a_label_has_its_classs_weight() -> None:
    shape, weights = (3, 1, 1), torch.tensor([0.5, 7.0, 1.25])
    parts: tuple[Any, ...] = (nn.Flatten(), SCALE.view(shape), SHIFT.view(shape), 0.1, False)
    objective = Objective(*parts, class_weights=weights)
    likelihoods = (IMAGES.double() * SCALE + SHIFT).log_softmax(1)

    def entropies(labels: torch.Tensor) -> torch.Tensor:
        wanted = 0.9 * F.one_hot(labels, 3) + 0.1 / 3
        return -weights[labels] * (wanted * likelihoods).sum(1)

    pixels, share = IMAGES[:, None, None], torch.tensor(0.3)
    whole = objective(pixels, LABELS)[0].item()
    assert whole == pytest.approx(entropies(LABELS).mean().item(), rel=1e-5)
    wanted = (0.3 * entropies(LABELS) + 0.7 * entropies(LABELS.flip(0))).mean().item()
    mixed = objective(pixels, LABELS, share)[0].item()
    assert mixed == pytest.approx(wanted, rel=1e-5)
    # Each process has a part of the batch, whatever classes are in it.
    parted = [objective(pixels[[i]], LABELS[[i]])[0].item() for i in range(3)]
    assert sum(parted) / 3 == pytest.approx(whole, rel=1e-5)
    taught: Any = Answers()
    learnt = Objective(*parts, taught, weights)(pixels, LABELS)[0].item()
    assert learnt == pytest.approx(0.75 * whole + 0.25 * 3, rel=1e-5)
    # Nothing of it is stored.
    assert not [name for name in objective.state_dict() if "weights" in name]
