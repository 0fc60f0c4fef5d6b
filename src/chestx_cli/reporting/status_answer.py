"""The answer of `status`: the lineage as a table, outdated parts, and the decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.core.printable import counted, short_number
from chestx_cli.core.record import Answer
from chestx_cli.records.answers import StatusAnswerRow
from chestx_cli.records.status import CURRENT

if TYPE_CHECKING:
    from chestx_cli.records.answers import Decision
    from chestx_cli.records.status import RenewalRow, StatusRecord


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
    images = f"{record.images:,} images of {record.patients:,} patients, {record.test_images:,} for the test."
    if not record.rows:
        return Answer(sentence=f"{images} No variant yet.", next_command="chestx train")
    counted = f"{images} {_variants_sentence(record)}"
    if record.renewals:
        return Answer(
            rows=rows,
            sentence=f"{counted} {_renewals_sentence(record.renewals)}",
            warnings=(f"By the results that are current: {decision.sentence}",) if decision else (),
            next_command=record.renewals[0].command,
        )
    if decision is None:
        return Answer(rows=rows, sentence=f"{counted} Nothing is tested yet.", next_command="chestx evaluate")
    return Answer(rows=rows, sentence=f"{counted} {decision.sentence}", next_command=decision.next_command)


def _variants_sentence(record: StatusRecord) -> str:
    outdated = sum(row.state != CURRENT for row in record.rows)
    state = f"{outdated} outdated" if outdated else "none outdated"
    return f"{counted(len(record.rows), 'variant')}, {state}."


def _renewals_sentence(renewals: tuple[RenewalRow, ...]) -> str:
    """Return why the first command is to be run, and how many others follow it."""
    first, others = f"First: {renewals[0].reason}.", len(renewals) - 1
    if not others:
        return first
    if others == 1:
        return f"{first} 1 more command will follow: --full lists it."
    return f"{first} {others} more commands will follow: --full lists them."
