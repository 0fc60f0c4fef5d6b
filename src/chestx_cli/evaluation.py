"""Evaluating predictions, alone and against the baseline's on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.metrics import decide, measure
from chestx_cli.predictions import Predictions
from chestx_cli.records import ClassRow, EvaluationRow, MissRow
from chestx_cli.stats import auroc_interval, discordant, mcnemar_exact, verdict, wilson_interval

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chestx_cli.records import VariantRecord
    from chestx_cli.study import Split


def predictions_of(
    record: VariantRecord, split: Split, rows: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]
) -> Predictions:
    """Return class probabilities [N, classes] of some images as predictions at the variant's own threshold."""
    probability = probabilities[:, split.positive]
    return Predictions(
        image_ids=split.ids[rows],
        is_positive=split.is_positive(rows),
        probability=probability,
        decision=decide(probability, record.threshold),
    )


def evaluation_row(
    record: VariantRecord,
    own: Predictions,
    baseline: Predictions | None,
    reference: str,
    patients: npt.NDArray[np.str_],
    rng: np.random.Generator,
) -> EvaluationRow:
    """Return one variant's results; the comparison with `reference` is None for it itself.

    patients: [N], the unit of resampling.
    """
    found = measure(own.is_positive, own.probability, record.threshold)
    n, correct = len(own.decision), int(own.correct.sum())
    if found.auroc is None or found.average_precision is None:
        raise ValueError("a test split has images of both classes")
    lost, won = (None, None) if baseline is None else discordant(baseline.correct, own.correct)
    positive, called = own.is_positive == 1, own.decision == 1
    return EvaluationRow(
        variant=record.name,
        correct=correct,
        accuracy=found.accuracy,
        accuracy_interval=wilson_interval(correct, n),
        macro_precision=found.macro_precision,
        macro_recall=found.macro_recall,
        macro_f1=found.macro_f1,
        auroc=found.auroc,
        auroc_interval=auroc_interval(own.is_positive, own.probability, patients, rng),
        average_precision=found.average_precision,
        true_negatives=int((~positive & ~called).sum()),
        false_positives=int((~positive & called).sum()),
        false_negatives=int((positive & ~called).sum()),
        true_positives=int((positive & called).sum()),
        only_baseline_correct=lost,
        only_variant_correct=won,
        mcnemar_p=None if lost is None or won is None else mcnemar_exact(lost, won),
        verdict=reference if lost is None or won is None else verdict(lost, won, n, reference),
        model_sha256=record.model_sha256,
    )


def class_rows(record: VariantRecord, own: Predictions, split: Split) -> tuple[ClassRow, ...]:
    """Return precision, recall and F1 of each class, in the order of the classes."""
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, images = precision_recall_fscore_support(
        own.is_positive, own.decision, labels=[0, 1], zero_division=0.0
    )
    code = [int(index == split.positive) for index in range(len(split.classes))]
    return tuple(
        ClassRow(
            variant=record.name,
            label=label,
            precision=float(precision[i]),
            recall=float(recall[i]),
            f1=float(f1[i]),
            images=int(images[i]),
        )
        for label, i in zip(split.classes, code, strict=True)
    )


def misses(record: VariantRecord, own: Predictions, split: Split, rows: npt.NDArray[np.int64]) -> tuple[MissRow, ...]:
    """Return the positive images called negative, the most confident mistakes first."""
    found = [i for i in range(len(rows)) if own.is_positive[i] == 1 and own.decision[i] == 0]
    return tuple(
        MissRow(
            variant=record.name,
            image_id=str(own.image_ids[i]),
            path=str(split.paths[rows[i]]),
            probability=float(own.probability[i]),
        )
        for i in sorted(found, key=lambda i: own.probability[i])
    )
