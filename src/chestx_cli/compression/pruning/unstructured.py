"""Unstructured L1 pruning with torch.nn.utils.prune, globally and by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

from chestx_cli.networks.layers import present_weight, prunable_layers
from chestx_cli.records.variant import EpochRow, PrunedLayerRow

if TYPE_CHECKING:
    from torch import nn

# Fine-tunes a network in place for the epochs of one step, given its number, and returns their rows.
Finetune = Callable[["nn.Module", int], list[EpochRow]]
# Re-estimates the BatchNorm statistics of a network in place, with fixed masks.
Recalibrate = Callable[["nn.Module"], None]


def target_sparsity(before: float, amounts: Sequence[float]) -> float:
    """Return the share of zeros after pruning each of `amounts` of the then remaining weights, starting at `before`."""
    return 1 - (1 - before) * math.prod(1 - amount for amount in amounts)


def cubic_amounts(amount: float, steps: int) -> tuple[float, ...]:
    """Return the share of the remaining weights to zero in each step, most at first.

    Together the steps zero as many as `steps` times `amount`. After step i of n the share of zeros, of the weights at
    the start, is s (1 - (1 - i / n)^3), where s is the last (Zhu and Gupta, 2017, arXiv:1710.01878).
    """
    last = 1 - (1 - amount) ** steps
    zeros = [last * (1 - (1 - step / steps) ** 3) for step in range(steps + 1)]
    return tuple(1 - (1 - after) / (1 - before) for before, after in pairwise(zeros))


@contextmanager
def held_zeros(network: nn.Module) -> Iterator[list[tuple[nn.Module, str]]]:
    """Keep weights of Conv2d and Linear layers at zero that are zero or become pruned inside the block.

    Yields pairs of a layer and its parameter name, as torch.nn.utils.prune expects them.
    """
    from torch.nn.utils import prune

    parameters = [(layer, "weight") for layer in prunable_layers(network).values()]
    for layer, name in parameters:
        # Weights zeroed by earlier pruning stay zero and do not count as remaining.
        prune.custom_from_mask(layer, name, mask=(present_weight(layer) != 0).float())
    yield parameters
    for layer, name in parameters:
        prune.remove(layer, name)


def prune_globally(
    network: nn.Module, amounts: Sequence[float], *, recalibrate: Recalibrate | None, finetune: Finetune | None
) -> list[EpochRow]:
    """Zero the smallest weights of all Conv2d and Linear layers taken together, in place, in steps.

    Each step zeroes one of `amounts`, a share of the remaining weights, then re-estimates BatchNorm statistics and
    fine-tunes with fixed masks. Returns the rows of the fine-tuning epochs.
    """
    from torch.nn.utils import prune

    rows: list[EpochRow] = []
    with held_zeros(network) as parameters:
        for step, amount in enumerate(amounts, start=1):
            # global_unstructured flattens with view(), which fails for a channels-last weight.
            scores = {(layer, name): present_weight(layer).contiguous() for layer, name in parameters}
            prune.global_unstructured(parameters, prune.L1Unstructured, importance_scores=scores, amount=amount)
            if recalibrate is not None:
                recalibrate(network)
            if finetune is not None:
                rows += finetune(network, step)
    return rows


def prune_by_layer(network: nn.Module, zeros: Mapping[str, int]) -> None:
    """Zero the smallest weights of each layer in place up to its target number of zeros; existing zeros stay."""
    from torch.nn.utils import prune

    with held_zeros(network):
        for name, layer in prunable_layers(network).items():
            present = present_weight(layer).contiguous()
            more = zeros.get(name, 0) - int((present == 0).sum())
            if more > 0:
                prune.l1_unstructured(layer, "weight", amount=more, importance_scores=present)


def layer_sparsity(network: nn.Module) -> tuple[PrunedLayerRow, ...]:
    """Return the number and share of zero weights of each Conv2d and Linear layer."""
    import torch

    rows = []
    for name, layer in prunable_layers(network).items():
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)  # noqa: S101 - Conv2d and Linear layers have one
        zeros = weight.numel() - int(torch.count_nonzero(weight))
        rows.append(PrunedLayerRow(layer=name, weights=weight.numel(), zeros=zeros, sparsity=zeros / weight.numel()))
    return tuple(rows)


def overall_sparsity(rows: tuple[PrunedLayerRow, ...]) -> float:
    """Return the share of zeros over all layers."""
    return sum(row.zeros for row in rows) / sum(row.weights for row in rows)
