"""The first screen of the page of a study over folds and seeds, and the reasons below it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.printable import counted
from chestx_cli.evaluation.endpoints import endpoint_of
from chestx_cli.inference.speedups import is_noisy
from chestx_cli.records.variant import BASELINE
from chestx_cli.reporting.page.blocks import Block, Bullets, Drawn, Section, Shown, Text, make_table, rate
from chestx_cli.reporting.page.opening import (
    Opening,
    Paragraph,
    answer_table,
    clinical_text,
    per_100_table,
    readers,
    technical_text,
)
from chestx_cli.reporting.study_answer import DECLARED, amendments_of, answer_rows
from chestx_cli.store.caveats import stamps_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chestx_cli.evaluation.results import StudyResults
    from chestx_cli.records.benchmark import BenchmarkRecord
    from chestx_cli.records.cells import PlanRecord, StudyRecord
    from chestx_cli.reporting.decision import Choice

# The figure of the first screen.
FIRST_FIGURE = "differences"


@dataclass(frozen=True, kw_only=True)
class PooledResults:
    """What the page of a study over folds and seeds shows.

    cell: the first cell, in which all variants are timed. noise: how much two trainings of the baseline differ; empty
    for one seed. caveats: data warnings on the split and on the baseline. command: the command that makes the page.
    """

    record: StudyRecord
    plan: PlanRecord
    cell: StudyResults
    benchmarks: Mapping[str, BenchmarkRecord]
    choice: Choice
    noise: str
    caveats: tuple[str, ...]
    command: str

    @property
    def stamps(self) -> tuple[str, ...]:
        """Return the stamps shown before each table, such as UNGROUPED."""
        return stamps_of(self.caveats)


def build_pooled_opening(pooled: PooledResults, drawn: Drawn) -> Opening:
    """Return the first screen: the same decision as on the terminal, and its figure, which is removed from `drawn`."""
    record = pooled.record
    picture = drawn.figures.pop(FIRST_FIGURE, None)
    return Opening(
        question=_question(pooled),
        sentence=pooled.choice.sentence,
        table=answer_table(answer_rows(record, pooled.choice), pooled.choice.ship, spare=("estimate", "seeds")),
        stamps=pooled.stamps,
        warnings=(*pooled.caveats, *filter(None, (amendments_of(record),))),
        picture=picture,
        instead="" if picture else "There is no variant to draw against the baseline.",
        paragraphs=_paragraphs(pooled),
    )


def _question(pooled: PooledResults) -> tuple[tuple[str, str], ...]:
    record = pooled.record
    data = f"{counted(record.images, 'image')} of {counted(record.patients, 'patient')}"
    declared = DECLARED if not record.amendments else "changed after test images were predicted"
    return (
        ("Data", data if record.positives is None else f"{data}, {record.positives:,} {record.positive}"),
        ("Tested", f"every image once per seed, {record.folds} folds × {counted(len(record.seeds), 'seed')}"),
        ("Judged by", f"{endpoint_of(record.endpoint).noun}, margin {record.margin:g}, {declared}"),
    )


def _paragraphs(pooled: PooledResults) -> tuple[Paragraph, ...]:
    """Return the paragraphs about the shipped variant, or else the nearest, or else the baseline."""
    record = pooled.record
    name = pooled.choice.ship or pooled.choice.nearest or BASELINE
    rates = next((row for row in record.rates if row.variant == name), None)
    variant = pooled.cell.variant(name)
    if rates is None or variant is None or record.positives is None:
        return ()
    under = counted(len(record.seeds), "seed")
    clinical = clinical_text(
        name,
        rates,
        record.prevalences,
        disease=record.positive,
        counted_on=f"{record.positives:,} positive and {record.images - record.positives:,} other films under {under}",
    )
    return readers(clinical, technical_text(pooled.cell, variant))


def build_pooled_reasons(pooled: PooledResults) -> Section:
    """Return the section with the numbers behind the decision and each verdict as a sentence."""
    record = pooled.record
    explanation = (
        f"A variant is not inferior where the images rule out a loss of {record.margin:g} or more, corrected for the "
        "number of variants, and no guard (sensitivity, specificity, AUROC) contradicts it. It is shipped if it is "
        "also smaller or faster."
    )
    noise = pooled.noise or "One seed: what another training of the same recipe would give is not known."
    noisy = any(is_noisy(benchmark) for benchmark in pooled.benchmarks.values())
    blocks: list[Block] = [Text(text=explanation), Text(text=noise)]
    if noisy:
        blocks.append(Text(text="Speed is left out of the decision: its rounds are NOISY.", tone="warning"))
    blocks += _deciding_numbers(pooled, with_speed=not noisy)
    shown = dict.fromkeys(filter(None, (pooled.choice.ship or pooled.choice.nearest, BASELINE)))
    blocks += per_100_table(
        [(row, record.prevalences) for name in shown for row in record.rates if row.variant == name]
    )
    if sentences := statements_of(record):
        blocks.append(Bullets(title="In words", items=sentences, folded=True))
    return Section(title="Reasons", blocks=tuple(blocks), stamps=pooled.stamps)


def statements_of(record: StudyRecord) -> tuple[str, ...]:
    """Return each variant's verdict as a sentence."""
    return tuple(f"{row.variant} is {row.in_words}." for row in record.rows if row.in_words)


def _deciding_numbers(pooled: PooledResults, *, with_speed: bool) -> list[Block]:
    record, endpoint = pooled.record, endpoint_of(pooled.record.endpoint)
    rows = [row for row in record.rows if row.difference is not None]
    if not rows:
        return []
    baseline = next(row for row in record.rows if row.variant == BASELINE)
    spec = "+.1%" if endpoint.is_share else "+.3f"
    speeds: list[Shown] = [
        ("Times as fast", ".2f", [row.speedup for row in rows]),
        ("95 % CI", ".2f", [row.speedup_interval for row in rows]),
    ]
    return [
        make_table(
            "What decided: difference of each variant from the baseline, pooled over folds and seeds",
            [
                ("Variant", "", [row.variant for row in rows]),
                (endpoint.change_title, spec, [row.difference for row in rows]),
                ("95 %", spec, [row.difference_interval for row in rows]),
                ("Verdict", "", [row.verdict for row in rows]),
                ("Seeds with this verdict", ".0%", [row.seeds_holding for row in rows]),
                ("Times smaller", ".1f", [rate(baseline.size_bytes, row.size_bytes) for row in rows]),
                *(speeds if with_speed and any(row.speedup for row in rows) else []),
                ("Images that would settle it", ",", [row.needed_images for row in rows]),
            ],
        )
    ]
