"""The recipe: how a network is trained, as plain frozen dataclasses read from TOML."""

import dataclasses
import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cifar_deploy.errors import UserError, disk_errors
from cifar_deploy.store import Json, ModelFolder, models_root, packaged_recipe


def number(default: float, low: float, high: float) -> Any:
    """A numeric field that must lie in [low, high]; an int default makes it whole."""
    return field(default=default, metadata={"low": low, "high": high})


def choice(default: str, *others: str) -> Any:
    """A text field that must be one of the named words."""
    return field(default=default, metadata={"words": (default, *others)})


def names(default: str, *others: str) -> Any:
    """A field that is one of the named words or a list of names."""
    return field(default=default, metadata={"either": (default, *others)})


@dataclass(frozen=True)
class Model:
    """What is trained, and what its weights are before the first step."""

    stem: str = choice("cifar", "imagenet")
    # dirac: convolutions begin as the identity; zero-gamma: torchvision's residual blocks do
    init: str = choice("default", "dirac", "zero-gamma")
    whiten: bool = False  # the first convolution begins as a whitening of the training images


@dataclass(frozen=True)
class Data:
    """What it is trained on."""

    # Training images kept back and judged after every epoch. The test set is not looked at then.
    holdout: int = number(0, 0, 1_000_000)
    test: bool = True  # look at the test images, once, at the end


@dataclass(frozen=True)
class Finetune:
    """What is different for weights that `--init` brings; of no use without it."""

    # What stays as it is: none, all-but-last-block, all-but-classifier, or names of modules.
    freeze: str | tuple[str, ...] = names("none", "all-but-last-block", "all-but-classifier")
    lr_factor: float = number(1.0, 0.0, 1.0)  # of the rate, for what was pretrained
    depth_factor: float = number(1.0, 0.01, 1.0)  # once more for each block away from the end


@dataclass(frozen=True)
class Distill:
    """What is learnt from the answers of trained models. Hinton et al. 2015, arXiv:1503.02531."""

    # Names or folders of trained models: the mean of their answers to the same image is a target.
    teachers: str | tuple[str, ...] = names("none")
    weight: float = number(0.9, 0.0, 1.0)  # share of the loss that goes by them, not by the labels
    temperature: float = number(4.0, 0.1, 100.0)  # what both's logits are divided by


@dataclass(frozen=True)
class Augment:
    """What is done to a training batch, on the device."""

    flip: bool = True  # left-right, one image in two
    translate: int = number(4, 0, 16)  # up to so many pixels each way
    border: str = choice("reflect", "zero")  # what a translation brings in
    cutout: int = number(0, 0, 32)  # side of the square painted over with the mean colour
    brightness: float = number(
        0.0, 0.0, 1.0
    )  # jitter factors from 1 - x to 1 + x, as torchvision's
    contrast: float = number(0.0, 0.0, 1.0)
    saturation: float = number(0.0, 0.0, 1.0)
    alternate: bool = False  # with flip: at random once, then the other way round every epoch
    mixup: float = number(0.0, 0.0, 100.0)  # alpha of the Beta distribution of shares; 0: none
    cutmix: float = number(0.0, 0.0, 100.0)  # the same; with both, a batch gets either
    mix_rate: float = number(1.0, 0.0, 1.0)  # share of the batches that are mixed


@dataclass(frozen=True)
class Train:
    """The run."""

    epochs: int = number(16, 1, 10_000)
    batch_size: int = number(512, 1, 65_536)
    seed: int = number(0, 0, 2**31 - 1)
    label_smoothing: float = number(0.1, 0.0, 0.9)
    ema: float = number(0.99, 0.0, 0.99999)  # decay a step of the averaged weights; 0 turns it off
    lookahead: int = number(0, 0, 1000)  # go back to the slow weights every so many steps; 0: never
    precision: str = choice("auto", "bf16", "fp32")  # auto: bf16 where that is faster
    # torch.compile; auto: on CUDA, for longer runs; max: it also tries which kernels are fastest
    compile: str = choice("auto", "on", "max", "off")
    storage: str = choice(
        "fp32", "fp16"
    )  # of the convolutions and linear layers written at the end


@dataclass(frozen=True)
class Optimizer:
    """The optimiser. Weight decay leaves norms and biases alone."""

    # sgd: with Nesterov momentum; muon: the same, and Muon for the convolutions' filters
    name: str = choice("sgd", "adamw", "muon")
    lr: float = number(0.4, 1e-8, 100.0)  # the peak
    momentum: float = number(0.9, 0.0, 0.9999)  # sgd's momentum, adamw's beta 1
    weight_decay: float = number(5e-4, 0.0, 10.0)
    norm_bias_factor: float = number(1.0, 0.0, 1000.0)  # of the rate, for the batch norms' biases
    muon_lr: float = number(0.24, 1e-8, 100.0)  # the peak for the filters
    muon_momentum: float = number(0.6, 0.0, 0.9999)


@dataclass(frozen=True)
class Schedule:
    """How the learning rate moves, step by step."""

    name: str = choice("triangular", "onecycle", "cosine")
    warmup: float = number(0.2, 0.0, 0.9)  # share of the run in which the rate rises to its peak
    # Images begin with so many pixels a side and grow by eights, to their own size after the share
    # `grown` of the run; 0: they always have their own.
    first_size: int = number(0, 0, 32)
    grown: float = number(0.6, 0.0, 1.0)


@dataclass(frozen=True)
class Recipe:
    """All there is to set, in the sections of `recipe.toml`."""

    model: Model = Model()
    data: Data = Data()
    augment: Augment = Augment()
    train: Train = Train()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    finetune: Finetune = Finetune()
    distill: Distill = Distill()

    def to_dict(self) -> Json:
        """Sections of plain values: what JSON and `parse` take."""
        return {
            section: {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
            for section, values in dataclasses.asdict(self).items()
        }


def parse(table: Json, where: str) -> Recipe:
    """A recipe from sections of values, all of them checked; what is absent has its default.

    `where` names the source in messages. Raises UserError for an unknown section or key (with the
    nearest name), a value of the wrong type, out of range or not among the words.
    """
    sections: dict[str, Any] = {}
    known = {section.name: section for section in fields(Recipe)}
    for name, values in table.items():
        section = known.get(name)
        if section is None:
            raise UserError(f"{where}: no section [{name}]; {_nearest(name, list(known))}")
        if not isinstance(values, dict):
            raise UserError(f"{where}: {name} must be a section, [{name}]")
        # A section's default is an instance of its dataclass.
        sections[name] = _section(type(section.default), name, values, where)
    return Recipe(**sections)


def completed(table: Any) -> Any:
    """The recipe that an earlier version wrote, with defaults for what that one did not know.

    `table` as it is where it is no recipe, or none any more.
    """
    if not isinstance(table, dict):
        return table
    try:
        return parse(table, "recipe").to_dict()
    except UserError:
        return table


def _section(kind: type[Any], section: str, values: Json, where: str) -> Any:
    known = {f.name: f for f in fields(kind)}
    checked = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{where}: no key {section}.{key}; {_nearest(key, list(known))}")
        checked[key] = _value(known[key], f"{where}: {section}.{key}", value)
    return kind(**checked)


def _value(spec: dataclasses.Field[Any], where: str, value: Any) -> Any:
    if spec.type is bool:
        if not isinstance(value, bool):
            raise UserError(f"{where} is {value!r}; it is true or false")
        return value
    if words := spec.metadata.get("words"):
        if value not in words:
            raise UserError(f"{where} is {value!r}; it is one of {', '.join(words)}")
        return value
    if words := spec.metadata.get("either"):
        listed = isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)
        if not listed and value not in words:
            raise UserError(f"{where} is {value!r}; it is {', '.join(words)} or a list of names")
        return tuple(value) if listed else value
    low, high = spec.metadata["low"], spec.metadata["high"]
    whole = spec.type is int
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise UserError(f"{where} is {value!r}; it is a {'whole ' if whole else ''}number")
    if not low <= value <= high:  # also refuses nan
        raise UserError(f"{where} is {value}; it lies between {low:g} and {high:g}")
    return value if whole else float(value)


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def read(path: Path) -> Json:
    """The table in a TOML file. Raises UserError where it cannot be read or is no TOML."""
    with disk_errors(path, "read"):
        raw = path.read_bytes()
    try:
        return tomllib.loads(raw.decode())
    except ValueError as error:  # also bytes that are no UTF-8, and numbers without end
        raise UserError(f"{path} is not valid TOML: {error}") from error


def recipe_path(folder: ModelFolder, network: str) -> Path | None:
    """The recipe used for `network`.

    The folder's own, else that among the models, else the one that came with the program.
    """
    for candidate in (folder.recipe, ModelFolder(models_root() / network).recipe):
        if candidate.is_file():
            return candidate
    return packaged_recipe(network)


def find(wish: str | Path | None, folder: ModelFolder, network: str) -> Path | None:
    """The recipe that a user asked for: a file, or a word for a second recipe of `network`.

    "speed" is `speed.toml` beside `recipe.toml`. None is the network's own. Raises UserError for a
    word that no file has.
    """
    if wish is None:
        return recipe_path(folder, network)
    if not is_word(wish):
        return Path(wish)
    file = f"{wish}.toml"
    places = [folder.path / file, models_root() / network / file]
    if own := packaged_recipe(network):
        places.append(own.with_name(file))
    for candidate in places:
        if candidate.is_file():
            return candidate
    there = {path.stem for place in places for path in place.parent.glob("*.toml")}
    others = ", ".join(sorted(there - {"recipe"})) or "it has only its own, without --recipe"
    raise UserError(
        f"--recipe {wish}: {network} has no {wish}.toml; name a file or another recipe ({others})"
    )


def is_word(wish: str | Path) -> bool:
    """Whether `wish` is a word for a recipe and not a path."""
    return str(wish).replace("-", "").replace("_", "").isalnum()


def load(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` (None: all defaults), with `section.key=value` overrides laid over it.

    A value is read as TOML, and where it is none as a bare word. Raises UserError as `parse` does.
    """
    recipe = parse(read(path), str(path)) if path else Recipe()
    table = recipe.to_dict()
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and key):
            raise UserError(
                f"--set {override}: write it as section.key=value, as in train.epochs=3"
            )
        try:
            (value,) = tomllib.loads(f"value = {text}").values()
        except ValueError:
            value = text.strip()
        parse({section: {key: value}}, f"--set {override}")
        table[section][key] = value
    return parse(table, "recipe")
