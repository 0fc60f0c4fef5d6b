"""Structured pruning: remove channels from groups of coupled layers until the target MACs are reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.compression.pruning.channel_removal import (
    TOLERANCE,
    Limits,
    MacsByWidth,
    Widths,
    allowed_widths,
    channels_to_remove,
    fit_widths,
    nearest_width,
    without_channels,
)
from chestx_cli.compression.pruning.criteria import CRITERIA
from chestx_cli.compression.pruning.dependency_groups import ChannelGroup, score_channels, trace_groups
from chestx_cli.compression.pruning.unstructured import held_zeros, layer_sparsity, overall_sparsity
from chestx_cli.core.errors import ChestxError
from chestx_cli.core.progress import SILENT
from chestx_cli.networks.devices import autocast, move_back, move_to
from chestx_cli.networks.layers import count_macs, prunable_layers
from chestx_cli.networks.losses import cross_entropy
from chestx_cli.networks.recalibration import reestimate_batchnorm
from chestx_cli.networks.training_data import plain_batches
from chestx_cli.records.variant import EpochRow, LayerWidthRow

if TYPE_CHECKING:
    import torch
    from torch import nn

    from chestx_cli.compression.pruning.unstructured import Finetune
    from chestx_cli.core.progress import Reporter
    from chestx_cli.networks.training_data import FitData

# Enough for a stable ranking of channels; many more would cost as much as a training epoch.
GRADIENT_IMAGES = 128
GRADIENT_BATCH = 32

Scores = Mapping[str, "torch.Tensor"]
Choices = Mapping[str, tuple[int, ...]]
# Maps a number from 0 (all channels) to 1 (the fewest allowed) to widths.
Allocation = Callable[[float], Widths]


@dataclass(frozen=True, kw_only=True)
class Room:
    """Input of an allocator: groups, channel scores, allowed widths, and the MACs of widths."""

    groups: Sequence[ChannelGroup]
    scores: Scores
    choices: Choices
    macs: MacsByWidth


Allocator = Callable[[Room], Allocation]


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """Rules for choosing channels: the criterion, the limits, the layer whose outputs are kept, and the allocator.

    The default allocator removes the same share from every group, or the lowest-ranked channels if the criterion's
    scores are comparable across groups.
    """

    criterion: str
    limits: Limits
    kept_layer: str
    device: str
    precision: str
    seed: int
    allocator: Allocator | None = None


def prune_channels(
    network: nn.Module,
    data: FitData,
    cutting: Cutting,
    *,
    amount: float,
    steps: int,
    finetune: Finetune | None,
    reporter: Reporter = SILENT,
) -> tuple[nn.Module, list[EpochRow]]:
    """Remove the share `amount` of a network's MACs; return the pruned network and the rows of its fine-tuning epochs.

    The share is removed in `steps` of equal ratio; after each, BatchNorm statistics are re-estimated and the network is
    fine-tuned. Raises ChestxError if the share cannot be reached to within a percentage point.
    """
    side = data.preprocessing.image_size_px
    whole = count_macs(network, side)
    originals: dict[str, int] = {}
    rows: list[EpochRow] = []
    for step in range(1, steps + 1):
        network = narrowed(
            network,
            data,
            cutting,
            originals,
            kept_macs=whole * (1 - amount) ** (step / steps),
            whole_macs=whole,
        )
        reestimate_batchnorm(network, data, device=cutting.device, reporter=reporter)
        if finetune is not None:
            # Zeros of a sparse parent remain zero.
            with held_zeros(network) if overall_sparsity(layer_sparsity(network)) else nullcontext():
                rows += finetune(network, step)
    achieved = 1 - count_macs(network, side) / whole
    if abs(achieved - amount) > TOLERANCE:
        raise ChestxError(
            f"{achieved:.1%} of the MACs were removed instead of {amount:.1%}",
            "please report this with the output of --debug",
        )
    return network, rows


def narrowed(
    network: nn.Module,
    data: FitData,
    cutting: Cutting,
    originals: dict[str, int],
    *,
    kept_macs: float,
    whole_macs: float,
) -> nn.Module:
    """Return a copy of a network pruned to `kept_macs` without fine-tuning; `whole_macs`: MACs of the unpruned network.

    originals: the original width of each group, which floors refer to; filled in if empty. Raises ShareError if no
    allowed widths come close enough.
    """
    side = data.preprocessing.image_size_px
    groups = trace_groups(network, side, kept_layer=cutting.kept_layer)
    if not originals:
        originals.update({group.name: group.channels for group in groups})
    scores = score_groups(network, groups, data, cutting)
    choices = {
        group.name: allowed_widths(group, cutting.limits, originals[group.name])
        if group.name in scores
        else (group.channels,)
        for group in groups
    }
    macs = MacsByWidth(network, groups, side)
    room = Room(groups=groups, scores=scores, choices=choices, macs=macs)
    allocate = (cutting.allocator or default_allocator(cutting.criterion))(room)
    widths = fit_widths(macs, choices, allocate, kept_macs=kept_macs, whole_macs=whole_macs)
    removed = {
        group.name: channels_to_remove(group, scores[group.name], widths[group.name])
        for group in groups
        if group.name in scores
    }
    return without_channels(network, groups, removed)


def score_groups(network: nn.Module, groups: Sequence[ChannelGroup], data: FitData, cutting: Cutting) -> Scores:
    """Return the importance of each group's channels, using training images if the criterion needs gradients.

    Groups for which the criterion is undefined are left out; raises ChestxError if none remains.
    """
    import numpy as np

    criterion = CRITERIA[cutting.criterion]
    total: dict[str, torch.Tensor] = {}

    def add_scores() -> None:
        for group in groups:
            scores = score_channels(network, group, criterion)
            if scores is not None:
                total[group.name] = total[group.name] + scores if group.name in total else scores

    if criterion.needs_gradients:
        rows = np.random.default_rng(cutting.seed).permutation(data.split.indices("train"))[:GRADIENT_IMAGES]
        move_to(network, cutting.device).eval()
        # Scores are summed over batches: in one gradient over all images, opposite signs would cancel (Molchanov et
        # al., 2019).
        for inputs, labels in plain_batches(data, rows, GRADIENT_BATCH, cutting.device):
            network.zero_grad(set_to_none=True)
            with autocast(cutting.device, cutting.precision):
                logits = network(inputs)
            cross_entropy(logits.float(), labels, None).backward()
            add_scores()
        network.zero_grad(set_to_none=True)
        move_back(network)
    else:
        add_scores()
    if not total:
        raise ChestxError(
            f"--criterion {cutting.criterion} finds nothing to score in this network",
            f"use another one: {', '.join(name for name in CRITERIA if name != cutting.criterion)}",
        )
    return total


def default_allocator(criterion: str) -> Allocator:
    """Return a criterion's allocator: by rank over the whole network, or evenly over the groups."""
    return spend_by_rank if CRITERIA[criterion].across else spend_evenly


def spend_evenly(room: Room) -> Allocation:
    """Return an allocation that removes the same share of channels from every group."""

    def allocate(share: float) -> Widths:
        return {
            group.name: nearest_width(room.choices[group.name], group.channels * (1 - share)) for group in room.groups
        }

    return allocate


def spend_by_rank(room: Room) -> Allocation:
    """Return an allocation that removes the lowest-scoring channels of the whole network."""
    import torch

    ranked = torch.cat(list(room.scores.values())).sort().values

    def allocate(share: float) -> Widths:
        threshold = ranked[min(int(share * len(ranked)), len(ranked) - 1)]
        left = {name: int((scores > threshold).sum()) for name, scores in room.scores.items()}
        return {
            group.name: nearest_width(room.choices[group.name], left.get(group.name, group.channels))
            for group in room.groups
        }

    return allocate


def layer_widths(before: nn.Module, after: nn.Module) -> tuple[LayerWidthRow, ...]:
    """Return the number of outputs of each Conv2d and Linear layer of a network before and after pruning."""
    now = prunable_layers(after)
    return tuple(
        LayerWidthRow(layer=name, before=_outputs(layer), after=_outputs(now[name]))
        for name, layer in prunable_layers(before).items()
    )


def _outputs(layer: nn.Module) -> int:
    import torch

    weight = layer.weight
    assert isinstance(weight, torch.Tensor)  # noqa: S101 - Conv2d and Linear layers have one
    return weight.shape[0]
