"""Results of a study: its split, its variants, and what was measured of their current weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chestx_cli.core.record import Record
from chestx_cli.records.benchmark import EAGER, BenchmarkRecord
from chestx_cli.records.evaluation import EvaluationRecord
from chestx_cli.records.sensitivity import GroupSensitivityRecord, Int8SensitivityRecord, SensitivityRecord
from chestx_cli.records.split import TEST
from chestx_cli.records.variant import BASELINE

if TYPE_CHECKING:
    from chestx_cli.records.benchmark import BenchmarkRow
    from chestx_cli.records.evaluation import ComparisonRow, EvaluationRow
    from chestx_cli.records.split import SplitRecord
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study
    from chestx_cli.store.split import Split

CPU = "cpu"
# Parts of a study that can be read separately. The split is always read; the other parts need the variants.
VARIANTS, EVALUATIONS, BENCHMARKS, SENSITIVITIES = "variants", "evaluations", "benchmarks", "sensitivities"
EVERYTHING = frozenset({VARIANTS, EVALUATIONS, BENCHMARKS, SENSITIVITIES})


@dataclass(frozen=True, kw_only=True)
class VariantResults:
    """A variant of the current split, with the results of its current weights."""

    record: VariantRecord
    # On the test images and on external images; without the comparison if the baseline has been replaced since.
    evaluation: EvaluationRecord | None = None
    externals: tuple[EvaluationRecord, ...] = ()
    # One per device; benchmarks relative to a replaced baseline are left out.
    benchmarks: tuple[BenchmarkRecord, ...] = ()
    sensitivity: SensitivityRecord | None = None
    group_sensitivity: GroupSensitivityRecord | None = None
    int8_sensitivity: Int8SensitivityRecord | None = None
    # Whether its parent or another ancestor has been replaced since.
    is_stale: bool = False
    # Reasons to doubt that it or an ancestor has learned anything.
    unproven: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the variant's name."""
        return self.record.name

    @property
    def row(self) -> EvaluationRow | None:
        """Return the variant's results on the test images."""
        return self.evaluation.rows[0] if self.evaluation else None

    @property
    def comparison(self) -> ComparisonRow | None:
        """Return the comparison with the baseline on the test images."""
        return self.evaluation.comparison if self.evaluation else None

    @property
    def is_reference(self) -> bool:
        """Return whether this variant was the baseline of its evaluation."""
        return self.evaluation is not None and self.evaluation.baseline == self.name

    def evaluation_on(self, where: str) -> EvaluationRecord | None:
        """Return the evaluation on an image set: `test` or the name of an external evaluation."""
        evaluations = (self.evaluation, *self.externals)
        return next((evaluation for evaluation in evaluations if evaluation and evaluation.split == where), None)

    def compared_with(self, reference: VariantResults) -> ComparisonRow | None:
        """Return the comparison with `reference`; None if there is none."""
        same = self.evaluation is not None and self.evaluation.baseline == reference.name
        return self.comparison if same else None

    def benchmark_on(self, device: str) -> BenchmarkRecord | None:
        """Return the benchmark on a device."""
        return next((benchmark for benchmark in self.benchmarks if benchmark.device == device), None)

    def speed(self, device: str, runtime: str) -> BenchmarkRow | None:
        """Return the benchmark row for a device and a runtime."""
        benchmark = self.benchmark_on(device)
        return next((row for row in benchmark.rows if row.runtime == runtime), None) if benchmark else None

    def fastest(self, device: str) -> BenchmarkRow | None:
        """Return the benchmark row with the lowest median latency on a device."""
        benchmark = self.benchmark_on(device)
        return benchmark.fastest(self.name) if benchmark else None


def timed_in_separate_runs(variants: Sequence[VariantResults], device: str) -> bool:
    """Return whether the variants' latencies on a device are from several benchmark runs."""
    return len({(b.stamp.created, b.threads) for variant in variants if (b := variant.benchmark_on(device))}) > 1


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """All results of a study, shared by tables, page, figures and commands.

    left_out: documents that were not used, with reasons. Holm's correction covers all valid comparisons on one set of
    images.
    """

    study: Study
    split_record: SplitRecord
    split: Split
    # The baseline first, then in order of creation.
    variants: tuple[VariantResults, ...]
    left_out: tuple[str, ...] = ()
    # Damaged documents of results that were not needed, each with what to do.
    damaged: tuple[str, ...] = ()
    # Reasons against the variants that were left out, by name; each continues a sentence that begins with the name.
    unusable: Mapping[str, str] = field(default_factory=dict)
    # Records of all variants that were read, including the unusable ones.
    stored: tuple[VariantRecord, ...] = ()
    # Data warnings about the split and the variants, each sentence with its label.
    split_caveats: tuple[str, ...] = ()
    model_caveats: tuple[str, ...] = ()

    def variant(self, name: str) -> VariantResults | None:
        """Return a variant by name."""
        return next((variant for variant in self.variants if variant.name == name), None)

    @property
    def baseline(self) -> VariantResults | None:
        """Return the baseline."""
        return self.variant(BASELINE)

    @property
    def evaluated(self) -> tuple[VariantResults, ...]:
        """Return the variants that have test results."""
        return tuple(variant for variant in self.variants if variant.evaluation)

    @property
    def reference(self) -> VariantResults | None:
        """Return the variant that the others were compared with; None if it has no test results."""
        named = [variant.evaluation.baseline for variant in self.variants if variant.evaluation]
        wanted = BASELINE if BASELINE in named or not named else named[0]
        return next((variant for variant in self.evaluated if variant.name == wanted), None)

    @property
    def comparisons(self) -> dict[str, ComparisonRow]:
        """Return the comparisons with the baseline on the test images, by variant."""
        return {variant.name: variant.comparison for variant in self.variants if variant.comparison}

    @property
    def devices(self) -> tuple[str, ...]:
        """Return the devices with a benchmark of any variant, the CPU first."""
        named = {benchmark.device for variant in self.variants for benchmark in variant.benchmarks}
        return tuple(sorted(named, key=lambda name: (name != CPU, name)))

    def same_run_speed(self, benchmark: BenchmarkRecord, runtime: str) -> BenchmarkRow | None:
        """Return the FP32 baseline's row for a runtime if it was timed in the same run."""
        baseline = self.variant(benchmark.baseline) if benchmark.baseline else None
        timed = (b for b in (baseline.benchmarks if baseline else ()) if b.stamp == benchmark.stamp)
        return next((row for b in timed for row in b.rows if row.runtime == runtime), None)

    def same_runtime_speedup(self, benchmark: BenchmarkRecord, row: BenchmarkRow) -> float | None:
        """Return the speed-up over the FP32 baseline under the same runtime in the same run; None if not timed."""
        # Recorded ratios are medians over interleaved rounds, so that drift of the machine cancels out.
        if row.runtime == benchmark.best_fp32_runtime and row.speedup_over_best_fp32 is not None:
            return row.speedup_over_best_fp32
        if row.runtime == EAGER and row.speedup_over_eager is not None:
            return row.speedup_over_eager
        baseline = self.same_run_speed(benchmark, row.runtime)
        return baseline.latency_p50_ms / row.latency_p50_ms if baseline else None

    def marked(self, variant: str, verdict: str) -> str:
        """Return a variant's verdict, marked if the variant is stale."""
        results = self.variant(variant)
        return f"{verdict} (stale)" if results and results.is_stale else verdict

    def test_size(self) -> tuple[int, int]:
        """Return the numbers of test images and of their patients."""
        rows = self.split.indices(TEST)
        return len(rows), len(set(self.split.groups[rows].tolist()))

    @property
    def caveats(self) -> tuple[str, ...]:
        """Return the data warnings about the split and the variants."""
        return (*self.split_caveats, *self.model_caveats)

    def records(self) -> list[tuple[str, Record]]:
        """Return every record with its label, in order of creation."""
        labelled: list[tuple[str, Record]] = [("split", self.split_record)]
        for variant in self.variants:
            labelled.append((variant.name, variant.record))
            others = ((f"evaluation on {e.split}", e) for e in variant.externals)
            parts = (("evaluation", variant.evaluation), *others, ("sensitivity", variant.sensitivity))
            labelled += [(f"{name} of {variant.name}", record) for name, record in parts if record]
            labelled += [(f"benchmark of {variant.name} ({b.device})", b) for b in variant.benchmarks]
        return sorted(labelled, key=lambda item: item[1].stamp.created)

    def only(self, parts: Collection[str]) -> StudyResults:
        """Return the results restricted to some parts, as if only these had been read."""
        if VARIANTS not in parts:
            return dataclasses.replace(self, variants=(), left_out=(), model_caveats=())

        def kept(variant: VariantResults) -> VariantResults:
            if EVALUATIONS not in parts:
                variant = dataclasses.replace(variant, evaluation=None, externals=())
            if BENCHMARKS not in parts:
                variant = dataclasses.replace(variant, benchmarks=())
            if SENSITIVITIES not in parts:
                variant = dataclasses.replace(variant, sensitivity=None, group_sensitivity=None, int8_sensitivity=None)
            return variant

        return dataclasses.replace(self, variants=tuple(kept(variant) for variant in self.variants))
