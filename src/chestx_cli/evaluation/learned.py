"""Whether predictions are evidence that a model has learned anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.evaluation.statistics.auroc import auroc_of, mean_over_folds
from chestx_cli.evaluation.statistics.intervals import undrawn_patients

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestx_cli.evaluation.predictions import Predictions

CHANCE = 0.5


def faults_of(predictions: Sequence[Predictions], class_pair: tuple[str, str]) -> tuple[str, ...]:
    """Return why predictions are no evidence that their model has learned anything; empty where they are.

    predictions: those of one model, or of each fold's model on its own images. class_pair: the negative class, the
    positive one. A comparison with a faulty model supports no verdict: any model as bad would count as not inferior.
    """
    import numpy as np

    truth = np.concatenate([one.is_positive for one in predictions])
    decision = np.concatenate([one.decision for one in predictions])
    positives = int(truth.sum())
    if positives in (0, len(truth)):
        return (f"every image is {class_pair[bool(positives)]}, which shows nothing of telling the classes apart",)
    faults = []
    called = int(decision.sum())
    of_one_class = called in (0, len(decision))
    if of_one_class:
        faults.append(f"every image is called {class_pair[bool(called)]}")
    bounds = _auroc_bounds(predictions)
    if bounds and bounds[0] <= CHANCE:
        what = "the AUROC's" if len(predictions) == 1 else "the mean AUROC's"
        word = "lies below" if bounds[1] < CHANCE else "reaches"
        faults.append(f"{what} 95 % interval {bounds[0]:.2f}–{bounds[1]:.2f} {word} {CHANCE:g}")
    correct = int((decision == truth).sum())
    largest = max(positives, len(truth) - positives)
    if correct <= largest and not of_one_class:
        larger = class_pair[2 * positives > len(truth)]
        faults.append(f"{correct:,} of {len(truth):,} right, no better than calling every image {larger} ({largest:,})")
    return tuple(faults)


def findings(predictions: Sequence[Predictions], class_pair: tuple[str, str], images: str) -> tuple[str, ...]:
    """Return the faults of a model on `images` as one text, without its name; empty where it has none."""
    import numpy as np

    faults = faults_of(predictions, class_pair)
    n = sum(len(one.decision) for one in predictions)
    patients = sum(len(np.unique(one.images.groups)) for one in predictions)
    return (f"{n:,} {images}, {patients:,} patients: {'; '.join(faults)}",) if faults else ()


def _auroc_bounds(predictions: Sequence[Predictions]) -> tuple[float, float] | None:
    """Return the 95 % interval of the AUROC, or of the mean AUROC over folds; None without images of both classes.

    Scores of different models are not comparable, so AUROCs are computed within folds and averaged; the interval of the
    mean is from the distances of their bounds (Zou and Yue, Statistics in Medicine 32, 2013).
    """
    both = [one for one in predictions if 0 < int(one.is_positive.sum()) < len(one.is_positive)]
    if not both:
        return None
    _, interval = mean_over_folds(
        [auroc_of(one.is_positive, one.probability) for one in both],
        [undrawn_patients(one.images.groups) for one in both],
    )
    return interval.bounds
