"""What a model's card says: of its weights, of the runs that they come from, of what to do."""

import contextlib
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cifar_deploy.disk import Json, is_number, read_json, sha256_of
from cifar_deploy.errors import UserError
from cifar_deploy.store import (
    ModelFolder,
    manifest_path,
    models_place,
    models_root,
    packaged_recipe,
    training,
)


def stale(file: Path, card: Json) -> bool:
    """Whether the manifest of an exported file names other weights than the model's card.

    False where either says nothing of them, or the manifest cannot be read.
    """
    named = None
    with contextlib.suppress(UserError):
        named = read_json(manifest_path(file)).get("weights_sha256")
    made = named_weights(card)
    return bool(named and made) and named != made


def way_to_weights(folder: ModelFolder) -> str:
    """What a user does about a model that is not trained here, for the end of an error."""
    if (state := training(folder)) == "running":
        return "its training has not ended: it is running, wait for it"
    if state:
        return f"its training has not ended: give its command again, with --resume ({folder.path})"
    card = card_of(folder)
    if command := card.get("command"):
        return f"its card says how to {'make' if 'imported' in card else 'train'} it: {command}"
    known = packaged_recipe(folder.name) is not None
    run = f"run: cifar-deploy train {folder.name if known else 'NETWORK'}"
    if not known or folder.path.parent != models_root():
        return f"{run} --out {shlex.quote(str(folder.path))}"
    return run if models_root().is_dir() else f"{run}\nThe models are sought in {models_place()}"


# What a card's values are, where it has them: sections, then what is in them.
NUMBER = (int, float)
SHARES = ("_accuracy", "_accuracy_mean")  # from 0 to 1
CARD_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("data", "recipe", "recipe.model", "init", "imported", "stopped"), dict),
    "classes": dict,
    **dict.fromkeys(("network", "command", "device", "stem", "recipe.model.stem"), str),
    **dict.fromkeys(("data.name", "data.verified", "data.sha256", "data.origin"), str),
    "data.test_sha256": str,
    **dict.fromkeys(("init.from", "init.sha256", "imported.from"), str),
    **dict.fromkeys(("test_accuracy", "test_accuracy_mean", "test_accuracy_std"), NUMBER),
    **dict.fromkeys(("holdout_accuracy", "holdout_accuracy_mean", "holdout_accuracy_std"), NUMBER),
    **dict.fromkeys(
        ("epochs", "wall_seconds", "train_seconds", "parameters", "test_images"), NUMBER
    ),
    **dict.fromkeys(("stopped.step", "stopped.steps"), NUMBER),
    **dict.fromkeys(("data.holdout_images", "seed"), NUMBER),
    **dict.fromkeys(("runs", "history", "teachers", "teachers_from", "data.classes"), list),
    **dict.fromkeys(("data.mean", "data.std"), list),
}
# What is in its lists, and for each of `classes`: images answered right, and all.
ELEMENTS: dict[str, Callable[[Any], bool]] = {
    "classes": lambda one: isinstance(one, list) and len(one) == 2 and all(map(is_number, one)),
    **dict.fromkeys(("runs", "history"), lambda one: isinstance(one, dict)),
    "teachers": lambda one: isinstance(one, dict) and isinstance(one.get("model"), str),
    **dict.fromkeys(("teachers_from", "data.classes"), lambda one: isinstance(one, str)),
    **dict.fromkeys(("data.mean", "data.std"), is_number),
}


def _fits(name: str, kind: type | tuple[type, ...], value: Any) -> bool:
    """Whether the value of that name can be one of a card."""
    if kind is NUMBER:
        return is_number(value) and (not name.endswith(SHARES) or 0 <= value <= 1)
    return isinstance(value, kind) and all(map(ELEMENTS.get(name, lambda _: True), _in(value)))


def _in(value: Any) -> list[Any]:
    """What is in a list or a section."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def card_of(folder: ModelFolder) -> Json:
    """What the folder's card says; empty where there is none. A section of null is left out.

    Raises UserError where it cannot be read or a value is of another kind.
    """
    if not folder.card.exists():
        return {}
    if folder.card.is_fifo():  # of all models one would be waited for
        raise UserError(f"{folder.card} is a pipe; restore the file or train again")
    card = read_json(folder.card)
    _check(folder.card, card, CARD_KINDS)
    _, *earlier = runs_of(card)
    for run in earlier:
        _check(folder.card, run, ("teachers", "teachers_from"))
    return card


def _check(file: Path, card: Json, names: Iterable[str]) -> None:
    """Raise UserError where one of these values, of a card or a run in it, is of another kind."""
    for name in names:
        kind = CARD_KINDS[name]
        *sections, key = name.split(".")
        holder: Json = card
        for section in sections:
            holder = holder.get(section, {})
        value = holder.get(key)
        if value is None:
            if kind in (dict, list):
                holder.pop(key, None)
        elif not _fits(name, kind, value):
            said = f"{name} cannot be {json.dumps(value)[:40]}"
            raise UserError(f"{file}: {said}; restore it or train again")


def runs_of(card: Json) -> Iterator[Json]:
    """A card, and what it says of each earlier run that its weights come from, the latest first.

    Of one that a card names and says nothing of, the last is empty.
    """
    yield card
    while (init := card.get("init")) is not None:
        yield (card := init if isinstance(init, dict) else {})


PIN, LEAST_PIN = 12, 8  # digits of a sha256 behind an @: told, and given at the least


def split_pin(name: str) -> tuple[str, str]:
    """The model or file that `name` names, and the beginning of a sha256 behind an @, if any.

    What exists is a path, whatever it is called.
    """
    named, _, sha256 = name.rpartition("@")
    digits = re.fullmatch(f"[0-9a-fA-F]{{{LEAST_PIN},64}}", sha256)
    if not named or not digits or Path(name).exists():
        return name, ""
    return named, sha256.lower()


def pinned(command: str, begun_with: str | None, teachers: Sequence[Json]) -> str:
    """A `train` command as it is followed later, when the names may stand for other weights.

    Those that it began with get the beginning of their sha256, `begun_with`; so do the teachers,
    `{"model", "sha256"}` each, which a recipe may have named.
    """
    if not begun_with and not teachers:
        return command
    try:
        words = shlex.split(command)
    except ValueError:  # no command of ours
        return command
    made: list[str] = []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option not in ("--init", "--teacher"):
            made.append(word)
            continue
        value = value if equals else next(rest, "")
        if option == "--init":
            value = _pin(value, begun_with)
        elif teachers:
            continue
        made += [f"{option}={value}"] if equals else [option, value]
    for teacher in teachers:
        made += ["--teacher", _pin(str(teacher.get("model")), teacher.get("sha256"))]
    return shlex.join(made)


def _pin(name: str, sha256: str | None) -> str:
    """`name`, and behind an @ the beginning of `sha256`, where that does not stand there."""
    behind = name.rpartition("@")[2].lower()
    there = len(behind) >= LEAST_PIN and (sha256 or "").startswith(behind)
    return name if not sha256 or there or name == "imagenet" else f"{name}@{sha256[:PIN]}"


def begun(card: Json) -> str | None:
    """The weights of others that the first run of a card's chain began with; None: with chance.

    Such are torchvision's, what `import` took, and files of which nothing is known.
    """
    *later, first = runs_of(card)
    if "imported" in first:
        first = first["imported"]
    elif not later or "command" in first:
        return None
    return str(first.get("from", "weights that their card does not name"))


def taught_from(card: Json) -> list[str]:
    """The weights of others that the teachers of a card's chain go back to."""
    return [origin for run in runs_of(card) for origin in run.get("teachers_from", [])]


def stopped_epoch(run: Json) -> int | None:
    """The epoch in which a run was ended before its last step; None for a whole one.

    `run` is its card, or what another one's `init` says of it.
    """
    where, epochs = run.get("stopped"), run.get("epochs")
    if not (isinstance(where, dict) and is_number(epochs)):
        return None
    step, steps = where.get("step"), where.get("steps")
    if not (is_number(step) and is_number(steps) and steps > 0):
        return None
    return math.ceil(step * epochs / steps)


def stopped(run: Json) -> str:
    """The same in words; "" for a whole run."""
    epoch = stopped_epoch(run)
    return f"stopped at epoch {epoch} of {run['epochs']}" if epoch else ""


def in_epochs(*numbers: int) -> str:
    """So many epochs, in words; those of several runs are added."""
    return f"{' + '.join(map(str, numbers))} epoch{'s' if sum(numbers) > 1 else ''}"


def named_weights(card: Json) -> Any:
    """The sha256 of the weights that a card names; None where it names none."""
    named = card.get("weights")
    return named.get("sha256") if isinstance(named, dict) else None


def read_card(folder: ModelFolder, raw: bytes | None = None) -> Json:
    """The card of a trained model, whose `weights` have the sha256 and the bytes of the file.

    `raw`: the file's bytes, where they have been read and will be used. Raises UserError where the
    file is not the one that it names.
    """
    if raw is None and not folder.weights.exists():
        raise UserError(f"{folder.path} has no trained weights; {way_to_weights(folder)}")
    if not folder.card.exists():
        raise UserError(f"{folder.weights} has no card.json beside it; train again")
    card = card_of(folder)
    if named_weights(card) != sha256_of(folder.weights if raw is None else raw):
        raise UserError(
            f"{folder.weights} does not match {folder.card.name} (sha256 differs): "
            "the weights were changed or cut short; train again or restore them"
        )
    card["weights"]["bytes"] = folder.weights.stat().st_size if raw is None else len(raw)
    return card
