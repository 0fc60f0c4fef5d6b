"""The record of a variant: the model, how it was made, and how its threshold was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from chestx_cli.core.printable import counted
from chestx_cli.core.record import Document, Options, col, named_cols, renamed
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.records.tabular import Count, Positive, Share, Size, TabularRecord

MODEL_FILES: Mapping[Literal["torch", "onnx"], Literal["model.safetensors", "model.onnx"]] = {
    "torch": "model.safetensors",
    "onnx": "model.onnx",
}
# The quantization method that computes activation ranges from each batch.
DYNAMIC = "dynamic"
# Method of a network that has learned from its parent and has no weights of it.
DISTILLED = "distill"
# Which file is kept after its layers were timed.
INT8_EVERYWHERE, SOME_IN_FP32 = "INT8 everywhere", "some layers in FP32"
# Parameters in a byte of a model file: none is stored in fewer than 4 bits.
MOST_PER_BYTE = 2
# The rule recorded for the default threshold.
FIXED = "0.5"

# Far beyond those that are fitted; FP32 logits divided by them stay finite.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6

# What pruning did with BatchNorm statistics.
Statistics = Literal["re-estimated", "not re-estimated", "no BatchNorm layers"]
REESTIMATED: Statistics = "re-estimated"
NOT_REESTIMATED: Statistics = "not re-estimated"
NO_BATCHNORM: Statistics = "no BatchNorm layers"
BASELINE = "baseline"
ZEROS_NOTE = (
    "Zeros alone change neither the dense file nor the latency: the file keeps its size and every multiplication "
    "is still made. They pay only with a sparse format or runtime."
)

STATISTICS_NOTES: Mapping[Statistics, str] = {
    REESTIMATED: "BatchNorm statistics were re-estimated from the training images after the zeros were made, before "
    "any fine-tuning.",
    NOT_REESTIMATED: (
        "Plain method: BatchNorm statistics were not re-estimated after the zeros were made. Without "
        "fine-tuning this can shift the scores without changing their ranking: accuracy then falls, AUROC does "
        "not."
    ),
    NO_BATCHNORM: "The network has no BatchNorm layers: there are no statistics to re-estimate.",
}


# Table headings of the built-in metrics; other metrics use their names.
METRIC_NAMES = {"accuracy": "acc", "f1": "F1", "auroc": "AUROC", "average_precision": "AP"}


# Losses for which an epoch is kept, as parts of a sentence.
LOWEST_LOSS = "the lowest validation loss"
NEAR_LOWEST_LOSS = "a validation loss within one standard error of the lowest"


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch: mean losses, and every registered metric by name, None if undefined.

    Training values are from the training forward passes, with augmentation and dropout.
    """

    stage: str = col("Stage")
    epoch: Count = col("Epoch")
    train_loss: float = col("Train loss", ".4f")
    train: Mapping[str, float | None] = named_cols(
        "Train", ".3f", hidden=("precision", "recall", "average_precision"), names=METRIC_NAMES
    )
    val_loss: float = col("Val loss", ".4f")
    val: Mapping[str, float | None] = named_cols("Val", ".3f", hidden=("precision", "recall"), names=METRIC_NAMES)
    duration_s: float = col("Time s", ".1f")
    kept: bool = col("Kept")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a variant's weights were fitted; `epochs` are the rows of its `training.csv`."""

    device: str = col("Device")
    precision: str = col("Precision")
    initial_weights: str = col("Initial weights")
    # With several, BatchNorm normalises over each process's images unless it is synchronised.
    processes: int = col("Processes", default=1)
    sync_batchnorm: bool = col("BatchNorm over all processes", default=False)
    best_epoch: int = col("Best epoch")
    best_val_loss: float = col("Its validation loss", ".4f")
    epochs: tuple[EpochRow, ...]

    @property
    def kept_loss(self) -> str:
        """Return the loss for which the epoch was kept, as part of a sentence."""
        (kept,) = [row for row in self.epochs if row.kept][-1:]
        lowest = min(row.val_loss for row in self.epochs if row.stage == kept.stage)
        return LOWEST_LOSS if kept.val_loss == lowest else NEAR_LOWEST_LOSS


@dataclass(frozen=True, kw_only=True)
class PrunedLayerRow:
    """Weights and zeros of one layer after pruning."""

    layer: str = col("Layer")
    weights: Count = col("Weights", ",")
    zeros: Count = col("Zeros", ",")
    sparsity: Share = col("Sparsity", ".1%")


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """The target of pruning and its result; sparsity is over the weights of Conv2d and Linear layers."""

    target_sparsity: Share = col("Target sparsity", ".2%")
    achieved_sparsity: Share = col("Achieved sparsity", ".2%")
    # Default for documents from before the statistics could be re-estimated.
    batchnorm_statistics: Statistics = col("BatchNorm statistics", default=NOT_REESTIMATED)
    finetune_epochs: Count = col("Fine-tuning epochs")
    layers: tuple[PrunedLayerRow, ...]


@dataclass(frozen=True, kw_only=True)
class LayerWidthRow:
    """Output channels of one layer before and after pruning."""

    layer: str = col("Layer")
    before: Count = col("Channels before", ",")
    after: Count = col("After", ",")


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The target of structured pruning and its result; shares are relative to the parent."""

    criterion: str = col("Criterion")
    round_to: int = col("Channels in multiples of")
    floor: float = col("Least share of a group's channels", ".0%")
    target_macs_removed: Share = col("Target MACs removed", ".1%")
    achieved_macs_removed: Share = col("Achieved MACs removed", ".1%")
    parent_macs: Count = col("MACs of the parent", ",")
    parameters_removed: Share = col("Parameters removed", ".1%")
    parent_parameters: Count = col("Parameters of the parent", ",")
    # None in older documents, which do not record it: the statistics were re-estimated if there were any.
    batchnorm_statistics: Statistics | None = col("BatchNorm statistics", default=None)
    finetune_epochs: Count = col("Fine-tuning epochs")
    layers: tuple[LayerWidthRow, ...]


@dataclass(frozen=True, kw_only=True)
class WeightRow:
    """One weight tensor of a quantized file, and the bits per element."""

    layer: str
    weights: Count
    bits: Count


@dataclass(frozen=True, kw_only=True)
class Fp32LayerRow:
    """A layer left in FP32 by quantization, and the loss increase if it alone is computed in 8 bits."""

    layer: str = col("Left in FP32")
    weights: Count = col("Weights", ",")
    loss_increase: float = col("Δloss in INT8 alone", "+.4f")


@dataclass(frozen=True, kw_only=True)
class SlowerLayerRow:
    """A layer that is slower in INT8 than in FP32, with what follows it up to the next layer."""

    layer: str = col("Slower in INT8")
    fp32_us: Positive = col("FP32 µs", ",.0f")
    int8_us: Positive = col("INT8 µs", ",.0f")
    times_slower: Positive = col("INT8 / FP32", ".2f")
    times_slower_interval: tuple[Positive, Positive] = col("95 % interval", ".2f")
    in_fp32: bool = col("Stays in FP32", default=False)


@dataclass(frozen=True, kw_only=True)
class LayerSpeeds:
    """Times of a network's layers in FP32 and INT8 on one processor, one image at a time.

    The speed-up is that of the file with `tried_layers` of the slower ones in FP32 over the one with all layers in
    INT8; None if no layer is slower.
    """

    processor: str = col("Layers timed on")
    threads: Count = col("Threads")
    rounds: Count = col("Rounds")
    timed_layers: Count = col("Layers timed")
    kept: str = col("Kept file")
    tried_layers: Count = col("Layers in FP32, tried")
    speedup: Positive | None = col("× INT8 everywhere", ".2f")
    speedup_interval: tuple[Positive, Positive] | None = col("Its 95 % interval", ".2f")
    # They were left in FP32 after the file was timed.
    left_by_drop: Count = col("More in FP32 by --max-drop", default=0)
    # Whether the machine was busy when layers or files were timed.
    is_rough: bool = col("Machine was busy", default=False)
    rows: tuple[SlowerLayerRow, ...]

    @property
    def sentence(self) -> str:
        """Return what was measured, and what it led to."""
        where = f"Slower in INT8 than in FP32 on {self.processor} with {counted(self.threads, 'thread')}:"
        rough = "; NOISY, since the machine was busy, or its threads competed" if self.is_rough else ""
        if not self.rows or self.speedup is None:
            return f"{where} none of {self.timed_layers} layers{rough}."
        worst, interval = self.rows[0], self.speedup_interval
        found = (
            f"{where} {len(self.rows)} of {self.timed_layers} layers; {worst.layer} loses most "
            f"({worst.times_slower:.2f} times the time)."
        )
        bounds = f", 95 % {interval[0]:.2f}–{interval[1]:.2f}" if interval else ""
        measured = f"{self.speedup:.2f} times as fast as in INT8 everywhere{bounds}{rough}"
        tried = counted(self.tried_layers, "layer")
        if self.left_by_drop:
            more = counted(self.left_by_drop, "more layer")
            return f"{found} With {tried} in FP32: {measured}; --max-drop left {more} in FP32, which was not timed."
        if self.kept == SOME_IN_FP32:
            return f"{found} The file has {tried} in FP32 and is faster: {measured}."
        if self.is_rough:
            return f"{found} With {tried} in FP32 the times are too noisy to say ({measured}): all are in INT8."
        return f"{found} With {tried} in FP32 the file is not shown to be faster ({measured}): all are in INT8."


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The extent of quantization and its effect on validation images; `..._difference` are of probabilities."""

    # None where layers compute in FP32.
    target_cpu: str | None = col("Target processor")
    bits: Count = col("Bits of a quantized parameter", default=8)
    quantized_parameters: Count = col("Quantized parameters", ",")
    quantized_share: Share = col("Share of all parameters", ".2%")
    parent_bytes: Size = col("FP32 ONNX file (bytes)", ",")
    calibration_images: Count | None = col("Calibration images (training)", ",")
    accuracy_before: Share = col("Validation accuracy in FP32", ".3f")
    accuracy: Share = col("Validation accuracy", ".3f")
    lost: Count = col("Validation images correct in FP32 only", ",")
    won: Count = col("Validation images correct quantized only", ",")
    difference_interval: tuple[float, float] = col("95 % CI of the difference", "+.1%", separator=" to ")
    p: Share = col("Exact paired p", ".2g")
    auroc_before: float = col("Validation AUROC in FP32", ".4f")
    auroc: float = col("Validation AUROC", ".4f")
    max_probability_difference: float = col("Largest change of a validation probability", ".4f")
    kernel_difference: float | None = col("Largest difference due to 8-bit kernels", ".4f")
    trained_difference: float | None = col("Largest difference from the trained network", ".4f")
    weights: tuple[WeightRow, ...]
    fp32_layers: tuple[Fp32LayerRow, ...] = ()
    # None if layers were not timed.
    layer_speeds: LayerSpeeds | None = None


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """How a variant's threshold was chosen, with sensitivity and specificity on the validation images."""

    rule: str
    images: Count
    sensitivity: Share | None
    specificity: Share | None


@dataclass(frozen=True, kw_only=True)
class TemperatureFit:
    """How a variant's temperature was fitted on the validation images."""

    images: Count
    log_loss_before: float
    log_loss_after: float


def require_decision(classes: Sequence[str], positive: str, threshold: float, temperature: float) -> None:
    """Raise ValueError for values by which logits cannot become one of two classes."""
    if len(set(classes)) != 2 or len(classes) != 2 or positive not in classes:
        raise ValueError(f"the classes {', '.join(classes)}, of which {positive} is positive: not one of two")
    if not 0 <= threshold <= 1:
        raise ValueError(f"a threshold of {threshold}, which is not a probability")
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise ValueError(f"a temperature of {temperature}")


def _metrics_by_name(row: Document) -> Document:
    fields = {name: value for name, value in row.items() if name in EpochRow.__dataclass_fields__}
    for part in ("train", "val"):
        named = [name for name in row if name.startswith(f"{part}_") and name not in fields]
        fields[part] = {name.removeprefix(f"{part}_"): row[name] for name in named}
    return fields


@dataclass(frozen=True, kw_only=True)
class VariantRecord(TabularRecord):
    """`variant.json`: everything needed to rebuild a model, and its provenance."""

    schema: ClassVar[str] = "chestx.variant/3"
    title: ClassVar[str] = "Model variant"
    # Of a document from which the command that made it cannot be read.
    remedy: ClassVar[str] = "run the command that made it again with --name {variant} --force, or restore the file"
    reads: ClassVar[tuple[str, ...]] = ("chestx.variant/1", "chestx.variant/2")

    name: str = col("Variant")
    kind: Literal["torch", "onnx"]
    method: str = col("Method")
    parent: str | None = col("Made from")
    parent_sha256: str | None
    backbone: str = col("Backbone")
    classes: tuple[str, ...]
    positive: str
    preprocessing: Preprocessing
    # An image is called positive if its probability reaches this threshold, which "chestx evaluate" freezes.
    threshold: Share
    operating_point: OperatingPoint | None = None
    # Every prediction of the variant divides the logits by this before the softmax.
    temperature: Positive = 1.0
    temperature_fit: TemperatureFit | None = None
    options: Options
    model_file: Literal["model.safetensors", "model.onnx"]
    model_sha256: str
    model_bytes: Size = col("File (bytes)", ",")
    parameters: Count = col("Parameters", ",")
    nonzero_parameters: Count = col("Non-zero parameters", ",")
    macs: Count = col("MACs", ",")
    split_sha256: str
    calibration_sha256: str | None = None
    training: Training | None = None
    # Why validation images do not show that this model, or its ancestor, learned anything; see `evaluation.learned`.
    unproven: tuple[str, ...] = ()
    pruning: Pruning | None = None
    structure: Structure | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for invalid values."""
        if self.model_file != MODEL_FILES[self.kind]:
            raise ValueError(f"a {self.kind} variant whose file is {self.model_file}")
        require_decision(self.classes, self.positive, self.threshold, self.temperature)
        if self.parameters > MOST_PER_BYTE * self.model_bytes:
            raise ValueError(f"a model_bytes of {self.model_bytes}, too few for {self.parameters:,} parameters")

    @classmethod
    def upgraded(cls, document: Document) -> Document:
        """Convert documents with one field per metric in epochs, or with older names of the targets."""
        document = dict(document)
        training = document.get("training")
        if isinstance(training, dict) and isinstance(training.get("epochs"), list):
            epochs = [_metrics_by_name(row) if isinstance(row, dict) else row for row in training["epochs"]]
            document["training"] = {**training, "epochs": epochs}
        for part, target in (("pruning", "sparsity"), ("structure", "macs_removed")):
            document[part] = renamed(document.get(part), f"asked_{target}", f"target_{target}")
        return document

    @property
    def headline(self) -> str:
        """Return the method, file size and number of non-zero parameters."""
        origin = f"{self.method} of {self.parent}" if self.parent else f"{self.method}, {self.backbone}"
        return (
            f"{self.name} ({origin}), {self.model_bytes / 1e6:.2f} MB, {self.nonzero_parameters:,} non-zero parameters"
        )

    @property
    def operating_rule(self) -> str:
        """Return the rule by which the threshold was chosen."""
        return self.operating_point.rule if self.operating_point else FIXED

    @property
    def balance(self) -> str:
        """Return how its training treated class imbalance; fine-tuning does the same."""
        return str(self.options["balance"])

    @property
    def loss(self) -> str:
        """Return the name of its training loss; fine-tuning uses the same."""
        return str(self.options["loss"])

    @property
    def is_new_network(self) -> bool:
        """Return whether it has learned from scratch, or from other weights than its parent's."""
        return self.parent is None or self.method == DISTILLED

    @property
    def computes_in_int8(self) -> bool:
        """Return whether layers are computed in 8 bits, which some processors do more slowly than FP32."""
        return self.quantization is not None and self.quantization.target_cpu is not None

    @property
    def batch_dependent(self) -> bool:
        """Return whether the model's logits of an image depend on the other images of its batch."""
        return self.method == DYNAMIC
