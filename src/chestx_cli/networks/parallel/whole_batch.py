"""Layers that act on the whole batch of a step although each process holds only some of its rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from chestx_cli.networks.parallel.ranks import Ranks

# Layers that multiply images by random factors, and the number of leading dimensions of these factors.
_MASKED_DIMENSIONS = {"Dropout": None, "Dropout1d": 2, "Dropout2d": 2, "Dropout3d": 2, "StochasticDepth": 1}


@dataclass
class WholeBatch:
    """The batch of the current step: its number of images, and the rows that this process computes."""

    n: int = 0
    rows: slice = field(default_factory=lambda: slice(0))

    def of(self, n: int, rows: slice) -> None:
        """Set the batch of a new step."""
        self.n, self.rows = n, rows


@contextmanager
def seeing_whole_batch(network: nn.Module, ranks: Ranks) -> Iterator[WholeBatch]:
    """Make a network's layers train as if this process held the whole batch; restored after the block.

    Random masks are drawn for all rows and each process uses its own, so masks do not depend on the number of
    processes. With `sync_batchnorm`, BatchNorm normalises over all rows.
    """
    from torch import nn

    batch = WholeBatch()
    changed = []
    if ranks.n > 1:
        for module in network.modules():
            if type(module).__name__ in _MASKED_DIMENSIONS:
                forward = _masked(module, batch)
            elif ranks.sync_batchnorm and isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                forward = _synchronised(module)
            else:
                continue
            # Set on the instance rather than by a new class, so that names, weights and traced twins are unaffected.
            module.forward = forward
            changed.append(module)
    try:
        yield batch
    finally:
        for module in changed:
            del module.forward


def _masked(module: nn.Module, batch: WholeBatch) -> Callable[[torch.Tensor], torch.Tensor]:
    own_forward = module.forward
    n_dimensions = _MASKED_DIMENSIONS[type(module).__name__]

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        if not module.training:
            unchanged: torch.Tensor = own_forward(inputs)
            return unchanged
        kept = inputs.dim() if n_dimensions is None else n_dimensions
        ones = inputs.new_ones((batch.n, *inputs.shape[1:kept], *(1,) * (inputs.dim() - kept)))
        masked: torch.Tensor = inputs * own_forward(ones)[batch.rows]
        return masked

    return forward


def _synchronised(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Callable[[torch.Tensor], torch.Tensor]:
    from torch import nn

    own_forward = norm.forward
    # It shares the layer's weights and statistics, but not its training flag.
    on_gpu = nn.SyncBatchNorm.convert_sync_batchnorm(norm).train()

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        if not norm.training:
            return own_forward(inputs)
        if inputs.is_cuda:
            normalised: torch.Tensor = on_gpu(inputs)
            return normalised
        return _normalised(norm, inputs)

    return forward


def _normalised(norm: nn.BatchNorm1d | nn.BatchNorm2d, inputs: torch.Tensor) -> torch.Tensor:
    """Normalise inputs [N, C, ...] over all processes' inputs, and update the running statistics.

    torch.nn.SyncBatchNorm rejects CPU tensors (torch 2.14). The variance is computed from deviations from the common
    mean: a difference of mean squares would lose precision by cancellation. A process without rows still takes part in
    the sums.
    """
    import torch

    dimensions = [0, *range(2, inputs.dim())]
    shape = (1, -1, *(1,) * (inputs.dim() - 2))
    values = inputs.float()
    count = values.new_full((1,), values.numel() // values.shape[1])
    sums = _sum_of_all()(torch.cat([values.sum(dimensions), count]))
    n = sums[-1].detach()
    mean = sums[:-1] / n
    deviations = values - mean.view(shape)
    variance = _sum_of_all()(deviations.square().sum(dimensions)) / n
    if norm.num_batches_tracked is not None and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean, share)
            norm.running_var.lerp_(variance * n / (n - 1), share)
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        return (deviations * (scale * norm.weight).view(shape) + norm.bias.view(shape)).to(inputs.dtype)
    return (deviations * scale.view(shape)).to(inputs.dtype)


@functools.cache
def _sum_of_all() -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a differentiable function that sums a tensor over all processes.

    torch.distributed.nn.functional.all_reduce does the same, but is deprecated in favour of a private module (torch
    2.14).
    """
    from torch import distributed as dist
    from torch.autograd import Function

    class Sum(Function):
        @staticmethod
        def forward(_context: Any, tensor: torch.Tensor) -> torch.Tensor:
            summed = tensor.clone()
            dist.all_reduce(summed)
            return summed

        @staticmethod
        def backward(_context: Any, gradient: torch.Tensor) -> torch.Tensor:
            summed = gradient.clone()
            dist.all_reduce(summed)
            return summed

    apply: Callable[[torch.Tensor], torch.Tensor] = Sum.apply
    return apply
