"""What a network's weights are before the first step: chance, structure, or earlier training."""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cifar_deploy.architectures import weights
from cifar_deploy.architectures.stages import classifier, stages
from cifar_deploy.cards import LEAST_PIN, PIN, card_of, named_weights, split_pin
from cifar_deploy.data.dataset import Images
from cifar_deploy.data.find import patience
from cifar_deploy.disk import Json, is_number, sha256_of
from cifar_deploy.errors import UserError, one_line
from cifar_deploy.recipe import Finetune
from cifar_deploy.store import ModelFolder, models_root
from cifar_deploy.train import card

IMAGENET = "imagenet"
# torchvision's name of the weights, and what of them is the classifier.
PRETRAINED = {
    "resnet18": ("ResNet18_Weights", "fc."),
    "resnet50": ("ResNet50_Weights", "fc."),
    "vgg19": ("VGG19_BN_Weights", "classifier."),
    "mobilenet_v3_small": ("MobileNet_V3_Small_Weights", "classifier.3."),
}
# Of torchvision's preprocessing for all of them.
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
COUNTER = "num_batches_tracked"  # of a batch norm, which nothing here uses
PATCHES = 5_000  # images whose patches a whitening is made from


@dataclass(frozen=True)
class Start:
    """Where the weights of a run come from; `mean` and `std` of the pixels they are used to.

    `pretrained` are the parameters that are not new; `data` is what they have learned from, as a
    card has it, where that is known. So is `run`, what their own card adds to the new one's `init`.
    """

    origin: str
    mean: list[float]
    std: list[float]
    pretrained: list[str] = field(default_factory=list)
    sha256: str | None = None
    data: Json = field(default_factory=dict)
    run: Json = field(default_factory=dict)

    def to_dict(self) -> Json:
        """Plain values for a checkpoint's header."""
        return {key: value for key, value in vars(self).items() if key != "data"}


def is_start(facts: object) -> bool:
    """Whether these, of a checkpoint, are what `Start.to_dict` gives."""
    kinds: dict[str, Any] = {"origin": str, "sha256": str | None, "run": dict}
    kinds |= dict.fromkeys(("mean", "std", "pretrained"), list)
    if not isinstance(facts, dict) or not {"origin", "mean", "std"} <= facts.keys() <= kinds.keys():
        return False
    of_kind = all(isinstance(value, kinds[key]) for key, value in facts.items())
    return of_kind and all(map(is_number, [*facts["mean"], *facts["std"]]))


# --- chance with structure ----------------------------------------------------------------------


@torch.no_grad()
def dirac(network: nn.Module) -> None:
    """Let convolutions begin as the identity on their first channels (Jordan, arXiv:2404.00498).

    Only undivided ones with at least as many filters as inputs; their other filters stay.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            filters = module.weight
            if filters.shape[0] >= filters.shape[1] > 3 and filters.shape[2] % 2:
                nn.init.dirac_(filters[: filters.shape[1]])


@torch.no_grad()
def zero_gamma(network: nn.Module) -> None:
    """Let the residual blocks begin as the identity (Goyal et al. 2017, arXiv:1706.02677).

    The scale of the last batch norm before each of torchvision's additions is 0. Raises UserError
    for a network that has none; custom_resnet's end in a ReLU, which would let no gradient pass.
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck

    last = [m.bn3 for m in network.modules() if isinstance(m, Bottleneck)]
    last += [m.bn2 for m in network.modules() if isinstance(m, BasicBlock)]
    if not last:
        raise UserError("model.init: zero-gamma is for resnet18 and resnet50; set it to default")
    for norm in last:
        nn.init.zeros_(norm.weight)


@torch.no_grad()
def whiten(
    network: nn.Module, images: Images, mean: list[float], std: list[float], device: torch.device
) -> None:
    """Let the first filters of the first convolution whiten patches of the training images.

    They are the eigenvectors of the patches' covariance over the root of their eigenvalues, each
    also negated, for the ReLU behind them (Page 2018; Jordan 2024, arXiv:2404.00498); further
    filters stay as they are. All are scaled to the norm that they had on average. `network` is on
    the CPU; what takes time is done on `device`.
    """
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels != 3:
        raise UserError("model.whiten: the network has no convolution on the pixels")
    pixels = torch.from_numpy(images[:PATCHES]).to(device).permute(0, 3, 1, 2).float() / 255
    shift, scale = (torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))
    x = (pixels - shift) / scale
    patches = F.unfold(x, first.kernel_size).transpose(1, 2).flatten(0, 1)
    covariance = (patches.T @ patches / len(patches)).double().cpu()  # so small: cuSOLVER's start
    values, vectors = torch.linalg.eigh(covariance)  # would take longer
    filters = (vectors / (values + 5e-4).sqrt()).T.flip(0).float()  # the largest eigenvalue first
    both = torch.stack([filters, -filters], 1).flatten(0, 1)[: first.out_channels]
    usual = first.weight.flatten(1).norm(dim=1).mean()
    both *= usual / both.norm(dim=1).mean()
    first.weight[: len(both)] = both.view(-1, *first.weight.shape[1:])


# --- earlier training ---------------------------------------------------------------------------


def load(
    network: nn.Module, name: str, init: str, file: Path | None, classes: Sequence[str]
) -> Start:
    """Fill `network`, called `name`, from `init`: "imagenet" or a file that was written here.

    Behind the file's name, or its folder's, may stand `@` and the beginning of its sha256. `file`
    holds torchvision's weights where they are not to be downloaded. The classifier stays new where
    the classes are others. Raises UserError for weights of another sha256 or another network, with
    what is missing and what is extra, for a file that cannot be read, and without network.
    """
    if init == IMAGENET:
        return _imagenet(network, name, file)
    if file:
        raise UserError(f"--weights-file goes with --init {IMAGENET}")
    named, asked = split_pin(init)
    if not Path(named).exists():
        hint = f"; behind an @ go {LEAST_PIN} or more digits of the weights' sha256"
        raise UserError(
            f"--init: {init} does not exist; name a model's folder, as {models_root()}/resnet18, "
            f"its file, or {IMAGENET}{hint if '@' in init else ''}"
        )
    path = _file(init)
    tensors, facts = weights.read_tensors(path)
    sha256 = sha256_of(path)
    if not sha256.startswith(asked):
        raise UserError(
            f"--init {init}: {path} holds other weights, of sha256 {sha256[:PIN]}…; bring those "
            f"back that are asked for, or begin with these by --init {named}"
        )
    # A checkpoint holds several networks: the averaged one is the best.
    prefixes = ("average.", "network.")
    prefix = ""
    if "data_sha256" in facts:
        prefix = next((p for p in prefixes if any(k.startswith(p) for k in tensors)), "")
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    head = classifier(network)
    new = [head] if facts.get("classes") != list(classes) else []
    fill(network, state, new, str(path))
    kept = _kept(network, new)
    mean, std = facts.get("mean"), facts.get("std")
    if not (isinstance(mean, list) and isinstance(std, list)):
        raise UserError(f"{path} does not say how its pixels were normalised; make it anew")
    if "data_sha256" in facts:
        return Start(path.name, mean, std, kept, sha256, _learned_from(facts))
    there = card_of(ModelFolder(path.parent))
    if named_weights(there) != sha256:
        there = {}
    return Start(path.name, mean, std, kept, sha256, learned_from(there), card.of_init(there))


def learned_from(made: Json) -> Json:
    """A card's `data`, and `whole`: whether its weights rest on no others, who may have seen more.

    torchvision's have not seen anybody's own images.
    """
    init = made.get("init") or {}
    others = [init.get("from") not in (None, IMAGENET), made.get("teachers"), made.get("imported")]
    return {**made.get("data", {}), "whole": not any(others)}


def _learned_from(facts: Json) -> Json:
    """What a checkpoint says of its data set, by a card's words."""
    holdout = facts.get("recipe", {}).get("data", {}).get("holdout", 0)
    known = {"sha256": facts["data_sha256"], "holdout_images": holdout}
    if facts.get("val_sha256"):
        known["val_sha256"] = facts["val_sha256"]
    begun = {"init": {"from": (facts.get("start") or {}).get("origin")}}
    known["classes"] = facts.get("classes")
    return learned_from({**begun, "teachers": facts.get("teachers"), "data": known})


def within(folder: Path, init: str) -> bool:
    """Whether `init` is a file of the folder that the run itself writes."""
    return init != IMAGENET and _file(init).resolve().is_relative_to(folder.resolve())


def differs(start: Start | None, init: str, file: Path | None, folder: Path) -> bool:
    """Whether a run that began with `start` began with something else than `load` would load.

    A file in `folder`, the run's own, may have been written over since: its name has to do, where
    no sha256 stands behind it.
    """
    if init != IMAGENET and (asked := split_pin(init)[1]):
        return start is None or not (start.sha256 or "").startswith(asked)
    named = file if init == IMAGENET else _file(init)
    origin = IMAGENET if init == IMAGENET or named is None else named.name
    if start is None or start.origin != origin:
        return True
    if named is None or within(folder, init) or not named.is_file():
        return False
    return sha256_of(named) != start.sha256


def place(init: str) -> Path:
    """The file or folder that `init`, other than "imagenet", names."""
    return Path(split_pin(init)[0])


def _file(init: str) -> Path:
    path = place(init)
    return path / "model.safetensors" if path.is_dir() else path


def _imagenet(network: nn.Module, name: str, file: Path | None) -> Start:
    if name not in PRETRAINED:
        raise UserError(
            f"--init {IMAGENET}: torchvision has no weights of {name}; it has those of "
            f"{', '.join(PRETRAINED)}"
        )
    state = _from_file(file) if file else _download(PRETRAINED[name][0])
    dropped = PRETRAINED[name][1]
    state = {k: v for k, v in state.items() if not k.startswith(dropped)}
    stem = "conv1.weight"
    wanted = network.state_dict().get(stem)
    shapes = [None if f is None else f.shape[2:] for f in (wanted, state.get(stem))]
    if shapes == [(3, 3), (7, 7)]:
        state[stem] = smaller_stem(state[stem])
    head = classifier(network)
    fill(network, state, [head], str(file or f"torchvision's {PRETRAINED[name][0]}"))
    kept = _kept(network, [head])
    sha256 = sha256_of(file) if file else None
    return Start(IMAGENET, list(IMAGENET_MEAN), list(IMAGENET_STD), kept, sha256)


def smaller_stem(filters: torch.Tensor) -> torch.Tensor:
    """7x7 filters [out, 3, 7, 7] as 3x3 ones, by summing over areas of 7/3 pixels.

    The 32x32 image shows the same object seven times smaller: what an area held is what one pixel
    holds now, so the whole pattern is kept. The central crop would keep the scale, cut the pattern
    off at its flanks, and change the answer to a plain area; the sum does not, so the running
    statistics behind the stem stay about right.
    """
    cells = torch.zeros(3, 7, dtype=torch.float64)
    for row in range(3):
        start, end = row * 7 / 3, (row + 1) * 7 / 3
        for column in range(7):
            cells[row, column] = max(0.0, min(end, column + 1) - max(start, column))
    return (cells @ filters.double() @ cells.T).to(filters.dtype)


def _from_file(path: Path) -> dict[str, torch.Tensor]:
    try:
        return weights.read_state(path)
    except UserError as error:
        raise UserError(f"--weights-file: {error}") from error


def _download(name: str) -> dict[str, torch.Tensor]:
    """torchvision's default weights called `name`, by torchvision's own download and cache."""
    from torchvision import models

    wanted = getattr(models, name).DEFAULT
    try:
        with contextlib.redirect_stdout(sys.stderr), patience():
            state: dict[str, torch.Tensor] = wanted.get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
    except Exception as error:  # whatever the network, the disk or the file objects to
        said = one_line(error)[: weights.MOST_SAID]
        raise UserError(
            f"--init {IMAGENET}: {wanted.url} could not be downloaded ({said}); "
            "name a copy with --weights-file"
        ) from error
    return state


def fill(network: nn.Module, state: dict[str, torch.Tensor], new: list[str], source: str) -> None:
    """Load `state`; what is below the modules `new` stays as it is.

    Files from before torch 0.4.1, torchvision's ResNet-18 and VGG-19 among them, have no counters
    in their batch norms. Raises UserError where it does not fit, with `source` as its name.
    """
    mine = network.state_dict()
    fresh = {k: v for k, v in mine.items() if _below(k, new)}
    absent = mine.keys() - state.keys() - fresh.keys()
    if all(key.endswith(COUNTER) for key in absent):
        fresh |= {key: mine[key] for key in absent}
    old = {k: v for k, v in state.items() if not _below(k, new)}
    weights.fill(network, {**old, **fresh}, Path(source))


def _below(name: str, modules: list[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _kept(network: nn.Module, new: list[str]) -> list[str]:
    return [name for name, _ in network.named_parameters() if not _below(name, new)]


def rates(network: nn.Module, start: Start | None, options: Finetune) -> dict[str, float]:
    """Factors of the learning rate by parameter: lower where it was pretrained, and by depth.

    The last stage before the classifier has `lr_factor`, each before it `depth_factor` times the
    next one's (Howard and Ruder 2018, arXiv:1801.06146). Raises UserError where the recipe speaks
    of pretrained weights and there are none.
    """
    if start is None:
        if options != Finetune():
            raise UserError(
                "the recipe's [finetune] is for pretrained weights; name them with --init"
            )
        return {}
    factors: dict[str, float] = {}
    pretrained = set(start.pretrained)
    parts = stages(network)
    for depth, stage in enumerate(parts):
        away = max(len(parts) - 2 - depth, 0)
        for name, _ in network.named_parameters():
            if name in pretrained and _below(name, stage):
                factors[name] = options.lr_factor * options.depth_factor**away
    return factors
