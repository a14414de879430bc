"""The recipe: how a network is trained, as plain frozen dataclasses read from TOML."""

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cifar_deploy.disk import Json, read_json
from cifar_deploy.errors import UserError, disk_errors, is_plain
from cifar_deploy.store import ModelFolder, models_root, packaged_recipe


def number(default: float, low: float, high: float, help: str = "") -> Any:
    """A numeric field that must lie in [low, high]; an int default makes it whole.

    `help`, here and below, is its meaning where the name does not say it.
    """
    return field(default=default, metadata={"low": low, "high": high, "help": help})


def choice(default: str, *others: str, help: str = "") -> Any:
    """A text field that must be one of the named words."""
    return field(default=default, metadata={"words": (default, *others), "help": help})


def names(default: str, *others: str, help: str = "") -> Any:
    """A field that is one of the named words or a list of names."""
    return field(default=default, metadata={"either": (default, *others), "help": help})


def flag(default: bool, help: str = "") -> Any:
    """A field that is true or false."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Model:
    """What is trained, and what its weights are before the first step."""

    stem: str = choice("cifar", "imagenet")
    init: str = choice(
        *("default", "dirac", "zero-gamma"),
        help="dirac: convolutions begin as the identity; "
        "zero-gamma: torchvision's residual blocks do",
    )
    whiten: bool = flag(False, "the first convolution begins as a whitening of the training images")


@dataclass(frozen=True)
class Data:
    """What it is trained on."""

    holdout: int = number(
        *(0, 0, 1_000_000),
        help="training images kept back and judged after every epoch; "
        "the test set is not looked at then",
    )
    val: bool = flag(False, "judge the images in val/ of a folder so instead")
    test: bool = flag(True, "look at the test images, once, at the end")


@dataclass(frozen=True)
class Finetune:
    """What is different for weights that `--init` brings; of no use without it."""

    freeze: str | tuple[str, ...] = names(
        *("none", "all-but-last-block", "all-but-classifier"),
        help="what stays as it is; the names are of modules",
    )
    lr_factor: float = number(1.0, 0.0, 1.0, "of the rate, for what was pretrained")
    depth_factor: float = number(1.0, 0.01, 1.0, "once more for each block away from the end")


@dataclass(frozen=True)
class Distill:
    """What is learnt from the answers of trained models. Hinton et al. 2015, arXiv:1503.02531."""

    teachers: str | tuple[str, ...] = names(
        "none",
        help="of trained models, or their folders: "
        "the mean of their answers to the same image is a target",
    )
    weight: float = number(0.9, 0.0, 1.0, "share of the loss that goes by them, not by the labels")
    temperature: float = number(4.0, 0.1, 100.0, "what both's logits are divided by")


@dataclass(frozen=True)
class Augment:
    """What is done to a training batch, on the device."""

    flip: bool = flag(True, "left-right, one image in two")
    translate: int = number(4, 0, 16, "up to so many pixels each way")
    border: str = choice("reflect", "zero", help="what translation, rotation and scale bring in")
    cutout: int = number(0, 0, 32, "side of the square painted over with the mean colour")
    brightness: float = number(
        0.0, 0.0, 1.0, "jitter factors from 1 - x to 1 + x, as torchvision's"
    )
    contrast: float = number(0.0, 0.0, 1.0, "the same")
    saturation: float = number(0.0, 0.0, 1.0, "the same")
    vertical_flip: bool = flag(False, "top-bottom, one image in two")
    rotate: float = number(0.0, 0.0, 180.0, "up to so many degrees each way")
    scale: float = number(0.0, 0.0, 0.9, "zoom by factors from 1 - x to 1 + x")
    policy: str = choice(
        *("none", "trivial"),
        help="trivial: TrivialAugment, each image changed in one way of 14 at a strength of chance",
    )
    alternate: bool = flag(False, "with flip: at random once, then the other way round every epoch")
    mixup: float = number(0.0, 0.0, 100.0, "alpha of the Beta distribution of shares; 0: none")
    cutmix: float = number(0.0, 0.0, 100.0, "the same; with both, a batch gets either")
    mix_rate: float = number(1.0, 0.0, 1.0, "share of the batches that are mixed")


@dataclass(frozen=True)
class Train:
    """The run."""

    epochs: int = number(16, 1, 10_000)
    batch_size: int = number(512, 1, 65_536)
    seed: int = number(0, 0, 2**31 - 1)
    label_smoothing: float = number(0.1, 0.0, 0.9)
    class_weights: str = choice(
        *("none", "balanced"),
        help="of the labels' loss; balanced: every class counts as much, "
        "however few of the training images it has",
    )
    ema: float = number(0.99, 0.0, 0.99999, "decay a step of the averaged weights; 0 turns it off")
    lookahead: int = number(0, 0, 1000, "go back to the slow weights every so many steps; 0: never")
    precision: str = choice("auto", "bf16", "fp32", help="auto: bf16 where that is faster")
    compile: str = choice(
        *("auto", "on", "max", "off"),
        help="torch.compile; auto: on CUDA, for longer runs; "
        "max: it also tries which kernels are fastest",
    )
    storage: str = choice(
        "fp32", "fp16", help="of the convolutions and linear layers written at the end"
    )


@dataclass(frozen=True)
class Optimizer:
    """The optimiser. Weight decay leaves norms and biases alone."""

    name: str = choice(
        *("sgd", "adamw", "muon"),
        help="sgd: with Nesterov momentum; muon: the same, and Muon for the convolutions' filters",
    )
    lr: float = number(0.4, 1e-8, 100.0, "the peak")
    momentum: float = number(0.9, 0.0, 0.9999, "sgd's momentum, adamw's beta 1")
    weight_decay: float = number(5e-4, 0.0, 10.0)
    norm_bias_factor: float = number(1.0, 0.0, 1000.0, "of the rate, for the batch norms' biases")
    muon_lr: float = number(0.24, 1e-8, 100.0, "the peak for the filters")
    muon_momentum: float = number(0.6, 0.0, 0.9999)


@dataclass(frozen=True)
class Schedule:
    """How the learning rate moves, step by step."""

    name: str = choice("triangular", "onecycle", "cosine")
    warmup: float = number(0.2, 0.0, 0.9, "share of the run in which the rate rises to its peak")
    first_size: int = number(
        *(0, 0, 32),
        help="images begin with so many pixels a side and grow by eights, "
        "to their own size after the share `grown` of the run; 0: they always have their own",
    )
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

    def to_toml(self) -> str:
        """TOML of which `load` makes this recipe: every key, and in a comment what it can be."""
        lines = []
        for section in fields(self):
            values = getattr(self, section.name)
            lines.append(f"[{section.name}]  # {type(values).__doc__}")
            lines += [_line(spec, getattr(values, spec.name)) for spec in fields(values)]
            lines.append("")
        return "\n".join(lines)


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
            raise UserError(f"{where} is {value!r}; it is {_range(spec)}")
        return value
    if words := spec.metadata.get("words"):
        if value not in words:
            raise UserError(f"{where} is {value!r}; it is one of {_range(spec)}")
        return value
    if words := spec.metadata.get("either"):
        listed = isinstance(value, list) and value and all(map(_is_name, value))
        if not listed and value not in words:
            raise UserError(f"{where} is {value!r}; it is {_range(spec)}")
        return tuple(value) if listed else value
    low, high = spec.metadata["low"], spec.metadata["high"]
    whole = spec.type is int
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise UserError(f"{where} is {value!r}; it is a {'whole ' if whole else ''}number")
    if not low <= value <= high:  # also refuses nan
        raise UserError(f"{where} is {value}; it lies between {low:g} and {high:g}")
    return value if whole else float(value)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value) and is_plain(value)


def _range(spec: dataclasses.Field[Any]) -> str:
    """What a field can be, in words."""
    if spec.type is bool:
        return "true or false"
    if words := spec.metadata.get("words"):
        return ", ".join(words)
    if words := spec.metadata.get("either"):
        return f"{', '.join(words)} or a list of names"
    return f"{_toml(spec.metadata['low'])} to {_toml(spec.metadata['high'])}"


def _line(spec: dataclasses.Field[Any], value: Any) -> str:
    default = "" if value == spec.default else f" (default {_toml(spec.default)})"
    meaning = f"; {spec.metadata['help']}" if spec.metadata["help"] else ""
    return f"{spec.name} = {_toml(value)}".ljust(24) + f"  # {_range(spec)}{default}{meaning}"


def _toml(value: Any) -> str:
    # Of a recipe's values JSON is TOML; its escape of what is beyond 16 bits would not be.
    return json.dumps(value, ensure_ascii=False)


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def read(path: Path) -> Json:
    """The table in a TOML file, or the recipe in a card (.json).

    Raises UserError where it cannot be read, is no TOML, or no JSON with a recipe.
    """
    if path.suffix.lower() == ".json":
        table = read_json(path).get("recipe")
        if not isinstance(table, dict):
            raise UserError(f"{path} has no recipe; name a card that `cifar-deploy train` wrote")
        return table
    with disk_errors(path, "read"):
        raw = path.read_bytes()
    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # also no UTF-8, and numbers without end
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
    for place in _places(folder, network):
        if (place / f"{wish}.toml").is_file():
            return place / f"{wish}.toml"
    others = ", ".join(words(folder, network)) or "it has only its own, without --recipe"
    raise UserError(
        f"--recipe {wish}: {network} has no {wish}.toml; name a file or another recipe ({others})"
    )


def words(folder: ModelFolder, network: str) -> list[str]:
    """The words for which `find` has a second recipe of `network`."""
    there = {path.stem for place in _places(folder, network) for path in place.glob("*.toml")}
    return sorted(there - {"recipe"})


def _places(folder: ModelFolder, network: str) -> list[Path]:
    own = packaged_recipe(network)
    return [folder.path, models_root() / network, *([own.parent] if own else [])]


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
        except (ValueError, RecursionError):
            value = text.strip()
        parse({section: {key: value}}, f"--set {override}")
        table[section][key] = value
    return parse(table, "recipe")
