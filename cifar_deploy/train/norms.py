"""Batch norms whose statistics are of all processes' images, on GPUs and CPUs."""

from typing import Any, cast

import torch
from torch import distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise(network: nn.Module, device: torch.device) -> nn.Module:
    """`network` with batch norms over the images of all processes, which have equally many each.

    Parameters and buffers are the same, by the same names. On a GPU the norms are torch's own,
    which take no tensors on a CPU (torch 2.14), and DistributedDataParallel no such norms there.
    """
    if device.type != "cpu":
        convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
        return cast(nn.Module, convert(network))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.__class__ = CpuSyncBatchNorm  # type: ignore[assignment]
    return network


class CpuSyncBatchNorm(_BatchNorm):
    """What nn.SyncBatchNorm is on a GPU, of one or two dimensions, for a CPU."""

    def _check_input_dim(self, x: torch.Tensor) -> None:
        """Any will do: it was a norm of the right dimensions before it became this."""

    # No graph of torch.compile's goes through it: it asks the other processes.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`, float32 or bfloat16 [n, c] or [n, c, h, w] of any strides, normalised.

        In training by the mean and variance of all processes' images, which the running statistics
        take up as torch's do, the variance unbiased.
        """
        if not self.training:
            return super().forward(x)
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        mean, variance = _statistics(x.detach())
        if self.track_running_stats and self.running_mean is not None:
            self._remember(mean, variance * (count / (count - 1)))
        return cast(
            torch.Tensor,
            _Normalise.apply(x, self.weight, self.bias, mean, variance, self.eps, count),
        )

    def _remember(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # Without momentum the running statistics are the mean of all so far.
        part = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(value, part)


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance by channel, float32 [c], of all processes' `x`.

    From their means and variances, not from sums of squares, whose difference loses digits (Chan,
    Golub and LeVeque 1979).
    """
    zeros = torch.zeros(x.shape[1])  # float32, so that the statistics of bfloat16 are, too
    mine = torch.stack(torch.batch_norm_update_stats(x, zeros, zeros.clone(), 0.0))
    every = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(every, mine)
    means, variances = torch.stack(every, 1)
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


class _Normalise(torch.autograd.Function):
    """A batch norm by statistics that came from all processes' x, through which gradients go.

    The passes over x are made by torch's kernels for a norm whose statistics are given.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        mean: torch.Tensor,
        variance: torch.Tensor,
        eps: float,
        count: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.count = eps, count
        return torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, eps, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        # As if the statistics were constants; the sums of grad * normalised x, and of grad.
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([of_weight, of_bias])
        distributed.all_reduce(sums)
        # What x does by way of the statistics: -scale / count * (normalised x * sum + sum).
        scale = (variance + ctx.eps).rsqrt() / -ctx.count
        by_weight, by_bias = sums * (scale if weight is None else scale * weight)
        of_x += torch.batch_norm(x, by_weight, by_bias, mean, variance, False, 0.0, ctx.eps, False)
        if weight is None:
            of_weight = of_bias = None
        return of_x, of_weight, of_bias, None, None, None, None
