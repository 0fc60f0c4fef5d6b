"""Which variant to ship: one decision, which the terminal, the page and Python show alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.evaluation.results import CPU
from chestx_cli.evaluation.verdicts import BETTER, INCONCLUSIVE, INFERIOR, NOT_INFERIOR
from chestx_cli.inference.speedups import FASTER, SLOWER, is_noisy, word_of
from chestx_cli.records.answers import Decision, ShipRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestx_cli.evaluation.results import VariantResults
    from chestx_cli.records.benchmark import BenchmarkRecord, BenchmarkRow
    from chestx_cli.records.evaluation import ComparisonRow, EvaluationRow

SHIP, DO_NOT_SHIP = "✓ yes", "✗ no"
# A file within this share of the baseline's is as large.
SIZE_TOLERANCE = 0.005


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A variant with its test results, and its times on the device that the decision is for."""

    results: VariantResults
    row: EvaluationRow
    benchmark: BenchmarkRecord | None

    @property
    def name(self) -> str:
        """Return the variant's name."""
        return self.results.name

    @property
    def size_bytes(self) -> int:
        """Return the size of the variant's own file."""
        return self.results.record.model_bytes

    @property
    def comparison(self) -> ComparisonRow | None:
        """Return its comparison with the baseline."""
        return self.results.comparison

    @property
    def fastest(self) -> BenchmarkRow | None:
        """Return its times under its best runtime."""
        return self.benchmark.fastest(self.name) if self.benchmark else None


def decide(results: Sequence[VariantResults], device: str = CPU) -> Decision:
    """Return which of some variants to ship to a device, judged on the images that all of them were evaluated on.

    A variant qualifies where it is better than the baseline or not inferior to it, is smaller or faster, and descends
    from present models that are shown to have learned. Of those that qualify the fastest is named, or the smallest
    where no time was measured. Where none does, the baseline is shipped if a compressed variant could only lose.
    """
    judged = [
        Candidate(results=one, row=one.row, benchmark=one.benchmark_on(device))
        for one in results
        if one.row is not None
    ]
    reference = next((one for one in judged if one.results.is_reference), None)
    others = [one for one in judged if one.comparison is not None]
    good = [one for one in others if _is_as_good(one) and reference and _gains(one, reference)]
    best = max(good, key=_gain_key, default=None)
    nearest = None if best or reference is None else _nearest(others, reference)
    ship = best.name if best else None
    kept = reference if reference and not best and not _faults(reference) else None
    shipped = {one.name for one in (*good, *([kept] if kept else []))}
    return Decision(
        ship=ship or (kept.name if kept else None),
        nearest=nearest.name if nearest else None,
        sentence=_sentence(reference, others, best, nearest),
        next_command=_next_command(reference, others, best, nearest),
        rows=tuple(_row(one, ships=one.name in shipped) for one in judged),
    )


def _faults(reference: Candidate) -> tuple[str, ...]:
    evaluation = reference.results.evaluation
    return evaluation.baseline_faults if evaluation else ()


def _is_as_good(one: Candidate) -> bool:
    return one.comparison is not None and one.comparison.word in (BETTER, NOT_INFERIOR) and not one.results.is_stale


def _gains(one: Candidate, reference: Candidate) -> bool:
    return _times_smaller(one, reference) > 1 + SIZE_TOLERANCE or _speed_word(one) == FASTER


def _times_smaller(one: Candidate, reference: Candidate) -> float:
    return reference.size_bytes / one.size_bytes


def _speed_word(one: Candidate) -> str | None:
    """Return what the rounds support; None where they are noisy or were not run together with the baseline."""
    if one.benchmark is None or is_noisy(one.benchmark):
        return None
    return word_of(one.benchmark, one.name)


def _gain_key(one: Candidate) -> tuple[float, int]:
    fastest = one.fastest
    speedup = fastest.speedup_over_best_fp32 if fastest and _speed_word(one) == FASTER else None
    return (speedup or 0.0, -one.size_bytes)


def _nearest(others: Sequence[Candidate], reference: Candidate) -> Candidate | None:
    """Return the variant that would be shipped first if more images were to settle it; None where none could."""
    may_be = [
        one
        for one in others
        if one.comparison
        and one.comparison.word == INCONCLUSIVE
        and not one.results.is_stale
        and _gains(one, reference)
    ]
    return max(may_be, key=lambda one: (*_gain_key(one),), default=None)


def _sentence(
    reference: Candidate | None,
    others: Sequence[Candidate],
    best: Candidate | None,
    nearest: Candidate | None,
) -> str:
    if reference is None or reference.results.evaluation is None:
        return 'The variants are not compared with the present baseline: run "chestx evaluate".'
    who = "the baseline" if reference.name == "baseline" else reference.name
    if faults := _faults(reference):
        return f"Ship none: {who} is not shown to have learned anything ({faults[0]})."
    if best is not None and best.comparison is not None:
        within = f" within {best.comparison.margin:g}" if best.comparison.word == NOT_INFERIOR else ""
        return f"Ship {best.name}: {_gain(best, reference)}, {best.comparison.word}{within}."
    if not others:
        return f"{who[0].upper()}{who[1:]} is evaluated alone; there is no compressed variant to compare with it."
    images = reference.results.evaluation.images
    if nearest is not None and nearest.comparison is not None:
        needed = nearest.comparison.needed_images
        settle = f": about {needed:,} images would settle it" if needed else ""
        return (
            f"Ship {who}: on {images:,} images no smaller or faster variant can be called as good. Nearest is "
            f"{nearest.name}, {_gain(nearest, reference)}{settle}."
        )
    if all(one.comparison and one.comparison.word == INFERIOR for one in others):
        return f"Ship {who}: every compressed variant is inferior to it."
    return f"Ship {who}: no variant that is as good is smaller or faster."


def _gain(one: Candidate, reference: Candidate) -> str:
    """Return how much smaller and faster a variant is than the baseline, each under its best runtime."""
    smaller = _times_smaller(one, reference)
    size = f"{smaller:.1f} times smaller" if smaller > 1 + SIZE_TOLERANCE else "no smaller"
    fastest, word = one.fastest, _speed_word(one)
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
    if any(one.benchmark is None for one in (reference, *others)):
        return "chestx benchmark"
    if best is not None:
        return f"chestx export {best.name} --out bundle"
    return f"chestx compare {reference.name} {nearest.name}" if nearest else "chestx report"


def _row(one: Candidate, *, ships: bool) -> ShipRow:
    row = one.row
    fastest, noisy = one.fastest, one.benchmark is not None and is_noisy(one.benchmark)
    return ShipRow(
        variant=one.name,
        missed=f"{row.false_negatives:,}/{row.false_negatives + row.true_positives:,}",
        false_alarms=f"{row.false_positives:,}/{row.false_positives + row.true_negatives:,}",
        auroc=_auroc(row),
        verdict=_verdict(one),
        size_mb=short_number(one.size_bytes / 1e6),
        latency_ms=f"{'~' if noisy else ''}{short_number(fastest.latency_p50_ms)}" if fastest else "–",
        ship=SHIP if ships else DO_NOT_SHIP,
    )


def _auroc(row: EvaluationRow) -> str:
    if row.auroc is None:
        return "–"
    interval = row.auroc_interval
    return f"{row.auroc:.3f} {interval[0]:.2f}–{interval[1]:.2f}" if interval else f"{row.auroc:.3f}"


def _verdict(one: Candidate) -> str:
    if one.results.is_stale:
        return "stale"
    if one.comparison is not None:
        return one.comparison.word
    return "–" if one.results.is_reference else "not compared"


def short_number(value: float) -> str:
    """Return a number with about three digits, as 98.5, 4.55 or 0.31."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
