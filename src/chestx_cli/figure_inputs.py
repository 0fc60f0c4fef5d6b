"""What figures read of a study: variants with their results, as far as these belong to the present split and model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from chestx_cli.records import BenchmarkRecord, EvaluationRecord, GroupSensitivityRecord, SensitivityRecord
from chestx_cli.runtimes import EAGER
from chestx_cli.study import BASELINE, read_record

if TYPE_CHECKING:
    from chestx_cli.records import BenchmarkRow, EvaluationRow, VariantRecord
    from chestx_cli.study import Study

S = TypeVar("S", SensitivityRecord, GroupSensitivityRecord)


@dataclass(frozen=True, kw_only=True)
class VariantResults:
    """A variant with its test results and CPU benchmark; None where they were not made for this very model."""

    record: VariantRecord
    evaluation: EvaluationRecord | None
    benchmark: BenchmarkRecord | None

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
        rows = self.benchmark.rows if self.benchmark else ()
        return min(rows, key=lambda row: row.latency_p50_ms, default=None)

    def compared_with(self, reference: VariantResults) -> bool:
        """Return whether the stored test against the baseline was against this very model."""
        if self.evaluation is None or self.evaluation.baseline != reference.record.name:
            return False
        key = f"{reference.record.name}/{reference.record.model_file}"
        return self.evaluation.stamp.inputs.get(key, reference.record.model_sha256) == reference.record.model_sha256


def read_variants(study: Study) -> tuple[VariantRecord, ...]:
    """Return the variants of the present split, the baseline first; those of an earlier split saw other images."""
    if not study.split_json.exists():
        return ()
    split_sha256 = study.read_split_record().split_csv_sha256
    records = [study.read_variant(name) for name in study.variant_names()]
    return tuple(record for record in records if record.split_sha256 == split_sha256)


def read_results(study: Study) -> tuple[VariantResults, ...]:
    """Return all variants of the present split with their results, the baseline first."""
    return tuple(
        VariantResults(record=record, evaluation=_evaluation(study, record), benchmark=_benchmark(study, record))
        for record in read_variants(study)
    )


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
