"""Records of a study over folds and seeds: its plan, its cells, and their pooled results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from chestx_cli.core.printable import counted
from chestx_cli.core.record import Document, Options, col, jsonable, named_cols, report_only
from chestx_cli.records.tabular import TabularRecord


@dataclass(frozen=True, kw_only=True)
class Amendment:
    """A change of the plan after test images of some cells had already been predicted."""

    declared: str = col("Changed on")
    tested_cells: int = col("Cells tested before", ",")
    changes: tuple[str, ...] = col("Changes", separator="; ")


@dataclass(frozen=True, kw_only=True)
class PlannedVariant:
    """A variant of a plan.

    A step has its method or backbone under its command's name, then options as `PlanDocument` has them.
    """

    name: str
    steps: tuple[Document, ...]


@dataclass(frozen=True, kw_only=True)
class PlanDocument:
    """A complete plan as JSON types; a command's options are under their flags' names without the dashes."""

    data: str
    folds: int
    seeds: tuple[int, ...]
    endpoint: str
    margin: float
    split: Document = field(default_factory=dict)
    train: Document = field(default_factory=dict)
    evaluate: Document = field(default_factory=dict)
    benchmark: Document = field(default_factory=dict)
    variants: tuple[PlannedVariant, ...]

    @property
    def own(self) -> Options:
        """Return the plan's own values, by name, without those of commands and variants."""
        return {
            "data": self.data,
            "folds": self.folds,
            "seeds": self.seeds,
            "endpoint": self.endpoint,
            "margin": self.margin,
        }

    @property
    def tables(self) -> Mapping[str, Document]:
        """Return the options of each command."""
        return {"split": self.split, "train": self.train, "evaluate": self.evaluate, "benchmark": self.benchmark}

    @property
    def sha256(self) -> str:
        """Return the hash that identifies the plan; commands without options are not part of it."""
        content = {name: value for name, value in jsonable(self).items() if value != {}}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class PlanRecord(TabularRecord):
    """The variants of a study and how they are judged, stored before the first test image is predicted.

    `document` is the plan as declared, `content` the same with file hashes and without local paths, `sha256` the hash
    of `content`.
    """

    schema: ClassVar[str] = "chestx.plan/1"
    title: ClassVar[str] = "Plan of a study"

    declared: str = col("Declared on")
    sha256: str = col("Plan (sha256)")
    document: PlanDocument
    content: PlanDocument
    amendments: tuple[Amendment, ...] = ()

    @property
    def headline(self) -> str:
        """Return the endpoint and the number of cells."""
        plan = self.document
        return f"{plan.folds * len(plan.seeds)} cells, {plan.endpoint} within {plan.margin:g}"


@dataclass(frozen=True, kw_only=True)
class CellRow:
    """Progress of one cell: steps done and left, and the estimated time left."""

    cell: str = col("Cell")
    done: int = col("Steps done", ",")
    steps: int = col("of", ",")
    left: tuple[str, ...] = col("Left", separator=", ")
    seconds_left: float | None = col("About s", ",.0f")


@dataclass(frozen=True, kw_only=True)
class DryRunRecord(TabularRecord):
    """What `chestx study` would do: the cells with their progress, and the estimated time left."""

    schema: ClassVar[str] = "chestx.study-dry-run/1"
    title: ClassVar[str] = "Cells of a study"

    plan_sha256: str = col("Plan (sha256)")
    seconds_left: float | None = col("About s left", ",.0f")
    rows: tuple[CellRow, ...]

    @property
    def headline(self) -> str:
        """Return how many cells are complete."""
        return f"{sum(not row.left for row in self.rows)} of {len(self.rows)} cells complete"


@dataclass(frozen=True, kw_only=True)
class StudyFileRecord(TabularRecord):
    """A study file that `chestx study --init` wrote."""

    schema: ClassVar[str] = "chestx.study-file/1"
    title: ClassVar[str] = "Study file"

    path: str = col("File")

    @property
    def headline(self) -> str:
        """Return the file's path."""
        return self.path


@dataclass(frozen=True, kw_only=True)
class PooledRow:
    """Results of one variant over all folds and seeds, on the declared endpoint."""

    variant: str = col("Variant")
    estimate: float = col("Estimate", ".4f")
    interval: tuple[float, float] = col("95 %", ".4f")
    seed_sd: float | None = col("SD of seeds", ".4f")
    difference: float | None = col("Difference", "+.4f", default=None)
    difference_interval: tuple[float, float] | None = col("95 %", "+.4f", separator=" to ", default=None)
    p_margin: float | None = col("p of a loss of the margin", ".2g", default=None)
    verdict: str = col("Verdict", default="")
    needed_images: int | None = col("Images that settle it", ",", default=None)
    seeds_holding: float | None = col("Seeds with this verdict", ".0%", default=None)
    word: str = field(default="")
    # The verdict as the end of a sentence that begins with the variant's name and `is`.
    in_words: str = field(default="")
    size_bytes: int = col("File (bytes)", ",")
    latency_p50_ms: float | None = col("p50 ms", ".2f", default=None)
    speedup: float | None = col("× best FP32", ".2f", default=None)
    speedup_interval: tuple[float, float] | None = col("95 %", ".2f", default=None)
    # Share of patient-level bootstrap draws in which no other variant is both as good and as fast.
    front_share: float | None = col("On the front", ".0%", default=None)
    # Whether its times are NOISY.
    is_noisy: bool = field(default=False)


@dataclass(frozen=True, kw_only=True)
class SeedRow:
    """Results of one variant over all folds of one seed."""

    variant: str = col("Variant")
    seed: int = col("Seed")
    estimate: float = col("Estimate", ".4f")
    difference: float | None = col("Difference", "+.4f")
    difference_interval: tuple[float, float] | None = col("95 %", "+.4f", separator=" to ")
    verdict: str = col("Verdict")


@dataclass(frozen=True, kw_only=True)
class NoiseRow:
    """Two trainings of one recipe that differ only in the seed."""

    variant: str = col("Two trainings of")
    seeds: tuple[int, int] = col("Seeds", separator=" and ")
    difference: float = col("Difference", "+.4f")
    difference_interval: tuple[float, float] = col("95 %", "+.4f", separator=" to ")


@dataclass(frozen=True, kw_only=True)
class ExemplarRow:
    """An image on which a variant's decision differs from the baseline's in most seeds."""

    variant: str = col("Variant")
    image_id: str = col("Image")
    change: str = col("Changed decision")
    seeds: int = col("Seeds")
    of_seeds: int = col("of")
    fold: str = col("Fold")


@dataclass(frozen=True, kw_only=True)
class PooledRatesRow:
    """One variant's rates at its stored thresholds, over all folds and seeds; None where no image is of the class."""

    variant: str = col("Variant")
    sensitivity: float | None = col("Sensitivity", ".1%")
    sensitivity_interval: tuple[float, float] | None = col("95 %", ".1%")
    specificity: float | None = col("Specificity", ".1%")
    specificity_interval: tuple[float, float] | None = col("95 %", ".1%")


@dataclass(frozen=True, kw_only=True)
class CellResultRow:
    """One cell: the images that it tests, and each variant's value on the endpoint by its name."""

    cell: str = col("Cell")
    images: int = col("Images", ",")
    patients: int = col("Patients", ",")
    estimates: Mapping[str, float] = named_cols("Endpoint", ".3f", names={})


@dataclass(frozen=True, kw_only=True)
class FailureRow:
    """A command that failed in a cell."""

    cell: str = col("Cell")
    command: str = col("Failed command")
    fact: str = col("Error")
    remedy: str = col("What to do")


@dataclass(frozen=True, kw_only=True)
class StudyRecord(TabularRecord):
    """A study over folds and seeds: every image tested once per seed, and the decision on the declared endpoint."""

    schema: ClassVar[str] = "chestx.study/1"
    title: ClassVar[str] = "Study over folds and seeds"
    remedy: ClassVar[str] = 'run "chestx study" to make it again, or restore the file'

    plan_sha256: str = col("Plan (sha256)")
    declared: str = col("Declared on")
    endpoint: str = col("Endpoint")
    margin: float = col("Margin", "g")
    folds: int = col("Folds")
    seeds: tuple[int, ...] = col("Seeds", separator=", ")
    images: int = col("Images", ",")
    patients: int = col("Patients", ",")
    positive: str = col("Positive class")
    positives: int | None = col("Images of it", ",", default=None)
    device: str | None = col("Latency on")
    # The largest difference on the endpoint between two trainings of the baseline.
    noise_floor: float | None = col("Seed noise floor", ".4f")
    baseline_faults: tuple[str, ...] = ()
    rows: tuple[PooledRow, ...] = ()
    seed_rows: tuple[SeedRow, ...] = ()
    noise: tuple[NoiseRow, ...] = ()
    exemplars: tuple[ExemplarRow, ...] = report_only(())
    rates: tuple[PooledRatesRow, ...] = report_only(())
    # The shares of positive films for which misses and false alarms are given.
    prevalences: tuple[float, ...] = ()
    cell_rows: tuple[CellResultRow, ...] = report_only(())
    amendments: tuple[Amendment, ...] = ()
    failures: tuple[FailureRow, ...] = ()

    @property
    def exit_code(self) -> int:
        """Return 1 where a cell failed."""
        return 1 if self.failures else 0

    @property
    def headline(self) -> str:
        """Return the number of variants, folds and seeds."""
        variants, seeds = counted(len(self.rows), "variant"), counted(len(self.seeds), "seed")
        return f"{variants}, {self.folds} folds, {seeds}, {self.endpoint}"
