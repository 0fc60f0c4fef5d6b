"""Records of `evaluate` and `compare`, and the rows of their tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from chestx_cli.core.record import col, report_only
from chestx_cli.records.tabular import Count, Share, TabularRecord, listed


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """Results of one variant on the evaluated images; `..._method` names the method of the interval before it."""

    variant: str = col("Variant")
    correct: Count = field()
    accuracy: Share = col("Accuracy", ".2%")
    accuracy_interval: tuple[float, float] = col("95 %", ".1%")
    accuracy_method: str = col("by")
    macro_precision: Share = field()
    macro_recall: Share = field()
    macro_f1: Share = col("Macro F1", ".3f")
    auroc: Share | None = col("AUROC", ".3f")
    auroc_interval: tuple[float, float] | None = col("95 %", ".3f")
    auroc_method: str | None = col("by")
    auroc_bootstrap_interval: tuple[float, float] | None = field()
    average_precision: Share | None = col("AP", ".3f")
    true_negatives: Count = field()
    false_positives: Count = field()
    false_negatives: Count = field()
    true_positives: Count = field()
    verdict: str = field()
    model_sha256: str
    predictions_sha256: str


@dataclass(frozen=True, kw_only=True)
class OperatingRow:
    """Results of one variant at its frozen threshold."""

    variant: str = col("Variant")
    rule: str = col("Operating point")
    threshold: float = col("Threshold", ".4g")
    sensitivity: Share | None = col("Sens.", ".1%")
    sensitivity_interval: tuple[float, float] | None = col("95 %", ".1%")
    sensitivity_method: str | None = col("by")
    false_negatives: Count = col("FN", ",")
    specificity: Share | None = col("Spec.", ".1%")
    specificity_interval: tuple[float, float] | None = col("95 %", ".1%")
    specificity_method: str | None = col("by")
    false_positives: Count = col("FP", ",")


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One variant against the baseline on the same images; `holm_p` is corrected for the number of variants compared.

    `word` is the bare verdict, `short` adds the reason, and `verdict` completes a sentence that names the variant.
    """

    variant: str = col("Against the baseline")
    endpoint: str = "accuracy"
    short: str = col("Verdict")
    lost: Count = col("Correct in baseline only", ",")
    won: Count = col("Correct in variant only", ",")
    difference: float = col("Difference", "+.1%")
    interval: tuple[float, float] = col("95 %", "+.1%", separator=" to ")
    method: str = col("by")
    images: Count = field()
    design_effect: float = field()
    mcnemar_p: Share = field()
    p: Share = col("p", ".2g")
    test: str = field()
    holm_p: Share = field()
    margin: float = field()
    p_margin: Share = field()
    holm_p_margin: Share = field()
    word: str = field()
    verdict: str = field()
    needed_images: Count | None = field()
    assumption: str | None = field()


@dataclass(frozen=True, kw_only=True)
class GuardRow:
    """A measure that must not fall even if the endpoint holds; None if the images do not allow computing it.

    `p` is two-sided, for no difference; `p_margin` is one-sided, for a fall of `margin` or more.
    """

    variant: str = col("Guards")
    measure: str = col("Measure")
    difference: float | None = col("Change", "+.3f")
    interval: tuple[float, float] | None = col("95 %", "+.3f", separator=" to ")
    p: Share | None = col("p", ".2g")
    margin: float = col("Margin", "g")
    p_margin: Share | None = field()
    state: str = col("State")


@dataclass(frozen=True, kw_only=True)
class DriftRow:
    """One variant at the baseline's threshold: the effect of replacing the model alone."""

    variant: str = col("At the baseline's threshold")
    threshold: float = col("Threshold", ".4g")
    sensitivity: Share | None = col("Sens.", ".1%")
    sensitivity_interval: tuple[float, float] | None = col("95 %", ".1%")
    sensitivity_change: float | None = col("change", "+.1%")
    sensitivity_change_interval: tuple[float, float] | None = col("95 %", "+.1%", separator=" to ")
    specificity: Share | None = col("Spec.", ".1%")
    specificity_interval: tuple[float, float] | None = col("95 %", ".1%")
    specificity_change: float | None = col("change", "+.1%")
    specificity_change_interval: tuple[float, float] | None = col("95 %", "+.1%", separator=" to ")


@dataclass(frozen=True, kw_only=True)
class PredictiveRow:
    """Predictive values of one variant at an assumed prevalence."""

    variant: str = col("Variant")
    prevalence: Share = col("Prevalence", ".1%")
    ppv: Share | None = col("PPV", ".1%")
    ppv_interval: tuple[float, float] = col("95 %", ".1%")
    npv: Share | None = col("NPV", ".1%")
    npv_interval: tuple[float, float] = col("95 %", ".1%")


@dataclass(frozen=True, kw_only=True)
class NetBenefitRow:
    """Net benefit per 100 images of one variant, and of treating all, at one threshold probability."""

    variant: str = col("Variant")
    threshold: float = col("Threshold probability", ".0%")
    per_100: float = col("Net benefit per 100", ".1f")
    all_per_100: float = col("Treating all", ".1f")


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """One bin of a reliability diagram: images, their mean probability, and the share of positives among them."""

    images: Count
    mean_probability: Share
    positive_share: Share
    positive_interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """Calibration of one variant's probabilities."""

    variant: str = col("Variant")
    temperature: float = col("Temperature", ".3f")
    brier: float = col("Brier", ".3f")
    log_loss: float = col("Log-loss", ".3f")
    slope: float | None = col("Slope", ".2f")
    slope_interval: tuple[float, float] | None = col("95 %", ".2f")
    intercept: float | None = col("Intercept", "+.2f")
    ece: float = col("ECE", ".3f")
    ece_interval: tuple[float, float] | None = col("95 %", ".3f")
    bins: tuple[ReliabilityBin, ...] = field()


@dataclass(frozen=True, kw_only=True)
class SubgroupRow:
    """Results of one variant on one subgroup; only `remark` if the subgroup has too few images."""

    variant: str = col("Variant")
    column: str
    subgroup: str = col("Subgroup")
    images: Count = col("Images", ",")
    positives: Count = field()
    accuracy: Share | None = col("Accuracy", ".1%")
    accuracy_interval: tuple[float, float] | None = col("95 %", ".1%")
    accuracy_method: str | None = col("by")
    sensitivity: Share | None = field()
    specificity: Share | None = field()
    lost: Count | None = col("Correct in baseline only", ",")
    won: Count | None = col("Correct in variant only", ",")
    difference: float | None = col("Difference", "+.1%")
    difference_interval: tuple[float, float] | None = col("95 %", "+.1%", separator=" to ")
    remark: str = col("Remark")


@dataclass(frozen=True, kw_only=True)
class UnprovenRow:
    """A model not shown by these images to have learned anything, and the reason."""

    variant: str
    finding: str


@dataclass(frozen=True, kw_only=True)
class FlipRow:
    """An image on which a variant's decision differs from the baseline's."""

    variant: str = col("Variant")
    change: str = col("Changed decision")
    image_id: str = col("Image")
    baseline_probability: Share = col("Baseline's probability", ".3f")
    probability: Share = col("Its own", ".3f")


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """Precision, recall and F1 of one variant for one class."""

    variant: str = col("Variant")
    label: str = col("Class")
    precision: Share = col("Precision", ".3f")
    precision_interval: tuple[float, float] | None = col("95 %", ".3f")
    recall: Share = col("Recall", ".3f")
    recall_interval: tuple[float, float] | None = col("95 %", ".3f")
    f1: Share = col("F1", ".3f")
    images: Count = col("Images", ",")


@dataclass(frozen=True, kw_only=True)
class MissRow:
    """A positive image that a variant classifies as negative."""

    variant: str = col("Variant")
    image_id: str = col("False negative")
    probability: Share = col("Probability", ".3f")


@dataclass(frozen=True, kw_only=True)
class PairedRow:
    """One measure of two variants on the same images."""

    measure: str = col("Measure")
    images: int = col("Images", ",")
    first: float | None = col("A", ".2%")
    first_interval: tuple[float, float] | None = col("95 %", ".1%")
    second: float | None = col("B", ".2%")
    second_interval: tuple[float, float] | None = col("95 %", ".1%")
    lost: int | None = col("Correct in A only", ",")
    won: int | None = col("Correct in B only", ",")
    difference: float | None = col("B − A", "+.2%")
    difference_interval: tuple[float, float] | None = col("95 %", "+.1%", separator=" to ")
    method: str = col("by")
    p: float | None = col("p", ".2g")
    test: str = field()


@dataclass(frozen=True, kw_only=True)
class PairedAurocRow:
    """The AUROCs of two variants on the same images."""

    first: float = col("AUROC of A", ".3f")
    first_interval: tuple[float, float] | None = col("95 %", ".3f")
    second: float = col("AUROC of B", ".3f")
    second_interval: tuple[float, float] | None = col("95 %", ".3f")
    difference: float = col("B − A", "+.4f")
    difference_interval: tuple[float, float] = col("95 %", "+.3f", separator=" to ")
    method: str = col("by")
    p: float = col("p", ".2g")


@dataclass(frozen=True, kw_only=True)
class PairedEndpointRow:
    """Two variants on the endpoint, over all folds; `difference` is B − A, for losses too."""

    measure: str = col("Endpoint")
    first: float = col("A", ".4f")
    first_interval: tuple[float, float] = col("95 %", ".3f")
    second: float = col("B", ".4f")
    second_interval: tuple[float, float] = col("95 %", ".3f")
    difference: float = col("B less A", "+.4f")
    difference_interval: tuple[float, float] = col("95 %", "+.4f", separator=" to ")
    method: str = col("by")
    p: float = col("p", ".2g")
    margin: float = col("Margin", "g")
    p_margin: float = col("p, loss of the margin", ".2g")


@dataclass(frozen=True, kw_only=True)
class PairedFoldRow:
    """Two variants on the test images of one fold."""

    fold: str = col("Fold")
    images: int = col("Images", ",")
    first: float = col("A", ".2%")
    first_interval: tuple[float, float] | None = col("95 %", ".1%")
    second: float = col("B", ".2%")
    second_interval: tuple[float, float] | None = col("95 %", ".1%")
    lost: int = col("Correct in A only", ",")
    won: int = col("Correct in B only", ",")
    difference: float = col("B − A", "+.2%")
    difference_interval: tuple[float, float] = col("95 %", "+.1%", separator=" to ")
    auroc_difference: float | None = col("ΔAUROC", "+.3f")
    auroc_difference_interval: tuple[float, float] | None = col("95 %", "+.3f", separator=" to ")


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(TabularRecord):
    """`evaluation.test.json`, for one variant; the command returns one with the rows of all variants.

    `split` is `test`, or the name of an evaluation on other images; `images_sha256` identifies the images.
    """

    schema: ClassVar[str] = "chestx.evaluation/5"
    title: ClassVar[str] = "Results"
    remedy: ClassVar[str] = 'run "chestx evaluate" again, or remove the file'

    split: str = col("Evaluated on")
    images_sha256: str
    images: Count = col("Images", ",")
    patients: Count = col("Patients", ",")
    positive: str = col("Positive class")
    baseline: str = col("Baseline")
    endpoint: str = col("Endpoint", default="accuracy")
    margin: float = col("Margin", "g")
    # Why the baseline is not shown to have learned anything, which rules out verdicts against it; empty otherwise.
    baseline_faults: tuple[str, ...] = ()
    split_sha256: str
    rows: tuple[EvaluationRow, ...]
    operating_rows: tuple[OperatingRow, ...]
    comparisons: tuple[ComparisonRow, ...]
    drift: tuple[DriftRow, ...]
    guards: tuple[GuardRow, ...]
    calibration: tuple[CalibrationRow, ...]
    predictive_values: tuple[PredictiveRow, ...]
    subgroups: tuple[SubgroupRow, ...] = ()
    unproven: tuple[UnprovenRow, ...] = ()
    # Images that look unlike the training images; None where that was not looked for, as for the test images.
    unlike_training: Count | None = None
    flips: tuple[FlipRow, ...] = report_only()
    net_benefit: tuple[NetBenefitRow, ...] = report_only()
    class_rows: tuple[ClassRow, ...] = report_only()
    misses: tuple[MissRow, ...] = report_only()

    @property
    def headline(self) -> str:
        """Return the verdict on each variant or, if none was compared, the number of correct images."""
        rows = [f"{row.variant} {row.short}" for row in self.comparisons]
        rows = rows or [f"{row.variant} {row.correct:,} of {self.images:,} correct" for row in self.rows]
        return f"{listed(rows)} on {self.images:,} images ({self.split})"

    def of(self, variant: str) -> EvaluationRecord:
        """Return the record with the rows of one variant only."""
        tables = {
            name: tuple(row for row in value if row.variant == variant)
            for name, value in vars(self).items()
            if isinstance(value, tuple) and value and hasattr(value[0], "variant")
        }
        return self.replace(**tables)

    @property
    def prevalences(self) -> tuple[float, ...]:
        """Return the prevalences that predictive values are given for, in order."""
        return tuple(sorted({row.prevalence for row in self.predictive_values}))

    @property
    def reference(self) -> str:
        """Return the baseline's name for use in sentences."""
        return "the baseline" if self.baseline == "baseline" else self.baseline

    @property
    def comparison(self) -> ComparisonRow | None:
        """Return the comparison with the baseline in a record of one variant; None for the baseline itself."""
        return self.comparisons[0] if self.comparisons else None


@dataclass(frozen=True, kw_only=True)
class CompareRecord(TabularRecord):
    """Result of `compare` for two variants on the same images; `folds` is empty for a study of one split."""

    schema: ClassVar[str] = "chestx.compare/5"
    title: ClassVar[str] = "Paired comparison"

    first: str = col("A")
    second: str = col("B")
    evaluated_on: str = col("Evaluated on")
    images: int = col("Images", ",")
    patients: int = col("Patients", ",")
    endpoint: str = col("Endpoint", default="accuracy")
    margin: float = col("Margin", "g")
    word: str
    short: str
    verdict: str = col("Verdict")
    needed_images: int | None
    endpoint_rows: tuple[PairedEndpointRow, ...]
    rows: tuple[PairedRow, ...]
    auroc_rows: tuple[PairedAurocRow, ...]
    guards: tuple[GuardRow, ...] = report_only()
    folds: tuple[PairedFoldRow, ...] = ()
    flips: tuple[FlipRow, ...]

    @property
    def headline(self) -> str:
        """Return the verdict."""
        return f"{self.second} against {self.first}: {self.short} on {self.images:,} images ({self.evaluated_on})"
