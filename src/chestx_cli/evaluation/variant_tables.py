"""Result tables of one variant, from its predictions alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from chestx_cli.evaluation.predictions import Predictions, predictions_csv
from chestx_cli.evaluation.statistics.auroc import (
    Auroc,
    auroc_interval,
    auroc_of,
    bootstrap_interval,
)
from chestx_cli.evaluation.statistics.calibration import calibrate
from chestx_cli.evaluation.statistics.intervals import Patients, bounds, proportion_interval, share
from chestx_cli.evaluation.statistics.metrics import measure
from chestx_cli.evaluation.statistics.operating_points import net_benefit, predictive_values
from chestx_cli.records.evaluation import (
    CalibrationRow,
    ClassRow,
    EvaluationRow,
    MissRow,
    NetBenefitRow,
    OperatingRow,
    PredictiveRow,
    ReliabilityBin,
)

if TYPE_CHECKING:
    from chestx_cli.records.variant import VariantRecord

NET_BENEFIT_AT = (0.05, 0.1, 0.2, 0.3, 0.5)


def both_classes(predictions: Predictions) -> bool:
    """Return whether the images include both classes; without both, rank metrics are undefined."""
    return 0 < int(predictions.is_positive.sum()) < len(predictions.is_positive)


def area_of(predictions: Predictions) -> Auroc | None:
    """Return the area under the ROC curve; None if a class has no images."""
    return auroc_of(predictions.is_positive, predictions.probability) if both_classes(predictions) else None


def evaluation_row(record: VariantRecord, predictions: Predictions, patients: Patients, verdict: str) -> EvaluationRow:
    """Return the results at the variant's threshold, and the areas under its curves."""
    import numpy as np

    metrics = measure(predictions.is_positive, predictions.probability, record.threshold)
    accuracy = proportion_interval(predictions.correct, np.ones(len(predictions.decision), dtype=bool), patients)
    if accuracy is None:
        raise ValueError("an evaluation has images")
    auroc = area_of(predictions)
    area = auroc_interval(auroc, patients) if auroc else None
    positive, called = predictions.is_positive == 1, predictions.decision == 1
    return EvaluationRow(
        variant=record.name,
        correct=int(predictions.correct.sum()),
        accuracy=metrics.accuracy,
        accuracy_interval=accuracy.bounds,
        accuracy_method=accuracy.method,
        macro_precision=metrics.macro_precision,
        macro_recall=metrics.macro_recall,
        macro_f1=metrics.macro_f1,
        auroc=metrics.auroc,
        auroc_interval=bounds(area),
        auroc_method=area.method if area else None,
        auroc_bootstrap_interval=bootstrap_interval(predictions.is_positive, predictions.probability, patients)
        if auroc
        else None,
        average_precision=metrics.average_precision,
        true_negatives=int((~positive & ~called).sum()),
        false_positives=int((~positive & called).sum()),
        false_negatives=int((positive & ~called).sum()),
        true_positives=int((positive & called).sum()),
        verdict=verdict,
        model_sha256=record.model_sha256,
        predictions_sha256=hashlib.sha256(predictions_csv(predictions).encode()).hexdigest(),
    )


def operating_row(record: VariantRecord, predictions: Predictions, patients: Patients) -> OperatingRow:
    """Return sensitivity and specificity at the variant's threshold."""
    positive = predictions.is_positive == 1
    sensitivity = proportion_interval(predictions.correct, positive, patients)
    specificity = proportion_interval(predictions.correct, ~positive, patients)
    return OperatingRow(
        variant=record.name,
        rule=record.operating_rule,
        threshold=record.threshold,
        sensitivity=share(predictions.correct, positive),
        sensitivity_interval=bounds(sensitivity),
        sensitivity_method=sensitivity.method if sensitivity else None,
        false_negatives=int((positive & ~predictions.correct).sum()),
        specificity=share(predictions.correct, ~positive),
        specificity_interval=bounds(specificity),
        specificity_method=specificity.method if specificity else None,
        false_positives=int((~positive & ~predictions.correct).sum()),
    )


def calibration_row(record: VariantRecord, predictions: Predictions, patients: Patients) -> CalibrationRow:
    """Return how well probabilities agree with frequencies."""
    calibration = calibrate(predictions.is_positive, predictions.probability, patients)
    return CalibrationRow(
        variant=record.name,
        temperature=record.temperature,
        brier=calibration.brier,
        log_loss=calibration.log_loss,
        slope=calibration.slope,
        slope_interval=calibration.slope_interval,
        intercept=calibration.intercept,
        ece=calibration.ece,
        ece_interval=calibration.ece_interval,
        bins=tuple(
            ReliabilityBin(
                images=part.images,
                mean_probability=part.mean_probability,
                positive_share=part.positive_share,
                positive_interval=part.positive_interval,
            )
            for part in calibration.bins
        ),
    )


def predictive_rows(
    record: VariantRecord, predictions: Predictions, patients: Patients, prevalences: Sequence[float]
) -> tuple[PredictiveRow, ...]:
    """Return the predictive values at each prevalence; none if a class has no images."""
    if not both_classes(predictions):
        return ()
    per_prevalence = [
        predictive_values(predictions.is_positive, predictions.decision, at, patients) for at in prevalences
    ]
    return tuple(
        PredictiveRow(
            variant=record.name,
            prevalence=prevalence,
            ppv=values.ppv,
            ppv_interval=values.ppv_interval,
            npv=values.npv,
            npv_interval=values.npv_interval,
        )
        for prevalence, values in zip(prevalences, per_prevalence, strict=True)
    )


def net_benefit_rows(record: VariantRecord, predictions: Predictions) -> tuple[NetBenefitRow, ...]:
    """Return the net benefit at each threshold of `NET_BENEFIT_AT`, beside that of calling every image positive."""
    import numpy as np

    thresholds = np.array(NET_BENEFIT_AT)
    own_benefit = net_benefit(predictions.is_positive, predictions.probability, thresholds)
    of_all = net_benefit(predictions.is_positive, np.ones(len(predictions.probability)), thresholds)
    return tuple(
        NetBenefitRow(
            variant=record.name, threshold=at, per_100=100 * float(benefit), all_per_100=100 * float(benefit_of_all)
        )
        for at, benefit, benefit_of_all in zip(NET_BENEFIT_AT, own_benefit, of_all, strict=True)
    )


def class_rows(record: VariantRecord, predictions: Predictions, patients: Patients) -> tuple[ClassRow, ...]:
    """Return precision, recall and F1 of each class, in the order of the classes."""
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, images = precision_recall_fscore_support(
        predictions.is_positive, predictions.decision, labels=[0, 1], zero_division=0.0
    )
    return tuple(
        ClassRow(
            variant=record.name,
            label=label,
            precision=float(precision[i]),
            precision_interval=bounds(proportion_interval(predictions.correct, predictions.decision == i, patients)),
            recall=float(recall[i]),
            recall_interval=bounds(proportion_interval(predictions.correct, predictions.is_positive == i, patients)),
            f1=float(f1[i]),
            images=int(images[i]),
        )
        for label, i in ((label, int(label == record.positive)) for label in record.classes)
    )


def miss_rows(record: VariantRecord, predictions: Predictions) -> tuple[MissRow, ...]:
    """Return the false negatives by increasing probability."""
    missed = [
        i for i in range(len(predictions.decision)) if predictions.is_positive[i] == 1 and predictions.decision[i] == 0
    ]
    return tuple(
        MissRow(
            variant=record.name,
            image_id=str(predictions.images.ids[i]),
            probability=float(predictions.probability[i]),
        )
        for i in sorted(missed, key=lambda i: predictions.probability[i])
    )
