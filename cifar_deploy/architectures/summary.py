"""What can be told about the networks without running them."""

import contextlib

from torchinfo import ModelStatistics, summary
from torchinfo.enums import Units

from cifar_deploy import architectures, cards, disk
from cifar_deploy.data.dataset import SIZE
from cifar_deploy.errors import UserError

CLASSES = range(10)  # of a network that nobody has trained: CIFAR-10's


def _examine(model: str) -> ModelStatistics:
    """A network as it is built for CIFAR-10, or as its card says that a model was."""
    network, card = architectures.network_of(model), {}
    with contextlib.suppress(UserError):  # a damaged card: the network is known all the same
        card = cards.card_of(architectures.folder(model))
    classes = card.get("data", {}).get("classes", CLASSES)
    stem = card.get("stem") or card.get("recipe", {}).get("model", {}).get("stem", "cifar")
    return summary(
        architectures.build(network, len(classes), stem),
        (1, 3, SIZE, SIZE),
        depth=5,
        verbose=0,
        device="cpu",
        col_names=("output_size", "num_params", "mult_adds"),
    )


def text(model: str) -> str:
    """torchinfo's table of the layers for one image, with output shapes and parameters.

    Of a network or of a trained model. Raises UserError as `architectures.network_of` does.
    """
    table = str(_examine(model))
    for unit in Units:  # torchinfo 1.8 prints its name
        table = table.replace(f"({Units.__name__}.{unit.name})", f"({unit.value})")
    return table


def layers(model: str) -> disk.Json:
    """The same for a program: the leaves with output shapes [1, ...] and parameters."""
    statistics = _examine(model)
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
    network = architectures.network_of(model)
    return {"network": network, "parameters": statistics.total_params, "layers": leaves}
