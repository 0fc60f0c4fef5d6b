"""Structured sensitivity: the effect of removing channels from one group of coupled layers at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chestx_cli.compression.pruning.channel_removal import (
    MacsByWidth,
    allowed_widths,
    channels_to_remove,
    nearest_width,
    without_channels,
)
from chestx_cli.compression.pruning.dependency_groups import trace_groups
from chestx_cli.compression.pruning.layer_sensitivity import validation_outcome
from chestx_cli.compression.pruning.structured import Cutting, score_groups
from chestx_cli.networks.devices import move_to
from chestx_cli.networks.recalibration import reestimate_batchnorm
from chestx_cli.networks.training_data import predict_logits
from chestx_cli.records.sensitivity import GroupMeasurement, GroupRow

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.compression.pruning.dependency_groups import ChannelGroup
    from chestx_cli.core.progress import Reporter
    from chestx_cli.evaluation.statistics.outcome import Outcome
    from chestx_cli.networks.training_data import FitData

# Enough for stable statistics; using all images would take several times as long.
RECALIBRATION_IMAGES = 64


def measure_groups(
    network: nn.Module, data: FitData, cutting: Cutting, amounts: Sequence[float], reporter: Reporter
) -> tuple[Outcome, tuple[GroupRow, ...], tuple[GroupMeasurement, ...]]:
    """Measure a network intact and with channels removed from one group at a time; the network is not changed.

    BatchNorm statistics are re-estimated on some training images before every measurement, including the intact
    network, as in pruning: otherwise outdated statistics would dominate the result. Groups that the limits do not allow
    to shrink or that the criterion cannot score are left out. Returns the intact outcome, the ranked groups and all
    measurements.
    """
    side = data.preprocessing.image_size_px
    groups = trace_groups(network, side, kept_layer=cutting.kept_layer)
    scores = score_groups(network, groups, data, cutting)
    macs = MacsByWidth(network, groups, side)
    choices = {group.name: allowed_widths(group, cutting.limits, group.channels) for group in groups}
    measured = [group for group in groups if group.name in scores and len(choices[group.name]) > 1]
    measurements: list[GroupMeasurement] = []
    with reporter.progress("Removing channels group by group", 1 + len(measured) * len(amounts)) as advance:
        whole = _outcome(without_channels(network, groups, {}), data, cutting)
        advance()
        for group in measured:
            for amount in amounts:
                width = nearest_width(choices[group.name][1:], group.channels * (1 - amount))
                removed = channels_to_remove(group, scores[group.name], width)
                outcome = _outcome(without_channels(network, groups, {group.name: removed}), data, cutting)
                measurements.append(
                    GroupMeasurement(
                        layer=group.name,
                        channels=group.channels,
                        channels_removed=len(removed),
                        amount=amount,
                        macs_removed=-macs.change({}, group.name, width) / macs({}),
                        loss=outcome.loss,
                        accuracy=outcome.accuracy,
                        auroc=outcome.auroc,
                    )
                )
                advance()
    return whole, _rank_groups(measured, measurements, macs, whole.loss, whole.accuracy), tuple(measurements)


def _outcome(network: nn.Module, data: FitData, cutting: Cutting) -> Outcome:
    """Return the outcome of a network on the validation images, after re-estimating its BatchNorm statistics."""
    reestimate_batchnorm(network, data, device=cutting.device, images=RECALIBRATION_IMAGES)
    move_to(network, cutting.device)
    rows = data.split.indices("val")
    return validation_outcome(predict_logits(network, data, rows, device=cutting.device, precision="fp32"), data)


def _rank_groups(
    groups: Sequence[ChannelGroup],
    measurements: Sequence[GroupMeasurement],
    macs: MacsByWidth,
    loss: float,
    accuracy: float,
) -> tuple[GroupRow, ...]:
    """Return groups from critical to robust, ranked by mean loss increase over the amounts."""
    by_name = {
        group.name: [measurement for measurement in measurements if measurement.layer == group.name] for group in groups
    }

    def mean_increase(group: ChannelGroup) -> float:
        return sum(measurement.loss - loss for measurement in by_name[group.name]) / len(by_name[group.name])

    return tuple(
        GroupRow(
            rank=rank,
            layer=group.name,
            layers=len(group.layers),
            channels=group.channels,
            macs_share=-macs.change({}, group.name, 0) / macs({}),
            mean_loss_increase=mean_increase(group),
            max_loss_increase=max(measurement.loss for measurement in by_name[group.name]) - loss,
            max_accuracy_drop=accuracy - min(measurement.accuracy for measurement in by_name[group.name]),
            min_auroc=min(measurement.auroc for measurement in by_name[group.name]),
        )
        for rank, group in enumerate(sorted(groups, key=mean_increase, reverse=True), start=1)
    )
