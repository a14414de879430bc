"""How many layers an int8 file keeps in fp32, measured on real training images."""

import dataclasses
import re
from pathlib import Path

import pytest

import cifar_deploy
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.errors import UserError
from cifar_deploy.export.quantise import Calibration
from cifar_deploy.store import ModelFolder
from cifar_deploy.tuning import within

FOLDER = ModelFolder(Path(cifar_deploy.__file__).parents[1] / "models" / "simple_cnn")
STEP = re.compile(
    r"simple_cnn: (\d) of 4 layers in fp32.*: the loss is at most (-?\d\.\d\d) points"
)


@pytest.fixture(scope="module")
def calibration(real_data: Dataset) -> Calibration:
    return Calibration.of(real_data)


def test_a_bound_that_is_missed_is_met_with_some_layers_in_fp32(
    real_data: Dataset, calibration: Calibration
) -> None:
    told: list[str] = []
    found = within(0.08, FOLDER, real_data, calibration, False, told.append)
    steps = [(int(s[1]), float(s[2])) for s in map(STEP.match, told) if s]
    assert len(steps) == len(told) - 1  # one line is of the ranking
    assert steps[0][0] == 0
    assert steps[0][1] > 0.25  # plainly
    # As `layers` has it: this one and its ReLU lose the most.
    assert found.keep[0] == "node_conv2d_1"
    assert 1 <= len(found.keep) <= 3
    losses = dict(steps)
    assert losses[len(found.keep)] <= 0.08 < losses[len(found.keep) - 1]
    drop = found.facts["drop"]
    assert drop["upper_bound_of_loss_points"] == pytest.approx(losses[len(found.keep)], abs=0.01)
    assert (drop["margin_points"], drop["images"], drop["layers"]) == (0.08, 5_000, 4)
    assert found.facts == {**calibration.facts, "kept_fp32": list(found.keep), "drop": drop}
    assert found.images is calibration.images
    # The graph for engines is another one, and is measured itself.
    engine = within(0.5, FOLDER, real_data, calibration, True, told.append)
    first = within(0.5, FOLDER, real_data, calibration, False, told.append)
    assert engine.keep == first.keep == ()
    assert engine.facts["drop"] != first.facts["drop"]


def test_what_is_kept_anyway_is_kept_from_the_beginning(
    real_data: Dataset, calibration: Calibration
) -> None:
    told: list[str] = []
    one = dataclasses.replace(calibration, keep=("node_conv2d_1",))
    assert within(0.2, FOLDER, real_data, one, False, told.append).keep == one.keep
    assert len(told) == 1
    assert told[0].startswith("simple_cnn: 1 of 4 layers in fp32: ")


def test_no_test_image_and_none_that_was_calibrated_on_is_measured(
    real_data: Dataset, calibration: Calibration
) -> None:
    blind = dataclasses.replace(real_data, test=real_data.test.first(0))
    seen, unseen = (
        within(5, FOLDER, data, calibration, False, lambda line: None)
        for data in (real_data, blind)
    )
    assert seen.facts == unseen.facts
    few = dataclasses.replace(blind, train=real_data.train.first(1_000))
    some = within(5, FOLDER, few, Calibration.of(few, 900), False, lambda line: None)
    assert some.facts["drop"]["images"] == 100


def test_more_than_can_be_had_is_refused(real_data: Dataset, calibration: Calibration) -> None:
    told: list[str] = []
    with pytest.raises(UserError, match=r"5,000, which can show no less than 0\.055 points"):
        within(0.05, FOLDER, real_data, calibration, False, told.append)
    assert told == []
    linear = ("node_linear", "node_linear_1", "node_linear_2")
    most = dataclasses.replace(calibration, keep=linear)
    with pytest.raises(UserError, match=r"loses more than 0\.06 points with a single layer in 8"):
        within(0.06, FOLDER, real_data, most, False, told.append)
    assert "3 of 4 layers in fp32: " in told[0]
