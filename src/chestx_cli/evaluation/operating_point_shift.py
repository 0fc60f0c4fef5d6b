"""Sensitivity and specificity of a variant at the baseline's threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.evaluation.statistics.intervals import Patients, bounds, proportion_interval, share, within
from chestx_cli.evaluation.statistics.metrics import decide
from chestx_cli.evaluation.statistics.paired import paired_difference
from chestx_cli.records.evaluation import DriftRow

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chestx_cli.evaluation.predictions import Predictions
    from chestx_cli.records.variant import VariantRecord


def drift_row(
    record: VariantRecord,
    predictions: Mapping[str, Predictions],
    records: Sequence[VariantRecord],
    baseline: str,
    patients: Patients,
) -> DriftRow:
    """Return a variant's sensitivity and specificity at the baseline's threshold, and the changes from the baseline."""
    variant, reference = predictions[record.name], predictions[baseline]
    threshold = next(r.threshold for r in records if r.name == baseline)
    positive = variant.is_positive == 1
    kept = decide(variant.probability, threshold) == variant.is_positive
    sensitivity_change = _change(reference.correct, kept, positive, patients)
    specificity_change = _change(reference.correct, kept, ~positive, patients)
    return DriftRow(
        variant=record.name,
        threshold=threshold,
        sensitivity=share(kept, positive),
        sensitivity_interval=bounds(proportion_interval(kept, positive, patients)),
        sensitivity_change=sensitivity_change.value,
        sensitivity_change_interval=sensitivity_change.interval,
        specificity=share(kept, ~positive),
        specificity_interval=bounds(proportion_interval(kept, ~positive, patients)),
        specificity_change=specificity_change.value,
        specificity_change_interval=specificity_change.interval,
    )


@dataclass(frozen=True, kw_only=True)
class Change:
    """Change of a proportion on the same images, with its 95 % interval; None without images."""

    value: float | None
    interval: tuple[float, float] | None


def _change(
    before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_], patients: Patients
) -> Change:
    if not among.any():
        return Change(value=None, interval=None)
    difference, interval = paired_difference(before[among], after[among], within(patients, among))
    return Change(value=difference, interval=interval.bounds)
