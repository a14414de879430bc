"""The picture of a training."""

import pytest

from cifar_deploy.train import curves


@pytest.mark.parametrize("epochs", [1, 2, 3, 30])
def test_curves_of_few_epochs_show_something(epochs: int) -> None:
    record = {"loss": 1.2, "train_accuracy": 0.5, "holdout_accuracy": 0.4, "lr": 0.01}
    history = [{**record, "epoch": n} for n in range(1, epochs + 1)]
    drawn = curves.figure("title", history, test_accuracy=0.6)
    for axes in drawn.axes:
        for line in axes.lines[: 2 if axes is drawn.axes[1] else 1]:
            assert len(line.get_xdata()) == epochs
            assert (line.get_marker() == "o") == (epochs == 1)
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == round(tick) for tick in ticks)
