"""The decision names reasons to doubt it."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from chestx_cli.evaluation.reading import read_study
from chestx_cli.evaluation.results import VariantResults
from chestx_cli.records.answers import INCONCLUSIVE, INFERIOR, NOT_INFERIOR
from chestx_cli.reporting.decision import SHIP, decide
from support.made_up_study import timed, write_study


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> tuple[VariantResults, ...]:
    return read_study(write_study(tmp_path_factory.mktemp("decided")), check_models=False).variants


def with_lowest(variant: VariantResults, *, sensitivity: float, specificity: float) -> VariantResults:
    """Return a variant with these lower ends of its intervals."""
    evaluation = variant.evaluation
    assert evaluation is not None
    row = replace(
        evaluation.operating_rows[0],
        sensitivity_interval=(sensitivity, 0.99),
        specificity_interval=(specificity, 0.99),
    )
    return replace(variant, evaluation=evaluation.replace(operating_rows=(row,)))


@pytest.mark.parametrize(
    ("sensitivity", "specificity", "sentences"), [(0.51, 0.51, 0), (0.49, 0.51, 1), (0.51, 0.49, 1), (0.49, 0.49, 2)]
)
def test_a_shipped_model_that_may_err_on_every_second_image_is_pointed_out(
    variants: tuple[VariantResults, ...], sensitivity: float, specificity: float, sentences: int
) -> None:
    shipped = decide(variants).ship
    assert shipped is not None
    changed = tuple(
        with_lowest(variant, sensitivity=sensitivity, specificity=specificity)
        if variant.name == shipped
        # Of those that are not shipped it does not matter.
        else with_lowest(variant, sensitivity=0.1, specificity=0.1)
        for variant in variants
    )
    assert decide(changed).sentence.count("does not rule out half of them") == sentences


def differing(variant: VariantResults, difference: float) -> VariantResults:
    """Return a variant whose endpoint differs from the baseline's by `difference`."""
    evaluation = variant.evaluation
    assert evaluation is not None
    (comparison,) = evaluation.comparisons
    return replace(variant, evaluation=evaluation.replace(comparisons=(replace(comparison, difference=difference),)))


@pytest.mark.parametrize(
    ("slow_loss", "fast_loss", "fast_is_nearest"),
    [(0.0, 0.0, True), (0.0, 0.019, True), (0.0, 0.03, False), (0.03, 0.05, False), (0.05, 0.03, True)],
)
def test_a_variant_whose_measured_loss_exceeds_the_margin_is_not_nearest(
    variants: tuple[VariantResults, ...], slow_loss: float, fast_loss: float, *, fast_is_nearest: bool
) -> None:
    slow, fast = (
        differing(timed(variant, latency_ms, 23.4, word=INCONCLUSIVE), -loss)
        for variant, latency_ms, loss in ((variants[1], 8.0, slow_loss), (variants[-1], 4.0, fast_loss))
    )
    assert decide((variants[0], slow, fast)).nearest == (fast if fast_is_nearest else slow).name


def test_variants_that_are_not_tested_are_named(variants: tuple[VariantResults, ...]) -> None:
    baseline, tested, other = variants[0], variants[1], variants[-1]
    untested = replace(other, evaluation=None)
    decision = decide((baseline, tested, untested))
    assert f"Not tested: {other.name}." in decision.sentence
    assert decision.next_command == "chestx evaluate"
    assert "no compressed variant" not in decide((baseline, untested)).sentence
    assert "no compressed variant" in decide((baseline,)).sentence
    # A step towards a variant, and what must be made again first.
    child = replace(tested, record=tested.record.replace(parent=other.name))
    for left_out in ((baseline, child, untested), (baseline, tested, replace(untested, is_stale=True))):
        assert "Not tested" not in decide(left_out).sentence


def test_a_wide_margin_is_pointed_out(variants: tuple[VariantResults, ...]) -> None:
    for margin in (0.1, 0.3):
        changed = tuple(
            replace(v, evaluation=v.evaluation.replace(comparisons=(replace(v.comparison, margin=margin),)))
            if v.evaluation and v.comparison
            else v
            for v in variants
        )
        assert (f"The margin of {margin:g} is wide" in decide(changed).sentence) == (margin > 0.1)


def test_times_of_separate_runs_are_pointed_out(variants: tuple[VariantResults, ...]) -> None:
    (benchmark,) = variants[-1].benchmarks
    later = replace(benchmark.stamp, created="2026-12-24T00:00:00.000+00:00")
    apart = (*variants[:-1], replace(variants[-1], benchmarks=(benchmark.replace(stamp=later),)))
    assert "separate benchmark runs" not in decide(variants).sentence
    assert "separate benchmark runs" in decide(apart).sentence
    # A variant that has not been timed is not from another run.
    assert "separate benchmark runs" not in decide((*variants[:-1], replace(variants[-1], benchmarks=()))).sentence


def ships(variants: tuple[VariantResults, ...]) -> dict[str, bool]:
    return {row.variant: row.ship == SHIP for row in decide(variants).rows}


@pytest.mark.parametrize(
    ("latency_ms", "shipped"), [(30.0, "baseline"), (23.4, "int8"), (10.0, "int8")], ids=["slower", "equal", "faster"]
)
def test_what_is_smaller_but_slower_is_not_recommended(
    variants: tuple[VariantResults, ...], latency_ms: float, shipped: str
) -> None:
    baseline, int8 = variants[0], variants[-1]
    named = {"baseline": baseline.name, "int8": int8.name}
    changed = (baseline, timed(int8, latency_ms, 23.4))
    decision = decide(changed)
    assert decision.ship == named[shipped]
    assert ships(changed)[int8.name] == (shipped == "int8")
    assert (f"{int8.name} would be as good, but slower" in decision.sentence) == (shipped == "baseline")


@pytest.mark.parametrize("verdict", [NOT_INFERIOR, INCONCLUSIVE])
@pytest.mark.parametrize(
    ("rounds_ms", "share_of_size", "smallest_is_named"),
    [
        ((8.1,) * 5, 0.5, True),
        ((7.9,) * 5, 0.5, True),
        ((9.5,) * 5, 0.5, False),
        ((7.0, 7.4, 8.5, 9.6, 9.8), 0.5, True),
        ((7.0, 7.4, 12.0, 12.0, 12.0), 0.5, False),
        ((8.1,) * 5, 0.999, False),
    ],
    ids=["as fast", "faster", "slower", "undecided", "undecided but a third slower", "no smaller"],
)
def test_of_variants_that_are_as_fast_the_smallest_is_named(
    variants: tuple[VariantResults, ...],
    verdict: str,
    rounds_ms: tuple[float, ...],
    share_of_size: float,
    *,
    smallest_is_named: bool,
) -> None:
    baseline, large = variants[0], differing(timed(variants[1], 8.0, 23.4, word=verdict), 0.0)
    small = differing(timed(variants[-1], statistics.median(rounds_ms), 23.4, word=verdict), 0.0)
    (benchmark,) = small.benchmarks
    (row,) = benchmark.rows
    row = replace(row, batches=(replace(row.batches[0], round_p50_ms=rounds_ms), *row.batches[1:]))
    small = replace(
        small,
        record=small.record.replace(model_bytes=int(share_of_size * large.record.model_bytes)),
        benchmarks=(benchmark.replace(rows=(row,)),),
    )
    decision = decide((baseline, large, small))
    named = decision.ship if verdict == NOT_INFERIOR else decision.nearest
    assert named == (small.name if smallest_is_named else large.name)
    # Times of another run are not compared: the larger speed-up over the baseline decides.
    other = replace(benchmark.stamp, created="2026-01-01T00:00:00.000+00:00")
    apart = replace(small, benchmarks=(benchmark.replace(stamp=other, rows=(row,)),))
    decision = decide((baseline, large, apart))
    named = decision.ship if verdict == NOT_INFERIOR else decision.nearest
    assert named == (small.name if statistics.median(rounds_ms) < 8 else large.name)


@pytest.mark.parametrize("parent_word", [NOT_INFERIOR, INFERIOR])
@pytest.mark.parametrize("latency_ms", [6.0, 12.0])
def test_int8_that_is_slower_than_its_parent_is_not_recommended_where_the_parent_can_be(
    variants: tuple[VariantResults, ...], latency_ms: float, parent_word: str
) -> None:
    baseline, parent, int8 = variants[0], timed(variants[1], 8.0, 23.4, word=parent_word), variants[-1]
    int8 = replace(timed(int8, latency_ms, 23.4), record=int8.record.replace(parent=parent.name))
    changed = (baseline, parent, int8)
    parent_ships = parent_word == NOT_INFERIOR
    assert decide(changed).ship == (parent.name if parent_ships and latency_ms > 8 else int8.name)
    assert ships(changed)[int8.name] == (latency_ms < 8 or not parent_ships)
    # Times of another run are not compared.
    (benchmark,) = int8.benchmarks
    other = replace(benchmark.stamp, created="2026-01-01T00:00:00.000+00:00")
    assert ships((baseline, parent, replace(int8, benchmarks=(benchmark.replace(stamp=other),))))[int8.name]
