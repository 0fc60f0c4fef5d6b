"""Endpoints other than accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.core.errors import StudyError
from chestx_cli.evaluation.statistics.auroc import DELONG, auroc_difference, auroc_of
from chestx_cli.evaluation.statistics.intervals import Interval, Patients
from chestx_cli.evaluation.statistics.paired import changes_of, mcnemar_exact
from chestx_cli.evaluation.verdicts import AUROC, ENDPOINTS, Endpoint, Paired

if TYPE_CHECKING:
    from chestx_cli.evaluation.predictions import Predictions

__all__ = ["ENDPOINTS", "Endpoint", "measured_endpoint"]


def measured_endpoint(
    endpoint: str,
    first: Predictions,
    second: Predictions,
    patients: Patients,
    *,
    difference: float,
    interval: Interval,
    p: float,
    test: str,
    margin: float,
    p_margin: float,
) -> Paired:
    """Return the comparison on a registered endpoint, given its difference, 95 % interval and p values (see `Paired`).

    `test` names the test of p.
    """
    changes = changes_of(first.correct, second.correct, patients)
    return Paired(
        n=changes.n,
        lost=changes.lost,
        won=changes.won,
        effect=changes.design_effect,
        interval=interval,
        p_images=mcnemar_exact(changes.lost, changes.won),
        p=p,
        test=test,
        margin=margin,
        p_margin=p_margin,
        endpoint=endpoint,
        measured=difference,
    )


def _compare_auroc(first: Predictions, second: Predictions, patients: Patients, margin: float) -> Paired:
    if not 0 < int(first.is_positive.sum()) < len(first.is_positive):
        raise StudyError("an AUROC needs images of both classes", "use --endpoint accuracy")
    gap = auroc_difference(
        auroc_of(first.is_positive, first.probability), auroc_of(second.is_positive, second.probability), patients
    )
    low, high = gap.interval
    return measured_endpoint(
        "auroc",
        first,
        second,
        patients,
        difference=gap.value,
        interval=Interval(low=low, high=high, method=DELONG),
        p=gap.p,
        test=DELONG,
        margin=margin,
        p_margin=gap.p_at_most(-margin),
    )


ENDPOINTS.add("auroc", Endpoint(compare=_compare_auroc, margin=0.02, noun=AUROC))
