"""What can be told about the networks without running them."""

from typing import Any

import torch
from torchinfo import ModelStatistics, summary
from torchinfo.enums import Units

from cifar_deploy import architectures, store
from cifar_deploy.data.dataset import SIZE


def _examine(name: str) -> ModelStatistics:
    return summary(
        architectures.build(name),
        (1, 3, SIZE, SIZE),
        depth=5,
        verbose=0,
        device="cpu",
        col_names=("output_size", "num_params", "mult_adds"),
    )


def text(name: str) -> str:
    """torchinfo's table of the layers for one image, with output shapes and parameters."""
    table = str(_examine(name))
    for unit in Units:  # torchinfo 1.8 prints its name
        table = table.replace(f"({Units.__name__}.{unit.name})", f"({unit.value})")
    return table


def layers(name: str) -> store.Json:
    """The same for a program: the leaves with output shapes [1, ...] and parameters."""
    statistics = _examine(name)
    leaves = [
        {
            "layer": layer.var_name,
            "kind": layer.class_name,
            "output": list(layer.output_size),
            "parameters": layer.num_params,
        }
        for layer in statistics.summary_list
        if layer.is_leaf_layer
    ]
    return {"network": name, "parameters": statistics.total_params, "layers": leaves}


def overview() -> list[store.Json]:
    """Every network: aliases, parameters, what its card says of its training, exported files."""
    entries: list[Any] = []
    for name in architectures.NETWORKS:
        folder = store.ModelFolder(store.models_root() / name)
        with torch.device("meta"):
            network = architectures.build(name)
        card = store.read_json(folder.card) if folder.card.exists() else {}
        entries.append(
            {
                "network": name,
                "aliases": [a for a, target in architectures.ALIASES.items() if target == name],
                "parameters": sum(p.numel() for p in network.parameters()),
                "test_accuracy": card.get("test_accuracy"),
                "test_accuracy_mean": card.get("test_accuracy_mean"),
                "test_accuracy_std": card.get("test_accuracy_std"),
                "seeds": len(card.get("runs", [None])),
                "epochs": card.get("epochs"),
                "wall_seconds": card.get("wall_seconds"),
                "device": card.get("device"),
                "command": card.get("command"),
                "weights": folder.weights.exists(),
                "exported": [path.name for path in folder.exported()],
            }
        )
    return entries
