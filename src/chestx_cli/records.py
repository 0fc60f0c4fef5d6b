"""The schema of every JSON document of a study, and how its fields are shown in tables.

Rates are 0-1, times carry their unit, hashes are SHA-256 in hex. One command makes a record, later ones read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from chestx_cli.errors import NOT_REACHABLE
from chestx_cli.preprocessing import Preprocessing
from chestx_cli.record import Record, col, report_only
from chestx_cli.result_rows import (
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
    PairedAurocRow,
    PairedFoldRow,
    PairedRow,
    PredictiveRow,
    SubgroupRow,
    UnprovenRow,
)

MODEL_FILES = {"torch": "model.safetensors", "onnx": "model.onnx"}
# The method that takes the ranges of activations from each batch.
DYNAMIC = "dynamic"
# The rule of a threshold that was never chosen.
FIXED = "0.5"

# What pruning did with the statistics of BatchNorm layers.
Statistics = Literal["re-estimated", "not re-estimated", "no BatchNorm layers"]
REESTIMATED: Statistics = "re-estimated"
NOT_REESTIMATED: Statistics = "not re-estimated"
NO_BATCHNORM: Statistics = "no BatchNorm layers"


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
    """An image that was refused; the codes are those of `refusals.Reason`."""

    image_id: str = col("Left out")
    path: str = col("File")
    code: str = col("Code")
    reason: str = col("Reason")


@dataclass(frozen=True, kw_only=True)
class RefusalRow:
    """How many images were refused for one reason, and the first of them."""

    code: str = col("Images refused")
    images: int = col("Images", ",")
    reason: str = col("Reason")
    first: str = col("First of them")


@dataclass(frozen=True, kw_only=True)
class LeftOutRow:
    """How many files of a class are no images that are read."""

    label: str = col("Class")
    reason: str = col("Files left out")
    files: int = col("Files", ",")


@dataclass(frozen=True, kw_only=True)
class TakenRow:
    """What was decided in reading files that leave it open, or contradict themselves."""

    matter: str = col("Matter")
    taken_as: str = col("Taken as")
    because: str = col("Because of")
    images: int = col("Images", ",")


@dataclass(frozen=True, kw_only=True)
class AirRow:
    """In how many images of a class air looks dark, as it should, looks bright, or cannot be decided."""

    label: str
    dark: int
    bright: int
    undecided: int


@dataclass(frozen=True, kw_only=True)
class FewLevelsRow:
    """An image that uses few of the 256 greys, and how many."""

    image_id: str
    levels: int


@dataclass(frozen=True, kw_only=True)
class UnmatchedRow:
    """An image whose patient nothing tells, in a set where that of others is known."""

    image_id: str = col("No patient known of")


@dataclass(frozen=True, kw_only=True)
class DuplicateRow:
    """How many images are copies of others in one way."""

    kind: str = col("Copies found as")
    pairs: int = col("Pairs", ",")
    within: int = col("Within a part", ",")
    across: int = col("Across parts", ",")
    across_labels: int = col("Across classes", ",")


@dataclass(frozen=True, kw_only=True)
class FormatRow:
    """The files of one class; triples are the quartiles."""

    label: str = col("Class")
    width_px: tuple[float, float, float] = col("Width px (quartiles)", ".0f")
    height_px: tuple[float, float, float] = col("Height px", ".0f")
    aspect: tuple[float, float, float] = col("Aspect", ".2f")
    bytes_per_pixel: tuple[float, float, float] = col("Bytes/pixel", ".3f")
    modes: str = col("Modes")
    file_types: str = col("File types")


@dataclass(frozen=True, kw_only=True)
class DataAudit:
    """What looking at all images told; `stamps` stand before the caveats of every later table."""

    stamps: tuple[str, ...] = col("Stamps", separator=", ")
    matched_share: float = col("Images whose patient is known", ".1%")
    told_patients: int = col("Patients before copies joined them", ",")
    # Of the public paediatric set, whose file names can be read in two ways.
    paediatric_patients: int | None = col("Paediatric patients by number and pathogen", ",")
    paediatric_numbers: int | None = col("Paediatric patients by number alone", ",")
    format_auroc: float | None = col("AUROC of size, aspect, mode and file type alone", ".3f")
    format_bytes_auroc: float | None = col("AUROC of these and the bytes of the file", ".3f")
    duplicates: tuple[DuplicateRow, ...]
    formats: tuple[FormatRow, ...]
    unmatched: tuple[UnmatchedRow, ...]
    air: tuple[AirRow, ...] = ()
    few_levels: tuple[FewLevelsRow, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SplitRecord(Record):
    """`split.json`: what the data are and how they were divided; `fold` is set where it is one fold of a study.

    It stays with the data: `data` is their folder, and `source` what was named, the folder or a manifest.
    """

    schema: ClassVar[str] = "chestx.split/4"
    reads: ClassVar[tuple[str, ...]] = ("chestx.split/3",)
    title: ClassVar[str] = "Split"

    source: str
    data: str
    layout: str = col("Layout")
    images: int = col("Images", ",")
    patients: int = col("Patients", ",")
    classes: tuple[str, ...]
    positive: str = col("Positive class")
    ignored_files: int = col("Other files ignored", ",")
    rows: tuple[SplitRow, ...]
    group_rules: tuple[GroupRuleRow, ...]
    taken: tuple[TakenRow, ...] = ()
    left_out: tuple[LeftOutRow, ...] = ()
    refusals: tuple[RefusalRow, ...] = ()
    bad_images: tuple[BadImageRow, ...] = report_only(default=())
    # Of images of more than 8 bits: their values are scaled from 0 to 2^value_bits - 1. None where nobody has looked.
    value_bits: int | None = None
    audit: DataAudit | None = None
    fold: int | None = None
    split_csv_sha256: str = col("Manifest sha256")


@dataclass(frozen=True, kw_only=True)
class FoldRow:
    """One fold: its own images are tested, validation images are drawn from the others."""

    study: str = col("Fold")
    train_images: int = col("Train images", ",")
    val_images: int = col("Val images", ",")
    test_images: int = col("Test images", ",")
    test_patients: int = col("Test patients", ",")
    train_positive: float = col("Train positive", ".1%")
    val_positive: float = col("Val positive", ".1%")
    test_positive: float = col("Test positive", ".1%")
    split_csv_sha256: str = field()


@dataclass(frozen=True, kw_only=True)
class FoldsRecord(Record):
    """`folds.json`: a study whose folders are one study per fold, so that every image is tested once.

    It stays with the data, as `split.json` does.
    """

    schema: ClassVar[str] = "chestx.folds/4"
    reads: ClassVar[tuple[str, ...]] = ("chestx.folds/3",)
    title: ClassVar[str] = "Folds"

    source: str
    data: str
    layout: str = col("Layout")
    images: int = col("Images", ",")
    patients: int = col("Patients", ",")
    classes: tuple[str, ...]
    positive: str = col("Positive class")
    ignored_files: int = col("Other files ignored", ",")
    rows: tuple[FoldRow, ...]
    group_rules: tuple[GroupRuleRow, ...]
    taken: tuple[TakenRow, ...] = ()
    left_out: tuple[LeftOutRow, ...] = ()
    refusals: tuple[RefusalRow, ...] = ()
    bad_images: tuple[BadImageRow, ...] = report_only()
    value_bits: int | None = None
    audit: DataAudit


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
    # Without the option to, zeros were made and nothing else.
    batchnorm_statistics: Statistics = col("BatchNorm statistics", default=NOT_REESTIMATED)
    finetune_epochs: int = col("Fine-tuning epochs")
    layers: tuple[PrunedLayerRow, ...]


@dataclass(frozen=True, kw_only=True)
class LayerWidthRow:
    """How many outputs one layer had and has."""

    layer: str = col("Layer")
    before: int = col("Channels before", ",")
    after: int = col("After", ",")


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What was asked of structured pruning and what it did; shares are of the parent."""

    criterion: str = col("Criterion")
    round_to: int = col("Channels in multiples of")
    floor: float = col("Least share of a group's channels", ".0%")
    asked_macs_removed: float = col("Asked MACs removed", ".1%")
    achieved_macs_removed: float = col("Achieved MACs removed", ".1%")
    parent_macs: int = col("MACs of the parent", ",")
    parameters_removed: float = col("Parameters removed", ".1%")
    parent_parameters: int = col("Parameters of the parent", ",")
    # None in documents of before: they were re-estimated where there were any, which was not recorded.
    batchnorm_statistics: Statistics | None = col("BatchNorm statistics", default=None)
    finetune_epochs: int = col("Fine-tuning epochs")
    layers: tuple[LayerWidthRow, ...]


@dataclass(frozen=True, kw_only=True)
class WeightRow:
    """One weight matrix or filter of a quantized file, and how many bits each of its elements takes."""

    layer: str
    weights: int
    bits: int


@dataclass(frozen=True, kw_only=True)
class Fp32LayerRow:
    """A layer that quantization left in FP32, and what it costs when it alone computes in 8 bits."""

    layer: str = col("Left in FP32")
    weights: int = col("Weights", ",")
    loss_increase: float = col("Δloss in INT8 alone", "+.4f")


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What quantization touched, and what it did on the validation images; differences are of probabilities."""

    target_cpu: str = col("Target processor")
    quantized_parameters: int = col("Quantized parameters", ",")
    quantized_share: float = col("Share of all parameters", ".2%")
    parent_bytes: int = col("FP32 ONNX file (bytes)", ",")
    calibration_images: int | None = col("Calibrated on training images", ",")
    accuracy_before: float = col("Validation accuracy in FP32", ".3f")
    accuracy: float = col("Validation accuracy", ".3f")
    lost: int = col("Validation images lost to FP32", ",")
    won: int = col("Validation images won", ",")
    difference_interval: tuple[float, float] = col("95 % of the difference", "+.1%", separator=" to ")
    p: float = col("Exact paired p", ".2g")
    auroc_before: float = col("Validation AUROC in FP32", ".4f")
    auroc: float = col("Validation AUROC", ".4f")
    max_probability_difference: float = col("Largest change of a validation probability", ".4f")
    kernel_difference: float | None = col("Largest difference by 8-bit kernels", ".4f")
    trained_difference: float | None = col("Largest difference from the trained network", ".4f")
    weights: tuple[WeightRow, ...]
    fp32_layers: tuple[Fp32LayerRow, ...] = ()


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
    kind: Literal["torch", "onnx"]
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
    model_file: Literal["model.safetensors", "model.onnx"]
    model_sha256: str
    model_bytes: int = col("File (bytes)", ",")
    parameters: int = col("Parameters", ",")
    nonzero_parameters: int = col("Non-zero parameters", ",")
    macs: int = col("MACs", ",")
    split_sha256: str
    calibration_sha256: str | None = None
    training: Training | None = None
    # Why the validation images do not show that it has learned, or that the model it was made from has; see `learned`.
    unproven: tuple[str, ...] = ()
    pruning: Pruning | None = None
    structure: Structure | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that no model can be used with."""
        if self.model_file != MODEL_FILES[self.kind]:
            raise ValueError(f"a {self.kind} variant whose file is {self.model_file}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"a threshold of {self.threshold}, which is no probability")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"a temperature of {self.temperature}")

    @property
    def operating_rule(self) -> str:
        """Return the rule that the threshold comes from."""
        return self.operating_point.rule if self.operating_point else FIXED

    @property
    def batch_dependent(self) -> bool:
        """Return whether the model's logits of an image depend on the other images of its batch."""
        return self.method == DYNAMIC


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(Record):
    """`evaluation.test.json`, of one variant; the command's own record has the rows of all.

    `split` is `test`, or the name of an evaluation of other images, which have this hash.
    """

    schema: ClassVar[str] = "chestx.evaluation/5"
    title: ClassVar[str] = "Results"

    split: str = col("Evaluated on")
    images_sha256: str
    images: int = col("Images", ",")
    patients: int = col("Patients", ",")
    positive: str = col("Positive class")
    baseline: str = col("Baseline")
    margin: float = col("Margin", "g")
    # Why nothing can be as good as the baseline on these images; empty where it learned something.
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

    schema: ClassVar[str] = "chestx.compare/4"
    title: ClassVar[str] = "Paired comparison"

    first: str = col("A")
    second: str = col("B")
    evaluated_on: str = col("Evaluated on")
    images: int = col("Images", ",")
    patients: int = col("Patients", ",")
    margin: float = col("Margin", "g")
    word: str
    short: str
    verdict: str = col("Verdict")
    needed_images: int | None
    rows: tuple[PairedRow, ...]
    auroc_rows: tuple[PairedAurocRow, ...]
    guards: tuple[GuardRow, ...] = report_only()
    folds: tuple[PairedFoldRow, ...] = ()
    flips: tuple[FlipRow, ...]


@dataclass(frozen=True, kw_only=True)
class ExportRecord(Record):
    """What `export` wrote; the bundle was run on validation images and compared with the variant."""

    schema: ClassVar[str] = "chestx.export/1"
    title: ClassVar[str] = "Bundle for a device"

    variant: str = col("Variant")
    bundle: str = col("Bundle")
    files: tuple[str, ...] = col("Files", separator=", ")
    model_bytes: int = col("ONNX file (bytes)", ",")
    model_sha256: str
    checked_images: int = col("Checked on validation images")
    max_probability_difference: float = col("Largest difference of a probability", ".1e")


@dataclass(frozen=True, kw_only=True)
class CompressRow:
    """One model of a search; latency and size are of its ONNX or own file, the rest is on the validation images."""

    variant: str = col("Variant")
    criterion: str | None = field()
    int8: str | None = field()
    macs_removed: float = col("MACs removed", ".0%")
    latency_p50_ms: float = col("p50 ms", ".2f")
    speedup: float = col("× parent", ".2f")
    size_mb: float = col("File MB", ".2f")
    accuracy: float = col("Val accuracy", ".1%")
    accuracy_interval: tuple[float, float] = col("95 %", ".1%")
    lost: int = col("Lost", ",")
    won: int = col("Won", ",")
    difference: float = col("Difference", "+.1%")
    difference_interval: tuple[float, float] = col("95 %", "+.1%", separator=" to ")
    p: float = col("p", ".2g")
    auroc: float = col("AUROC", ".3f")
    auroc_difference: float = col("ΔAUROC", "+.3f")
    loss: float = col("Loss", ".3f")
    is_on_front: bool = col("Pareto")
    missed: tuple[str, ...] = col("Limits missed", separator=", ")
    model_sha256: str = field()


@dataclass(frozen=True, kw_only=True)
class CompressRecord(Record):
    """What `compress` found; `chosen` is None where no model keeps all limits, `nearest` then misses them least."""

    schema: ClassVar[str] = "chestx.compress/1"
    title: ClassVar[str] = "Compression within limits"

    parent: str = col("Made from")
    images: int = col("Validation images", ",")
    patients: int = col("Patients", ",")
    threads: int = col("Threads")
    max_latency_ms: float | None = col("Limit of latency ms", "g")
    max_size_mb: float | None = col("Limit of file MB", "g")
    max_drop: float = col("Limit of the drop", "g")
    chosen: str | None = col("Chosen")
    nearest: str | None = col("Nearest")
    rows: tuple[CompressRow, ...]

    @property
    def exit_code(self) -> int:
        """Return 0 where the limits can be kept."""
        return 0 if self.chosen else NOT_REACHABLE


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
