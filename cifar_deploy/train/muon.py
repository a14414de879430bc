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
        square = x @ x.mT
        x = A * x + (B * square + C * (square @ square)) @ x
    return x


def _by_squares(x: torch.Tensor, steps: int) -> torch.Tensor:
    """The same, of matrices [k, m, n] with m < n, by products of [k, m, m] but for two.

    Each step multiplies from the left by a polynomial of x x', and such polynomials commute.
    """
    square = x @ x.mT
    one = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    product = one
    for step in range(steps):
        factor = A * one + B * square + C * (square @ square)
        product = factor @ product if step else factor
        if step < steps - 1:
            square = factor @ square @ factor
    return product @ x


class Muon(torch.optim.SGD):
    """Nesterov SGD whose groups with `muon = True` are orthogonalised convolution filters.

    Such a group's filters [out, in, h, w], taken as matrices [out, in * h * w], are scaled to norm
    sqrt(out) before each step: a batch norm behind them makes their scale of no account (where
    there is none, as in simple_cnn, it changes what the network computes). They have no weight
    decay.
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
        by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
        for parameter in filters:
            by_shape[parameter.shape].append(parameter)
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[p]["momentum_buffer"] for p in filters]
        gradients = [p.grad for p in filters if p.grad is not None]
        if not filters:
            return
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        ahead = torch._foreach_add(gradients, buffers, alpha=group["momentum"])  # Nesterov's
        moved = dict(zip(map(id, filters), ahead, strict=True))
        norms = torch._foreach_norm(filters)
        targets = [len(p) ** 0.5 for p in filters]
        factors = [target / norm for target, norm in zip(targets, norms, strict=True)]
        torch._foreach_mul_(filters, factors)
        dtype = torch.bfloat16 if has_bf16(filters[0].device) else torch.float32
        for shape, members in by_shape.items():  # one batch of matrices a shape: fewer kernels
            stacked = torch.stack([moved[id(p)].reshape(shape[0], -1) for p in members])
            updates = orthogonal(stacked, dtype=dtype).view(-1, *shape).unbind()
            torch._foreach_add_(members, list(updates), alpha=-group["lr"])
        for parameter in filters:  # what remains is SGD's
            parameter.grad = None
