"""Check whether predictions show that a model has learned anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.evaluation.statistics.auroc import auroc_interval, auroc_of, mean_over_folds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestx_cli.evaluation.predictions import Predictions

CHANCE = 0.5


def faults_of(predictions: Sequence[Predictions], class_pair: tuple[str, str]) -> tuple[str, ...]:
    """Return the reasons why predictions do not show that their model has learned anything; empty if they do.

    predictions: of one model, or of each fold's model on that fold's images. class_pair: names of the negative and the
    positive class. A comparison with a model that has learned nothing supports no verdict: any equally bad model would
    count as not inferior.
    """
    import numpy as np

    truth = np.concatenate([fold.is_positive for fold in predictions])
    decision = np.concatenate([fold.decision for fold in predictions])
    positives = int(truth.sum())
    if positives in (0, len(truth)):
        return (f"every image is {class_pair[bool(positives)]}, so nothing shows that it can separate the classes",)
    faults = []
    called = int(decision.sum())
    of_one_class = called in (0, len(decision))
    if of_one_class:
        faults.append(f"every image is called {class_pair[bool(called)]}")
    bounds = _auroc_bounds(predictions)
    if bounds and bounds[0] <= CHANCE:
        noun = "the AUROC's" if len(predictions) == 1 else "the mean AUROC's"
        word = "lies below" if bounds[1] < CHANCE else "reaches"
        faults.append(f"{noun} 95 % interval {bounds[0]:.2f}–{bounds[1]:.2f} {word} {CHANCE:g}")
    correct = int((decision == truth).sum())
    largest = max(positives, len(truth) - positives)
    if correct <= largest and not of_one_class:
        larger = class_pair[2 * positives > len(truth)]
        faults.append(f"{correct:,} of {len(truth):,} right, no better than calling every image {larger} ({largest:,})")
    return tuple(faults)


def findings(predictions: Sequence[Predictions], class_pair: tuple[str, str], images: str) -> tuple[str, ...]:
    """Return a model's faults as one text without its name; empty if it has none. images: description of the images."""
    import numpy as np

    faults = faults_of(predictions, class_pair)
    n = sum(len(fold.decision) for fold in predictions)
    patients = sum(len(np.unique(fold.images.groups)) for fold in predictions)
    return (f"{n:,} {images}, {patients:,} patients: {'; '.join(faults)}",) if faults else ()


def _auroc_bounds(predictions: Sequence[Predictions]) -> tuple[float, float] | None:
    """Return the 95 % interval of the AUROC, or of the mean AUROC over folds; None without images of both classes.

    Scores of different models are not comparable, so AUROCs are computed within folds and averaged.
    """
    both = [fold for fold in predictions if 0 < int(fold.is_positive.sum()) < len(fold.is_positive)]
    if not both:
        return None
    mean, patients = mean_over_folds(
        [auroc_of(fold.is_positive, fold.probability) for fold in both],
        [fold.images.groups for fold in both],
    )
    return auroc_interval(mean, patients).bounds
