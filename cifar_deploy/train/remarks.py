"""What is told of a run: what it is about to do, what of that is doubtful, what came of it."""

from typing import TYPE_CHECKING

from cifar_deploy import cards
from cifar_deploy.data.doubts import worthless
from cifar_deploy.data.folder import VERIFIED
from cifar_deploy.device import describe
from cifar_deploy.disk import Json
from cifar_deploy.errors import UserError, few
from cifar_deploy.recipe import completed
from cifar_deploy.train.initial import IMAGENET

if TYPE_CHECKING:
    from cifar_deploy.train.loop import Trainer

FEW_STEPS = 500  # in all; of less than FEW_AN_EPOCH, the batch is large for the images
FEW_AN_EPOCH = 10


def plan(trainer: "Trainer") -> str:
    """What is about to run, in a line."""
    job, state = trainer.job, trainer.state
    options = job.recipe.train
    begun = f", from step {state.step} on" if state.step else ""
    begun = f", ended after step {state.step}" if job.finish else begun
    return (
        f"{job.network}: {len(trainer.train_split):,} images, {trainer.steps:,} steps in "
        f"{cards.in_epochs(options.epochs)}{begun}, seed {options.seed}, "
        f"{'bf16' if trainer.bf16 else 'fp32'} on {describe(job.device)}; "
        f"checkpoints in {job.folder.path}"
    )


def beforehand(trainer: "Trainer") -> list[str]:
    """A line for each thing that whoever starts this run would want to know."""
    drawn = [] if trainer.job.recipe.data.val else [_uneven(trainer), _leaky(trainer)]
    said = [*drawn, _unknown(trainer), _few(trainer), _replaced(trainer)]
    return [line for line in said if line]


def _uneven(trainer: "Trainer") -> str:
    """What is told of classes that the draw of the held-out images left without any on one side."""
    dataset, said = trainer.job.dataset, []
    if trainer.holdout and (lost := dataset.missing(trainer.holdout)):
        said.append(f"no image of {few(lost)} is held out")
    if trainer.holdout and (lost := dataset.missing(trainer.train_split)):
        said.append(f"all images of {few(lost)} are held out, and none is left to train on")
    if not said:
        return ""
    return f"{'; '.join(said)}: chance drew them from all {len(dataset.train):,} together"


def _leaky(trainer: "Trainer") -> str:
    """What is told of held-out images that are trained on: of one's own there may be copies."""
    if not trainer.holdout or trainer.job.dataset.verified != VERIFIED:
        return ""
    return worthless(trainer.train_split, trainer.holdout, "held-out images")


def _unknown(trainer: "Trainer") -> str:
    """What is told where weights may have been trained on the images held out, and none can say."""
    start = trainer.start
    if not (trainer.holdout and start) or trainer.state.step or start.origin == IMAGENET:
        return ""
    if start.data.get("sha256"):
        return ""
    return (
        f"what {trainer.job.init} was trained on is not known: if on these images, the accuracy of "
        "those held out is too high"
    )


def _few(trainer: "Trainer") -> str:
    """What is told of a run whose batches are large for its images."""
    if trainer.steps_per_epoch >= FEW_AN_EPOCH or trainer.steps >= FEW_STEPS:
        return ""
    recipe = trainer.job.recipe
    # With Muon --lr is not the filters' rate, and lowering it for small batches did harm.
    rate = "" if recipe.optimizer.name == "muon" else ", and --lr with it,"
    return (
        f"only {trainer.steps:,} steps of {recipe.train.batch_size} images: a smaller "
        f"--batch-size{rate} or more --epochs would train more"
    )


def _replaced(trainer: "Trainer") -> str:
    """What is told of a model in the run's folder that its command would not give again.

    A card is worth it alone: of the published ones not all have their weights beside them.
    """
    folder = trainer.job.folder
    if not folder.card.exists():
        return ""
    what = folder.weights if folder.weights.exists() else folder.card
    try:
        card = cards.card_of(folder)
        data, imported = card["data"], card.get("imported")
        if imported or data["sha256"] != trainer.data_sha256:
            told = f"of {imported['from'] if imported else data['name']}"
        elif _differs(trainer, card):
            length = cards.stopped(card) or f"after {cards.in_epochs(card['epochs'])}"
            told = f"{_accuracy(card)} {length} on {card['device']}"
        else:
            return ""
    except (UserError, KeyError, TypeError):  # nobody's, or damaged
        return ""
    return f"{what}, {told}, is replaced at the end; --out NEW-FOLDER keeps it"


def _differs(trainer: "Trainer", card: Json) -> bool:
    """Whether the run that made `card` was another one, by its recipe, device or beginning."""
    start = trainer.start.sha256 if trainer.start else None
    taught = [teacher.to_dict() for teacher in trainer.teachers]
    mine = (trainer.job.recipe.to_dict(), describe(trainer.job.device), start, taught)
    init, there = card.get("init", {}).get("sha256"), card.get("teachers", [])
    same = mine == (completed(card["recipe"]), card["device"], init, there)
    return not same or "stopped" in card


def ended(card: Json) -> str:
    """What a finished run came to, in a line, by its card."""
    early = f", {said}" if (said := cards.stopped(card)) else ""
    return f"{_accuracy(card)}{early}, {_seconds(card)} on {card['device']}"


def _accuracy(card: Json) -> str:
    """The accuracy of a card in words, with the mean where there are several seeds."""
    test = "test" if card["test_accuracy"] is not None else "holdout"
    images = card["test_images"] or card["data"]["holdout_images"]
    of = f"of {images:,} {'test' if test == 'test' else 'held-out'} images"
    accuracy = card.get(f"{test}_accuracy")
    if accuracy is None:
        return "not tested"
    mean = card.get(f"{test}_accuracy_mean")
    if mean is None:
        return f"{100 * accuracy:.2f} % {of}"
    spread = card[f"{test}_accuracy_std"]
    seeds = len(card["runs"])
    return f"{100 * mean:.2f} ± {100 * spread:.2f} % {of} ({seeds} seeds)"


def _seconds(card: Json) -> str:
    """The time of a card in words: training, and what came before it."""
    wall = card["wall_seconds"]
    said = f"{wall:.0f} s" if wall >= 100 else f"{wall:.2f} s"
    before = [
        f"{what} {card[key]:.1f} s"
        for what, key in (("data", "data_seconds"), ("warm-up", "warmup_seconds"))
        if card.get(key, 0) >= 0.05
    ]
    return said + (f" (before that {', '.join(before)})" if before else "")
