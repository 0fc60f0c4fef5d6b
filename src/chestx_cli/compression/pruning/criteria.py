"""Pruning criteria: which channels of a group matter least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chestx_cli.core.registry import Registry

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """An importance of Torch-Pruning with its options, and how its scores are used.

    `across` says whether scores rank the channels of the whole network, or only those of one group among themselves.
    """

    importance: str
    options: Mapping[str, object] = field(default_factory=dict)
    across: bool = False
    needs_gradients: bool = False


CRITERIA: Registry[Criterion] = Registry("pruning criterion")

# Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017
CRITERIA.add("l1", Criterion(importance="GroupMagnitudeImportance", options={"p": 1}))
# Fang et al., DepGraph, CVPR 2023
CRITERIA.add("l2", Criterion(importance="GroupMagnitudeImportance", options={"p": 2}))
# Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019
CRITERIA.add("taylor", Criterion(importance="GroupTaylorImportance", needs_gradients=True))
# Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017
CRITERIA.add("bn-scale", Criterion(importance="BNScaleImportance"))
# Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021: made to rank across layers
CRITERIA.add("lamp", Criterion(importance="LAMPImportance", across=True))
# He et al., Filter Pruning via Geometric Median, CVPR 2019
CRITERIA.add("fpgm", Criterion(importance="FPGMImportance"))
CRITERIA.add("random", Criterion(importance="RandomImportance"))


def usual_criterion(network: nn.Module) -> str:
    """Return the criterion that is taken unless another is named: that which measured best, where it has a say."""
    from torch import nn

    return "bn-scale" if any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) else "l2"
