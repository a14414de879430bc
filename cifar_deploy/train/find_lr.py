"""The learning-rate finder: a range test (Smith 2015, arXiv:1506.01186)."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cifar_deploy.disk import atomic_path
from cifar_deploy.errors import UserError
from cifar_deploy.train.loop import Job, Trainer
from cifar_deploy.train.memory import in_memory

SMOOTHING = 0.95  # of the running mean of the loss; 20 steps or so
TOO_MUCH = 3.0  # times the lowest loss: the training has diverged
BEGIN = 10  # steps after which the smoothed loss is a mean of some
LEAST_FALL = 0.001  # of the loss from there; less may be chance
READ_EVERY = 20  # steps between two looks at the losses


@dataclass(frozen=True)
class Found:
    """The curve, and what it suggests. `losses` are smoothed; the rates are optimizer.lr.

    `falling`: the loss was, where the range ended, so that a higher one would suggest more.
    """

    rates: list[float]
    losses: list[float]
    steepest: float
    lowest: float
    suggested: float
    falling: bool


def check(low: float, high: float) -> None:
    """Raise UserError for a range of rates that is none."""
    if not 0 < low < high < math.inf:
        raise UserError(f"--low {low:g} --high {high:g}: the range runs upwards, from above 0")


def find(
    job: Job, low: float, high: float, steps: int, say: Callable[[str], None] = lambda _: None
) -> Found:
    """Train for up to `steps` steps while the rate grows from `low` to `high`, evenly in its log.

    The rate is `optimizer.lr`; Muon's moves with it in proportion. It stops where the smoothed loss
    is three times its lowest or no number. Suggested as the peak for OneCycle is a tenth of the
    rate with the lowest loss, which keeps away from divergence (fastai's rule). Nothing is written;
    `say` is told how far it is.
    Raises UserError for a range that shows nothing, and where the device's memory is full.
    """
    check(low, high)
    options = job.recipe
    quiet = dataclasses.replace(options.train, lookahead=0, ema=0.0, compile="off")
    # A peak for small images would be another one.
    schedule = dataclasses.replace(options.schedule, first_size=0)
    recipe = dataclasses.replace(options, train=quiet, schedule=schedule)
    trainer = Trainer(dataclasses.replace(job, recipe=recipe, resume=False))
    growth = math.log(high / low) / max(steps - 1, 1)
    rates = [low * math.exp(growth * step) for step in range(steps)]
    trainer.factor = lambda step: rates[step] / recipe.optimizer.lr
    raw = in_memory(trainer, lambda: _losses(trainer, rates, say))
    losses = smoothed(raw)
    if len(losses) < 10:
        raise UserError(
            f"the loss was no number after {len(losses)} steps, at a rate of "
            f"{rates[len(losses)]:.2g}; set a lower --low"
        )
    return judged(rates[: len(losses)], losses, whole=len(losses) == len(rates))


def _losses(trainer: Trainer, rates: list[float], say: Callable[[str], None]) -> list[float]:
    """The loss of every step until it diverges, read back seldom."""
    steps = len(rates)
    waiting: list[torch.Tensor] = []
    found: list[float] = []
    trainer._train_mode()
    for step in range(steps):
        trainer.step()
        assert trainer.loss is not None
        waiting.append(trainer.loss)
        if len(waiting) == READ_EVERY or step + 1 == steps:
            found += torch.stack(waiting).tolist()
            waiting.clear()
            curve = smoothed(found)
            if len(curve) < len(found):
                break
            say(f"step {step + 1:,} of {steps:,}: rate {rates[step]:.2g}, loss {curve[-1]:.3f}")
    return found


def smoothed(raw: list[float]) -> list[float]:
    """The running mean of `raw`, without its bias to zero, cut off where it diverges."""
    mean, lowest = 0.0, math.inf
    found: list[float] = []
    for step, loss in enumerate(raw):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        value = mean / (1 - SMOOTHING ** (step + 1))
        if not math.isfinite(value) or value > TOO_MUCH * lowest:
            break
        lowest = min(lowest, value)
        found.append(value)
    return found


def judged(rates: list[float], losses: list[float], whole: bool) -> Found:
    """What a curve of smoothed losses over rates suggests.

    `whole`: it has all rates of the range, and was not cut off where it diverged. Raises UserError
    for one that never falls.
    """
    begin = min(BEGIN, len(losses) // 2)
    bottom = min(range(begin, len(losses)), key=losses.__getitem__)
    if losses[bottom] > (1 - LEAST_FALL) * losses[begin]:
        raise UserError(
            f"the loss did not fall at rates from {rates[0]:.2g} to {rates[-1]:.2g}; set more "
            "--steps, or another --low and --high"
        )
    slopes = [
        (losses[i + 1] - losses[i - 1]) / math.log(rates[i + 1] / rates[i - 1])
        for i in range(begin, bottom)
    ]
    steepest = rates[begin + min(range(len(slopes)), key=slopes.__getitem__)]
    near = len(losses) - bottom <= 1 / (1 - SMOOTHING)  # of which the running mean is
    falling = whole and near and losses[-1] <= (1 + LEAST_FALL) * losses[bottom]
    return Found(rates, losses, steepest, rates[bottom], rates[bottom] / 10, falling)


def draw(path: Path, title: str, found: Found) -> None:
    """Write the curve to `path` as a PNG. Raises UserError where the disk refuses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses)
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss, smoothed", title=title)
    for name, rate, style in (
        ("suggested peak", found.suggested, "-"),
        ("steepest", found.steepest, ":"),
        ("lowest loss", found.lowest, "--"),
    ):
        axes.axvline(rate, c="grey", ls=style, label=f"{name} {rate:.2g}")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=100)
