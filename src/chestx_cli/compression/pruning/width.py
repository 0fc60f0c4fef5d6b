"""Narrower networks for students, before training: the same share of the channels in every layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chestx_cli.compression.pruning.channel_removal import ROUND_TO, channels_to_remove, without_channels
from chestx_cli.compression.pruning.criteria import CRITERIA
from chestx_cli.compression.pruning.dependency_groups import score_channels, trace_groups
from chestx_cli.core.errors import ChestxError, UsageError
from chestx_cli.networks.backbones import build_classifier, head_of, output_layer

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.compression.pruning.dependency_groups import ChannelGroup

NORM = "l2"
# Neither affects the channels of the backbone.
N_CLASSES, IMAGE_SIZE_PX = 2, 224


def at_width(network: nn.Module, share: float, image_size_px: int) -> nn.Module:
    """Return a copy of a network built by `build_classifier` with this share of its backbone's channels.

    Coupled layers keep the same channels, those of the largest norm (criterion l2). Widths of 8 channels or more are
    multiples of 8; a grouped convolution keeps its groups. The study's head keeps its hidden units. Raises UsageError
    if a layer would have no channels left, ChestxError if the network's channels cannot be traced.
    """
    try:
        traced = trace_groups(network, image_size_px, kept_layer=output_layer(network))
    except ChestxError as error:
        raise ChestxError(error.fact, "use the full width, or another backbone") from error
    head = head_of(network)
    groups = [group for group in traced if not group.name.startswith(f"{head}.")]
    widths = {group.name: _width(group, share) for group in groups}
    for group in groups:
        if not widths[group.name]:
            # The smallest share that leaves every group a channel: a half is rounded up.
            least = max(one.blocks / (2 * one.channels) for one in groups)
            raise UsageError(
                f"a width of {share:g} leaves none of the {group.channels} channels of {group.name}",
                f"give at least {math.ceil(100 * least) / 100:g}",
                option="width",
            )
    removed = {}
    for group in groups:
        scores = score_channels(network, group, CRITERIA[NORM])
        if scores is not None:
            removed[group.name] = channels_to_remove(group, scores, widths[group.name])
    return without_channels(network, groups, removed)


def require_width(backbone: str, share: float) -> None:
    """Raise UsageError or ChestxError unless a backbone can be built with this share of its channels."""
    if share < 1:
        at_width(build_classifier(backbone, N_CLASSES), share, IMAGE_SIZE_PX)


def _width(group: ChannelGroup, share: float) -> int:
    """Return the number of channels that a group keeps; 0 if none are left."""
    wanted = share * group.channels
    # Each block of a grouped convolution has few channels: with multiples of 8 it would keep them all.
    unit = group.blocks if group.blocks > 1 or wanted < ROUND_TO else ROUND_TO
    return min(group.channels, unit * math.floor(wanted / unit + 0.5))
