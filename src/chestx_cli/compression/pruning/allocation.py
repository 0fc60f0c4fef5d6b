"""Allocation of a budget of MACs or zeros to groups or layers by their measured sensitivity."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from chestx_cli.compression.pruning.unstructured import (
    held_zeros,
    layer_sparsity,
    overall_sparsity,
    prune_by_layer,
    target_sparsity,
)
from chestx_cli.core.errors import StudyError
from chestx_cli.core.files import sha256_of
from chestx_cli.core.record import Record
from chestx_cli.records.sensitivity import GroupMeasurement, GroupSensitivityRecord, LayerMeasurement, SensitivityRecord
from chestx_cli.store.documents import read_record

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.compression.pruning.structured import Allocation, Allocator, Room
    from chestx_cli.compression.pruning.unstructured import Finetune, Recalibrate
    from chestx_cli.core.command import Run
    from chestx_cli.records.variant import EpochRow, VariantRecord
    from chestx_cli.store.directory import Study

STORED: Mapping[type[Record], tuple[str, str]] = {
    SensitivityRecord: ("sensitivity.json", "chestx sensitivity"),
    GroupSensitivityRecord: ("sensitivity.structured.json", "chestx sensitivity --structured"),
}


Sensitivity = TypeVar("Sensitivity", bound=SensitivityRecord | GroupSensitivityRecord)


@dataclass(frozen=True, kw_only=True)
class Measured(Generic[Sensitivity]):
    """The stored sensitivity of a variant, and the hash of its document."""

    record: Sensitivity
    sha256: str


def require_sensitivity(
    run: Run, study: Study, variant: VariantRecord, kind: type[Sensitivity], fold: str = ""
) -> Measured[Sensitivity]:
    """Read the stored sensitivity of a variant and record it as an input; raises StudyError if missing or stale.

    fold: precedes the input's name in a command that reads those of several folds.
    """
    file, command = STORED[kind]
    path = study.variant(variant.name) / file
    remedy = f'run "{command} --from {variant.name}" first'
    if not path.exists():
        raise StudyError(f"the sensitivity of {variant.name} has not been measured", remedy)
    record = read_record(kind, path)
    if record.model_sha256 != variant.model_sha256:
        raise StudyError(f"the stored sensitivity is of an earlier {variant.name}", remedy.replace("first", "again"))
    measured = Measured(record=record, sha256=sha256_of(path))
    run.uses("/".join(filter(None, (fold, variant.name, file))), measured.sha256)
    return measured


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Loss increase by share removed from one group or layer: convex, increasing, 0 at 0; `amounts` start at 0."""

    amounts: tuple[float, ...]
    costs: tuple[float, ...]

    def __call__(self, amount: float) -> float:
        """Return the cost of a share, interpolated between measured shares."""
        place = min(bisect.bisect_left(self.amounts, amount, 1), len(self.amounts) - 1)
        left, right = self.amounts[place - 1], self.amounts[place]
        low, high = self.costs[place - 1], self.costs[place]
        return low + (high - low) * (amount - left) / (right - left)


def cost_curves(measurements: Sequence[GroupMeasurement] | Sequence[LayerMeasurement], loss: float) -> dict[str, Curve]:
    """Return the cost curve of each group or layer: the lower convex envelope of its measured loss increases.

    A decrease of the loss is noise from few images and counts as no change. Greedy allocation is optimal on convex
    curves.
    """
    by_name: dict[str, list[tuple[float, float]]] = {}
    for measurement in measurements:
        # With few channels, the share removed can differ from the amount.
        share = (
            measurement.channels_removed / measurement.channels
            if isinstance(measurement, GroupMeasurement)
            else measurement.amount
        )
        by_name.setdefault(measurement.layer, [(0.0, 0.0)]).append((share, max(measurement.loss - loss, 0.0)))
    return {name: _envelope(sorted(set(points))) for name, points in by_name.items()}


def _envelope(points: Sequence[tuple[float, float]]) -> Curve:
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) >= (y - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    return Curve(amounts=tuple(x for x, _ in hull), costs=tuple(y for _, y in hull))


def cheapest_first(
    choices: Mapping[str, Sequence[float]],
    curves: Mapping[str, Curve],
    saving: Callable[[Mapping[str, int], str], float],
) -> list[dict[str, int]]:
    """Return a greedy allocation as the index of each name in its choices after every step.

    choices: increasing shares removed. saving: returns the saving of a name's next choice. Each step has the least cost
    per saving; ties are broken by the smallest share removed.
    """
    at = dict.fromkeys(choices, 0)
    path = [dict(at)]

    def step(name: str) -> tuple[float, float, str] | None:
        shares = choices[name]
        if at[name] + 1 == len(shares):
            return None
        now, following = shares[at[name]], shares[at[name] + 1]
        return (curves[name](following) - curves[name](now)) / saving(at, name), following, name

    waiting = [next_step for name in choices if (next_step := step(name)) is not None]
    heapq.heapify(waiting)
    while waiting:
        name = heapq.heappop(waiting)[2]
        # Other steps can only reduce this step's saving, so its cost per saving can only have risen.
        current = step(name)
        assert current is not None  # noqa: S101 - only a name's own step takes its next choice away
        if waiting and current > waiting[0]:
            heapq.heappush(waiting, current)
            continue
        at[name] += 1
        path.append(dict(at))
        following = step(name)
        if following is not None:
            heapq.heappush(waiting, following)
    return path


def by_sensitivity(record: GroupSensitivityRecord) -> Allocator:
    """Return an allocator that removes channels where the loss increase per saved MAC is smallest."""
    curves = cost_curves(record.measurements, record.loss)
    channels = {measurement.layer: measurement.channels for measurement in record.measurements}

    def allocator(room: Room) -> Allocation:
        measured = {
            name: [
                widths[0],
                *(width for width in widths[1:] if 1 - width / channels[name] <= curves[name].amounts[-1]),
            ]
            for name, widths in room.choices.items()
            if name in curves
        }
        shares = {name: [1 - width / channels[name] for width in widths] for name, widths in measured.items()}
        whole = {group.name: group.channels for group in room.groups}

        def widths_at(at: Mapping[str, int]) -> dict[str, int]:
            return {**whole, **{name: measured[name][place] for name, place in at.items()}}

        def saving(at: Mapping[str, int], name: str) -> float:
            return -room.macs.change(widths_at(at), name, measured[name][at[name] + 1])

        path = cheapest_first(shares, curves, saving)
        return lambda share: widths_at(path[round(share * (len(path) - 1))])

    return allocator


def zeros_by_sensitivity(
    record: SensitivityRecord, weights: Mapping[str, int], zeros: Mapping[str, int], wanted: int
) -> dict[str, int]:
    """Return the number of zeros per layer with the least loss increase for a total of `wanted` zeros.

    weights, zeros: the present counts of each layer. No layer exceeds its largest measured share. Raises StudyError if
    the measured shares do not suffice.
    """
    curves = cost_curves(record.measurements, record.loss)
    choices = {}
    for name, curve in curves.items():
        first = zeros[name] / weights[name]
        grid = [round(percent / 100, 2) for percent in range(1, 100)]
        choices[name] = [first, *(share for share in grid if first < share <= curve.amounts[-1])]

    def saving(at: Mapping[str, int], name: str) -> float:
        return weights[name] * (choices[name][at[name] + 1] - choices[name][at[name]])

    def counted(at: Mapping[str, int]) -> dict[str, int]:
        return {**zeros, **{name: round(weights[name] * choices[name][place]) for name, place in at.items()}}

    reached = dict(zeros)
    for at in cheapest_first(choices, curves, saving):
        before, reached = reached, counted(at)
        total = sum(reached.values())
        if total >= wanted:
            # The last step, one per cent of a layer, may overshoot the target.
            last = next((name for name in reached if reached[name] != before[name]), None)
            return reached if last is None else {**reached, last: reached[last] - (total - wanted)}
    largest = sum(reached.values()) / sum(weights.values())
    raise StudyError(
        f"the measured amounts reach {largest:.1%} of zeros only",
        "measure larger ones with --amounts, or use a smaller --amount",
    )


def prune_zeros_guided(
    network: nn.Module,
    record: SensitivityRecord,
    *,
    amount: float,
    steps: int,
    recalibrate: Recalibrate | None,
    finetune: Finetune | None,
) -> list[EpochRow]:
    """Zero the share `amount` of the remaining weights in place, in steps, where the measured sensitivity is lowest.

    Each step re-estimates BatchNorm statistics, then fine-tunes with fixed masks. Returns the rows of the fine-tuning
    epochs.
    """
    rows: list[EpochRow] = []
    whole = layer_sparsity(network)
    weights = {row.layer: row.weights for row in whole}
    for step in range(1, steps + 1):
        share = target_sparsity(overall_sparsity(whole), (1 - (1 - amount) ** (step / steps),))
        zeros = {row.layer: row.zeros for row in layer_sparsity(network)}
        prune_by_layer(network, zeros_by_sensitivity(record, weights, zeros, round(share * sum(weights.values()))))
        if recalibrate is not None:
            recalibrate(network)
        if finetune is not None:
            with held_zeros(network):
                rows += finetune(network, step)
    return rows
