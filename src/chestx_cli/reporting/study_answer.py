"""The answer of a study over folds and seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from chestx_cli.core.errors import quoted
from chestx_cli.core.printable import short_number
from chestx_cli.core.record import Answer
from chestx_cli.inference.speedups import NOISY
from chestx_cli.records.answers import PooledAnswerRow
from chestx_cli.records.variant import BASELINE
from chestx_cli.reporting.decision import DO_NOT_SHIP, SHIP, Candidate, Choice, choose, faster_parent_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from chestx_cli.records.benchmark import BenchmarkRecord
    from chestx_cli.records.cells import CellRow, FailureRow, PooledRow, StudyRecord
    from chestx_cli.records.variant import VariantRecord

MINUTE_S, HOUR_S = 60, 3600
DECLARED = "declared before the test images were looked at"
# More failures are under --full.
SHOWN_FAILURES = 3


def duration_text(seconds: float) -> str:
    """Return a duration in the unit that is read most easily: 40 s, 12 min, 3.5 h."""
    if seconds < 2 * MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR_S:
        return f"{seconds / MINUTE_S:.0f} min"
    return f"{seconds / HOUR_S:.1f} h"


def of_dry_run(rows: Sequence[CellRow], seconds_left: float | None, command: str) -> Answer:
    """Return how many cells are complete, and the estimated time for the others if a cell has been timed.

    `command` runs the remaining steps.
    """
    complete = sum(not row.left for row in rows)
    steps = sum(len(row.left) for row in rows)
    if not steps:
        return Answer(sentence=f"All {len(rows)} cells are complete.", next_command=command)
    time = (
        "The time is known when the first cell is complete."
        if seconds_left is None
        else f"They take about {duration_text(seconds_left)} at one cell at a time."
    )
    return Answer(
        sentence=f"{complete} of {len(rows)} cells (a fold with a seed) are complete; {steps} steps are left. {time}",
        next_command=command,
    )


def of_study(record: StudyRecord, root: Path, choice: Choice, noise: str) -> Answer:
    """Return the table of variants and the decision for the study at `root`.

    `choice` is that of `choice_of`; `noise` states how much two trainings differ, and is empty for one seed.
    """
    failures = tuple(_failure(row) for row in record.failures[:SHOWN_FAILURES])
    more = len(record.failures) - len(failures)
    if more > 0:
        failures = (*failures, f"{more} more failed: --full lists them.")
    if not record.rows:
        return Answer(
            sentence=f"No seed has results from all {record.folds} folds, so nothing is judged.",
            warnings=failures,
            next_command="chestx study",
        )
    return Answer(
        sentence=f"{choice.sentence} {_declared(record)}",
        rows=answer_rows(record, choice),
        warnings=(*failures, *_reasons(record), *_rough_times(record), *filter(None, (noise,))),
        next_command="chestx study" if record.failures else f"chestx report --study {quoted(str(root))}",
    )


def of_page(record: StudyRecord, root: Path, choice: Choice, noise: str, page: str) -> Answer:
    """Return the same answer with the path of the page, and the next command for the variant that it names."""
    answer = of_study(record, root, choice, noise)
    seed = root / f"seed-{record.seeds[0]}"
    cell = quoted(str(seed / "fold-1"))
    if choice.ship and choice.ship != BASELINE:
        following = f"chestx export {choice.ship} --out bundle --study {cell}"
    elif choice.nearest:
        following = f"chestx compare {BASELINE} {choice.nearest} --study {quoted(str(seed))}"
    else:
        following = f"chestx report --study {cell}"
    return replace(answer, sentence=f"{answer.sentence} The page: {page}", next_command=following)


def choice_of(
    record: StudyRecord, variants: Mapping[str, VariantRecord], benchmarks: Mapping[str, BenchmarkRecord]
) -> Choice:
    """Return which variant to ship, from the pooled verdicts and the first cell's variants and benchmarks by name.

    A parent that is only a step of the plan cannot be shipped, since it is neither tested nor timed.
    """
    candidates = [_candidate(row, record.margin, variants[row.variant], benchmarks) for row in record.rows]
    return choose(candidates, images=record.images, baseline_faults=record.baseline_faults)


def _candidate(
    row: PooledRow, margin: float, variant: VariantRecord, benchmarks: Mapping[str, BenchmarkRecord]
) -> Candidate:
    benchmark = benchmarks.get(row.variant)
    return Candidate(
        name=row.variant,
        size_bytes=row.size_bytes,
        word=row.word or None,
        margin=margin,
        needed_images=row.needed_images,
        difference=row.difference,
        is_reference=row.variant == BASELINE,
        is_stale=False,
        benchmark=benchmark,
        faster_parent=faster_parent_of(variant, benchmark, benchmarks.get(variant.parent or "")),
    )


def answer_rows(record: StudyRecord, choice: Choice) -> tuple[PooledAnswerRow, ...]:
    """Return the table of the answer."""
    return tuple(
        PooledAnswerRow(
            variant=row.variant,
            estimate=f"{row.estimate:.3f} {row.interval[0]:.2f}–{row.interval[1]:.2f}",
            difference="–" if row.difference is None else f"{row.difference:+.3f}",
            verdict=row.word or "–",
            seeds="–" if row.seeds_holding is None else f"{row.seeds_holding:.0%}",
            size_mb=short_number(row.size_bytes / 1e6),
            latency_ms="–"
            if row.latency_p50_ms is None
            else f"{'~' if row.is_noisy else ''}{short_number(row.latency_p50_ms)}",
            ship=SHIP if row.variant in choice.shipped else DO_NOT_SHIP,
        )
        for row in record.rows
    )


def _rough_times(record: StudyRecord) -> tuple[str, ...]:
    """Return the meaning of the mark before latencies, if one has it."""
    return (f"~: these times are {NOISY}.",) if any(row.is_noisy for row in record.rows) else ()


def _reasons(record: StudyRecord) -> tuple[str, ...]:
    """Return the verdicts that have reasons, with their variants: the table has room for the word alone."""
    variants: dict[str, list[str]] = {}
    for row in record.rows:
        if row.verdict != row.word:
            variants.setdefault(row.verdict, []).append(row.variant)
    return tuple(f"{verdict[:1].upper()}{verdict[1:]}: {', '.join(names)}." for verdict, names in variants.items())


def _failure(row: FailureRow) -> str:
    return f"{row.cell} failed: {row.fact}; see it by: {row.command}"


def _declared(record: StudyRecord) -> str:
    """Return the endpoint, and either when it was declared or how the plan was changed later."""
    endpoint, amended = f"Endpoint: {record.endpoint} within {record.margin:g}", amendments_of(record)
    return f"{endpoint}. {amended}" if amended else f"{endpoint}, {DECLARED}."


def amendments_of(record: StudyRecord) -> str:
    """Return a sentence on changes of the plan after test images had been predicted; empty without changes."""
    changes = "; ".join(change for amendment in record.amendments for change in amendment.changes)
    return f"The plan was changed after test images had been predicted: {changes}." if changes else ""
