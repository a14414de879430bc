"""A network's parts in the order of its depth: what to freeze, and what is far from the end."""

from fnmatch import fnmatchcase

import torch
from torch import nn

from cifar_deploy.data.dataset import SIZE
from cifar_deploy.errors import UserError


def stages(network: nn.Module) -> list[list[str]]:
    """Names of the modules with parameters, in stages from the input to the classifier.

    A stage is what works at one resolution; the last one is the classifier, all that comes after
    the pixels have gone. Works for any network for float [n, 3, 32, 32]; it is left as it was.
    """
    units = list(_units(network, ""))
    sizes: dict[str, tuple[int, ...]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: sizes.__setitem__(name, output.shape[2:])
        )
        for name, module in units
    ]
    training = [module for module in network.modules() if module.training]
    device = next(network.parameters()).device
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, SIZE, SIZE, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    found: list[list[str]] = []
    last: tuple[int, ...] | None = None
    for name, module in units:
        if not any(True for _ in module.parameters()):
            continue
        size = sizes.get(name, last)
        if size != last or not found:
            found.append([])
        found[-1].append(name)
        last = size
    return found


def _units(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    """The children of `module`, plain sequences among them opened."""
    found = []
    for name, child in module.named_children():
        if type(child) is nn.Sequential:
            found += _units(child, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", child))
    return found


def classifier(network: nn.Module) -> str:
    """The name of the layer that gives the logits: the last linear one."""
    linear: list[str] = [name for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise UserError("the network has no linear layer that could be replaced; train it anew")
    return linear[-1]


def freeze(network: nn.Module, what: str | tuple[str, ...]) -> list[nn.Module]:
    """Take the named parts out of training; they are to stay in eval mode, and are returned.

    `what` is "none", "all-but-classifier", "all-but-last-block" (the last stage before the
    classifier goes on learning, too), or patterns of module names as in a shell: `layer1`,
    `features.0*`. Raises UserError for a pattern that matches nothing, and where nothing would be
    left to train.
    """
    if what == "none":
        return []
    if isinstance(what, str):
        parts = stages(network)
        kept = {"all-but-classifier": 1, "all-but-last-block": 2}[what]
        names = [name for stage in parts[:-kept] for name in stage]
    else:
        names = [name for pattern in what for name in _matching(network, pattern)]
    modules = dict(network.named_modules())
    frozen = [modules[name] for name in names]
    for module in frozen:
        module.requires_grad_(False)
    if not any(p.requires_grad for p in network.parameters()):
        raise UserError("finetune.freeze leaves nothing to train; freeze less")
    return frozen


def _matching(network: nn.Module, pattern: str) -> list[str]:
    names = [
        name
        for name, module in network.named_modules()
        if name and any(True for _ in module.parameters())
    ]
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        tops = [name for name in names if "." not in name]
        raise UserError(
            f"finetune.freeze: {pattern!r} matches no module with weights; there are "
            f"{', '.join(tops)}, and what is inside them ({names[min(1, len(names) - 1)]}, ...)"
        )
    return found
