"""Unstructured L1 pruning with torch.nn.utils.prune: zeros in Conv2d and Linear weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.models import present_weight, prunable_layers
from chestx_cli.records import EpochRow, PrunedLayerRow
from chestx_cli.registry import Registry

if TYPE_CHECKING:
    from torch import nn

# Fine-tunes a network in place for the epochs of one step, told its number, and returns their rows.
Finetune = Callable[["nn.Module", int], list[EpochRow]]


@dataclass(frozen=True, kw_only=True)
class PruningMethod:
    """A schedule of global L1 pruning and the defaults that its options take."""

    default_amount: float
    default_steps: int
    max_steps: int
    default_finetune_epochs: int
    name: Callable[[float, int], str]


ZEROS_NOTE = (
    "Zeros alone change neither the dense file nor the latency: the file keeps its size and every multiplication "
    "is still made. They pay only with a sparse format or runtime."
)

PRUNING_METHODS: Registry[PruningMethod] = Registry("pruning method")

PRUNING_METHODS.add(
    "oneshot",
    PruningMethod(
        default_amount=0.5,
        default_steps=1,
        max_steps=1,
        default_finetune_epochs=0,
        name=lambda amount, _steps: f"oneshot-{amount * 100:g}",
    ),
)
PRUNING_METHODS.add(
    "iterative",
    PruningMethod(
        default_amount=0.2,
        default_steps=3,
        max_steps=100,
        default_finetune_epochs=2,
        name=lambda amount, steps: f"iterative-{steps}x{amount * 100:g}",
    ),
)


def asked_sparsity(before: float, amount: float, steps: int) -> float:
    """Return the share of zeros after `steps` times `amount` of what is left, from a share `before`."""
    return float(1 - (1 - before) * (1 - amount) ** steps)


def prune_globally(network: nn.Module, *, amount: float, steps: int, finetune: Finetune | None) -> list[EpochRow]:
    """Zero the smallest weights of all Conv2d and Linear layers taken together, in place, in steps.

    Each step removes the share `amount` of the weights still left, then fine-tunes with all masks held.
    Returns the rows of the fine-tuning epochs.
    """
    from torch.nn.utils import prune

    parameters = [(layer, "weight") for layer in prunable_layers(network).values()]
    for layer, name in parameters:
        # What an earlier pruning has zeroed stays zero, and is not among what is left.
        prune.custom_from_mask(layer, name, mask=(present_weight(layer) != 0).float())
    rows: list[EpochRow] = []
    for step in range(1, steps + 1):
        # The method flattens with view(), which a channels-last weight does not allow.
        scores = {(layer, name): present_weight(layer).contiguous() for layer, name in parameters}
        prune.global_unstructured(parameters, prune.L1Unstructured, importance_scores=scores, amount=amount)
        if finetune is not None:
            rows += finetune(network, step)
    for layer, name in parameters:
        prune.remove(layer, name)
    return rows


def layer_sparsity(network: nn.Module) -> tuple[PrunedLayerRow, ...]:
    """Return the zeros in the weights of each Conv2d and Linear layer."""
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
