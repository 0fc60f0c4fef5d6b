"""Result tables of an evaluation: each variant alone, and compared with the baseline on the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.evaluation.endpoints import ACCURACY, ENDPOINTS, Paired, compare
from chestx_cli.evaluation.operating_point_shift import drift_row
from chestx_cli.evaluation.predictions import CellPair, Predictions
from chestx_cli.evaluation.statistics.auroc import (
    AurocDifference,
    auroc_difference,
)
from chestx_cli.evaluation.statistics.intervals import Interval, Patients, bounds, proportion_interval, share, within
from chestx_cli.evaluation.variant_tables import (
    area_of,
    calibration_row,
    class_rows,
    evaluation_row,
    miss_rows,
    net_benefit_rows,
    operating_row,
    predictive_rows,
)
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
    SubgroupRow,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chestx_cli.records.variant import VariantRecord

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
            evaluation_row(record, predictions[record.name], patients, words.get(record.name, options.reference))
            for record in records
        ),
        operating_rows=tuple(operating_row(record, predictions[record.name], patients) for record in records),
        comparisons=comparisons,
        drift=tuple(drift_row(record, predictions, records, options.baseline, patients) for record in others),
        guards=guards,
        calibration=tuple(calibration_row(record, predictions[record.name], patients) for record in records),
        predictive_values=tuple(
            row
            for record in records
            for row in predictive_rows(record, predictions[record.name], patients, options.prevalences)
        ),
        subgroups=subgroup_rows(records, predictions, patients, options),
        flips=tuple(row for record in others for row in flip_rows(record.name, reference, predictions[record.name])),
        net_benefit=tuple(row for record in records for row in net_benefit_rows(record, predictions[record.name])),
        class_rows=tuple(row for record in records for row in class_rows(record, predictions[record.name], patients)),
        misses=tuple(row for record in records for row in miss_rows(record, predictions[record.name])),
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
    base, other = area_of(first), area_of(second)
    return auroc_difference(base, other, patients) if base and other else None


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
