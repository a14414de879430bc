"""Training curves as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

from cifar_deploy.disk import Json, atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(path: Path, title: str, history: list[Json], test_accuracy: float | None = None) -> None:
    """Write a PNG of loss, accuracy and learning rate by epoch."""
    with atomic_path(path) as part:
        figure(title, history, test_accuracy).savefig(part, format="png", dpi=100)


def figure(title: str, history: list[Json], test_accuracy: float | None = None) -> "Figure":
    """Loss, accuracy and learning rate by epoch, side by side."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [record["epoch"] for record in history]
    marker = "o" if len(epochs) == 1 else ""  # a line of one point is none
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(epochs, [r["loss"] for r in history], marker=marker)
    left.set(title="training loss", xlabel="epoch")
    accuracies = [100 * r["train_accuracy"] for r in history]
    middle.plot(epochs, accuracies, marker=marker, label="training, augmented")
    held = [(r["epoch"], 100 * r["holdout_accuracy"]) for r in history if "holdout_accuracy" in r]
    if held:
        middle.plot(*zip(*held, strict=True), marker=marker, label="held out")
    if test_accuracy is not None:
        middle.axhline(
            100 * test_accuracy, ls="--", c="grey", label=f"test {100 * test_accuracy:.2f} %"
        )
    middle.set(title="accuracy, %", xlabel="epoch")
    middle.legend()
    right.plot(epochs, [r["lr"] for r in history], marker=marker)
    right.set(title="learning rate at the epoch's end", xlabel="epoch")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.suptitle(title)
    return figure
