"""Reader of a study's split, variants and results: each document is read once, and outdated results are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from chestx_cli.core.errors import IntegrityError
from chestx_cli.core.machine import available_threads
from chestx_cli.core.record import Record
from chestx_cli.evaluation.result_tables import rejudged
from chestx_cli.evaluation.results import (
    BENCHMARKS,
    EVALUATIONS,
    EVERYTHING,
    SENSITIVITIES,
    VARIANTS,
    StudyResults,
    VariantResults,
)
from chestx_cli.records.benchmark import BenchmarkRecord
from chestx_cli.records.evaluation import EvaluationRecord
from chestx_cli.records.sensitivity import GroupSensitivityRecord, Int8SensitivityRecord, SensitivityRecord
from chestx_cli.records.split import TEST
from chestx_cli.store.caveats import caveats
from chestx_cli.store.documents import read_record
from chestx_cli.store.lineage import caveats_of, findings_on_test, outdated, unproven_of, with_ancestors

if TYPE_CHECKING:
    from pathlib import Path

    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study

R = TypeVar("R", bound=Record)
S = TypeVar("S", SensitivityRecord, GroupSensitivityRecord, Int8SensitivityRecord)


def read_study(
    study: Study,
    *,
    parts: Collection[str] = EVERYTHING,
    names: Sequence[str] = (),
    check_models: bool = True,
    needed: Collection[str] | None = None,
) -> StudyResults:
    """Read the results of a study for all variants, or only for those in `names`; each document is read once.

    Variants of another split or with a modified model file are left out; the files are hashed only with `check_models`,
    which takes most of the time. A named variant that cannot be used raises StudyError or IntegrityError instead. With
    `names`, only comparisons whose baseline is also named are kept, and Holm's correction covers only these. `needed`
    are the variants whose results a command needs (default: all); damaged results of others are left out and described
    in `damaged`. Raises StudyError without a split, IntegrityError for any other damaged document.
    """
    split_record = study.read_split_record()
    split = study.read_split_of(split_record)
    of_split = StudyResults(
        study=study,
        split_record=split_record,
        split=split,
        variants=(),
        split_caveats=caveats(split, split_record.group_rules),
    )
    if VARIANTS not in parts:
        return of_split
    stored = [study.read_variant(name) for name in names] if names else study.read_variants()

    def reason_against(record: VariantRecord) -> str | None:
        if record.split_sha256 != split.sha256 and not names:
            return "was trained on another split"
        try:
            study.require_usable(record, split, check_model=check_models)
        except IntegrityError as error:
            if names:
                raise
            return f"cannot be used: {error.fact}"
        return None

    # Hashing releases the GIL.
    with ThreadPoolExecutor(available_threads()) as pool:
        reasons = dict(zip((record.name for record in stored), pool.map(reason_against, stored), strict=True))
    shown = [record for record in stored if reasons[record.name] is None]
    reader = _Reader(study, {record.name: record for record in stored}, shown, parts, needed)
    unusable = {name: reason for name, reason in reasons.items() if reason is not None}
    reader.left_out += [f"variant {name}, which {reason}" for name, reason in unusable.items()]
    variants = _corrected_together([reader.results_of(record) for record in shown])
    return dataclasses.replace(
        of_split,
        variants=variants,
        left_out=tuple(reader.left_out),
        damaged=tuple(reader.damaged),
        unusable=unusable,
        stored=tuple(stored),
        model_caveats=caveats_of(shown, reader.by_name, reader.findings),
    )


class _Reader:
    """Reads each document of the variants once, and records which belong to earlier weights or another split."""

    def __init__(
        self,
        study: Study,
        stored: Mapping[str, VariantRecord],
        shown: Iterable[VariantRecord],
        parts: Collection[str],
        needed: Collection[str] | None,
    ) -> None:
        self.study, self.parts, self.needed = study, parts, needed
        self.shown = {record.name: record for record in shown}
        # Includes ancestors, which may belong to another split.
        self.by_name = with_ancestors(study, self.shown.values(), stored)
        self.stale = outdated(self.by_name.values())
        self.left_out: list[str] = []
        self.damaged: list[str] = []
        self._on_test: dict[str, EvaluationRecord] = {}

    def results_of(self, record: VariantRecord) -> VariantResults:
        """Return a variant with its results."""
        evaluations = self._evaluations(record) if EVALUATIONS in self.parts else {}
        on_test = evaluations.pop(TEST, None)
        measured = SENSITIVITIES in self.parts
        return VariantResults(
            record=record,
            evaluation=on_test,
            externals=tuple(evaluations.values()),
            benchmarks=tuple(self._benchmarks(record)) if BENCHMARKS in self.parts else (),
            sensitivity=self._measured(record, SensitivityRecord, "sensitivity", "sensitivity") if measured else None,
            group_sensitivity=self._measured(
                record, GroupSensitivityRecord, "sensitivity.structured", "structured sensitivity"
            )
            if measured
            else None,
            int8_sensitivity=self._measured(record, Int8SensitivityRecord, "int8-sensitivity", "INT8 sensitivity")
            if measured
            else None,
            is_stale=record.name in self.stale,
            unproven=tuple(finding for _, finding in unproven_of([record], self.by_name, self.findings)),
        )

    def findings(self, record: VariantRecord) -> tuple[str, ...]:
        """Return reasons from a variant's test results to doubt that it has learned anything."""
        if record.name not in self._on_test:
            path = self.study.variant(record.name) / f"evaluation.{TEST}.json"
            if not path.exists():
                return ()
            try:
                self._on_test[record.name] = read_record(EvaluationRecord, path)
            except IntegrityError:
                # The variant may not be shown, so its damaged document must not fail the whole study.
                return ()
        return findings_on_test(record, self._on_test[record.name])

    def _evaluations(self, record: VariantRecord) -> dict[str, EvaluationRecord]:
        evaluations = {}
        for path in sorted(self.study.variant(record.name).glob("evaluation.*.json")):
            name = path.name.split(".")[1]
            stored = self._read(EvaluationRecord, path, record)
            if stored is None:
                continue
            if name == TEST:
                self._on_test[record.name] = stored
            rows = {row.model_sha256 for row in stored.rows if row.variant == record.name}
            is_own = all(row.variant == record.name for row in stored.rows)
            if not is_own or rows != {record.model_sha256} or stored.split_sha256 != record.split_sha256:
                self._leave_out("evaluation" if name == TEST else f"evaluation on {name}", record)
                continue
            if not _is_of_baseline(stored, self.shown):
                self.left_out.append(f"the paired test of {record.name}, which is against an earlier {stored.baseline}")
            evaluations[name] = _still_compared(stored, self.shown)
        return evaluations

    def _benchmarks(self, record: VariantRecord) -> list[BenchmarkRecord]:
        benchmarks = []
        for path in sorted(self.study.variant(record.name).glob("benchmark.*.json")):
            stored = self._read(BenchmarkRecord, path, record)
            if stored is None:
                continue
            is_own = all(row.variant == record.name for row in stored.rows)
            if not is_own or {row.model_sha256 for row in stored.rows} != {record.model_sha256}:
                self._leave_out(f"benchmark ({path.name.split('.')[1]})", record)
            elif not _is_of_baseline(stored, self.shown):
                self.left_out.append(
                    f"the benchmark of {record.name}, whose ratios are against an earlier {stored.baseline}"
                )
            else:
                benchmarks.append(stored)
        return benchmarks

    def _measured(self, record: VariantRecord, kind: type[S], file: str, document: str) -> S | None:
        """Return a sensitivity measurement on the validation images; None if missing or of earlier weights."""
        path = self.study.variant(record.name) / f"{file}.json"
        if not path.exists():
            return None
        stored = self._read(kind, path, record)
        if stored is None or stored.model_sha256 == record.model_sha256:
            return stored
        self._leave_out(document, record)
        return None

    def _read(self, kind: type[R], path: Path, record: VariantRecord) -> R | None:
        """Return a variant's document of results; None for a damaged one that the command does not need."""
        try:
            return read_record(kind, path)
        except IntegrityError as error:
            if self.needed is None or record.name in self.needed:
                raise
            self.damaged.append(f"left out: {error}")
            return None

    def _leave_out(self, document: str, record: VariantRecord) -> None:
        self.left_out.append(f"the {document} of {record.name}, which was made with other weights or another split")


def _is_of_baseline(stored: EvaluationRecord | BenchmarkRecord, records: Mapping[str, VariantRecord]) -> bool:
    """Return whether the record's baseline, if any, is the study's current one."""
    if stored.baseline is None:
        return True
    baseline = records.get(stored.baseline)
    if baseline is None:
        return False
    used = stored.stamp.inputs.get(f"{baseline.name}/{baseline.model_file}", baseline.model_sha256)
    return used == baseline.model_sha256


def _still_compared(evaluation: EvaluationRecord, records: Mapping[str, VariantRecord]) -> EvaluationRecord:
    """Return a variant's evaluation, without comparisons if the baseline has been replaced since."""
    if _is_of_baseline(evaluation, records):
        return evaluation
    verdict = 'not compared with the present baseline: run "chestx evaluate" again'
    unpaired = dataclasses.replace(evaluation.rows[0], verdict=verdict)
    return evaluation.replace(rows=(unpaired,), comparisons=(), drift=(), guards=(), flips=())


def _corrected_together(variants: Sequence[VariantResults]) -> tuple[VariantResults, ...]:
    """Apply Holm's correction over all variants, separately for each set of images."""
    tests = _judged_together([variant.evaluation for variant in variants])
    names = dict.fromkeys(e.split for variant in variants for e in variant.externals)
    others = [
        _judged_together([next((e for e in variant.externals if e.split == name), None) for variant in variants])
        for name in names
    ]
    return tuple(
        dataclasses.replace(
            variant, evaluation=tests[i], externals=tuple(e for evaluations in others if (e := evaluations[i]))
        )
        for i, variant in enumerate(variants)
    )


def _judged_together(evaluations: Sequence[EvaluationRecord | None]) -> list[EvaluationRecord | None]:
    """Return single-variant evaluations with Holm's correction over all of them, even if they were run separately."""
    compared = [e for e in evaluations if e and e.comparison]
    rows = (
        rejudged(
            [e.comparisons[0] for e in compared],
            [guard for e in compared for guard in e.guards],
            reference=compared[0].reference,
            faults=tuple(dict.fromkeys(fault for e in compared for fault in e.baseline_faults)),
        )
        if compared
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
