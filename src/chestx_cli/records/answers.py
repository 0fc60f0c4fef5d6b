"""Rows of the tables in answers; every table fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from chestx_cli.core.record import col, named_cols

# Verdicts on a variant.
BETTER, NOT_INFERIOR, INFERIOR, INCONCLUSIVE = "better", "not inferior", "inferior", "inconclusive"
# States of a guard: not inferior; undecided for lack of images; observed decrease beyond the margin but not
# significant; significant decrease.
KEPT, OPEN, EXCEEDED, BROKEN = "within margin", "too few images", "beyond margin, uncertain", "fell"


@dataclass(frozen=True, kw_only=True)
class ShipRow:
    """One variant: errors, verdict, size, latency, and whether to ship it; strings are formatted for display."""

    variant: str = col("Variant")
    missed: str = col("Missed", is_number=True)
    false_alarms: str = col("False\nalarms", is_number=True)
    auroc: str = col("AUROC (95 %)", is_number=True)
    verdict: str = col("Verdict")
    size_mb: str = col("MB", is_number=True)
    latency_ms: str = col("ms", is_number=True)
    ship: str = col("Ship")


@dataclass(frozen=True, kw_only=True)
class PartRow:
    """One part of a split, or the test images of one fold."""

    part: str = col("Part")
    images: int = col("Images", ",")
    patients: int = col("Patients", ",")
    positive: int | None = col("Positive", ",")
    positive_share: float = col("Share", ".1%")


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """A new variant: parameters, MACs, size and validation results."""

    variant: str = col("Variant")
    parameters: int = col("Parameters", ",")
    nonzero: float = col("Non-zero", ".1%")
    gmacs: float = col("GMACs", ".3f")
    size_mb: str = col("File MB", is_number=True)
    val_accuracy: float | None = col("Val accuracy", ".1%")
    val_auroc: float | None = col("Val AUROC", ".3f")


@dataclass(frozen=True, kw_only=True)
class LayerAnswerRow:
    """One of the most critical or most robust layers or groups."""

    rank: int = col("#")
    layer: str = col("Layer")
    mean_loss_increase: float = col("Mean Δloss", "+.4f")
    max_accuracy_drop: float = col("Max acc. drop", ".3f")


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """One variant under its best runtime, against the FP32 baseline under its own best."""

    variant: str = col("Variant")
    runtime: str = col("Best runtime")
    latency_ms: str = col("p50 ms", is_number=True)
    speedup: float | None = col("× FP32", ".2f")
    interval: tuple[float, float] | None = col("95 %", ".2f")
    size_mb: str = col("File MB", is_number=True)
    verdict: str = col("Against FP32")


@dataclass(frozen=True, kw_only=True)
class MeasureRow:
    """One measure of two variants on the same images."""

    measure: str = col("Measure")
    first: float | None = col("A", ".3f")
    second: float | None = col("B", ".3f")
    difference: float | None = col("B − A", "+.3f")
    interval: tuple[float, float] | None = col("95 %", "+.3f", separator=" to ")
    margin: float = col("Margin", "g")
    state: str = col("State")


@dataclass(frozen=True, kw_only=True)
class SearchRow:
    """One model of a search, on the validation images; strings are formatted for display."""

    variant: str = col("Variant")
    latency_ms: str = col("p50 ms", is_number=True)
    size_mb: str = col("MB", is_number=True)
    accuracy: float = col("Val\nacc.", ".1%")
    drop: str = col("Drop (95 %)", is_number=True)
    front_share: float | None = col("Front", ".0%")
    missed: str = col("Limits\nmissed")


@dataclass(frozen=True, kw_only=True)
class PooledAnswerRow:
    """One variant of a study over folds and seeds; strings are formatted for display."""

    variant: str = col("Variant")
    estimate: str = col("Endpoint (95 %)", is_number=True)
    difference: str = col("Change", is_number=True)
    verdict: str = col("Verdict")
    seeds: str = col("Seeds", is_number=True)
    size_mb: str = col("MB", is_number=True)
    latency_ms: str = col("ms", is_number=True)
    ship: str = col("Ship")


@dataclass(frozen=True, kw_only=True)
class PredictionAnswerRow:
    """One new image, by id or by path as typed; `decision` tells if it cannot be read."""

    image: str = col("Image")
    probability: Mapping[str, float | None] = named_cols("Probability of", ".3f", names={})
    decision: str = col("Decision")
    distance: float | None = col("To threshold", "+.3f")


@dataclass(frozen=True, kw_only=True)
class MarkedPredictionRow(PredictionAnswerRow):
    """The same, with the first sign by which an image looks unlike the training images, and how many more there are."""

    unlike: str = col("Unlike")


@dataclass(frozen=True, kw_only=True)
class StatusAnswerRow:
    """One variant of a study, indented below its parent: whether it and its results are current."""

    variant: str = col("Variant")
    state: str = col("State")
    tested: str = col("Tested")
    timed: str = col("Timed")
    size_mb: str = col("MB", is_number=True)
    created: str = col("Made on")


@dataclass(frozen=True, kw_only=True)
class SettingAnswerRow:
    """One option, its value, and the file's line or the variable that sets it."""

    option: str = col("Option")
    value: str | None = col("Value")
    place: str = col("Set by")


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One component that chestx uses on this machine, and its effect on times or numbers."""

    what: str = col("What")
    state: str = col("State")
    meaning: str = col("What it means")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which variant to ship: the decision as a sentence, the next command, and a row per variant.

    `ship` is the variant to ship; None if no variant is both as good as the baseline and smaller or faster. `nearest`
    is then the variant that comes closest.
    """

    ship: str | None
    nearest: str | None
    sentence: str
    next_command: str
    rows: tuple[ShipRow, ...] = field(default=())
