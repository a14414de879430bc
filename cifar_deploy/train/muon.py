"""Muon: momentum, orthogonalised. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from cifar_deploy.device import has_bf16

# The quintic iteration's coefficients, chosen there for the steepest slope at zero.
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 3  # enough for these small networks, as in airbench94_muon


def orthogonal(
    matrices: torch.Tensor, steps: int = STEPS, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Matrices [k, m, n] moved towards the nearest ones whose singular values are all one.

    A Newton-Schulz iteration on each: after `steps` the singular values lie around 1 (0.5 to 1.5
    after five), which is all that the optimiser needs; so bf16 is good enough for it. The answer
    has the matrices' dtype.
    """
    _, rows, columns = matrices.shape
    x = matrices.to(dtype)
    if rows > columns:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)  # no singular value is above 1
    # The squares of bf16 numbers are too coarse to go on with alone.
    wide = max(rows, columns) >= 2 * min(rows, columns)
    x = _by_squares(x, steps) if wide and dtype == torch.float32 else _by_matrices(x, steps)
    return (x.mT if rows > columns else x).to(matrices.dtype)


def _by_matrices(x: torch.Tensor, steps: int) -> torch.Tensor:
    for _ in range(steps):
        square = torch.bmm(x, x.mT)
        factor = torch.baddbmm(square, square, square, beta=B, alpha=C)
        x = torch.baddbmm(x, factor, x, beta=A)
    return x


def _by_squares(x: torch.Tensor, steps: int) -> torch.Tensor:
    """The same, of matrices [k, m, n] with m < n, by products of [k, m, m] but for two.

    Each step multiplies from the left by a polynomial of x x', and such polynomials commute.
    """
    square = torch.bmm(x, x.mT)
    product = square  # of the factors, from the first on
    for step in range(steps):
        factor = torch.baddbmm(square, square, square, beta=B, alpha=C)
        factor.diagonal(dim1=1, dim2=2).add_(A)
        product = torch.bmm(factor, product) if step else factor
        if step < steps - 1:
            square = torch.bmm(torch.bmm(factor, square), factor)
    return torch.bmm(product, x)


class Muon(torch.optim.SGD):
    """Nesterov SGD whose groups with `muon = True` are orthogonalised convolution filters.

    Such a group's filters [out, in, h, w], taken as matrices [out, in * h * w], are scaled to norm
    sqrt(out) before each step: a batch norm behind them makes their scale of no account (where
    there is none, as in simple_cnn and in mobilenet_v3_small's squeeze and excitation, it changes
    what the network computes). They have no weight decay. With `keep_norm` they are scaled to the
    norm that they began with, and their steps in proportion: a network that was trained before
    computes what it did, also where its batch norms are frozen.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of all groups."""
        assert closure is None
        for group in self.param_groups:
            if group.get("muon"):
                self._orthogonalise([p for p in group["params"] if p.grad is not None], group)
        return super().step()

    def _orthogonalise(self, filters: list[torch.Tensor], group: dict[str, Any]) -> None:
        if not filters:
            return
        for parameter in filters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[p]["momentum_buffer"] for p in filters]
        gradients = [p.grad for p in filters if p.grad is not None]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        ahead = torch._foreach_add(gradients, buffers, alpha=group["momentum"])  # Nesterov's
        norms = torch._foreach_norm(filters)
        if group["keep_norm"]:
            for parameter, norm in zip(filters, norms, strict=True):
                self.state[parameter].setdefault("norm", norm.clone())
            torch._foreach_div_(norms, [self.state[p]["norm"] for p in filters])
        else:
            torch._foreach_mul_(norms, [len(p) ** -0.5 for p in filters])
        torch._foreach_div_(filters, norms)
        dtype = torch.bfloat16 if has_bf16(filters[0].device) else torch.float32
        # One batch of matrices a shape, either way up: fewer kernels.
        by_shape: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
        for parameter, move in zip(filters, ahead, strict=True):
            matrix = _matrix(move, parameter)
            wide = matrix if len(matrix) <= matrix.shape[1] else matrix.mT
            by_shape[wide.shape].append((parameter, wide))
        members, updates = [], []
        for alike in by_shape.values():
            found = orthogonal(torch.stack([wide for _, wide in alike]), dtype=dtype)
            for (parameter, _), update in zip(alike, found, strict=True):
                rows = len(parameter)
                back = update if len(update) == rows else update.mT.contiguous()
                members.append(parameter)
                updates.append(back.as_strided(parameter.shape, parameter.stride()))
        if group["keep_norm"]:
            sizes = [self.state[p]["norm"] * len(p) ** -0.5 for p in members]
            torch._foreach_mul_(updates, sizes)
        torch._foreach_add_(members, updates, alpha=-group["lr"])
        for parameter in filters:  # what remains is SGD's
            parameter.grad = None


def _matrix(values: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """`values`, of the shape of `filters` [out, in, h, w], as the matrix [out, in * h * w].

    Its columns are in the order in which those of `filters` lie (channels-last or not), of no
    account for orthogonality: where `values` lie alike, nothing is copied.
    """
    if values.stride() != filters.stride():
        values = torch.empty_like(filters).copy_(values)
    columns = filters[0].numel()
    return values.as_strided((len(filters), columns), (columns, 1))
