"""Batch norms folded into the convolutions and linear layers before them."""

import copy
from collections import Counter

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from cifar_deploy.data.dataset import SIZE

MAX_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)


class Sign(nn.Module):
    """Multiply each channel of [n, channels, ...] by +1 or -1: exact in every precision."""

    sign: torch.Tensor

    def __init__(self, sign: torch.Tensor, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("sign", sign.view(1, -1, *[1] * (dimensions - 2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` with the chosen channels negated."""
        return x * self.sign


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """A copy of `network` in eval mode, its batch norms folded, without identities and dropout.

    `network` maps float [n, 3, 32, 32] to logits and stays as it is; the copy computes the same
    up to fp32 rounding. A batch norm is y = s x + t for each channel (Jacob et al. 2018,
    arXiv:1712.05877, section 3.2). It goes into the layer before it where nothing else reads that
    layer's output. A max pool may stand between them: max(|s| x + c) = |s| max(x) + c, so |s| and
    sign(s) t go before the pool, and only sign(s) stays behind it, if any s is negative.

    A network that torch.fx cannot trace (branches on values) comes back as an eval copy, unfolded.
    """
    plain = copy.deepcopy(network).eval()
    try:
        graph = fx.symbolic_trace(plain)
    except Exception:  # fx raises whatever the network's forward makes of a proxy
        return plain
    _drop_identities(graph)
    uses = _uses(graph)
    for node in list(graph.graph.nodes):
        norm = _module(graph, node)
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            _fold(graph, node, norm, uses)
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that `node` calls, if it calls one."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _uses(graph: fx.GraphModule) -> Counter[int]:
    """How often each module, by its id, is called or has a tensor of its own read."""
    uses: Counter[int] = Counter()
    for node in graph.graph.nodes:
        target = str(node.target)
        if node.op == "get_attr":
            target = target.rpartition(".")[0]
        if node.op in ("call_module", "get_attr"):
            uses[id(graph.get_submodule(target))] += 1
    return uses


def _drop_identities(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        # Dropout does nothing in eval mode.
        if isinstance(_module(graph, node), nn.Identity | _DropoutNd):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.graph.erase_node(node)


def _fold(graph: fx.GraphModule, node: fx.Node, norm: _BatchNorm, uses: Counter[int]) -> None:
    """Fold `norm`, which `node` calls, into the layer before it, where that is sound."""
    before = feeder = node.all_input_nodes[0]
    pool = _module(graph, before)
    pooled = isinstance(pool, MAX_POOLS) and not pool.return_indices
    if pooled:
        feeder = before.all_input_nodes[0]
    layer = _module(graph, feeder)
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return
    if len(before.users) > 1 or len(feeder.users) > 1 or uses[id(layer)] > 1:
        return  # something else reads what the batch norm would change
    if isinstance(layer, nn.Linear) and (pooled or _dimensions(graph, feeder) != 2):
        return  # the batch norm's channels are not the linear layer's outputs
    graph.set_submodule(str(feeder.target), _fused(layer, norm, pooled))
    if pooled and norm.affine and bool((norm.weight < 0).any()):
        sign = torch.where(norm.weight.detach() < 0, -1.0, 1.0)
        # Under a name of its own: the batch norm may be called elsewhere too.
        name = f"sign_{node.name}"
        graph.add_submodule(name, Sign(sign, layer.weight.ndim))
        node.target = name
    else:
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)


def _fused(
    layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, norm: _BatchNorm, pooled: bool
) -> nn.Module:
    """A copy of `layer` with `norm` in it; its absolute scale and signed shift where `pooled`."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    ones = torch.ones_like(norm.running_mean)
    scale = norm.weight.detach() if norm.affine else ones
    shift = norm.bias.detach() if norm.affine else 0 * ones
    mean = norm.running_mean
    if pooled:  # scale (x - mean) + shift = sign * (|scale| (x - mean) + sign * shift)
        shift = torch.where(scale < 0, -shift, shift)
        scale = scale.abs()
    fused = copy.deepcopy(layer)
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    # In double, so that the fold costs one rounding.
    weight, bias = fuse(
        layer.weight.detach().double(),
        None if layer.bias is None else layer.bias.detach().double(),
        mean.double(),
        norm.running_var.double(),
        norm.eps,
        scale.double(),
        shift.double(),
    )
    fused.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    fused.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
    return fused


def _dimensions(graph: fx.GraphModule, node: fx.Node) -> int:
    """The number of dimensions of what `node` returns."""
    if "tensor_meta" not in node.meta:
        with torch.no_grad():
            ShapeProp(graph).propagate(torch.zeros(1, 3, SIZE, SIZE))
    return len(node.meta["tensor_meta"].shape)
