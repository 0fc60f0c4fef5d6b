"""The first screen of the report, with the question and the decision, and the reasons below it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chestx_cli.core.printable import counted, paragraph
from chestx_cli.core.record import columns
from chestx_cli.evaluation.endpoints import endpoint_of
from chestx_cli.evaluation.results import CPU, StudyResults, VariantResults
from chestx_cli.inference.speedups import NOISY, is_noisy, milliseconds, runtime_name
from chestx_cli.records.answers import KEPT, Decision, PooledAnswerRow, ShipRow
from chestx_cli.records.cells import PooledRatesRow
from chestx_cli.records.evaluation import OperatingRow
from chestx_cli.reporting.page.blocks import (
    Block,
    Bullets,
    Drawn,
    Picture,
    Section,
    Shown,
    Table,
    Text,
    make_table,
    percent,
    rate,
)
from chestx_cli.store.caveats import stamps_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestx_cli.records.evaluation import EvaluationRecord, GuardRow

# The figure of the first screen.
FRONT_FIGURE = "pareto"
# Rows of the answer, and rates at stored thresholds, of one split or pooled over folds and seeds.
AnswerRow = ShipRow | PooledAnswerRow
Rates = OperatingRow | PooledRatesRow
# The intended reader, and the text.
Paragraph = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The first screen of the page; if `picture` is None, `instead` gives the reason."""

    question: tuple[tuple[str, str], ...]
    sentence: str
    table: Table | None
    stamps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    picture: Picture | None = None
    instead: str = ""
    paragraphs: tuple[Paragraph, ...] = field(default=())


def build_opening(results: StudyResults, decision: Decision | None, drawn: Drawn) -> Opening:
    """Return the first screen: the same decision as on the terminal, and its figure, which is removed from `drawn`."""
    picture = drawn.figures.pop(FRONT_FIGURE, None)
    return Opening(
        question=_question(results),
        sentence=decision.sentence if decision else 'There are no test results yet: run "chestx evaluate".',
        table=answer_table(decision.rows, decision.ship, spare=("auroc",)) if decision and decision.rows else None,
        stamps=tuple(stamp for stamp in stamps_of(results.caveats) if stamp),
        warnings=results.caveats,
        picture=picture,
        instead="" if picture else _why_no_figure(results),
        paragraphs=_paragraphs(results, decision),
    )


def _question(results: StudyResults) -> tuple[tuple[str, str], ...]:
    split = results.split_record
    n, patients = results.test_size()
    facts = [
        ("Data", f"{split.images:,} images of {split.patients:,} patients ({split.layout})"),
        ("Tested on", f"{n:,} images of {patients:,} patients"),
        ("Positive class", split.positive),
    ]
    evaluation = _first_evaluation(results)
    if evaluation and (row := evaluation.rows[0]):
        facts[1] = ("Tested on", f"{facts[1][1]}, {row.true_positives + row.false_negatives:,} positive")
        facts.append(("Judged by", f"{evaluation.endpoint}, margin {evaluation.margin:g}"))
    return tuple(facts)


def _first_evaluation(results: StudyResults) -> EvaluationRecord | None:
    return next((variant.evaluation for variant in results.variants if variant.evaluation), None)


def answer_table(rows: Sequence[AnswerRow], ship: str | None, *, spare: Sequence[str]) -> Table:
    """Return the rows of the decision as on the terminal, with the shipped variant marked.

    spare: columns that are hidden in a narrow window; the page also shows them among its reasons.
    """
    shown = columns(type(rows[0]))
    styles = {
        _on_one_line(column.heading): f"{'number' if column.is_number else ''}{' spare' if name in spare else ''}"
        for name, column in shown.items()
    }
    table = make_table(
        "Which variant to ship",
        [(_on_one_line(column.heading), "", [getattr(row, name) for row in rows]) for name, column in shown.items()],
        styles=styles,
    )
    return table.with_marked(next((i for i, row in enumerate(rows) if row.variant == ship), None))


def _on_one_line(heading: str) -> str:
    return heading.replace("\n", " ")


def _why_no_figure(results: StudyResults) -> str:
    timed = sum(1 for variant in results.evaluated if variant.fastest(CPU))
    if not results.evaluated:
        return "Accuracy against latency is drawn once the variants are evaluated."
    if timed == 0:
        return 'Not timed yet: run "chestx benchmark" to see accuracy against latency.'
    if timed == 1:
        return "Only one evaluated variant is timed: there is nothing to draw it against."
    return "Too few images for this figure: accuracy against latency."


def _subject(results: StudyResults, decision: Decision | None) -> VariantResults | None:
    """Return the variant that the paragraphs describe: the shipped one, or else the nearest, or else the reference."""
    name = (decision.ship or decision.nearest) if decision else None
    variant = results.variant(name) if name else results.reference
    return variant if variant and variant.evaluation else None


def _paragraphs(results: StudyResults, decision: Decision | None) -> tuple[Paragraph, ...]:
    variant = _subject(results, decision)
    if variant is None or variant.evaluation is None:
        return ()
    evaluation = variant.evaluation
    row = evaluation.rows[0]
    positive = row.true_positives + row.false_negatives
    clinical = clinical_text(
        variant.name,
        evaluation.operating_rows[0],
        evaluation.prevalences,
        disease=results.split_record.positive,
        counted_on=f"{positive:,} positive and {evaluation.images - positive:,} other films",
    )
    return readers(clinical, technical_text(results, variant))


def readers(clinical: str, technical: str) -> tuple[Paragraph, ...]:
    """Return the paragraphs of the first screen, each with its intended reader."""
    return (("For the clinician", clinical), ("For the engineer", technical))


def clinical_text(name: str, rates: Rates, prevalences: Sequence[float], *, disease: str, counted_on: str) -> str:
    """Return a variant's misses and false alarms per 100 films at the middle of the given prevalences."""
    if rates.sensitivity is None or rates.specificity is None or not prevalences:
        return "The test images hold one class only: misses and false alarms per 100 films cannot be given."
    prevalence = prevalences[len(prevalences) // 2]
    missed, alarms = _per_100(rates, prevalence)
    ill = 100 * prevalence
    return (
        f"Of 100 films at a prevalence of {percent(prevalence, 0)}, {_count(ill)} show {disease} and "
        f"{_count(100 - ill)} do not: {name} misses {missed} of the former and raises {alarms} false alarms on "
        f"the latter. Counted on {counted_on} here."
    )


def _count(value: float) -> str:
    return f"{value:.3g}"


def _per_100(rates: Rates, prevalence: float) -> tuple[str, str]:
    """Return misses and false alarms per 100 films at a prevalence, each with its 95 % interval."""

    def with_interval(correct_share: float | None, interval: tuple[float, float] | None, films: float) -> str:
        if correct_share is None:
            return "–"
        interval_text = f" (95 % {films * (1 - interval[1]):.1f}–{films * (1 - interval[0]):.1f})" if interval else ""
        return f"{films * (1 - correct_share):.1f}{interval_text}"

    return (
        with_interval(rates.sensitivity, rates.sensitivity_interval, 100 * prevalence),
        with_interval(rates.specificity, rates.specificity_interval, 100 * (1 - prevalence)),
    )


def technical_text(results: StudyResults, variant: VariantResults) -> str:
    """Return a variant's size, latency and memory as sentences."""
    record, reference = variant.record, results.reference
    size = f"{variant.name} is a file of {record.model_bytes / 1e6:.3g} MB"
    if reference and reference is not variant:
        size += f", {rate(reference.record.model_bytes, record.model_bytes):.1f} times smaller than {reference.name}"
    size += f", with {record.parameters:,} parameters and {record.macs / 1e9:.2f} GMACs per image."
    benchmark, fast = variant.benchmark_on(CPU), variant.fastest(CPU)
    if benchmark is None or fast is None:
        return paragraph(size, 'Its latency and memory are not measured yet: run "chestx benchmark".')
    cost = next((row for row in benchmark.cost_rows if row.runtime == fast.runtime), None)
    peak_mb = cost.peak_memory_mb if cost else None
    return paragraph(
        size,
        f"One image takes {milliseconds(fast.latency_p50_ms)} under {runtime_name(fast.runtime)} on the CPU "
        f"({counted(benchmark.threads, 'thread')}).",
        f"Peak memory is {peak_mb:.0f} MB." if peak_mb else "",
        f"These times are {NOISY}: do not quote them." if is_noisy(benchmark) else "",
    )


def build_reasons(results: StudyResults, decision: Decision | None, statements: Sequence[str]) -> Section:
    """Return the numbers behind the decision, and all statements that they support."""
    caveats = set(results.caveats)
    blocks: list[Block] = []
    if compared := [variant for variant in results.evaluated if variant.comparison]:
        blocks += _deciding_numbers(results, compared)
    if subject := _subject(results, decision):
        blocks += _per_100_table(results, subject)
    sentences = tuple(text for text in statements if text not in caveats)
    blocks.append(Bullets(title="In words", items=sentences, folded=bool(blocks)))
    stamps = tuple(stamp for stamp in stamps_of(results.caveats) if stamp)
    return Section(title="Reasons", blocks=tuple(blocks), stamps=stamps)


def _deciding_numbers(results: StudyResults, compared: Sequence[VariantResults]) -> list[Block]:
    paired = [variant.comparison for variant in compared]
    guards = [_guards(variant.evaluation.guards) if variant.evaluation else "–" for variant in compared]
    reference = results.reference
    benchmarks = [variant.benchmark_on(CPU) for variant in compared]
    fast = [
        benchmark.fastest(variant.name) if benchmark and not is_noisy(benchmark) else None
        for variant, benchmark in zip(compared, benchmarks, strict=True)
    ]
    endpoint = endpoint_of(next(row.endpoint for row in paired if row))
    spec = "+.1%" if endpoint.is_share else "+.3f"
    speeds: list[Shown] = (
        [
            ("Times as fast", ".2f", [row and row.speedup_over_best_fp32 for row in fast]),
            ("95 % CI", ".2f", [row and row.speedup_over_best_fp32_interval for row in fast]),
        ]
        if any(row and row.speedup_over_best_fp32 for row in fast)
        else []
    )
    smaller = [
        rate(reference.record.model_bytes, variant.record.model_bytes) if reference else None for variant in compared
    ]
    table = make_table(
        f"What decided: difference of each variant from {reference.name if reference else 'the baseline'}, on the "
        "same images",
        [
            ("Variant", "", [variant.name for variant in compared]),
            (
                f"{'Gain in' if endpoint.is_loss else 'Difference of'} {endpoint.noun}",
                spec,
                [row and row.difference for row in paired],
            ),
            ("95 %", spec, [row and row.interval for row in paired]),
            ("Guards", "", guards),
            (
                "Verdict",
                "",
                [results.marked(variant.name, variant.comparison.word) for variant in compared if variant.comparison],
            ),
            ("Times smaller", ".1f", smaller),
            *speeds,
            ("Images that would settle it", ",", [row and row.needed_images for row in paired]),
        ],
        styles={"Guards": "prose"},
    )
    margin = next(row.margin for row in paired if row)
    explanation = (
        f"A variant is not inferior where the images rule out a loss of {margin:g} or more, corrected for the "
        "number of variants, and no guard (sensitivity, specificity, AUROC) contradicts it. It is shipped if it is "
        "also smaller or faster."
    )
    if any(benchmark and is_noisy(benchmark) for benchmark in benchmarks):
        noisy = "Speed is left out of the decision where its rounds are NOISY; the ratios are under Final comparison."
        return [Text(text=explanation), Text(text=noisy, tone="warning"), table]
    return [Text(text=explanation), table]


def _guards(rows: Sequence[GuardRow]) -> str:
    """Return the guards that are not within their margin as short text, by state."""
    not_kept = [row for row in rows if row.state != KEPT]
    states = dict.fromkeys(row.state for row in not_kept)
    parts = [f"{state}: {', '.join(row.measure for row in not_kept if row.state == state)}" for state in states]
    return "; ".join(parts) if parts else "all within margin" if rows else "–"


def _per_100_table(results: StudyResults, subject: VariantResults) -> list[Block]:
    """Return misses and false alarms per 100 films of the described variant and of the reference."""
    names = [
        name for name in dict.fromkeys((subject.name, results.reference.name if results.reference else "")) if name
    ]
    evaluations = [variant.evaluation for name in names if (variant := results.variant(name)) and variant.evaluation]
    return per_100_table([(one.operating_rows[0], one.prevalences) for one in evaluations])


def per_100_table(variants: Sequence[tuple[Rates, Sequence[float]]]) -> list[Block]:
    """Return misses and false alarms per 100 films for each variant's rates and prevalences."""
    lines: list[tuple[str, float, str, str]] = [
        (rates.variant, prevalence, *_per_100(rates, prevalence))
        for rates, prevalences in variants
        if rates.sensitivity is not None
        for prevalence in prevalences
    ]
    if not lines:
        return []
    return [
        make_table(
            "Per 100 films, by the prevalence where the variant is used",
            [
                ("Variant", "", [line[0] for line in lines]),
                ("Prevalence", ".1%", [line[1] for line in lines]),
                ("Missed", "", [line[2] for line in lines]),
                ("False alarms", "", [line[3] for line in lines]),
            ],
            styles={"Missed": "number", "False alarms": "number"},
        )
    ]
