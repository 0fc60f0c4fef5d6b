"""Result tables of an evaluation: each variant alone, and compared with the baseline on the same images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.evaluation.endpoints import ACCURACY, ENDPOINTS, Paired, compare
from chestx_cli.evaluation.operating_point_shift import drift_row
from chestx_cli.evaluation.predictions import CellPair, Predictions, predictions_csv
from chestx_cli.evaluation.statistics.auroc import (
    Auroc,
    AurocDifference,
    auroc_difference,
    auroc_interval,
    auroc_of,
    bootstrap_interval,
)
from chestx_cli.evaluation.statistics.calibration import calibrate
from chestx_cli.evaluation.statistics.intervals import Interval, Patients, bounds, proportion_interval, share, within
from chestx_cli.evaluation.statistics.metrics import measure
from chestx_cli.evaluation.statistics.operating_points import net_benefit, predictive_values
from chestx_cli.evaluation.verdicts import (
    Compared,
    Margins,
    guards_of,
    in_words,
    judge,
)
from chestx_cli.records.evaluation import (
    CalibrationRow,
    ClassRow,
    ComparisonRow,
    DriftRow,
    EvaluationRow,
    FlipRow,
    GuardRow,
    MissRow,
    NetBenefitRow,
    OperatingRow,
    PredictiveRow,
    ReliabilityBin,
    SubgroupRow,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chestx_cli.records.variant import VariantRecord

NET_BENEFIT_AT = (0.05, 0.1, 0.2, 0.3, 0.5)
# With fewer images, the interval of a proportion is up to 40 points wide.
FEWEST_IMAGES = 20
NEW_MISS, NEW_ALARM = "new false negative", "new false positive"
MISS_GONE, ALARM_GONE = "false negative gone", "false positive gone"
FLIPS = (NEW_MISS, NEW_ALARM, MISS_GONE, ALARM_GONE)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of an evaluation: baseline and its name in sentences (`reference`), margins, prevalences, subgroups.

    faults: reasons why the baseline is not a valid reference; empty if it is. subgroups: value of `column` for each
    image [N]; None without subgroups.
    """

    baseline: str
    reference: str
    margins: Margins
    faults: tuple[str, ...]
    prevalences: tuple[float, ...]
    endpoint: str = ACCURACY
    column: str = ""
    subgroups: npt.NDArray[np.str_] | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationTables:
    """The tables of an evaluation, named like the fields of `EvaluationRecord`."""

    rows: tuple[EvaluationRow, ...]
    operating_rows: tuple[OperatingRow, ...]
    comparisons: tuple[ComparisonRow, ...]
    drift: tuple[DriftRow, ...]
    guards: tuple[GuardRow, ...]
    calibration: tuple[CalibrationRow, ...]
    predictive_values: tuple[PredictiveRow, ...]
    subgroups: tuple[SubgroupRow, ...]
    flips: tuple[FlipRow, ...]
    net_benefit: tuple[NetBenefitRow, ...]
    class_rows: tuple[ClassRow, ...]
    misses: tuple[MissRow, ...]


def evaluate_all(
    records: Sequence[VariantRecord],
    predictions: Mapping[str, Predictions],
    patients: Patients,
    options: EvaluationOptions,
) -> EvaluationTables:
    """Return all tables of an evaluation; `records` must include the baseline."""
    others = [record for record in records if record.name != options.baseline]
    reference = predictions[options.baseline]
    guards = tuple(
        guard
        for record in others
        for guard in guards_of(
            record.name,
            reference,
            predictions[record.name],
            patients,
            options.margins,
            auroc_gap(reference, predictions[record.name], patients),
            options.endpoint,
        )
    )
    comparisons = _comparison_rows(others, predictions, guards, options)
    words = {row.variant: row.verdict for row in comparisons}
    return EvaluationTables(
        rows=tuple(
            _evaluation_row(record, predictions[record.name], patients, words.get(record.name, options.reference))
            for record in records
        ),
        operating_rows=tuple(_operating_row(record, predictions[record.name], patients) for record in records),
        comparisons=comparisons,
        drift=tuple(drift_row(record, predictions, records, options.baseline, patients) for record in others),
        guards=guards,
        calibration=tuple(_calibration_row(record, predictions[record.name], patients) for record in records),
        predictive_values=tuple(
            row for record in records for row in _predictive_rows(record, predictions[record.name], patients, options)
        ),
        subgroups=subgroup_rows(records, predictions, patients, options),
        flips=tuple(row for record in others for row in flip_rows(record.name, reference, predictions[record.name])),
        net_benefit=tuple(row for record in records for row in _net_benefit_rows(record, predictions[record.name])),
        class_rows=tuple(row for record in records for row in _class_rows(record, predictions[record.name], patients)),
        misses=tuple(row for record in records for row in _misses(record, predictions[record.name])),
    )


def both_classes(predictions: Predictions) -> bool:
    """Return whether the images include both classes; without both, rank metrics are undefined."""
    return 0 < int(predictions.is_positive.sum()) < len(predictions.is_positive)


def _auroc(predictions: Predictions) -> Auroc | None:
    return auroc_of(predictions.is_positive, predictions.probability) if both_classes(predictions) else None


def _evaluation_row(record: VariantRecord, predictions: Predictions, patients: Patients, verdict: str) -> EvaluationRow:
    import numpy as np

    metrics = measure(predictions.is_positive, predictions.probability, record.threshold)
    accuracy = proportion_interval(predictions.correct, np.ones(len(predictions.decision), dtype=bool), patients)
    if accuracy is None:
        raise ValueError("an evaluation has images")
    auroc = _auroc(predictions)
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


def _operating_row(record: VariantRecord, predictions: Predictions, patients: Patients) -> OperatingRow:
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


def _comparison_rows(
    others: Sequence[VariantRecord],
    predictions: Mapping[str, Predictions],
    guards: Sequence[GuardRow],
    options: EvaluationOptions,
) -> tuple[ComparisonRow, ...]:
    reference, endpoint = predictions[options.baseline], ENDPOINTS[options.endpoint]
    paired = [
        endpoint.compare([CellPair(first=reference, second=predictions[record.name])], options.margins.endpoint)
        for record in others
    ]
    return rejudged(
        [
            ComparisonRow(
                variant=record.name,
                endpoint=comparison.endpoint,
                short="",
                lost=comparison.lost,
                won=comparison.won,
                difference=comparison.difference,
                interval=comparison.interval.bounds,
                method=comparison.interval.method,
                images=comparison.n,
                design_effect=comparison.effect,
                mcnemar_p=comparison.p_images,
                p=comparison.p,
                test=comparison.test,
                holm_p=comparison.p,
                margin=comparison.margin,
                p_margin=comparison.p_margin,
                holm_p_margin=comparison.p_margin,
                word="",
                verdict="",
                needed_images=None,
                assumption=None,
            )
            for record, comparison in zip(others, paired, strict=True)
        ],
        guards,
        reference=options.reference,
        faults=options.faults,
    )


def rejudged(
    rows: Sequence[ComparisonRow], guards: Sequence[GuardRow], *, reference: str, faults: tuple[str, ...]
) -> tuple[ComparisonRow, ...]:
    """Return comparisons with one reference, with verdicts and Holm's correction over exactly these comparisons.

    guards: of all the variants. faults: reasons why the reference is not valid; empty if it is.
    """
    compared = [
        Compared(
            endpoint=Paired(
                n=row.images,
                lost=row.lost,
                won=row.won,
                effect=row.design_effect,
                interval=Interval(low=row.interval[0], high=row.interval[1], method=row.method),
                p_images=row.mcnemar_p,
                p=row.p,
                test=row.test,
                margin=row.margin,
                p_margin=row.p_margin,
                endpoint=row.endpoint,
                measured=None if row.endpoint == ACCURACY else row.difference,
            ),
            guards=tuple(guard for guard in guards if guard.variant == row.variant),
            faults=faults,
        )
        for row in rows
    ]
    return tuple(
        dataclasses.replace(
            row,
            holm_p=verdict.holm_p,
            holm_p_margin=verdict.holm_p_margin,
            word=verdict.word,
            short=verdict.short,
            verdict=in_words(comparison, verdict, reference),
            needed_images=verdict.needed_images,
            assumption=verdict.assumption,
        )
        for row, comparison, verdict in zip(rows, compared, judge(compared), strict=True)
    )


def auroc_gap(first: Predictions, second: Predictions, patients: Patients) -> AurocDifference | None:
    """Return the second AUROC minus the first on the same images; None if a class has no images."""
    base, other = _auroc(first), _auroc(second)
    return auroc_difference(base, other, patients) if base and other else None


def _calibration_row(record: VariantRecord, predictions: Predictions, patients: Patients) -> CalibrationRow:
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


def _predictive_rows(
    record: VariantRecord, predictions: Predictions, patients: Patients, options: EvaluationOptions
) -> tuple[PredictiveRow, ...]:
    if not both_classes(predictions):
        return ()
    per_prevalence = [
        predictive_values(predictions.is_positive, predictions.decision, at, patients) for at in options.prevalences
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
        for prevalence, values in zip(options.prevalences, per_prevalence, strict=True)
    )


def _net_benefit_rows(record: VariantRecord, predictions: Predictions) -> tuple[NetBenefitRow, ...]:
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


def subgroup_rows(
    records: Sequence[VariantRecord],
    predictions: Mapping[str, Predictions],
    patients: Patients,
    options: EvaluationOptions,
) -> tuple[SubgroupRow, ...]:
    """Return each variant's results per subgroup; for subgroups below 20 images only counts."""
    import numpy as np

    if options.subgroups is None:
        return ()
    rows = []
    for record in records:
        variant, reference = predictions[record.name], predictions[options.baseline]
        for name in np.unique(options.subgroups):
            among = options.subgroups == name
            images, positive = int(among.sum()), variant.is_positive == 1
            enough = images >= FEWEST_IMAGES
            interval = proportion_interval(variant.correct, among, patients) if enough else None
            is_compared = enough and record.name != options.baseline
            subgroup_patients = within(patients, among)
            paired = (
                compare(reference.correct[among], variant.correct[among], subgroup_patients, options.margins.endpoint)
                if is_compared
                else None
            )
            rows.append(
                SubgroupRow(
                    variant=record.name,
                    column=options.column,
                    subgroup=str(name),
                    images=images,
                    positives=int((among & positive).sum()),
                    accuracy=share(variant.correct, among) if enough else None,
                    accuracy_interval=bounds(interval),
                    accuracy_method=interval.method if interval else None,
                    sensitivity=share(variant.correct, among & positive) if enough else None,
                    specificity=share(variant.correct, among & ~positive) if enough else None,
                    lost=paired.lost if paired else None,
                    won=paired.won if paired else None,
                    difference=paired.difference if paired else None,
                    difference_interval=paired.interval.bounds if paired else None,
                    remark="" if enough else f"under {FEWEST_IMAGES}",
                )
            )
    return tuple(rows)


def flip_rows(variant: str, reference: Predictions, predictions: Predictions) -> tuple[FlipRow, ...]:
    """Return the images whose decision changed, in the order of `FLIPS`, then by decreasing change in probability."""
    import numpy as np

    kinds = {(1, False): NEW_MISS, (0, False): NEW_ALARM, (1, True): MISS_GONE, (0, True): ALARM_GONE}
    flips = [
        FlipRow(
            variant=variant,
            change=kinds[int(predictions.is_positive[i]), bool(predictions.correct[i])],
            image_id=str(predictions.images.ids[i]),
            baseline_probability=float(reference.probability[i]),
            probability=float(predictions.probability[i]),
        )
        for i in np.flatnonzero(predictions.decision != reference.decision)
    ]
    return tuple(
        sorted(flips, key=lambda row: (FLIPS.index(row.change), -abs(row.probability - row.baseline_probability)))
    )


def _class_rows(record: VariantRecord, predictions: Predictions, patients: Patients) -> tuple[ClassRow, ...]:
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


def _misses(record: VariantRecord, predictions: Predictions) -> tuple[MissRow, ...]:
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
