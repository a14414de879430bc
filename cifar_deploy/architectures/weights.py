"""Trained weights on disk: safetensors with the preprocessing in the header, never a pickle."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as deserialised
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import nn

from cifar_deploy import __version__, architectures
from cifar_deploy.architectures.deployment import DeploymentGraph
from cifar_deploy.cards import read_card
from cifar_deploy.disk import Json, is_number, parsed, size_and_sha256, write_bytes
from cifar_deploy.errors import UserError, disk_errors, few, one_line
from cifar_deploy.store import ModelFolder

HEADER = "cifar_deploy"
# Where training programs put the state dict in their checkpoints.
WITHIN = ("state_dict", "model_state_dict", "model", "net", "weights")
MOST_SAID = 120  # characters of an error, whose first line can be a page


@dataclass(frozen=True)
class Trained:
    """A network with its weights and what is needed to use it. `mean`, `std` of pixels in 0..1."""

    name: str
    network: nn.Module
    classes: tuple[str, ...]
    mean: list[float]
    std: list[float]
    card: Json

    def graph(self, dtype: torch.dtype = torch.float32) -> DeploymentGraph:
        """The deployment graph in `dtype`. The network is shared: converted in place."""
        graph = DeploymentGraph(self.network, self.mean, self.std, dtype)
        graph.classes = self.classes
        return graph


def stored(network: nn.Module, storage: str) -> dict[str, torch.Tensor]:
    """The state dict as it is written: matrices and filters in fp16 where `storage` says so.

    Vectors (norms, biases, statistics) and tensors that fp16 cannot hold stay fp32.
    """
    state = {}
    for name, tensor in network.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        if storage == "fp16" and value.is_floating_point() and value.ndim > 1:
            half = value.half()
            value = half if bool(half.isfinite().all()) else value
        state[name] = value
    return state


def header(
    network: str, stem: str, classes: Sequence[str], mean: list[float], std: list[float]
) -> Json:
    """What a file of weights says of itself: all that `load` needs but the tensors."""
    return {"network": network, "stem": stem, "classes": list(classes), "mean": mean, "std": std}


def save(path: Path, state: dict[str, torch.Tensor], facts: Json) -> Json:
    """Write `state` to `path` with `facts` (`header`'s, and more) in the header.

    Returns the `bytes` and the `sha256` of what was written, whatever stands there by then.
    """
    metadata = {HEADER: json.dumps({**facts, "version": __version__})}
    # Written here and not by safetensors, whose errors do not say what the disk objects to.
    data = serialised(state, metadata=metadata)
    write_bytes(path, data)
    return size_and_sha256(data)


def read_tensors(path: Path, raw: bytes | None = None) -> tuple[dict[str, torch.Tensor], Json]:
    """All tensors of a safetensors file written here, and its header's facts.

    `raw`: the file's bytes, where they have been read. Raises UserError where the file is missing,
    truncated, or from another program.
    """
    try:
        if raw is None:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        else:  # safetensors gives no metadata then: JSON behind its length in eight bytes
            tensors = deserialised(raw)
            metadata = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
        facts = _facts(metadata[HEADER])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        foreign = isinstance(error, KeyError) or path.suffix != ".safetensors"
        way = f"; another program's come in with: cifar-deploy import NETWORK {path}"
        raise UserError(
            f"{path} is damaged or was not written by cifar-deploy ({error}); make it anew"
            f"{way if foreign else ''}"
        ) from error
    return tensors, facts


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a safetensors file, or one of torch's that holds tensors and plain values.

    Of a checkpoint, a dict with the state dict among other things, that part. Nothing in the file
    is run. Raises UserError where it is missing, damaged or something else.
    """
    if not path.is_file():
        raise UserError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        state: Any = load_file(path) if _is_safetensors(path) else _unpickled(path)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        if "TorchScript" in str(error):
            raise UserError(f"{path} is TorchScript; save its state dict alone") from error
        raise UserError(
            f"{path} is damaged or no file of weights, as .safetensors or torch.save of a state "
            f"dict is: {one_line(error)[:MOST_SAID]}"
        ) from error
    except Exception as error:  # torch's unpickler: an UnpicklingError for what it will not run
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path} holds more than tensors{f' ({found[1]})' if found else ''}, or is damaged; it "
            "is not opened: save its state dict alone"
        ) from error
    for _ in WITHIN:  # a pickle may hold itself
        key = next((k for k in WITHIN if isinstance(state, dict) and _dict(state, k)), None)
        state = state if key is None else state[key]
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        held = f": it holds {_listed(sorted(map(str, state)))}" if isinstance(state, dict) else ""
        raise UserError(f"{path} is not a state dict of tensors{held}")
    for name, tensor in state.items():
        if kind := _strange(tensor):
            raise UserError(f"{path}: {name} is {kind}; save the plain float state dict")
    return state


def own_facts(path: Path) -> Json:
    """What the header of a file of weights says of them; nothing where another program wrote it.

    Only of a file that `read_state` has read.
    """
    if not _is_safetensors(path):
        return {}
    with safe_open(path, framework="pt") as file:
        try:
            return _facts((file.metadata() or {})[HEADER])
        except (KeyError, ValueError):
            return {}


def _facts(text: str) -> Json:
    """What a header says. Raises ValueError for what cannot have been written here."""
    facts = parsed(text)
    if not isinstance(facts, dict):
        raise ValueError("its header says nothing")
    kinds = {"network": str, "stem": str, "classes": list, "mean": list, "std": list}
    for key, kind in kinds.items():
        if not isinstance(facts.get(key, kind()), kind):
            raise ValueError(f"{key} in its header is of another kind")
    if not all(isinstance(name, str) for name in facts.get("classes", [])):
        raise ValueError("classes in its header are no names")
    if not all(is_number(value) for key in ("mean", "std") for value in facts.get(key, [])):
        raise ValueError("mean or std in its header is no number")
    return facts


def _is_safetensors(path: Path) -> bool:
    """Whether it begins as such a file, whatever its name: a length, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _unpickled(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _dict(state: dict[Any, Any], key: str) -> bool:
    return isinstance(state.get(key), dict)


def _strange(tensor: torch.Tensor) -> str:
    """Why this is no weight, statistic or counter; nothing where it is."""
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_meta:
        return "without data"
    if tensor.layout != torch.strided:
        return "sparse"
    packed = tensor.dtype == torch.float4_e2m1fn_x2  # two to a byte, which torch does not widen
    number = tensor.is_floating_point() and not packed
    return "" if number or not tensor.ndim else f"of {tensor.dtype}"


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The first that has a number that is none; None where all are whole."""
    return next((name for name, value in tensors.items() if not value.isfinite().all()), None)


def fill(network: nn.Module, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Load `tensors` into `network`, widened to its dtypes. Raises UserError if they do not fit."""
    wanted = network.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    extra = sorted(tensors.keys() - wanted.keys())
    misshapen = [k for k in wanted if k in tensors and wanted[k].shape != tensors[k].shape]
    if missing or extra or misshapen:
        said = [
            f"{what} {_listed(names)}"
            for what, names in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
            if names
        ]
        raise UserError(f"{source} holds the weights of another network: {'; '.join(said)}")
    network.load_state_dict(tensors)


def _listed(names: list[str]) -> str:
    return f"{len(names)}: {few(names, 8)}" if len(names) > 1 else names[0]


def load(folder: ModelFolder) -> Trained:
    """The trained network in `folder`, in fp32 and eval mode, on the CPU.

    Raises UserError where there is none, where weights and card do not belong together, and where
    the weights are another network's.
    """
    raw = None  # read once: what is used is what the card was compared with
    if folder.weights.exists():
        with disk_errors(folder.weights, "read"):
            raw = folder.weights.read_bytes()
    card = read_card(folder, raw)
    tensors, facts = read_tensors(folder.weights, raw)
    try:
        name: str = facts["network"]
        classes: list[str] = facts["classes"]
        mean, std = facts["mean"], facts["std"]
        stem: str = facts["stem"]
    except KeyError as error:
        raise UserError(f"{folder.weights} lacks {error} in its header; train again") from error
    expected: Any = card.get("network")
    if folder.name in (*architectures.NETWORKS, *architectures.ALIASES):
        expected = architectures.canonical(folder.name)
    if name != expected:
        raise UserError(f"{folder.weights} holds the weights of {name}, not of {expected}")
    # In fp32 on the CPU, whatever the host program has by default; and its random numbers, which
    # fill a network that is filled anew, stay its own.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        network = architectures.build(name, len(classes), stem).float()
    fill(network, tensors, folder.weights)
    return Trained(name, network.eval(), tuple(classes), mean, std, card)
