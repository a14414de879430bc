"""The loss of a step by its definition: of raw pixels, of smoothed and of mixed labels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_deploy.train.objective import Objective

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
