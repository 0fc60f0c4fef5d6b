"""Pareto fronts of variants, and how certain a variant's place on one is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestx_cli.evaluation.statistics.influence import Total

DRAWS, SEED = 1000, 42


def on_front(points: Sequence[tuple[float, ...]]) -> tuple[bool, ...]:
    """Return for each point whether no other point dominates it; lower is better in every coordinate."""
    return tuple(
        not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
        for point in points
    )


def front_shares(
    totals: Sequence[Total], costs: Sequence[tuple[float, ...]], *, is_loss: bool = False
) -> tuple[float, ...]:
    """Return for each variant the share of patient-level bootstrap draws in which no other one dominates it.

    totals: the variants' endpoint on the same images; larger is better unless `is_loss`. costs: of each variant, lower
    is better; they are taken as known. Draws are of the influence values: the endpoint's value to first order in the
    patients' weights (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 11.5).
    """
    import numpy as np

    patients = len(totals[0].of_patients)
    rng = np.random.default_rng(SEED)
    weights = rng.multinomial(patients, np.full(patients, 1 / patients), size=DRAWS) - 1
    sign = -1.0 if is_loss else 1.0
    values = np.stack([sign * (total.value + weights @ total.of_patients) for total in totals], axis=1)
    # Shares of images that are equal differ in the last digits.
    values = values.round(12)
    table = np.array(costs, dtype=np.float64)
    # [other, own]
    no_dearer = (table[:, None] <= table[None, :]).all(axis=2)
    cheaper = no_dearer & (table[:, None] < table[None, :]).any(axis=2)
    # [draws, other, own]
    as_good = values[:, :, None] >= values[:, None, :]
    better = values[:, :, None] > values[:, None, :]
    beaten = ((as_good & cheaper) | (better & no_dearer)).any(axis=1)
    return tuple(float(1 - share) for share in beaten.mean(axis=0))
