"""Metrics of a binary classifier, computed from its probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.errors import ChestxError
from chestx_cli.core.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Maps labels [N] (True for the positive class) and probabilities [N] of the positive class to a number; None if
# undefined, for example without images of both classes.
Metric = Callable[["npt.NDArray[np.bool_]", "npt.NDArray[np.float64]"], "float | None"]

# Computed on the training and validation images after every epoch.
METRICS: Registry[Metric] = Registry("metric", of=Callable)


def measure_epoch(is_positive: npt.NDArray[np.bool_], probability: npt.NDArray[np.float64]) -> dict[str, float | None]:
    """Return every registered metric by name; raises ChestxError naming the metric if one fails.

    is_positive, probability: [N], of one epoch.
    """
    values: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        try:
            value = metric(is_positive, probability)
            values[name] = None if value is None else float(value)
        # A plugin's metric may raise anything.
        except Exception as error:
            raise ChestxError(
                f"the metric {name!r} failed: {type(error).__name__}: {error}",
                "correct it; with --debug the same command shows where it fails",
            ) from error
    return values


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Threshold metrics (macro averages over both classes) and rank metrics of the positive class."""

    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    auroc: float | None
    average_precision: float | None


def measure(
    is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], threshold: float = 0.5
) -> Metrics:
    """Return the metrics of probabilities [N] of the positive class against labels [N] (1 positive, 0 negative).

    Precision without predictions counts as 0. AUROC and average precision are None if a class is absent.
    """
    decision = decide(probability, threshold)
    precision, recall, f1 = _macro_scores(is_positive, decision)
    return Metrics(
        accuracy=float((decision == is_positive).mean()),
        macro_precision=precision,
        macro_recall=recall,
        macro_f1=f1,
        auroc=auroc(is_positive, probability),
        average_precision=average_precision(is_positive, probability),
    )


def decide(probability: npt.NDArray[np.float64], threshold: float = 0.5) -> npt.NDArray[np.int64]:
    """Return decisions [N]: 1 if the probability of the positive class reaches the threshold, else 0."""
    return (probability >= threshold).astype("int64")


def _macro_scores(
    is_positive: npt.NDArray[np.int64 | np.bool_], decision: npt.NDArray[np.int64]
) -> tuple[float, float, float]:
    """Return macro-averaged precision, recall and F1."""
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        is_positive, decision, labels=[0, 1], average="macro", zero_division=0.0
    )
    return float(precision), float(recall), float(f1)


def _has_both(is_positive: npt.NDArray[np.int64 | np.bool_]) -> bool:
    return 0 < int(is_positive.sum()) < len(is_positive)


def auroc(is_positive: npt.NDArray[np.int64 | np.bool_], probability: npt.NDArray[np.float64]) -> float | None:
    """Return the area under the ROC curve from labels and probabilities [N]; None if a class is absent."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(is_positive, probability)) if _has_both(is_positive) else None


def average_precision(
    is_positive: npt.NDArray[np.int64 | np.bool_], probability: npt.NDArray[np.float64]
) -> float | None:
    """Return the average precision from labels and probabilities [N]; None if a class is absent."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(is_positive, probability)) if _has_both(is_positive) else None


METRICS.add("accuracy", lambda is_positive, probability: float((decide(probability) == is_positive).mean()))
METRICS.add("precision", lambda is_positive, probability: _macro_scores(is_positive, decide(probability))[0])
METRICS.add("recall", lambda is_positive, probability: _macro_scores(is_positive, decide(probability))[1])
METRICS.add("f1", lambda is_positive, probability: _macro_scores(is_positive, decide(probability))[2])
METRICS.add("auroc", auroc)
METRICS.add("average_precision", average_precision)
