"""Records of commands whose results are shown but not stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from chestx_cli.core.errors import NOT_REACHABLE
from chestx_cli.core.record import col
from chestx_cli.records.tabular import TabularRecord


@dataclass(frozen=True, kw_only=True)
class ExportRecord(TabularRecord):
    """Result of `export`; the bundle was run on validation images and compared with the variant."""

    schema: ClassVar[str] = "chestx.export/1"
    title: ClassVar[str] = "Bundle for a device"

    variant: str = col("Variant")
    bundle: str = col("Bundle")
    files: tuple[str, ...] = col("Files", separator=", ")
    model_bytes: int = col("ONNX file (bytes)", ",")
    bundle_bytes: int = col("Bundle (bytes)", ",")
    # Above the memory of the runtime, as last benchmarked; None if it was not.
    added_memory_mb: float | None = col("Memory (MB)", ".0f")
    model_sha256: str
    checked_images: int = col("Checked on validation images")
    max_probability_difference: float = col("Largest probability difference", ".1e")

    @property
    def headline(self) -> str:
        """Return the exported variant, and the path and size of its bundle."""
        return f"{self.variant} in {self.bundle}/, {self.bundle_bytes / 1e6:.2f} MB"


@dataclass(frozen=True, kw_only=True)
class CompressRow:
    """One model of a search: latency of its ONNX file, size of its own file, and results on the validation images.

    Over folds, results are pooled, the latency is that of the first fold's model, and the size the largest.
    """

    variant: str = col("Variant")
    criterion: str | None = field()
    int8: str | None = field()
    macs_removed: float = col("MACs removed", ".0%")
    latency_p50_ms: float = col("p50 ms", ".2f")
    speedup: float = col("× parent", ".2f")
    size_mb: float = col("File MB", ".2f")
    accuracy: float = col("Val accuracy", ".1%")
    accuracy_interval: tuple[float, float] = col("95 %", ".1%")
    lost: int = col("Correct in parent only", ",")
    won: int = col("Correct in variant only", ",")
    difference: float = col("Difference", "+.1%")
    difference_interval: tuple[float, float] = col("95 %", "+.1%", separator=" to ")
    p: float = col("p", ".2g")
    auroc: float = col("AUROC", ".3f")
    auroc_difference: float = col("ΔAUROC", "+.3f")
    loss: float = col("Loss", ".3f")
    is_on_front: bool = col("Pareto")
    missed: tuple[str, ...] = col("Limits missed", separator=", ")
    model_sha256: str = field()
    # A student as in --students: its backbone, with its width if below 1; None for a pruned network.
    student: str | None = None
    # The pruning method, structured or guided; None for the parent, students and in records of earlier versions.
    method: str | None = None
    # The measure that the drop limit applies to, and how much worse it is than the parent's.
    dropped: str | None = col("Drop of", default=None)
    drop: float | None = col("Drop", "+.3f", default=None)
    drop_interval: tuple[float, float] | None = col("95 %", "+.3f", separator=" to ", default=None)
    # Share of patient-level bootstrap draws in which no other model is as fast, as small and as good.
    front_share: float | None = col("On the front", ".0%", default=None)
    energy_mj: float | None = col("Energy mJ", ".1f", default=None)
    # Whether the machine was busy when it was timed.
    is_rough: bool = field(default=False)


@dataclass(frozen=True, kw_only=True)
class ShortFitRow:
    """One short fit of a network that competed in a search: its epochs in all, and its results on validation images."""

    network: str = col("Short fit")
    epochs: int = col("Epochs")
    loss: float = col("Loss", ".3f")
    accuracy: float = col("Val accuracy", ".1%")
    drop: float = col("Drop", "+.3f")
    fell: tuple[str, ...] = col("Fell", separator=", ")


@dataclass(frozen=True, kw_only=True)
class CompressRecord(TabularRecord):
    """Result of `compress`; `chosen` is None if no model meets all limits, `nearest` then misses them least."""

    schema: ClassVar[str] = "chestx.compress/1"
    title: ClassVar[str] = "Compression within limits"

    parent: str = col("Made from")
    images: int = col("Validation images", ",")
    patients: int = col("Patients", ",")
    threads: int = col("Threads")
    max_latency_ms: float | None = col("Latency limit ms", "g")
    max_size_mb: float | None = col("File size limit MB", "g")
    max_drop: float = col("Drop limit", "g")
    chosen: str | None = col("Chosen")
    nearest: str | None = col("Nearest")
    rows: tuple[CompressRow, ...]
    objective: str | None = col("Minimised", default=None)
    # What the drop limit applies to; None for accuracy and AUROC.
    endpoint: str | None = col("Endpoint of the drop limit", default=None)
    runtime: str = col("Runtime", default="onnxruntime")
    # Folds in each of which every model was made; empty for a single split.
    folds: tuple[str, ...] = col("Folds", separator=", ", default=())
    short_fits: tuple[ShortFitRow, ...] = ()

    @property
    def times_decide(self) -> bool:
        """Return whether the choice depends on times, not on sizes and quality alone."""
        return self.max_latency_ms is not None or self.objective in ("latency", "energy")

    @property
    def headline(self) -> str:
        """Return the chosen model, or the one nearest to the limits."""
        if self.chosen:
            return f"{self.chosen} meets all limits{f' with the least {self.objective}' if self.objective else ''}"
        return f"no model meets all limits; {self.nearest} is nearest" if self.nearest else "no model meets all limits"

    @property
    def exit_code(self) -> int:
        """Return 0 if a model meets the limits, else 3."""
        return 0 if self.chosen else NOT_REACHABLE


@dataclass(frozen=True, kw_only=True)
class StatementRow:
    """One statement that the numbers support."""

    text: str = col("What the numbers support")


@dataclass(frozen=True, kw_only=True)
class ReportRecord(TabularRecord):
    """Files written by `report`, and its summary in sentences."""

    schema: ClassVar[str] = "chestx.report/1"
    title: ClassVar[str] = "Report"

    html: str = col("Page")
    markdown: str = col("Markdown")
    figures: tuple[str, ...]
    variants: int = col("Variants")
    statements: tuple[StatementRow, ...]

    @property
    def headline(self) -> str:
        """Return the path of the page."""
        return f"{self.html}, about {self.variants} variants"


@dataclass(frozen=True, kw_only=True)
class DemoStepRow:
    """One command of the demonstration."""

    command: str = col("Command")
    duration_s: float = col("Time s", ".1f")


@dataclass(frozen=True, kw_only=True)
class DemoRecord(TabularRecord):
    """The demonstration: its synthetic data and the commands that were run."""

    schema: ClassVar[str] = "chestx.demo/1"
    title: ClassVar[str] = "Demonstration on synthetic images"

    data: str = col("Synthetic data")
    study: str = col("Study")
    images: int = col("Images", ",")
    page: str = col("Report")
    steps: tuple[DemoStepRow, ...]

    @property
    def headline(self) -> str:
        """Return the path of the page."""
        return f"{self.page}, of {len(self.steps)} commands on {self.images:,} images"


@dataclass(frozen=True, kw_only=True)
class DoctorRow:
    """One component that chestx uses: its state here, its meaning, and in `remedy` how to get it if it is missing."""

    what: str = col("What")
    state: str = col("State")
    meaning: str = col("What it means")
    is_missing: bool
    # Whether chestx works without the component.
    is_optional: bool
    remedy: str = col("How to get it")
    # The extra of chestx that installs it, for packages that the answer counts in one row.
    extra: str = ""


@dataclass(frozen=True, kw_only=True)
class DoctorRecord(TabularRecord):
    """Components of this machine and installation, and which of them affect the numbers."""

    schema: ClassVar[str] = "chestx.doctor/1"
    title: ClassVar[str] = "This machine"

    processor: str = col("Processor")
    threads: int = col("Threads")
    # Among AVX2, AVX512, VNNI, BF16, AMX; None if the system does not list them.
    instructions: tuple[str, ...] | None = col("Instructions", separator=", ")
    # The precision of `--precision auto` on `--device auto`; None if torch cannot be imported.
    training_precision: str | None = col("Training precision")
    training_device: str | None = col("Training device")
    versions: dict[str, str]
    rows: tuple[DoctorRow, ...]

    @property
    def broken(self) -> tuple[str, ...]:
        """Return the missing components that chestx needs."""
        return tuple(row.what for row in self.rows if row.is_missing and not row.is_optional)

    @property
    def headline(self) -> str:
        """Return whether all needed components are present."""
        if self.broken:
            return f"not ready: {', '.join(self.broken)} missing"
        return f"ready: trains in {(self.training_precision or '').upper()} on {self.training_device}"

    @property
    def exit_code(self) -> int:
        """Return 1 if a needed component is missing."""
        return 1 if self.broken else 0
