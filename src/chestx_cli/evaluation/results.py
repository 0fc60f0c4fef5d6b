"""What figures read of a study: variants with their results, as far as these belong to the present split and model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from chestx_cli.evaluation.result_tables import rejudged
from chestx_cli.records.benchmark import EAGER, BenchmarkRecord
from chestx_cli.records.evaluation import EvaluationRecord
from chestx_cli.records.sensitivity import GroupSensitivityRecord, SensitivityRecord
from chestx_cli.records.variant import BASELINE
from chestx_cli.study.documents import read_record
from chestx_cli.study.lineage import outdated, with_ancestors

if TYPE_CHECKING:
    from chestx_cli.records.benchmark import BenchmarkRow
    from chestx_cli.records.evaluation import ComparisonRow, EvaluationRow
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.study.directory import Study

S = TypeVar("S", SensitivityRecord, GroupSensitivityRecord)


@dataclass(frozen=True, kw_only=True)
class VariantResults:
    """A variant with its test results and CPU benchmark; None where they were not made for this very model."""

    record: VariantRecord
    evaluation: EvaluationRecord | None
    benchmark: BenchmarkRecord | None
    # Whether its parent is another model by now, or its parent's.
    is_stale: bool

    @property
    def row(self) -> EvaluationRow | None:
        """Return the variant's line of test results."""
        return self.evaluation.rows[0] if self.evaluation else None

    @property
    def eager(self) -> BenchmarkRow | None:
        """Return the benchmark under eager PyTorch; ONNX variants have none."""
        rows = self.benchmark.rows if self.benchmark else ()
        return next((row for row in rows if row.runtime == EAGER), None)

    @property
    def fastest(self) -> BenchmarkRow | None:
        """Return the benchmark under the runtime of lowest median latency."""
        return self.benchmark.fastest(self.record.name) if self.benchmark else None

    @property
    def comparison(self) -> ComparisonRow | None:
        """Return the comparison with the baseline."""
        return self.evaluation.comparison if self.evaluation else None

    @property
    def is_reference(self) -> bool:
        """Return whether the others of its evaluation were compared with it."""
        return self.evaluation is not None and self.evaluation.baseline == self.record.name

    def compared_with(self, reference: VariantResults) -> ComparisonRow | None:
        """Return the comparison with this very model, if there is one."""
        same = self.evaluation is not None and self.evaluation.baseline == reference.record.name
        return self.comparison if same else None


def read_variants(study: Study) -> tuple[VariantRecord, ...]:
    """Return the variants of the present split, the baseline first; those of an earlier split saw other images."""
    if not study.split_json.exists():
        return ()
    split_sha256 = study.read_split_record().split_csv_sha256
    records = [study.read_variant(name) for name in study.variant_names()]
    return tuple(record for record in records if record.split_sha256 == split_sha256)


def read_results(study: Study) -> tuple[VariantResults, ...]:
    """Return all variants of the present split with their results, the baseline first."""
    records = read_variants(study)
    by_name = {record.name: record for record in records}
    found = [_evaluation(study, record) for record in records]
    evaluations = judged_together([e and still_compared(e, by_name) for e in found])
    stale = outdated(with_ancestors(study, records).values())
    return tuple(
        VariantResults(
            record=record,
            evaluation=evaluation,
            benchmark=_benchmark(study, record),
            is_stale=record.name in stale,
        )
        for record, evaluation in zip(records, evaluations, strict=True)
    )


def results_with(
    study: Study, evaluation: EvaluationRecord, records: Sequence[VariantRecord]
) -> tuple[VariantResults, ...]:
    """Return variants with the results of one evaluation of them, and their stored benchmarks."""
    stale = outdated(with_ancestors(study, records).values())
    return tuple(
        VariantResults(
            record=record,
            evaluation=evaluation.of(record.name),
            benchmark=_benchmark(study, record),
            is_stale=record.name in stale,
        )
        for record in records
    )


def same_baseline(found: EvaluationRecord | BenchmarkRecord, records: Mapping[str, VariantRecord]) -> bool:
    """Return whether the baseline that a record compares with, if any, is the one the study has now."""
    if found.baseline is None:
        return True
    baseline = records.get(found.baseline)
    if baseline is None:
        return False
    used = found.stamp.inputs.get(f"{baseline.name}/{baseline.model_file}", baseline.model_sha256)
    return used == baseline.model_sha256


def still_compared(evaluation: EvaluationRecord, records: Mapping[str, VariantRecord]) -> EvaluationRecord:
    """Return an evaluation of one variant, without its comparisons where the baseline is another one by now."""
    if same_baseline(evaluation, records):
        return evaluation
    verdict = 'not compared with the present baseline: run "chestx evaluate" again'
    unpaired = dataclasses.replace(evaluation.rows[0], verdict=verdict)
    return evaluation.replace(rows=(unpaired,), comparisons=(), drift=(), guards=(), flips=())


def judged_together(evaluations: Sequence[EvaluationRecord | None]) -> list[EvaluationRecord | None]:
    """Return evaluations, of one variant each, with Holm's correction over all of them, however they were made."""
    found = [e for e in evaluations if e and e.comparison]
    rows = (
        rejudged(
            [e.comparisons[0] for e in found],
            [guard for e in found for guard in e.guards],
            reference=found[0].reference,
            faults=tuple(dict.fromkeys(fault for e in found for fault in e.baseline_faults)),
        )
        if found
        else ()
    )
    by_name = {row.variant: row for row in rows}

    def corrected(evaluation: EvaluationRecord | None) -> EvaluationRecord | None:
        row = by_name.get(evaluation.rows[0].variant) if evaluation else None
        if evaluation is None or row is None:
            return evaluation
        result = dataclasses.replace(evaluation.rows[0], verdict=row.verdict)
        return evaluation.replace(comparisons=(row,), rows=(result,))

    return [corrected(evaluation) for evaluation in evaluations]


def read_evaluated(study: Study) -> tuple[VariantResults, ...]:
    """Return the variants that have test results, the baseline first."""
    return tuple(result for result in read_results(study) if result.evaluation is not None)


def reference_of(results: tuple[VariantResults, ...]) -> VariantResults | None:
    """Return the variant that the others were compared with, or None where it has no test results itself."""
    evaluated = [result for result in results if result.evaluation is not None]
    named = [result.evaluation.baseline for result in evaluated if result.evaluation is not None]
    wanted = BASELINE if BASELINE in named or not named else named[0]
    return next((result for result in evaluated if result.record.name == wanted), None)


def read_sensitivities(study: Study) -> tuple[SensitivityRecord, ...]:
    """Return the sensitivities measured on variants as they are now, the baseline's first."""
    return _current_sensitivities(study, SensitivityRecord, "sensitivity.json")


def read_group_sensitivities(study: Study) -> tuple[GroupSensitivityRecord, ...]:
    """Return the structured sensitivities measured on variants as they are now, the baseline's first."""
    return _current_sensitivities(study, GroupSensitivityRecord, "sensitivity.structured.json")


def _current_sensitivities(study: Study, kind: type[S], file: str) -> tuple[S, ...]:
    found = []
    for record in read_variants(study):
        path = study.variant(record.name) / file
        if path.exists():
            sensitivity = read_record(kind, path)
            if sensitivity.model_sha256 == record.model_sha256 and sensitivity.measurements:
                found.append(sensitivity)
    return tuple(found)


def _evaluation(study: Study, record: VariantRecord) -> EvaluationRecord | None:
    path = study.variant(record.name) / "evaluation.test.json"
    if not path.exists():
        return None
    found = read_record(EvaluationRecord, path).of(record.name)
    current = found.split_sha256 == record.split_sha256 and any(
        row.model_sha256 == record.model_sha256 for row in found.rows
    )
    return found if current else None


def _benchmark(study: Study, record: VariantRecord) -> BenchmarkRecord | None:
    path = study.variant(record.name) / "benchmark.cpu.json"
    if not path.exists():
        return None
    found = read_record(BenchmarkRecord, path).of(record.name)
    return found if any(row.model_sha256 == record.model_sha256 for row in found.rows) else None
