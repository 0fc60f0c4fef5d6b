"""Endpoints over folds and seeds: checked against their definitions and against a single split."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import t as student
from sklearn.metrics import brier_score_loss, roc_auc_score

from chestx_cli.core.errors import IntegrityError, StudyError
from chestx_cli.evaluation.cells import compare_cells, exemplars, judge_variants, noise_floor, pair_cells
from chestx_cli.evaluation.endpoints import ACCURACY, ENDPOINTS, compare
from chestx_cli.evaluation.predictions import Cell, CellPair, Images, Predictions, predictions_of, sides
from chestx_cli.evaluation.statistics.auroc import auroc_difference, auroc_interval, auroc_of
from chestx_cli.evaluation.statistics.influence import Total, sensitivity_at, total_of
from chestx_cli.evaluation.statistics.intervals import undrawn_patients
from chestx_cli.evaluation.verdicts import Compared, Margins, in_words, judge, needed_images
from chestx_cli.records.answers import INCONCLUSIVE, NOT_INFERIOR

AT_90 = "sensitivity-at-specificity-0.90"
BUILT_IN = (ACCURACY, "auroc", "brier", AT_90)
# Those whose cells are added up by influence values or DeLong's, so that a copied seed changes nothing at all.
BY_MEANS = ("auroc", "brier", AT_90)


def made_cells(
    seed: int = 0, folds: int = 3, seeds: int = 2, patients: int = 30, noise: float = 0.6
) -> tuple[list[Cell], list[Cell]]:
    """Return a baseline and a variant on the same cells; patients have one to three images of one class."""
    rng = np.random.default_rng(seed)
    first, second = [], []
    for fold in range(1, folds + 1):
        code = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
        truth = (code % 2).astype(np.int64)
        images = Images(
            ids=np.char.mod(f"{fold}-%03d", np.arange(len(code))),
            groups=np.char.mod(f"p{fold}-%02d", code),
            is_positive=truth,
        )
        shared = 2.2 * truth - 1.1 + rng.normal(size=patients)[code]
        for number in range(seeds):
            a, b = (1 / (1 + np.exp(-shared - noise * rng.normal(size=len(code)))) for _ in range(2))
            first.append(Cell(predictions=predictions_of(images, a, 0.5), fold=f"fold-{fold}", seed=number))
            second.append(Cell(predictions=predictions_of(images, b, 0.5), fold=f"fold-{fold}", seed=number))
    return first, second


def with_probability(own: Predictions, probability: npt.NDArray[np.float64]) -> Predictions:
    return dataclasses.replace(own, probability=probability)


@pytest.mark.parametrize("clustered", [False, True])
def test_one_split_is_the_special_case(clustered: bool) -> None:
    (a,), (b,) = made_cells(folds=1, seeds=1)
    first, second = a.predictions, b.predictions
    if not clustered:
        images = dataclasses.replace(first.images, groups=first.images.ids)
        first, second = (dataclasses.replace(own, images=images) for own in (first, second))
    pairs = [CellPair(first=first, second=second)]
    patients = undrawn_patients(first.images.groups)
    assert ENDPOINTS[ACCURACY].compare(pairs, 0.02) == compare(first.correct, second.correct, patients, 0.02)
    one, other = (auroc_of(own.is_positive, own.probability) for own in (first, second))
    gap, found = auroc_difference(one, other, patients), ENDPOINTS["auroc"].compare(pairs, 0.02)
    assert (found.difference, found.interval.bounds, found.p) == (gap.value, gap.interval, gap.p)
    level = ENDPOINTS["auroc"].estimate(sides(pairs)[0])
    assert (level.value, level.interval) == (one.value, auroc_interval(one, patients))


def test_a_brier_score_is_that_of_its_definition_with_patients_as_the_unit() -> None:
    first, second = made_cells()
    pairs = pair_cells(first, second)
    found = ENDPOINTS["brier"].compare(pairs, 0.01)
    by_patient: dict[str, float] = {}
    images = 0
    for pair in pairs:
        for i, group in enumerate(pair.first.images.groups.tolist()):
            truth = pair.first.is_positive[i]
            gain = (pair.first.probability[i] - truth) ** 2 - (pair.second.probability[i] - truth) ** 2
            by_patient[group] = by_patient.get(group, 0.0) + gain / 2
            images += pair.seed == 0
    mean = sum(by_patient.values()) / images
    assert found.difference == pytest.approx(mean)
    own = [cell for cell in first if cell.fold == "fold-1"]
    scores = [brier_score_loss(cell.predictions.is_positive, cell.predictions.probability) for cell in own]
    assert np.mean(scores) == pytest.approx(ENDPOINTS["brier"].estimate(own).value)
    # The sandwich: residuals of each patient's sum, and one more patient as extreme as the most extreme.
    sizes = dict.fromkeys(by_patient, 0)
    for pair in pairs:
        if pair.seed == 0:
            for group in pair.first.images.groups.tolist():
                sizes[group] += 1
    folds = {pair.fold: pair for pair in pairs}
    parts = []
    for pair in folds.values():
        here = set(pair.first.images.groups.tolist())
        level = sum(by_patient[g] for g in here) / sum(sizes[g] for g in here)
        parts += [(by_patient[g] - sizes[g] * level) / images for g in here]
    most = max(abs(part) for part in parts)
    squares, g = sum(part**2 for part in parts) + most**2, len(parts) + 2
    error = math.sqrt(squares * g / (g - 1))
    half = (found.interval.high - found.interval.low) / 2
    assert student.ppf(0.975, g - 1) * error <= half + 1e-12
    assert half < 1.15 * student.ppf(0.975, g - 1) * error


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_copied_seed_is_no_more_evidence(name: str) -> None:
    first, second = made_cells(seeds=1)
    again = [[*side, *(dataclasses.replace(cell, seed=1) for cell in side)] for side in (first, second)]
    once = ENDPOINTS[name].compare(pair_cells(first, second), 0.02)
    twice = ENDPOINTS[name].compare(pair_cells(*again), 0.02)
    assert (twice.n, twice.seeds) == (once.n, 2)
    assert twice.difference == pytest.approx(once.difference)
    assert (twice.lost, twice.won) == (2 * once.lost, 2 * once.won)
    if name in BY_MEANS:
        # Scores of several seeds are averaged as normal scores, which changes the last digits alone.
        assert twice.interval.bounds == pytest.approx(once.interval.bounds, abs=1e-3)
    else:
        assert twice.interval.low <= once.interval.low + 0.005
        assert twice.interval.high >= once.interval.high - 0.005


@pytest.mark.parametrize("name", BY_MEANS)
def test_other_seeds_narrow_the_interval_less_than_other_patients(name: str) -> None:
    one = ENDPOINTS[name].compare(pair_cells(*made_cells(folds=2, seeds=1)), 0.02)
    seeds = ENDPOINTS[name].compare(pair_cells(*made_cells(folds=2, seeds=8)), 0.02)
    patients = ENDPOINTS[name].compare(pair_cells(*made_cells(folds=16, seeds=1)), 0.02)
    width = [found.interval.high - found.interval.low for found in (one, seeds, patients)]
    assert width[1] < width[0]
    assert width[2] < width[0]


@pytest.mark.parametrize("name", ["auroc", AT_90])
def test_scores_of_folds_are_never_on_one_scale(name: str) -> None:
    first, second = made_cells(seeds=1)
    moved = [
        dataclasses.replace(cell, predictions=with_probability(cell.predictions, cell.predictions.probability**power))
        for cell, power in zip(second, (1, 4, 9), strict=True)
    ]
    before, after = (ENDPOINTS[name].compare(pair_cells(first, cells), 0.02) for cells in (second, moved))
    assert after.difference == pytest.approx(before.difference)
    assert after.interval.bounds == pytest.approx(before.interval.bounds)


@pytest.mark.parametrize("name", BUILT_IN)
def test_larger_differences_are_better(name: str) -> None:
    first, second = made_cells()
    sharper = [
        dataclasses.replace(
            cell,
            predictions=predictions_of(
                cell.predictions.images, 0.3 * cell.predictions.probability + 0.7 * cell.predictions.is_positive, 0.5
            ),
        )
        for cell in second
    ]
    found = ENDPOINTS[name].compare(pair_cells(first, sharper), 0.02)
    assert found.difference > 0
    assert found.interval.low > 0
    assert found.p < 0.05
    assert found.p_margin < 0.025
    back = ENDPOINTS[name].compare(pair_cells(sharper, first), 0.02)
    assert back.difference == pytest.approx(-found.difference)
    better, worse = (ENDPOINTS[name].estimate(cells).value for cells in (sharper, first))
    assert (better < worse) == ENDPOINTS[name].is_loss


def naive_sensitivity(
    truth: npt.NDArray[np.int64], score: npt.NDArray[np.float64], rng: np.random.Generator, draws: int
) -> float:
    """Return the mean sensitivity over random orders of ties and random choices between the two ranks."""
    found = []
    negatives = int((truth == 0).sum())
    rank = max(1.0, 0.1 * (negatives + 1 / 3) + 1 / 3)
    for _ in range(draws):
        order = np.lexsort((rng.random(len(score)), score))[::-1]
        here = math.floor(rank) + (rng.random() < rank % 1)
        false, hits = 0, 0
        for i in order:
            if truth[i] == 0:
                false += 1
                if false == here:
                    break
            else:
                hits += 1
        found.append(hits / int((truth == 1).sum()))
    return float(np.mean(found))


@pytest.mark.parametrize("levels", [3, 8, 1000])
def test_sensitivity_at_a_specificity_counts_ties_as_if_broken_at_random(levels: int) -> None:
    rng = np.random.default_rng(levels)
    truth = rng.integers(0, 2, 70)
    score = np.round((truth + 1.2 * rng.normal(size=70)) * levels) / levels
    found = sensitivity_at(0.9, truth, score)
    assert found.value == pytest.approx(naive_sensitivity(truth, score, rng, 3000), abs=0.012)
    assert found.influence.sum() == pytest.approx(0)
    # No ranking at all detects as many positives as it alarms falsely.
    assert sensitivity_at(0.9, truth, np.full(70, 0.5)).value == pytest.approx(0.1, abs=0.01)


def test_the_threshold_of_a_specificity_adds_its_own_error() -> None:
    rng = np.random.default_rng(5)
    errors, values = [], []
    for _ in range(400):
        truth = np.arange(200) % 2
        score = 1.8 * truth + rng.normal(size=200)
        found = sensitivity_at(0.9, truth, score)
        total = total_of([[found]], [np.char.mod("%d", np.arange(200))])
        errors.append(total.error)
        values.append(found.value)
    alone = math.sqrt(np.mean(values) * (1 - np.mean(values)) / 100)
    assert np.mean(errors) == pytest.approx(float(np.std(values)), rel=0.15)
    assert np.mean(errors) > 1.2 * alone


def test_the_auroc_over_folds_is_the_mean_within_them() -> None:
    first, _ = made_cells(seeds=1)
    areas = [roc_auc_score(cell.predictions.is_positive, cell.predictions.probability) for cell in first]
    assert ENDPOINTS["auroc"].estimate(first).value == pytest.approx(np.mean(areas))


def test_one_more_patient_adds_to_the_error_and_counts_once() -> None:
    total = Total(value=0.3, of_patients=np.array([0.1, -0.4, 0.2, 0.0, 0.3, -0.2]), images=6, units=6)
    more = total.with_one_more()
    assert more.value == 0.3
    assert more.error**2 == pytest.approx((0.34 + 0.4**2) * 7 / 6)
    repeated = dataclasses.replace(total, of_patients=np.append(total.of_patients, -0.4))
    assert more.degrees == pytest.approx(repeated.degrees)
    assert total.with_one_more(0.5).error ** 2 == pytest.approx((0.34 + 0.5**2) * 7 / 6)


def test_no_variance_at_all() -> None:
    still = Total(value=0.0, of_patients=np.zeros(9), images=9, units=9)
    assert still.bounds() == (0.0, 0.0)
    assert still.p == 1.0
    assert still.p_at_most(-0.01) < 1e-6
    alone = Total(value=0.1, of_patients=np.zeros(1), images=1, units=1)
    assert (alone.p_at_most(0.0), alone.bounds()) == (1.0, (-math.inf, math.inf))


def test_cells_that_do_not_fit_together_are_refused() -> None:
    first, second = made_cells()
    others = made_cells(seed=1)[1]
    with pytest.raises(IntegrityError, match="the variants were tested on different images"):
        pair_cells(first, others)
    with pytest.raises(StudyError, match="not tested in one cell together"):
        pair_cells(first[:1], second[1:])
    moved = [dataclasses.replace(cell, fold="fold-9") for cell in first[:2]]
    with pytest.raises(IntegrityError, match="an image is tested in two folds"):
        ENDPOINTS["brier"].estimate([*first, *moved])
    with pytest.raises(IntegrityError, match="occurs twice under one seed"):
        ENDPOINTS["brier"].estimate([first[0], first[0]])
    swapped = dataclasses.replace(first[2], fold="fold-1", seed=1)
    with pytest.raises(IntegrityError, match="has other test images under another seed"):
        ENDPOINTS["brier"].estimate([first[0], swapped])
    truth = np.ones(len(first[0].predictions.is_positive), dtype=np.int64)
    images = dataclasses.replace(first[0].predictions.images, is_positive=truth)
    ill = Cell(predictions=dataclasses.replace(first[0].predictions, images=images))
    for name in ("auroc", AT_90):
        with pytest.raises(StudyError, match="needs images of both classes"):
            ENDPOINTS[name].estimate([ill])


@pytest.mark.parametrize("name", BUILT_IN)
def test_variants_are_judged_pooled_and_by_seed(name: str) -> None:
    first, second = made_cells(folds=4, seeds=3, patients=60, noise=0.3)
    margin = ENDPOINTS[name].margin
    copy, other = judge_variants(first, {"copy": first, "other": second}, name, Margins(endpoint=margin))
    assert copy.compared.endpoint.difference == 0
    assert copy.verdict.word == NOT_INFERIOR
    assert copy.held == 1
    assert copy.exemplars == ()
    assert len(other.by_seed) == 3
    assert other.mean == pytest.approx(np.mean([one.value for one in other.by_seed]))
    assert other.sd == pytest.approx(np.std([one.value for one in other.by_seed], ddof=1))
    assert other.held == np.mean([one.verdict.word == other.verdict.word for one in other.by_seed])
    low, high = other.estimate.interval.bounds
    assert low <= other.estimate.value <= high
    pooled = other.compared.endpoint
    assert pooled.difference == pytest.approx(np.mean([one.compared.endpoint.difference for one in other.by_seed]))
    guards = {guard.measure.lower() for guard in other.compared.guards}
    assert guards == {"sensitivity", "specificity", "auroc"} - {name}
    assert "under 3 seeds" in in_words(other.compared, other.verdict, "the baseline")


def test_one_comparison_is_what_the_variants_are_judged_by() -> None:
    first, second = made_cells()
    margins = Margins()
    (result,) = judge_variants(first, {"other": second}, "brier", margins, ("it guesses",))
    assert result.compared == compare_cells("other", pair_cells(first, second), "brier", margins, ("it guesses",))
    assert result.compared.faults == ("it guesses",)


@pytest.mark.parametrize("name", BUILT_IN)
def test_how_much_two_trainings_differ_by_their_seed(name: str) -> None:
    first, _ = made_cells(seeds=3)
    assert noise_floor([cell for cell in first if cell.seed == 0], name) is None
    floor = noise_floor(first, name)
    assert floor is not None
    values = [ENDPOINTS[name].estimate([cell for cell in first if cell.seed == seed]).value for seed in range(3)]
    gaps = [abs(values[a] - values[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert floor.mean == pytest.approx(np.mean(gaps))
    assert floor.largest == pytest.approx(max(gaps))
    assert (floor.seeds, floor.pairs) == (3, 3)
    assert "3 pairs of 3 seeds" in floor.sentence
    copies = [dataclasses.replace(cell, seed=seed) for cell in first if cell.seed == 0 for seed in (0, 1)]
    same = noise_floor(copies, name)
    assert same is not None
    assert same.largest == 0


def decided(ids: Sequence[str], truth: Sequence[int], *calls: Sequence[int]) -> list[Cell]:
    """Return one fold's decisions under several seeds."""
    images = Images(ids=np.array(ids), groups=np.array(ids), is_positive=np.array(truth))
    return [
        Cell(predictions=predictions_of(images, np.where(np.array(call) == 1, 0.9, 0.1), 0.5), seed=seed)
        for seed, call in enumerate(calls)
    ]


def test_images_that_flip_in_most_seeds() -> None:
    ids, truth = ["a", "b", "c", "d"], [1, 0, 1, 0]
    baseline = decided(ids, truth, [1, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0])
    variant = decided(ids, truth, [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0])
    a, b = exemplars(pair_cells(baseline, variant))
    assert (a.image_id, a.flips, a.lost, a.seeds, a.is_positive) == ("a", 3, 3, 3, True)
    assert (b.image_id, b.flips, b.lost, b.is_positive) == ("b", 2, 1, False)
    assert a.baseline_probability == pytest.approx(0.9)
    assert a.probability == pytest.approx(0.1)


@pytest.mark.parametrize("name", BY_MEANS)
def test_the_images_that_would_settle_it_follow_from_the_width(name: str) -> None:
    paired = ENDPOINTS[name].compare(pair_cells(*made_cells(seed=1, folds=2, patients=24)), 0.002)
    (verdict,) = judge([Compared(endpoint=paired)])
    assert verdict.word == INCONCLUSIVE
    needed, assumption = needed_images(paired)
    assert needed is not None
    assert needed > paired.n
    assert assumption == "if they are equal and differ from image to image as here"
    half, _ = needed_images(dataclasses.replace(paired, margin=0.004))
    assert half is not None
    assert needed / half == pytest.approx(4, rel=0.1)
    assert f"about {needed:,} would settle it" in in_words(Compared(endpoint=paired), verdict, "the baseline")
