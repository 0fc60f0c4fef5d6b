"""Which variant to ship: one decision for the terminal, the page and the Python interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.printable import paragraph, short_number
from chestx_cli.evaluation.results import CPU, timed_in_separate_runs
from chestx_cli.inference.speedups import (
    FASTER,
    SIZE_TOLERANCE,
    SLOWER,
    is_noisy,
    preferred,
    word_between,
    word_of,
)
from chestx_cli.records.answers import BETTER, INCONCLUSIVE, INFERIOR, NOT_INFERIOR, Decision, ShipRow
from chestx_cli.records.tabular import listed
from chestx_cli.records.variant import BASELINE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chestx_cli.evaluation.results import VariantResults
    from chestx_cli.records.benchmark import BenchmarkRecord, BenchmarkRow
    from chestx_cli.records.evaluation import EvaluationRow
    from chestx_cli.records.variant import VariantRecord

SHIP, DO_NOT_SHIP = "✓ yes", "✗ no"
# A shipped model whose sensitivity or specificity may be lower, by its 95 % interval, is pointed out.
RIGHT_AT_LEAST = 0.5
# So is a margin above this.
WIDEST_MARGIN = 0.1


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A variant with its verdict, its file size and its benchmark on the target device.

    word: its verdict against the baseline within `margin`; None if it was not compared, like the baseline itself.
    """

    name: str
    size_bytes: int
    word: str | None
    margin: float
    needed_images: int | None
    is_reference: bool
    is_stale: bool
    benchmark: BenchmarkRecord | None
    # Under which `needed_images` would settle the verdict.
    assumption: str | None = None
    # Its endpoint minus the baseline's; larger is better.
    difference: float | None = None
    # The variant that it was quantized from, if it computes in INT8 and is slower than that one.
    faster_parent: str | None = None

    @property
    def fastest(self) -> BenchmarkRow | None:
        """Return the benchmark row of the fastest runtime; None if the variant was not timed."""
        return self.benchmark.fastest(self.name) if self.benchmark else None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The choice among candidates: the one to ship, all that qualify (`shipped`), or the nearest if none does."""

    ship: str | None
    nearest: str | None
    shipped: frozenset[str]
    sentence: str
    next_command: str


def decide(results: Sequence[VariantResults], device: str = CPU) -> Decision:
    """Return which variant to ship to a device, from results on the same test images; see `choose`."""
    tested = [variant for variant in results if variant.row is not None]
    by_name = {variant.name: variant for variant in tested}
    candidates = {
        variant.name: _candidate(variant, by_name.get(variant.record.parent or ""), device) for variant in tested
    }
    reference = next((variant for variant in tested if variant.is_reference), None)
    evaluation = reference.evaluation if reference else None
    untested = _untested(results)
    choice = choose(
        tuple(candidates.values()),
        images=evaluation.images if evaluation else 0,
        baseline_faults=evaluation.baseline_faults if evaluation else (),
        untested=untested,
    )
    shipped = next((variant for variant in tested if variant.name == choice.ship), None)
    missing = (f"Not tested: {listed(untested)}.",) if untested else ()
    doubts = (*missing, *_doubts(shipped), *_wide_margin(tested), *_separate_runs(tested, device))
    return Decision(
        ship=choice.ship,
        nearest=choice.nearest,
        sentence=" ".join((choice.sentence, *doubts)),
        next_command=choice.next_command,
        rows=tuple(_row(variant, candidates[variant.name], ships=variant.name in choice.shipped) for variant in tested),
    )


def choose(
    candidates: Sequence[Candidate], *, images: int, baseline_faults: tuple[str, ...], untested: Sequence[str] = ()
) -> Choice:
    """Choose the candidate to ship.

    images: number of test images. baseline_faults: reasons why the baseline is not a valid reference. untested:
    variants without test results, which the next command evaluates. A variant qualifies if it is better than or not
    inferior to the baseline, is smaller or faster and not slower, and is not stale; in INT8 also only if it is not
    slower than a parent that qualifies. The fastest qualifying variant is chosen, or a smaller one that their common
    run does not show to be slower, or the smallest if none is shown to be faster. If none qualifies, the baseline is
    shipped, unless it is not shown to have learned. The nearest is chosen in the same way among the undecided whose
    measured loss is within the margin; if there are none, it is the one with the least loss.
    """
    reference = next((candidate for candidate in candidates if candidate.is_reference), None)
    others = [candidate for candidate in candidates if candidate.word is not None]
    qualified = [
        candidate for candidate in others if _is_not_worse(candidate) and reference and _gains(candidate, reference)
    ]
    names = {candidate.name for candidate in qualified}
    qualified = [candidate for candidate in qualified if candidate.faster_parent not in names]
    best = _best(qualified)
    nearest = None if best or reference is None else _nearest(others, reference)
    fallback = reference if reference and not best and not baseline_faults else None
    chosen = best or fallback
    return Choice(
        ship=chosen.name if chosen else None,
        nearest=nearest.name if nearest else None,
        shipped=frozenset(candidate.name for candidate in (*qualified, *([fallback] if fallback else []))),
        sentence=_sentence(reference, others, best, nearest, images, baseline_faults, untested),
        next_command="chestx evaluate" if untested else _next_command(reference, others, best, nearest),
    )


def _untested(results: Sequence[VariantResults]) -> tuple[str, ...]:
    """Return the names of variants without test results, except steps towards others and outdated ones."""
    parents = {variant.record.parent for variant in results}
    return tuple(
        variant.name
        for variant in results
        if variant.row is None and variant.name not in parents and not variant.is_stale
    )


def _doubts(shipped: VariantResults | None) -> Iterator[str]:
    """Yield a sentence per kind of error that the images do not show to be rarer than one in two."""
    if shipped is None or shipped.evaluation is None:
        return
    positive, row = shipped.evaluation.positive, shipped.evaluation.operating_rows[0]
    results = shipped.evaluation.rows[0]
    name = "The baseline" if shipped.name == BASELINE else shipped.name
    for verb, wrong, of, interval, images in (
        ("misses", row.false_negatives, results.true_positives, row.sensitivity_interval, positive),
        ("raises a false alarm on", row.false_positives, results.true_negatives, row.specificity_interval, "other"),
    ):
        if interval and interval[0] < RIGHT_AT_LEAST:
            counted = f"{wrong:,} of {wrong + of:,} {images} images"
            yield f"{name} {verb} {counted}; the interval does not rule out half of them."


def _wide_margin(tested: Sequence[VariantResults]) -> Iterator[str]:
    """Yield a sentence if a verdict rests on a margin that hides losses that matter."""
    margins = [variant.comparison.margin for variant in tested if variant.comparison]
    if margins and max(margins) > WIDEST_MARGIN:
        yield f"The margin of {max(margins):g} is wide: a loss of that size counts as not inferior."


def _separate_runs(tested: Sequence[VariantResults], device: str) -> Iterator[str]:
    """Yield a sentence if the latencies of the rows are not of one run, in which alone they can be compared."""
    if timed_in_separate_runs(tested, device):
        yield ('The times in ms are from separate benchmark runs: "chestx benchmark" times all variants in one.')


def _candidate(variant: VariantResults, parent: VariantResults | None, device: str) -> Candidate:
    comparison, benchmark = variant.comparison, variant.benchmark_on(device)
    return Candidate(
        name=variant.name,
        size_bytes=variant.record.model_bytes,
        word=comparison.word if comparison else None,
        margin=comparison.margin if comparison else 0.0,
        needed_images=comparison.needed_images if comparison else None,
        assumption=comparison.assumption if comparison else None,
        difference=comparison.difference if comparison else None,
        is_reference=variant.is_reference,
        is_stale=variant.is_stale,
        benchmark=benchmark,
        faster_parent=faster_parent_of(variant.record, benchmark, parent.benchmark_on(device) if parent else None),
    )


def faster_parent_of(
    record: VariantRecord, benchmark: BenchmarkRecord | None, of_parent: BenchmarkRecord | None
) -> str | None:
    """Return the parent of a variant that computes in INT8, if one run of both shows that the variant is slower."""
    is_slower = (
        record.computes_in_int8
        and benchmark is not None
        and of_parent is not None
        and not is_noisy(benchmark)
        and word_between(of_parent, benchmark) == SLOWER
    )
    return record.parent if is_slower else None


def _is_not_worse(candidate: Candidate) -> bool:
    return candidate.word in (BETTER, NOT_INFERIOR) and not candidate.is_stale


def _gains(candidate: Candidate, reference: Candidate) -> bool:
    word = _speed_word(candidate)
    return word == FASTER or (word != SLOWER and _times_smaller(candidate, reference) > 1 + SIZE_TOLERANCE)


def _times_smaller(candidate: Candidate, reference: Candidate) -> float:
    return reference.size_bytes / candidate.size_bytes


def _speed_word(candidate: Candidate) -> str | None:
    """Return the verdict on speed; None if the rounds are noisy or did not include the baseline."""
    if candidate.benchmark is None or is_noisy(candidate.benchmark):
        return None
    return word_of(candidate.benchmark, candidate.name)


def _best(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the fastest candidate or a smaller one that is as fast; the smallest if none is shown to be faster."""
    best = max(candidates, key=_gain_key, default=None)
    if best is None or best.benchmark is None or _speed_word(best) != FASTER:
        return best
    rows, sizes = [], {}
    for candidate in candidates:
        row, benchmark = candidate.fastest, candidate.benchmark
        if row and benchmark and benchmark.stamp == best.benchmark.stamp and _speed_word(candidate) == FASTER:
            rows.append(row)
            sizes[candidate.name] = candidate.size_bytes
    name = preferred(rows, sizes).variant
    return next(candidate for candidate in candidates if candidate.name == name)


def _gain_key(candidate: Candidate) -> tuple[float, int]:
    fastest = candidate.fastest
    speedup = fastest.speedup_over_best_fp32 if fastest and _speed_word(candidate) == FASTER else None
    return (speedup or 0.0, -candidate.size_bytes)


def _nearest(others: Sequence[Candidate], reference: Candidate) -> Candidate | None:
    """Return the inconclusive variant to name as nearest (see `choose`); None if there is none."""
    undecided = [
        candidate
        for candidate in others
        if candidate.word == INCONCLUSIVE and not candidate.is_stale and _gains(candidate, reference)
    ]
    within = [candidate for candidate in undecided if (candidate.difference or 0.0) > -candidate.margin]
    return _best(within) or max(undecided, key=lambda candidate: candidate.difference or 0.0, default=None)


def _sentence(
    reference: Candidate | None,
    others: Sequence[Candidate],
    best: Candidate | None,
    nearest: Candidate | None,
    images: int,
    baseline_faults: tuple[str, ...],
    untested: Sequence[str],
) -> str:
    if reference is None:
        return 'The variants are not compared with the present baseline: run "chestx evaluate".'
    name = "the baseline" if reference.name == "baseline" else reference.name
    if baseline_faults:
        return f"Ship none: {name} is not shown to have learned anything ({baseline_faults[0]})."
    if best is not None:
        verdict = f"{best.word} within {best.margin:g}" if best.word == NOT_INFERIOR else best.word
        return f"Ship {best.name}: {_gain(best, reference)}, {verdict}."
    if not others:
        alone = f"{name[0].upper()}{name[1:]} is evaluated alone"
        return f"{alone}." if untested else f"{alone}; there is no compressed variant to compare with it."
    if nearest is not None:
        gain = f"Nearest is {nearest.name}, {_gain(nearest, reference)}"
        return paragraph(
            f"Ship {name}: on {images:,} images no smaller or faster variant can be called as good.",
            f"{gain}: {_needed(nearest)}." if nearest.needed_images else f"{gain}.",
        )
    if all(candidate.word == INFERIOR for candidate in others):
        return f"Ship {name}: every compressed variant is inferior to it."
    slower = [candidate.name for candidate in others if _is_not_worse(candidate) and _speed_word(candidate) == SLOWER]
    if slower:
        return f"Ship {name}: {listed(slower)} would be as good, but slower."
    return f"Ship {name}: no variant that is as good is smaller or faster."


def _needed(candidate: Candidate) -> str:
    needed = f"about {candidate.needed_images:,} images would settle it"
    return f"{needed}, {candidate.assumption}" if candidate.assumption else needed


def _gain(candidate: Candidate, reference: Candidate) -> str:
    """Return how much smaller and faster a variant is than the baseline, each under its fastest runtime."""
    smaller = _times_smaller(candidate, reference)
    size = f"{smaller:.1f} times smaller" if smaller > 1 + SIZE_TOLERANCE else "no smaller"
    fastest, word = candidate.fastest, _speed_word(candidate)
    if fastest is None or fastest.speedup_over_best_fp32 is None:
        return f"{size}, not timed yet"
    if word is None:
        return f"{size}, its times NOISY"
    if word == FASTER:
        return f"{size} and {fastest.speedup_over_best_fp32:.1f} times as fast"
    return f"{size}, {'slower' if word == SLOWER else 'not shown to be faster'}"


def _next_command(
    reference: Candidate | None,
    others: Sequence[Candidate],
    best: Candidate | None,
    nearest: Candidate | None,
) -> str:
    if reference is None:
        return "chestx evaluate"
    if not others:
        return "chestx prune --method structured"
    if any(candidate.benchmark is None for candidate in (reference, *others)):
        return "chestx benchmark"
    if best is not None:
        return f"chestx export {best.name} --out bundle"
    return f"chestx compare {reference.name} {nearest.name}" if nearest else "chestx report"


def _row(variant: VariantResults, candidate: Candidate, *, ships: bool) -> ShipRow:
    row = variant.row
    assert row is not None  # noqa: S101 - the variant has test results
    fastest, noisy = candidate.fastest, candidate.benchmark is not None and is_noisy(candidate.benchmark)
    return ShipRow(
        variant=candidate.name,
        missed=f"{row.false_negatives:,}/{row.false_negatives + row.true_positives:,}",
        false_alarms=f"{row.false_positives:,}/{row.false_positives + row.true_negatives:,}",
        auroc=_auroc(row),
        verdict=_verdict(candidate),
        size_mb=short_number(candidate.size_bytes / 1e6),
        latency_ms=f"{'~' if noisy else ''}{short_number(fastest.latency_p50_ms)}" if fastest else "–",
        ship=SHIP if ships else DO_NOT_SHIP,
    )


def _auroc(row: EvaluationRow) -> str:
    if row.auroc is None:
        return "–"
    interval = row.auroc_interval
    return f"{row.auroc:.3f} {interval[0]:.2f}–{interval[1]:.2f}" if interval else f"{row.auroc:.3f}"


def _verdict(candidate: Candidate) -> str:
    if candidate.is_stale:
        return "stale"
    if candidate.word is not None:
        return candidate.word
    return "–" if candidate.is_reference else "not compared"
