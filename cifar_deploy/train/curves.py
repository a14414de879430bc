"""Training curves as a picture."""

from pathlib import Path

from cifar_deploy.store import Json, atomic_path


def draw(path: Path, title: str, history: list[Json], test_accuracy: float | None = None) -> None:
    """Write a PNG of loss, accuracy and learning rate by epoch."""
    from matplotlib.figure import Figure

    epochs = [record["epoch"] for record in history]
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(epochs, [r["loss"] for r in history])
    left.set(title="training loss", xlabel="epoch")
    middle.plot(epochs, [100 * r["train_accuracy"] for r in history], label="training, augmented")
    held = [(r["epoch"], 100 * r["holdout_accuracy"]) for r in history if "holdout_accuracy" in r]
    if held:
        middle.plot(*zip(*held, strict=True), label="held out")
    if test_accuracy is not None:
        middle.axhline(
            100 * test_accuracy, ls="--", c="grey", label=f"test {100 * test_accuracy:.2f} %"
        )
    middle.set(title="accuracy, %", xlabel="epoch")
    middle.legend()
    right.plot(epochs, [r["lr"] for r in history])
    right.set(title="learning rate at the epoch's end", xlabel="epoch")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=100)
