"""Which models there are, and what their cards say of them."""

from cifar_deploy import architectures, cards, disk, store
from cifar_deploy.data import cifar10
from cifar_deploy.errors import UserError
from cifar_deploy.models.compare import MEASURES

COST = ("epochs", "wall_seconds")  # of a run, by its card or in the card of the next one


def overview() -> list[disk.Json]:
    """Every network, then every other model: what its card says of its training, exported files.

    `training` is "running" or "stopped" where one has not ended; there need not be a card then.
    `model` is the folder's name. `test_accuracy` and `holdout_accuracy` are shares, None where
    those images did not judge; `_mean` and `_std` are of several seeds. `chain` are the epochs and
    seconds of the runs that led to its weights, one after the other, where they are known. `stale`
    are the exported files of other weights than its own, `damaged` is what is wrong with the card,
    whose values are then missing.
    """
    root = store.models_root()
    others = [f for f in store.model_folders() if f.name not in architectures.NETWORKS]
    return [
        *(_entry(store.ModelFolder(root / name), name) for name in architectures.NETWORKS),
        *(
            one
            for one in map(_entry, others)
            if one["training"] or (one["weights"] and (one["network"] or one["damaged"]))
        ),
    ]


def _entry(folder: store.ModelFolder, name: str | None = None) -> disk.Json:
    card: disk.Json = {}
    damaged = None
    try:
        card = cards.card_of(folder)
    except UserError as error:
        damaged = str(error)
    named = name or card.get("network")
    known = named if named in architectures.NETWORKS else None
    data = card.get("data", {})
    classes = len(data.get("classes", cifar10.CLASSES))
    exported = folder.exported()
    return {
        "model": folder.name,
        "network": known,
        "aliases": [a for a, target in architectures.ALIASES.items() if target == folder.name],
        "parameters": card.get("parameters") or (_parameters(known, classes) if known else None),
        "data": data.get("name"),
        **{f"{m}{of}": card.get(f"{m}{of}") for m in MEASURES for of in ("", "_mean", "_std")},
        "seeds": len(card.get("runs", [None])) if card else None,
        "epochs": card.get("epochs"),
        "stopped": card.get("stopped"),
        "training": store.training(folder),
        "wall_seconds": card.get("wall_seconds"),
        "device": card.get("device"),
        "command": _command(card),
        "init": card.get("init"),
        "chain": _chain(card),
        "damaged": damaged,
        "weights": folder.weights.exists(),
        "exported": [path.name for path in exported],
        "stale": [path.name for path in exported if cards.stale(path, card)],
    }


def _command(card: disk.Json) -> str | None:
    """A card's command, with the weights that it began with and its teachers by their sha256."""
    if command := card.get("command"):
        begun = card.get("init", {}).get("sha256")
        command = cards.pinned(command, begun, card.get("teachers", []))
    return command


def _chain(card: disk.Json) -> list[disk.Json] | None:
    """The runs that led to a card's weights, the first one first; None where one is not known."""
    runs: list[disk.Json] = []
    for run in cards.runs_of(card):
        cost = {key: run.get(key) for key in COST}
        if not all(map(disk.is_number, cost.values())):
            return None
        if run.get("stopped"):
            cost["stopped"] = run["stopped"]
        runs.insert(0, cost)
    return runs


def _parameters(name: str, classes: int) -> int:
    import torch  # seconds, where all others' are in their cards

    with torch.device("meta"):
        return sum(p.numel() for p in architectures.build(name, classes).parameters())
