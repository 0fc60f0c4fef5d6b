"""The answer of `status`: the lineage as a table, outdated parts, and the decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.core.record import Answer
from chestx_cli.records.answers import StatusAnswerRow
from chestx_cli.records.status import CURRENT
from chestx_cli.reporting.decision import short_number

if TYPE_CHECKING:
    from chestx_cli.records.answers import Decision
    from chestx_cli.records.status import StatusRecord


def of_status(record: StatusRecord, decision: Decision | None) -> Answer:
    """Return the variants as a tree, how many parts are outdated, and the decision by the results that are current."""
    rows = tuple(
        StatusAnswerRow(
            variant=f"{'  ' * row.depth}{row.variant}",
            state=row.state,
            tested=row.tested,
            timed=row.timed,
            size_mb=short_number(row.size_bytes / 1e6),
            created=row.created[:10],
        )
        for row in record.rows
    )
    held = f"{record.images:,} images of {record.patients:,} patients, {record.test_images:,} for the test."
    outdated = sum(row.state != CURRENT for row in record.rows)
    if not record.rows:
        return Answer(sentence=f"{held} No variant yet.", next_command="chestx train")
    count = f"{len(record.rows)} variant{'' if len(record.rows) == 1 else 's'}"
    counted = f"{held} {count}, {f'{outdated} outdated' if outdated else 'none outdated'}."
    if record.renewals:
        more = len(record.renewals) - 1
        first = record.renewals[0]
        rest = f" {more} more command{'' if more == 1 else 's'} will follow: --full lists them." if more else ""
        return Answer(
            rows=rows,
            sentence=f"{counted} First: {first.reason}.{rest}",
            warnings=(f"By the results that are current: {decision.sentence}",) if decision else (),
            next_command=first.command,
        )
    if decision is None:
        return Answer(rows=rows, sentence=f"{counted} Nothing is tested yet.", next_command="chestx evaluate")
    return Answer(rows=rows, sentence=f"{counted} {decision.sentence}", next_command=decision.next_command)
