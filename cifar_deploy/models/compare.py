"""What differs between trained models, by their cards; the weights need not be there."""

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from cifar_deploy import architectures, cards, disk, store
from cifar_deploy.errors import UserError
from cifar_deploy.recipe import completed

MEASURES = ("test_accuracy", "holdout_accuracy")  # models are judged by the first that both have
SEEDS = "_of_seeds"  # behind a measure: its mean and spread
NOT_TWICE = ("train.epochs", "train.seed", "distill.teachers")  # the card says them by itself
Z975 = NormalDist().inv_cdf(0.975)  # two-sided 95 %
ANGLES = 100_000  # that an integral is a sum of: Student's quantiles are right to four digits


def compare(models: Sequence[str]) -> disk.Json:
    """What differs between `models`, two or more names or folders, and how their accuracies do.

    `rows` has a list of the models' values, in their order, for all that is not the same in all:
    facts of the card, then keys of the recipe; and always `test_accuracy`, as a share, with the
    number of images. None is what a card does not say; where it has no recipe, its keys do not
    count as different. `judgements` are of every other model against the first one.

    Raises UserError as `architectures.folder` does, for a model without a card or with a damaged
    one, and for one that is named twice.
    """
    folders = [architectures.folder(model) for model in models]
    places: dict[str, str] = {}
    for model, folder in zip(models, folders, strict=True):
        if twin := places.get(place := str(folder.path.resolve())):
            raise UserError(f"{twin} and {model} are the same model; name two that differ")
        places[place] = model
        if not folder.card.exists():
            way = cards.way_to_weights(folder)
            raise UserError(f"{folder.path} has no {store.CARD} to compare; {way}")
    read = [cards.card_of(folder) for folder in folders]
    facts, data = [_facts(card) for card in read], [card.get("data", {}) for card in read]
    return {
        "models": list(models),
        "rows": _rows(facts),
        "judgements": [
            {"model": model, "against": models[0], **_judge(facts[0], other, data[0], its)}
            for model, other, its in zip(models[1:], facts[1:], data[1:], strict=True)
        ],
    }


def _facts(card: disk.Json) -> disk.Json:
    """What is compared of a card, in the order in which it is told."""
    runs = card.get("runs", [])
    data, weights = card.get("data", {}), card.get("weights")
    facts: disk.Json = {}
    images = (card.get("test_images"), data.get("holdout_images"))
    for measure, count in zip(MEASURES, images, strict=True):
        accuracy = card.get(measure)
        facts[measure] = None if accuracy is None else {"accuracy": accuracy, "images": count}
        mean, std = card.get(f"{measure}_mean"), card.get(f"{measure}_std")
        several = mean is not None and std is not None
        of_seeds = {"mean": mean, "std": std, "seeds": len(runs)}
        facts[measure + SEEDS] = of_seeds if several else None
    size = weights.get("bytes") if isinstance(weights, dict) else None
    teachers = card.get("teachers", [])
    return {
        **facts,
        **{key: card.get(key) for key in ("network", "parameters", "epochs")},
        "stopped": cards.stopped(card) or None,
        "seeds": [run.get("seed") for run in runs or [card]],
        "init": _of(card.get("init"), "from", "sha256"),
        "imported": _of(card.get("imported"), "from", "sha256"),
        "teachers": [_of(teacher, "model", "sha256") for teacher in teachers] or None,
        "data": _of(data, "name", "sha256"),
        "val": {"from": "val", "sha256": val} if (val := data.get("val_sha256")) else None,
        **{key: card.get(key) for key in ("device", "precision", "compiled")},
        **{key: card.get(key) for key in ("train_seconds", "wall_seconds")},
        "bytes": size if disk.is_number(size) else None,
        **({"model.stem": card["stem"]} if card.get("stem") else {}),  # of imported weights
        **{key: v for key, v in _keys(completed(card.get("recipe"))) if key not in NOT_TWICE},
    }


def _of(section: disk.Json | None, *keys: str) -> disk.Json | None:
    return {key: section.get(key) for key in keys} if section else None


def _keys(recipe: Any) -> Iterator[tuple[str, Any]]:
    """The values of a recipe by the names that `--set` has for them."""
    for section, values in (recipe or {}).items():
        for key, value in values.items() if isinstance(values, dict) else ():
            yield f"{section}.{key}", value


def _rows(facts: Sequence[disk.Json]) -> dict[str, list[Any]]:
    told = {}
    untested = any(one["test_accuracy"] is None for one in facts)
    for key in dict.fromkeys(key for one in facts for key in one):
        known = [one[key] for one in facts if key in one]
        differs = any(value != known[0] for value in known)
        if key.startswith("holdout_accuracy"):
            shown = untested and any(known)
        else:
            shown = differs or key == "test_accuracy"
        if shown:
            told[key] = [one.get(key) for one in facts]
    return told


def _judge(
    first: disk.Json, other: disk.Json, first_data: disk.Json, other_data: disk.Json
) -> disk.Json:
    """How far `other` is from `first`, in points of accuracy, and what chance is in that.

    The data are what their cards say of it. `measure` is None where they were not judged by the
    same images. `spread_points` are the deviations of `first`'s and `other`'s seeds; where both are
    known the difference is that of the means, and `half_width_points` that of Welch's 95 %
    interval. Else it is that of Agresti and Caffo's, if the images were independent, which does not
    shrink to nothing where all are right (Agresti and Caffo 2000, The American Statistician
    54:280-288).
    """
    result: disk.Json = {
        **dict.fromkeys(("measure", "images", "difference_points", "half_width_points")),
        "seeds": [len(one["seeds"]) for one in (first, other)],
        "spread_points": [None, None],
    }
    measure = next((m for m in MEASURES if first[m] and other[m]), None)
    # Training images that were added in between leave the test images what they were.
    both = "test_sha256" in first_data and "test_sha256" in other_data
    which = "test_sha256" if measure == MEASURES[0] and both else "sha256"
    data = [first_data.get(which), other_data.get(which)]
    if measure is None or data[0] is None or data[0] != data[1]:
        return result
    images = {one[measure]["images"] for one in (first, other)}
    if len(images) > 1 or (measure == MEASURES[1] and first["val"] != other["val"]):
        return result
    count = images.pop()
    seeds = [one[measure + SEEDS] for one in (first, other)]
    result |= {"measure": measure, "images": count}
    result["spread_points"] = [100 * one["std"] if one else None for one in seeds]
    if all(seeds):
        result["difference_points"] = 100 * (seeds[1]["mean"] - seeds[0]["mean"])
        stds = [one["std"] for one in seeds]
        if (half := _welch(stds, result["seeds"])) is not None:
            result["half_width_points"] = 100 * half
        return result
    shares = [one[measure]["accuracy"] for one in (first, other)]
    result["difference_points"] = 100 * (shares[1] - shares[0])
    if count:
        shares = [(share * count + 1) / (count + 2) for share in shares]
        variance = sum(share * (1 - share) / (count + 2) for share in shares)
        result["half_width_points"] = 100 * Z975 * math.sqrt(variance)
    return result


def _welch(stds: Sequence[float], seeds: Sequence[int]) -> float | None:
    """Half the width of the 95 % interval of a difference of two means (Welch 1947, Biometrika 34).

    None where the deviations are of too few seeds, or are nothing.
    """
    if min(seeds) < 2:
        return None
    parts = [std**2 / count for std, count in zip(stds, seeds, strict=True)]
    variance = sum(parts)
    if not (variance**2):
        return None
    weights = sum(part**2 / (count - 1) for part, count in zip(parts, seeds, strict=True))
    return _student(variance**2 / weights) * math.sqrt(variance)


def _student(freedom: float) -> float:
    """The 97.5 % quantile of Student's t.

    With t = sqrt(freedom) tan(a) the angle a has a density proportional to cos(a) ** (freedom - 1).
    """
    angles = (np.arange(ANGLES) + 0.5) * (math.pi / 2 / ANGLES)
    shares = np.cumsum(np.cos(angles) ** (freedom - 1))
    place = int(np.searchsorted(shares, 0.95 * shares[-1]))
    return math.sqrt(freedom) * math.tan(angles[place])
