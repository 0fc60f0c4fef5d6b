"""The schema of every JSON document of a study, and how its fields are shown in tables.

Rates are 0-1, times carry their unit, hashes are SHA-256 in hex. One command makes a record, later ones read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from chestx_cli.images import Preprocessing
from chestx_cli.record import Record, col, report_only
from chestx_cli.result_rows import (
    CalibrationRow,
    ClassRow,
    ComparisonRow,
    DriftRow,
    EvaluationRow,
    FlipRow,
    MissRow,
    NetBenefitRow,
    OperatingRow,
    PairedAurocRow,
    PairedFoldRow,
    PairedRow,
    PredictiveRow,
    SubgroupRow,
)


@dataclass(frozen=True, kw_only=True)
class SplitRow:
    """One class in one part of the split."""

    split: str = col("Split")
    label: str = col("Class")
    images: int = col("Images", ",")
    patients: int = col("Patients", ",")
    share: float = col("Share of class", ".1%")


@dataclass(frozen=True, kw_only=True)
class GroupRuleRow:
    """How many images a patient rule told the patient of."""

    rule: str = col("Patient key from")
    images: int = col("Images", ",")


@dataclass(frozen=True, kw_only=True)
class BadImageRow:
    """An image that could not be decoded."""

    path: str = col("Left out")
    reason: str = col("Reason")


@dataclass(frozen=True, kw_only=True)
class SplitRecord(Record):
    """`split.json`: what the data are and how they were divided."""

    schema: ClassVar[str] = "chestx.split/1"
    title: ClassVar[str] = "Split"

    source: str
    data: str = col("Data")
    layout: str = col("Layout")
    images: int = col("Images", ",")
    patients: int = col("Patients", ",")
    classes: tuple[str, ...]
    positive: str = col("Positive class")
    ignored_files: int = col("Other files ignored", ",")
    rows: tuple[SplitRow, ...]
    group_rules: tuple[GroupRuleRow, ...]
    bad_images: tuple[BadImageRow, ...] = ()
    split_csv_sha256: str


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch: means over the images seen; training metrics are of the augmented, dropped-out forward passes."""

    stage: str = col("Stage")
    epoch: int = col("Epoch")
    train_loss: float = col("Train loss", ".4f")
    train_accuracy: float = col("Train acc", ".3f")
    train_precision: float = field()
    train_recall: float = field()
    train_f1: float = col("Train F1", ".3f")
    train_auroc: float | None = col("Train AUROC", ".3f")
    train_average_precision: float | None = field()
    val_loss: float = col("Val loss", ".4f")
    val_accuracy: float = col("Val acc", ".3f")
    val_precision: float = field()
    val_recall: float = field()
    val_f1: float = col("Val F1", ".3f")
    val_auroc: float | None = col("Val AUROC", ".3f")
    val_average_precision: float | None = col("Val AP", ".3f")
    duration_s: float = col("Time s", ".1f")
    kept: bool = col("Kept")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a variant's weights were fitted; `epochs` are the rows of its `training.csv`."""

    device: str = col("Device")
    precision: str = col("Precision")
    initial_weights: str = col("Initial weights")
    best_epoch: int = col("Best epoch")
    best_val_loss: float = col("Its validation loss", ".4f")
    epochs: tuple[EpochRow, ...]


@dataclass(frozen=True, kw_only=True)
class PrunedLayerRow:
    """What pruning left of one layer."""

    layer: str = col("Layer")
    weights: int = col("Weights", ",")
    zeros: int = col("Zeros", ",")
    sparsity: float = col("Sparsity", ".1%")


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What was asked of pruning and what it did; sparsity is over the weights of Conv2d and Linear layers."""

    asked_sparsity: float = col("Asked sparsity", ".2%")
    achieved_sparsity: float = col("Achieved sparsity", ".2%")
    finetune_epochs: int = col("Fine-tuning epochs")
    layers: tuple[PrunedLayerRow, ...]


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What quantization touched."""

    quantized_layers: tuple[str, ...]
    quantized_parameters: int = col("Quantized parameters", ",")
    quantized_share: float = col("Share of all parameters", ".2%")
    parent_bytes: int = col("FP32 ONNX file (bytes)", ",")
    max_probability_difference: float = col("Largest change of a validation probability", ".4f")


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """How a variant's threshold was chosen, and what it gave on the validation images."""

    rule: str
    images: int
    sensitivity: float | None
    specificity: float | None


@dataclass(frozen=True, kw_only=True)
class TemperatureFit:
    """How a variant's temperature was fitted on the validation images."""

    images: int
    log_loss_before: float
    log_loss_after: float


@dataclass(frozen=True, kw_only=True)
class VariantRecord(Record):
    """`variant.json`: everything needed to rebuild a model and to know where it comes from."""

    schema: ClassVar[str] = "chestx.variant/1"
    title: ClassVar[str] = "Model variant"

    name: str = col("Variant")
    kind: str
    method: str = col("Method")
    parent: str | None = col("Made from")
    parent_sha256: str | None
    backbone: str = col("Backbone")
    classes: tuple[str, ...]
    positive: str
    preprocessing: Preprocessing
    # From this probability of the positive class on, an image is called positive; "chestx evaluate" freezes it.
    threshold: float
    operating_point: OperatingPoint | None = None
    # Logits are divided by it before the softmax, in every prediction of the variant.
    temperature: float = 1.0
    temperature_fit: TemperatureFit | None = None
    options: dict[str, Any]
    model_file: str
    model_sha256: str
    model_bytes: int = col("File (bytes)", ",")
    parameters: int = col("Parameters", ",")
    nonzero_parameters: int = col("Non-zero parameters", ",")
    macs: int = col("MACs", ",")
    split_sha256: str
    calibration_sha256: str | None = None
    training: Training | None = None
    pruning: Pruning | None = None
    quantization: Quantization | None = None


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer in the order from critical to robust; changes are against the unpruned variant."""

    rank: int = col("#")
    layer: str = col("Layer")
    kind: str = col("Kind")
    weights: int = col("Weights", ",")
    mean_loss_increase: float = col("Mean Δloss", "+.4f")
    max_loss_increase: float = col("Max Δloss", "+.4f")
    max_accuracy_drop: float = col("Max acc. drop", ".3f")
    min_auroc: float = col("Min AUROC", ".3f")


@dataclass(frozen=True, kw_only=True)
class LayerMeasurement:
    """One layer pruned by one amount, measured on the validation split."""

    layer: str
    kind: str
    weights: int
    amount: float
    loss: float
    accuracy: float
    auroc: float


@dataclass(frozen=True, kw_only=True)
class SensitivityRecord(Record):
    """`sensitivity.json`: what pruning each layer alone costs."""

    schema: ClassVar[str] = "chestx.sensitivity/1"
    title: ClassVar[str] = "Pruning sensitivity, from critical to robust"

    variant: str = col("Variant")
    split: str = col("Measured on")
    images: int = col("Images", ",")
    loss: float = col("Loss unpruned", ".4f")
    accuracy: float = col("Accuracy unpruned", ".3f")
    auroc: float = col("AUROC unpruned", ".3f")
    amounts: tuple[float, ...] = col("Amounts", "g", separator=", ")
    model_sha256: str
    rows: tuple[LayerRow, ...]
    measurements: tuple[LayerMeasurement, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(Record):
    """`evaluation.test.json`, of one variant; the command's own record has the rows of all.

    `split` is `test`, or the name of an evaluation of other images, which lie in `data` and have this hash.
    """

    schema: ClassVar[str] = "chestx.evaluation/2"
    title: ClassVar[str] = "Results"

    split: str = col("Evaluated on")
    data: str | None = None
    images_sha256: str
    images: int = col("Images", ",")
    patients: int = col("Patients", ",")
    positive: str = col("Positive class")
    baseline: str = col("Baseline")
    margin: float = col("Margin", "g")
    split_sha256: str
    rows: tuple[EvaluationRow, ...]
    operating_rows: tuple[OperatingRow, ...]
    comparisons: tuple[ComparisonRow, ...]
    drift: tuple[DriftRow, ...]
    calibration: tuple[CalibrationRow, ...]
    predictive_values: tuple[PredictiveRow, ...]
    subgroups: tuple[SubgroupRow, ...] = ()
    flips: tuple[FlipRow, ...] = report_only()
    net_benefit: tuple[NetBenefitRow, ...] = report_only()
    class_rows: tuple[ClassRow, ...] = report_only()
    misses: tuple[MissRow, ...] = report_only()

    def of(self, variant: str) -> EvaluationRecord:
        """Return the part of the record that is about one variant."""
        tables = {
            name: tuple(row for row in value if row.variant == variant)
            for name, value in vars(self).items()
            if isinstance(value, tuple) and value and hasattr(value[0], "variant")
        }
        return self.replace(**tables)

    @property
    def reference(self) -> str:
        """Return the baseline as it is called in sentences."""
        return "the baseline" if self.baseline == "baseline" else self.baseline

    @property
    def comparison(self) -> ComparisonRow | None:
        """Return the comparison with the baseline, of a record about one variant; None for the baseline itself."""
        return self.comparisons[0] if self.comparisons else None


@dataclass(frozen=True, kw_only=True)
class CompareRecord(Record):
    """What `compare` found of two variants on the same images; `folds` is empty for a study of one split."""

    schema: ClassVar[str] = "chestx.compare/1"
    title: ClassVar[str] = "Paired comparison"

    first: str = col("A")
    second: str = col("B")
    evaluated_on: str = col("Evaluated on")
    images: int = col("Images", ",")
    patients: int = col("Patients", ",")
    margin: float = col("Margin", "g")
    verdict: str = col("Verdict")
    needed_images: int | None
    rows: tuple[PairedRow, ...]
    auroc_rows: tuple[PairedAurocRow, ...]
    folds: tuple[PairedFoldRow, ...] = ()
    flips: tuple[FlipRow, ...]


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """One variant under one runtime; ratios are medians of the rounds' ratios, above 1 means faster."""

    variant: str = col("Variant")
    runtime: str = col("Runtime")
    model_bytes: int = field()
    size_mb: float = col("File MB", ".2f")
    parameters: int = col("Parameters", ",")
    nonzero_parameters: int = col("Non-zero", ",")
    macs: int = field()
    gmacs: float = col("GMACs", ".3f")
    latency_p50_ms: float = col("p50 ms", ".2f")
    latency_p90_ms: float = col("p90", ".2f")
    latency_p99_ms: float = col("p99", ".2f")
    throughput_images_per_s: float = col("images/s", ".1f")
    speedup_over_eager: float | None = col("× eager", ".2f")
    speedup_over_best_fp32: float | None = col("× best FP32", ".2f")
    samples: int
    model_sha256: str


@dataclass(frozen=True, kw_only=True)
class BenchmarkRecord(Record):
    """`benchmark.DEVICE.json`, of one variant; the command's own record has the rows of all."""

    schema: ClassVar[str] = "chestx.benchmark/1"
    title: ClassVar[str] = "Benchmark"

    device: str = col("Device")
    threads: int = col("Threads")
    rounds: int = col("Interleaved rounds")
    latency_batch: int = col("Batch for latency")
    throughput_batch: int = col("Batch for throughput")
    baseline: str = col("FP32 baseline")
    best_fp32_runtime: str = col("Its best runtime")
    rows: tuple[BenchmarkRow, ...]
    warnings: tuple[str, ...] = ()

    def of(self, variant: str) -> BenchmarkRecord:
        """Return the part of the record that is about one variant."""
        return self.replace(rows=tuple(row for row in self.rows if row.variant == variant))


@dataclass(frozen=True, kw_only=True)
class StatementRow:
    """One thing that the numbers support, in words."""

    text: str = col("What the numbers support")


@dataclass(frozen=True, kw_only=True)
class ReportRecord(Record):
    """What `report` wrote and what it says in words."""

    schema: ClassVar[str] = "chestx.report/1"
    title: ClassVar[str] = "Report"

    html: str = col("Page")
    markdown: str = col("Markdown")
    figures: tuple[str, ...]
    variants: int = col("Variants")
    statements: tuple[StatementRow, ...]


@dataclass(frozen=True, kw_only=True)
class DemoStepRow:
    """One command of the demonstration."""

    command: str = col("Command")
    duration_s: float = col("Time s", ".1f")


@dataclass(frozen=True, kw_only=True)
class DemoRecord(Record):
    """The demonstration: its synthetic data and the commands it ran."""

    schema: ClassVar[str] = "chestx.demo/1"
    title: ClassVar[str] = "Demonstration on synthetic images"

    data: str = col("Synthetic data")
    study: str = col("Study")
    images: int = col("Images", ",")
    page: str = col("Report")
    steps: tuple[DemoStepRow, ...]
