"""`chestx status`: the variants of a study, outdated results, and the decision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.command import Run, stage
from chestx_cli.core.errors import StudyError
from chestx_cli.core.shared_options import StudyDir
from chestx_cli.evaluation.reading import read_study
from chestx_cli.evaluation.results import BENCHMARKS, EVALUATIONS, VARIANTS, StudyResults
from chestx_cli.records.cells import DryRunRecord
from chestx_cli.records.status import (
    CURRENT,
    DONE,
    MISSING,
    OUTDATED,
    STALE,
    UNUSABLE,
    RenewalRow,
    StatusRecord,
    VariantStatusRow,
)
from chestx_cli.reporting.decision import decide
from chestx_cli.reporting.status_answer import of_status
from chestx_cli.reporting.study_answer import choice_of, of_dry_run
from chestx_cli.store.caveats import stamps_of
from chestx_cli.store.directory import Study, open_study
from chestx_cli.store.documents import renewal
from chestx_cli.store.lineage import OWN_ANCESTOR, ends_in_circle, outdated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chestx_cli.records.variant import VariantRecord


@stage(examples=("chestx status",), after="report")
def status(run: Run, *, study: StudyDir = Path("study")) -> StatusRecord | DryRunRecord:
    """Show what a study holds, what is outdated, and the decision.

    Variants are listed as they descend from each other. A variant is stale if an ancestor has been replaced since, and
    unusable if its file was modified or belongs to another split. Every outdated part has the command that renews it.

    For a study over folds and seeds it shows the cells, their unfinished steps, and the pooled decision.
    """
    if Study(study).plan_json.exists():
        return _of_cells(run, study)
    target = open_study(study)
    with run.reporter.progress("Reading the results and checking the models", None):
        results = read_study(target, parts=(VARIANTS, EVALUATIONS, BENCHMARKS), needed=())
    for sentence in results.damaged:
        run.warn(sentence)
    run.stamped(stamps_of(results.caveats))
    run.uses("split.csv", results.split.sha256)
    for sentence in results.model_caveats:
        # No command renews it, so that it is not in the table of renewals.
        if OWN_ANCESTOR in sentence:
            run.warn(sentence)
    rows = tuple(_rows(results))
    decision = decide(results.variants) if results.evaluated else None
    record = StatusRecord(
        stamp=run.stamp(),
        notes=results.caveats,
        images=len(results.split.groups),
        patients=len(set(results.split.groups.tolist())),
        test_images=results.test_size()[0],
        classes=results.split.classes,
        ship=decision.ship if decision else None,
        rows=rows,
        renewals=tuple(_renewals(rows, {record.name: record for record in results.stored})),
    )
    return record.replace(answer=of_status(record, decision))


def _of_cells(run: Run, root: Path) -> DryRunRecord:
    """Return the cells of a study over folds and seeds, with the pooled decision if it is current."""
    # Imported here: it imports every command of a cell.
    from chestx_cli.cells.answered import read_answered
    from chestx_cli.cells.declaring import plan_in
    from chestx_cli.cells.running import cells_left
    from chestx_cli.commands.study import STAGES

    plan = plan_in(root, STAGES)
    rows, seconds_left = cells_left(plan, root, STAGES)
    answer = of_dry_run(rows, seconds_left, "chestx study")
    if not any(row.left for row in rows):
        try:
            record, _, pooled = read_answered(root, STAGES)
        except StudyError as error:
            answer = replace(answer, sentence=f"{answer.sentence} No decision yet: {error.fact}.")
        else:
            decision = choice_of(record, pooled.records, pooled.benchmarks).sentence
            answer = replace(answer, sentence=f"{answer.sentence} {decision}", next_command="chestx report")
    return DryRunRecord(stamp=run.stamp(), plan_sha256=plan.sha256, seconds_left=seconds_left, rows=rows, answer=answer)


def _rows(results: StudyResults) -> Iterator[VariantStatusRow]:
    """Yield all variants, each followed by its descendants."""
    stored = results.stored
    by_name = {record.name: record for record in stored}
    stale = outdated(stored)

    def row_of(record: VariantRecord, depth: int) -> VariantStatusRow:
        usable = results.variant(record.name)
        reason = results.unusable.get(record.name, "") or stale.get(record.name, "")
        folder = results.study.variant(record.name)
        return VariantStatusRow(
            variant=record.name,
            parent=record.parent,
            depth=depth,
            state=UNUSABLE if usable is None else STALE if reason else CURRENT,
            reason=reason,
            tested=_state_of(
                is_current=usable is not None and (usable.is_reference or usable.comparison is not None),
                is_there=(folder / "evaluation.test.json").exists(),
            ),
            timed=_state_of(
                is_current=usable is not None and bool(usable.benchmarks),
                is_there=any(folder.glob("benchmark.*.json")),
            ),
            size_bytes=record.model_bytes,
            created=record.stamp.created,
            command=record.stamp.command,
        )

    def family(record: VariantRecord, depth: int, above: frozenset[str]) -> Iterator[VariantStatusRow]:
        yield row_of(record, depth)
        for child in stored:
            # Only edited records can form a cycle.
            if child.parent == record.name and child.name not in above:
                yield from family(child, depth + 1, above | {child.name})

    roots = [record for record in stored if record.parent not in by_name]
    listed = [row for record in roots for row in family(record, 0, frozenset({record.name}))]
    yield from listed
    reached = {row.variant for row in listed}
    yield from (row_of(record, 0) for record in stored if record.name not in reached)


def _state_of(*, is_current: bool, is_there: bool) -> str:
    return DONE if is_current else OUTDATED if is_there else MISSING


def _renewals(rows: Sequence[VariantStatusRow], by_name: dict[str, VariantRecord]) -> Iterator[RenewalRow]:
    """Yield the commands that renew outdated variants, parents first, and then outdated results."""
    # Making a variant again does not help while an ancestor is its own ancestor.
    again = [row for row in rows if row.state != CURRENT and not ends_in_circle(by_name[row.variant], by_name)]
    for row in sorted(again, key=lambda row: row.depth):
        yield RenewalRow(command=renewal(by_name[row.variant].stamp.command), reason=f"{row.variant} {row.reason}")
    for command, results, states in (
        ("chestx evaluate", "test results", [row.tested for row in rows]),
        ("chestx benchmark", "times", [row.timed for row in rows]),
    ):
        outdated_rows = states.count(OUTDATED)
        if outdated_rows or (again and DONE in states):
            whose = f"{outdated_rows} variants have" if outdated_rows > 1 else "a variant has"
            yield RenewalRow(
                command=command,
                reason=f"{whose} outdated {results}" if outdated_rows else f"{results} of variants that are made again",
            )
