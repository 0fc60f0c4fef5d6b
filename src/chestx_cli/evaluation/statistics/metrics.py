"""Metrics of a binary classifier from its probabilities."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Threshold metrics with macro averages over both classes, and rank metrics of the positive class."""

    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    auroc: float | None
    average_precision: float | None


def measure(
    is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], threshold: float = 0.5
) -> Metrics:
    """Return the metrics of probabilities [N] of the positive class against the truth [N] (1 positive, 0 negative).

    A precision without predictions counts as 0. AUROC and average precision are None where one class is absent.
    """
    from sklearn.metrics import accuracy_score, average_precision_score, precision_recall_fscore_support, roc_auc_score

    decision = decide(probability, threshold)
    precision, recall, f1, _ = precision_recall_fscore_support(
        is_positive, decision, labels=[0, 1], average="macro", zero_division=0.0
    )
    both = 0 < int(is_positive.sum()) < len(is_positive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Metrics(
            accuracy=float(accuracy_score(is_positive, decision)),
            macro_precision=float(precision),
            macro_recall=float(recall),
            macro_f1=float(f1),
            auroc=float(roc_auc_score(is_positive, probability)) if both else None,
            average_precision=float(average_precision_score(is_positive, probability)) if both else None,
        )


def decide(probability: npt.NDArray[np.float64], threshold: float) -> npt.NDArray[np.int64]:
    """Return 1 where the probability of the positive class reaches the threshold, else 0."""
    return (probability >= threshold).astype("int64")
