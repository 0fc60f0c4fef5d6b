"""Records of sensitivity: the effect of pruning or quantizing one layer or group alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from chestx_cli.core.record import col
from chestx_cli.records.tabular import Count, Share, TabularRecord, listed


@dataclass(frozen=True, kw_only=True)
class LayerMeasurement:
    """One layer pruned by one amount, measured on the validation split."""

    layer: str
    kind: str
    weights: Count
    amount: Share
    loss: float
    accuracy: Share
    auroc: float


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer, ranked from critical to robust; changes are relative to the unpruned variant."""

    rank: Count = col("#")
    layer: str = col("Layer")
    kind: str = col("Kind")
    weights: Count = col("Weights", ",")
    mean_loss_increase: float = col("Mean Δloss", "+.4f")
    max_loss_increase: float = col("Max Δloss", "+.4f")
    max_accuracy_drop: float = col("Max acc. drop", ".3f")
    min_auroc: float = col("Min AUROC", ".3f")


# What was computed in a precision other than FP32.
COMPUTED = {"bf16": "Computed in bf16.", "int8": "Convolutions were computed in 8 bits."}


@dataclass(frozen=True, kw_only=True)
class PrecisionCheck:
    """Difference of measurements in another precision from FP32, for some that were made in both."""

    layers: int
    measurements: int
    # Of the change in loss by pruning a layer; Spearman's rank correlation is of these changes, too.
    max_loss_difference: float
    max_accuracy_difference: float
    # NaN if fewer than three were repeated, or all are equal.
    rank_correlation: float
    # Of the unpruned network in FP32; None in records of earlier versions.
    exact_loss: float | None = None
    # Images on which they were repeated, and their loss unpruned in the other precision; None in earlier records.
    images: Count | None = None
    loss: float | None = None

    def sentence(self, precision: str, loss: float) -> str:
        """Return the differences in words, given the precision and the unpruned network's loss in it on all images."""
        exact, images = self.exact_loss, "" if self.images is None else f" on {self.images} images"
        if exact is None:
            unpruned = ""
        elif self.loss is None:
            unpruned = f" The unpruned loss is {loss:.4f}, in FP32 {exact:.4f}."
        else:
            unpruned = f" Their unpruned loss is {self.loss:.4f}, in FP32 {exact:.4f}."
        ranks = f"; the rank correlation is {self.rank_correlation:.3f}" if math.isfinite(self.rank_correlation) else ""
        return (
            f"{COMPUTED[precision]} {self.measurements} measurements, from the largest to the smallest loss, were "
            f"repeated in FP32{images}: the loss increase differs by at most {self.max_loss_difference:.4f} and the "
            f"accuracy by at most {self.max_accuracy_difference:.3f}{ranks}.{unpruned}"
        )


@dataclass(frozen=True, kw_only=True)
class SensitivityRecord(TabularRecord):
    """`sensitivity.json`: the effect of pruning each layer alone."""

    schema: ClassVar[str] = "chestx.sensitivity/2"
    reads: ClassVar[tuple[str, ...]] = ("chestx.sensitivity/1",)
    title: ClassVar[str] = "Pruning sensitivity, from critical to robust"
    remedy: ClassVar[str] = 'run "chestx sensitivity --from {variant}" again, or remove the file'

    variant: str = col("Variant")
    split: str = col("Measured on")
    images: Count = col("Images", ",")
    loss: float = col("Loss unpruned", ".4f")
    accuracy: Share = col("Accuracy unpruned", ".3f")
    auroc: float = col("AUROC unpruned", ".3f")
    amounts: tuple[Share, ...] = col("Amounts", "g", separator=", ")
    model_sha256: str
    rows: tuple[LayerRow, ...]
    measurements: tuple[LayerMeasurement, ...]
    precision: str = col("Precision", default="fp32")
    # None in FP32, which needs no check.
    check: PrecisionCheck | None = None

    @property
    def headline(self) -> str:
        """Return the most critical layers."""
        return f"of {self.variant} the most critical: {listed(row.layer for row in self.rows)}"


@dataclass(frozen=True, kw_only=True)
class Int8LayerRow:
    """One layer computed in 8 bits, ranked from critical to robust; changes are relative to the variant in FP32."""

    rank: Count = col("#")
    layer: str = col("Layer")
    kind: str = col("Kind")
    weights: Count = col("Weights", ",")
    loss_increase: float = col("Δloss", "+.5f")
    accuracy_drop: float = col("Acc. drop", ".3f")
    auroc: float = col("AUROC", ".4f")
    max_probability_difference: float = col("Largest Δp", ".4f")


@dataclass(frozen=True, kw_only=True)
class Int8SensitivityRecord(TabularRecord):
    """`int8-sensitivity.json`: the effect of computing each layer alone in 8 bits."""

    schema: ClassVar[str] = "chestx.int8-sensitivity/1"
    title: ClassVar[str] = "Quantization sensitivity, from critical to robust"
    remedy: ClassVar[str] = 'run "chestx sensitivity --quantization --from {variant}" again, or remove the file'

    variant: str = col("Variant")
    split: str = col("Measured on")
    images: Count = col("Images", ",")
    target_cpu: str = col("Target processor")
    loss: float = col("Loss in FP32", ".4f")
    accuracy: Share = col("Accuracy in FP32", ".3f")
    auroc: float = col("AUROC in FP32", ".4f")
    loss_increase_of_all: float = col("Δloss of all layers together", "+.5f")
    model_sha256: str
    rows: tuple[Int8LayerRow, ...]

    @property
    def headline(self) -> str:
        """Return the most critical layers."""
        return f"of {self.variant} the most critical: {listed(row.layer for row in self.rows)}"


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """One group of coupled channels, ranked from critical to robust; changes are relative to the unpruned variant."""

    rank: Count = col("#")
    layer: str = col("Group, by its first layer")
    layers: Count = col("Coupled layers")
    channels: Count = col("Channels", ",")
    macs_share: float = col("MACs it touches", ".1%")
    mean_loss_increase: float = col("Mean Δloss", "+.4f")
    max_loss_increase: float = col("Max Δloss", "+.4f")
    max_accuracy_drop: float = col("Max acc. drop", ".3f")
    min_auroc: float = col("Min AUROC", ".3f")


@dataclass(frozen=True, kw_only=True)
class GroupMeasurement:
    """One group with a share `amount` of its channels removed, measured on the validation split."""

    layer: str
    channels: Count
    channels_removed: Count
    amount: Share
    macs_removed: float
    loss: float
    accuracy: Share
    auroc: float


@dataclass(frozen=True, kw_only=True)
class GroupSensitivityRecord(TabularRecord):
    """`sensitivity.structured.json`: the effect of removing channels from each group of coupled layers."""

    schema: ClassVar[str] = "chestx.group-sensitivity/1"
    title: ClassVar[str] = "Structured pruning sensitivity, from critical to robust"
    remedy: ClassVar[str] = 'run "chestx sensitivity --structured --from {variant}" again, or remove the file'

    variant: str = col("Variant")
    split: str = col("Measured on")
    images: Count = col("Images", ",")
    criterion: str = col("Criterion")
    loss: float = col("Loss unpruned", ".4f")
    accuracy: Share = col("Accuracy unpruned", ".3f")
    auroc: float = col("AUROC unpruned", ".3f")
    amounts: tuple[Share, ...] = col("Amounts", "g", separator=", ")
    model_sha256: str
    rows: tuple[GroupRow, ...]
    measurements: tuple[GroupMeasurement, ...]

    @property
    def headline(self) -> str:
        """Return the most critical groups, each by its first layer."""
        return f"of {self.variant} the most critical: {listed(row.layer for row in self.rows)}"
