"""Pruning criteria: scores for the importance of channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chestx_cli.core.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class ChannelWeights:
    """The weights of one layer that belong to the channels of a group: row i is removed with channel i.

    layer: the layer's dotted name. tensor: the parameter's name (weight or bias). makes: whether the layer outputs the
    channels, like a convolution or its batch normalisation, rather than reading them. values: [channels, weights per
    channel]. gradients: of the same shape; None unless the criterion needs them.
    """

    layer: str
    tensor: str
    makes: bool
    values: torch.Tensor
    gradients: torch.Tensor | None


# Maps a group's weights to its channels' importance [channels], higher is more important; None if undefined.
Formula = Callable[[Sequence[ChannelWeights]], "torch.Tensor | None"]


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A channel importance (a Torch-Pruning class name with options, or a formula), and how its scores are used.

    across: whether scores are comparable across the whole network, not only within a group. needs_gradients: whether
    scores use gradients; they are then summed over batches of training images.
    """

    importance: str | Formula
    options: Mapping[str, object] = field(default_factory=dict)
    across: bool = False
    needs_gradients: bool = False


CRITERIA: Registry[Criterion] = Registry("pruning criterion", of=Criterion)

# Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017
CRITERIA.add("l1", Criterion(importance="GroupMagnitudeImportance", options={"p": 1}))
# Fang et al., DepGraph, CVPR 2023
CRITERIA.add("l2", Criterion(importance="GroupMagnitudeImportance", options={"p": 2}))
# Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019
CRITERIA.add("taylor", Criterion(importance="GroupTaylorImportance", needs_gradients=True))
# Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017
CRITERIA.add("bn-scale", Criterion(importance="BNScaleImportance"))
# Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021: designed to rank across layers
CRITERIA.add("lamp", Criterion(importance="LAMPImportance", across=True))
# He et al., Filter Pruning via Geometric Median, CVPR 2019
CRITERIA.add("fpgm", Criterion(importance="FPGMImportance"))
CRITERIA.add("random", Criterion(importance="RandomImportance"))


def usual_criterion(network: nn.Module) -> str:
    """Return the default criterion: bn-scale, which measured best, or l2 for a network without batch normalisation."""
    from torch import nn

    return "bn-scale" if any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) else "l2"
