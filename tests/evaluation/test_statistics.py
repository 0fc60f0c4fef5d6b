"""Known answers: published examples, reference implementations, or the definition computed another way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import statsmodels.api as sm
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import binom, binomtest, multinomial, norm, ttest_1samp
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score, roc_curve
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep

from chestx_cli.core.errors import UsageError
from chestx_cli.evaluation.endpoints import Paired, compare
from chestx_cli.evaluation.statistics.auroc import (
    DELONG,
    DELONG_PATIENTS,
    NEWCOMBE,
    NEWCOMBE_DELONG,
    NEWCOMBE_DELONG_PATIENTS,
    auroc_difference,
    auroc_interval,
    auroc_of,
    bootstrap_interval,
    influence_variance,
    newcombe_interval,
    normal_correlation,
)
from chestx_cli.evaluation.statistics.calibration import (
    calibrate,
    cox_intercept,
    cox_slope,
    expected_error,
    fit_temperature,
)
from chestx_cli.evaluation.statistics.intervals import (
    PATIENTS,
    WILSON,
    Patients,
    draw_patients,
    mean_ratio_interval,
    proportion_interval,
    wilson_interval,
)
from chestx_cli.evaluation.statistics.operating_points import (
    choose_threshold,
    net_benefit,
    parse_rule,
    predictive_values,
    ratio_interval,
)
from chestx_cli.evaluation.statistics.outcome import log_odds_of
from chestx_cli.evaluation.statistics.paired import (
    Changes,
    difference_interval,
    exact_margin_p,
    holm,
    mcnemar_exact,
    swap_test,
    tango_z,
)
from chestx_cli.evaluation.verdicts import Compared, Verdict, in_words, judge, needed_images
from chestx_cli.records.answers import BETTER, INCONCLUSIVE, INFERIOR, NOT_INFERIOR

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def patients_of(codes: npt.ArrayLike) -> Patients:
    return draw_patients(np.char.mod("%05d", np.asarray(codes)), np.random.default_rng(0))


def tango_interval(lost: int, won: int, n: int) -> tuple[float, float]:
    """Return the interval of the difference on n images of as many patients."""
    ones = Changes(n=n, n_patients=n, lost_by_patient=np.ones(lost, np.int64), won_by_patient=np.ones(won, np.int64))
    return difference_interval(ones).bounds


def judge_one(found: Paired) -> Verdict:
    """Return the verdict of one comparison without guards."""
    return judge([Compared(endpoint=found)])[0]


def scores(n: int, seed: int = 0, strength: float = 1.5) -> tuple[Ints, Floats]:
    """Return a truth and probabilities with ties."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    return truth, np.round(1 / (1 + np.exp(-(strength * (2 * truth - 1) + 2 * rng.normal(size=n)))), 2)


def decisions(n: int, lost: int, won: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which of n images two classifiers get right, with these discordant counts."""
    first, second = np.ones(n, dtype=bool), np.ones(n, dtype=bool)
    second[:lost] = False
    first[lost : lost + won] = False
    return first, second


@pytest.mark.parametrize(
    ("successes", "n", "interval"),
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_interval(successes: int, n: int, interval: tuple[float, float]) -> None:
    assert wilson_interval(successes, n) == pytest.approx(interval, abs=5e-5)


def test_images_of_one_patient_count_less() -> None:
    right = np.random.default_rng(1).random(60) < 0.8
    every = np.ones(180, dtype=bool)
    alone = proportion_interval(right, every[:60], patients_of(range(60)))
    # Copies of an image say nothing new: the interval stays as it is, and is not that of 180 images.
    copied = proportion_interval(np.repeat(right, 3), every, patients_of(np.repeat(range(60), 3)))
    assert alone is not None
    assert copied is not None
    assert (alone.method, copied.method) == (WILSON, PATIENTS)
    assert copied.bounds == pytest.approx(alone.bounds, abs=0.012)
    perfect = proportion_interval(every, every, patients_of(np.repeat(range(60), 3)))
    assert perfect is not None
    assert perfect.low == pytest.approx(binomtest(60, 60).proportion_ci(method="exact").low)
    one_wrong = np.arange(180) > 0
    missed = proportion_interval(one_wrong, every, patients_of(np.repeat(range(60), 3)))
    assert missed is not None
    assert missed.low <= perfect.low
    assert proportion_interval(every, ~every, patients_of(range(180))) is None


def test_method_goes_by_the_images_concerned() -> None:
    among = np.arange(40) < 20
    found = proportion_interval(np.ones(40, dtype=bool), among, patients_of([*range(20), *(20 + np.arange(20) // 2)]))
    assert found is not None
    assert found.method == WILSON


def delong_by_definition(truth: Ints, first: Floats, second: Floats) -> Floats:
    """Return the covariance of two AUROCs as DeLong et al., Biometrics 44 (1988), define it: over all pairs."""
    above, below = [], []
    for score in (first, second):
        pairs = score[truth == 1][:, None] - score[truth == 0][None, :]
        kernel = (pairs > 0) + 0.5 * (pairs == 0)
        above.append(kernel.mean(axis=1))
        below.append(kernel.mean(axis=0))
    return np.asarray(np.cov(above) / len(above[0]) + np.cov(below) / len(below[0]))


def test_delong_variance_is_that_of_its_definition() -> None:
    truth, first = scores(90)
    _, second = scores(90, seed=5, strength=1.0)
    covariance = delong_by_definition(truth, first, second)
    patients = patients_of(range(90))
    a, b = auroc_of(truth, first), auroc_of(truth, second)
    # The Python package confidenceinterval 1.0.5 (delong_roc_variance) gives these for the same numbers.
    for found, (value, variance) in ((a, (0.8337551, 0.0017237392)), (b, (0.5399798, 0.0038041111))):
        assert found.value == pytest.approx(value, abs=1e-6)
        assert influence_variance(found.influence, truth, patients) == pytest.approx(variance, rel=1e-6)
    assert a.value == pytest.approx(roc_auc_score(truth, first))
    assert influence_variance(a.influence, truth, patients) == pytest.approx(covariance[0, 0])
    difference = auroc_difference(a, b, patients)
    z = (b.value - a.value) / math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    # One method for both: the interval of level 1 - p ends at no difference. DeLong's own p is near, for a check.
    assert min(map(abs, difference.bounds(difference.p))) == pytest.approx(0, abs=1e-6)
    assert norm.isf(difference.p / 2) == pytest.approx(abs(z), rel=0.1)
    assert difference.interval[0] < difference.value < difference.interval[1]
    assert auroc_difference(a, a, patients).p == 1.0
    separated, equal = auroc_of(truth, truth.astype(float)), auroc_of(truth, np.full(90, 0.5))
    lost = auroc_difference(separated, equal, patients)
    assert lost.value == -0.5
    assert lost.p < 1e-6
    assert lost.interval[1] < 0
    interval = auroc_interval(a, patients)
    assert interval.method == NEWCOMBE_DELONG
    assert difference.method == DELONG
    # The quantile times the standard error at each bound is its distance from the value: Hanley and McNeil's variance,
    # times DeLong's relative to it at the value, averaged with 1 by the weights of the rarer class and of 3 patients.
    rarer = int(min(truth.sum(), (1 - truth).sum()))
    relative = covariance[0, 0] / hanley_mcneil(a.value, truth)
    effect = (rarer * relative + 3) / (rarer + 3)
    assert [(x - a.value) / math.sqrt(effect * hanley_mcneil(x, truth)) for x in interval.bounds] == pytest.approx(
        [-1.959964, 1.959964], rel=1e-5
    )


def hanley_mcneil(area: float, truth: Ints) -> float:
    """Return Hanley and McNeil's variance (Radiology 143, 1982) with Newcombe's common sample size."""
    m, n = int(truth.sum()), int((1 - truth).sum())
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    return float((area * (1 - area) + ((m + n) / 2 - 1) * (q1 + q2 - 2 * area**2)) / (m * n))


def test_auroc_of_copies_is_no_surer() -> None:
    truth, probability = scores(80)
    alone = auroc_interval(auroc_of(truth, probability), patients_of(range(80)))
    rows = np.repeat(np.arange(80), 4)
    copied = auroc_interval(auroc_of(truth[rows], probability[rows]), patients_of(rows))
    assert copied.method == NEWCOMBE_DELONG_PATIENTS
    first = auroc_of(truth[rows], probability[rows])
    assert auroc_difference(first, first, patients_of(rows)).method == DELONG_PATIENTS
    # Not wider than Student's quantile for the patients makes it.
    assert copied.bounds == pytest.approx(alone.bounds, abs=0.01)
    assert copied.low < alone.low
    found = bootstrap_interval(truth[rows], probability[rows], patients_of(rows))
    assert found == pytest.approx(alone.bounds, abs=0.02)


def test_correlation_of_normal_scores() -> None:
    """Two AUROCs of normal scores correlate as over many simulated studies."""
    rng = np.random.default_rng(8)
    truth = np.repeat([1, 0], 40)
    areas, computed = [], []
    for _ in range(400):
        common = rng.normal(size=80)
        pair = [auroc_of(truth, 1.5 * truth + 0.9 * common + 0.436 * rng.normal(size=80)) for _ in range(2)]
        areas.append([one.value for one in pair])
        computed.append(normal_correlation(*pair))
    assert np.mean(computed) == pytest.approx(np.corrcoef(np.array(areas).T)[0, 1], abs=0.05)
    same = auroc_of(truth, truth + rng.normal(size=80))
    assert normal_correlation(same, same) == pytest.approx(1, abs=1e-3)


def test_bootstrap_is_of_the_drawn_patients() -> None:
    truth, probability = scores(30)
    code = np.arange(30) // 2
    patients = patients_of(code)
    patients = Patients(code=patients.code, drawn=patients.drawn[:200])
    found = []
    for drawn in patients.drawn:
        rows = np.concatenate([np.flatnonzero(code == i) for i in np.repeat(np.arange(15), drawn)])
        if 0 < truth[rows].sum() < len(rows):
            found.append(roc_auc_score(truth[rows], probability[rows]))
    value = roc_auc_score(truth, probability)
    half = 1.959964 * np.std(found) * math.sqrt(15 / 14) / (value * (1 - value))
    interval = bootstrap_interval(truth, probability, patients)
    assert interval is not None
    assert [math.log(x / (1 - x)) for x in interval] == pytest.approx(
        [math.log(value / (1 - value)) + side * half for side in (-1, 1)], rel=1e-4
    )


def test_perfect_separation_is_not_certain() -> None:
    truth = np.arange(40) % 2
    interval = auroc_interval(auroc_of(truth, truth.astype(float)), patients_of(range(40)))
    assert interval.method == NEWCOMBE
    assert interval.high == 1.0
    assert 1 - interval.low == pytest.approx(1.959964 * math.sqrt(hanley_mcneil(interval.low, truth)), rel=1e-5)
    assert newcombe_interval(0.0, 20, 20)[1] == pytest.approx(1 - interval.low)
    assert bootstrap_interval(truth, truth.astype(float), patients_of(range(40))) is None


def test_mcnemar() -> None:
    assert mcnemar_exact(1, 0) == 1.0
    assert mcnemar_exact(0, 0) == 1.0
    # Two-sided binomial: 2 * P(X <= 2 | 12, 1/2) = 2 * 79/4096.
    assert mcnemar_exact(2, 10) == pytest.approx(2 * 79 / 4096)
    for lost, won in itertools.combinations(range(14), 2):
        assert mcnemar_exact(lost, won) == pytest.approx(binomtest(lost, lost + won).pvalue)


def test_swapping_patients() -> None:
    assert swap_test(np.array([1] * 10 + [-1] * 2 + [0] * 30)) == pytest.approx(mcnemar_exact(2, 10))
    assert swap_test(np.zeros(5, dtype=np.int64)) == 1.0
    change = np.array([3, -1, 2, 2, -1, 0, 1])
    totals = [sum(s * c for s, c in zip(signs, change, strict=True)) for signs in itertools.product((-1, 1), repeat=7)]
    assert swap_test(change) == pytest.approx(np.mean([abs(t) >= change.sum() for t in totals]))


def test_mean_ratio_interval() -> None:
    """Scipy's one-sample t interval of the logarithms is the reference."""
    ratios = [1.9, 2.1, 2.0, 2.4, 1.8]
    reference = ttest_1samp(np.log(ratios), 0).confidence_interval()
    assert mean_ratio_interval(ratios) == pytest.approx((math.exp(reference.low), math.exp(reference.high)))
    assert mean_ratio_interval(ratios[:2]) is None


def test_tango_interval() -> None:
    # Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014) 2850-2875: airway hyper-responsiveness before and
    # after transplantation, 1 and 7 discordant of 21, asymptotic score interval.
    assert tango_interval(7, 1, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert tango_interval(1, 7, 21) == pytest.approx((0.026, 0.517), abs=5e-4)


@pytest.mark.parametrize(("lost", "won", "n"), [(1, 0, 56), (5, 2, 56), (0, 9, 30), (30, 20, 624)])
def test_tango_interval_inverts_the_score_test(lost: int, won: int, n: int) -> None:
    for bound in tango_interval(lost, won, n):

        def loss(p: float, bound: float = bound) -> float:
            counts, shares = (lost, won, n - lost - won), (p, p + bound, 1 - 2 * p - bound)
            return -sum(k * math.log(max(share, 1e-300)) for k, share in zip(counts, shares, strict=True) if k)

        # The share lost of highest likelihood where won less lost is the bound.
        between = (max(0.0, -bound) + 1e-12, (1 - bound) / 2 - 1e-12)
        p = minimize_scalar(loss, bounds=between, method="bounded", options={"xatol": 1e-12}).x
        z = (won - lost - n * bound) / math.sqrt(n * (2 * p + bound - bound**2))
        assert abs(z) == pytest.approx(1.959964, abs=1e-3)


def test_tango_interval_at_the_ends() -> None:
    # Clopper and Pearson's bound of 0 of 56.
    assert tango_interval(0, 0, 56)[1] == pytest.approx(binomtest(0, 56).proportion_ci(method="exact").high)
    assert tango_interval(0, 56, 56)[1] == 1.0
    assert tango_interval(56, 0, 56)[0] == -1.0


def test_holm() -> None:
    # Holm, Scandinavian Journal of Statistics 6 (1979): the i-th smallest of k times k - i + 1, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()
    for values in np.random.default_rng(0).random((5, 7)) ** 3:
        assert holm(values.tolist()) == pytest.approx(multipletests(values, method="holm")[1])


@pytest.mark.parametrize(
    ("lost", "won", "n", "word"),
    [
        (1, 0, 56, INCONCLUSIVE),
        (9, 0, 56, INFERIOR),
        (0, 9, 56, BETTER),
        (0, 0, 56, INCONCLUSIVE),
        (0, 0, 624, NOT_INFERIOR),
        (8, 8, 1500, NOT_INFERIOR),
        (40, 8, 10_000, NOT_INFERIOR),
    ],
)
def test_verdicts(lost: int, won: int, n: int, word: str) -> None:
    found = compare(*decisions(n, lost, won), patients_of(range(n)), 0.02)
    assert (found.lost, found.won) == (lost, won)
    verdict = judge_one(found)
    assert verdict.word == word
    assert (verdict.needed_images is not None) == (word == INCONCLUSIVE)


@pytest.mark.parametrize(("lost", "won", "margin"), [(0, 0, 0.02), (1, 2, 0.02), (1, 2, 0.2), (4, 1, 0.1)])
def test_exact_p_of_the_margin_is_the_sum_over_all_outcomes(lost: int, won: int, margin: float) -> None:
    n, largest = 12, 0.0
    observed = tango_z(lost, won, n, -margin)
    for share in margin + (1 - margin) / 2 * np.linspace(0, 1, 201) ** 2:
        p = [share, share - margin, 1 - 2 * share + margin]
        total = sum(
            multinomial.pmf([a, b, n - a - b], n, p)
            for a in range(n + 1)
            for b in range(n - a + 1)
            if tango_z(a, b, n, -margin) >= observed - 1e-9
        )
        largest = max(largest, float(total))
    assert exact_margin_p(lost, won, n, margin) == pytest.approx(largest, abs=1e-9)


@pytest.mark.parametrize("n", [20, 56, 70, 100])
def test_a_loss_of_the_margin_is_rarely_called_not_inferior(n: int) -> None:
    # Of these sizes the normal approximation, also with n - 1 for n, exceeds 2.5 %.
    needed, won = np.full(n + 1, n + 1), 0
    for lost in range(n + 1):
        while won <= n - lost and exact_margin_p(lost, won, n, 0.02) >= 0.025:
            won += 1
        needed[lost] = won
    every = np.arange(n + 1)
    for share in np.linspace(0.02, 0.51, 50):
        claims = binom.pmf(every, n, share) @ binom.sf(needed - 1, n - every, (share - 0.02) / (1 - share))
        assert claims <= 0.025


def test_verdicts_in_words() -> None:
    found = compare(*decisions(56, 1, 0), patients_of(range(56)), 0.02)
    said = in_words(Compared(endpoint=found), judge_one(found), "the baseline")
    assert said.startswith("inconclusive: 56 images are too few; about 960 would settle it (-1.8 points of accuracy")
    assert "1 of 56 images correct with the baseline only, 0 with the variant only" in said
    assert judge_one(found).assumption == "if they disagree on 4.9 % of images and are equally accurate"
    far = compare(*decisions(10_000, 90, 8), patients_of(range(10_000)), 0.02)
    assert "not inferior to the baseline within 0.02, though less accurate" in in_words(
        Compared(endpoint=far), judge_one(far), "the baseline"
    )


def test_many_comparisons_take_more() -> None:
    found = compare(*decisions(56, 7, 0), patients_of(range(56)), 0.02)
    assert judge_one(found).word == INFERIOR
    assert {verdict.word for verdict in judge([Compared(endpoint=found)] * 6)} == {INCONCLUSIVE}


def test_one_patient_is_one_witness() -> None:
    first, second = decisions(60, 9, 0)
    alone = compare(first, second, patients_of(range(60)), 0.02)
    # The same nine images, lost by two patients.
    shared = compare(first, second, patients_of([*[0] * 5, *[1] * 4, *range(2, 53)]), 0.02)
    assert alone.p < 0.05
    assert shared.p == pytest.approx(0.5)
    assert shared.p_images == alone.p
    assert shared.interval.low < alone.interval.low
    assert judge_one(shared).word == INCONCLUSIVE


def test_power_is_as_promised() -> None:
    paired = compare(*decisions(200, 6, 6), patients_of(range(200)), 0.02)
    n, assumption = needed_images(paired)
    assert n is not None
    assert "equally accurate" in assumption
    discordance = (12 + 3.8414588 / 2) / (200 + 3.8414588)
    # Lu and Bean, Statistics in Medicine 14 (1995): n = discordance * ((1.96 + 0.84) / margin)^2, in two digits here.
    assert n == pytest.approx(discordance * ((1.959964 + 0.841621) / 0.02) ** 2, rel=0.05)
    rng = np.random.default_rng(3)
    shares = [discordance / 2, discordance / 2, 1 - discordance]
    found = [tango_interval(lost, won, n)[0] > -0.02 for lost, won, _ in rng.multinomial(n, shares, size=500)]
    assert 0.74 < np.mean(found) < 0.88


@pytest.mark.parametrize("n", [100, 250])
def test_expected_calibration_error(n: int) -> None:
    rng = np.random.default_rng(2)
    probability = rng.random(n)
    truth = (rng.random(n) < probability**2).astype(np.int64)
    positive_share, mean_probability = calibration_curve(truth, probability, n_bins=10, strategy="quantile")
    assert expected_error(truth, probability) == pytest.approx(
        np.abs(positive_share - mean_probability).mean(), abs=2e-3
    )


def test_equal_probabilities_are_one_bin() -> None:
    # All say 0.5 and four in ten are positive, whatever the order of the images.
    truth = np.repeat([0, 1], [60, 40])
    assert expected_error(truth, np.full(100, 0.5)) == pytest.approx(0.1)
    (only,) = calibrate(truth, np.full(100, 0.5), patients_of(range(100))).bins
    assert (only.images, only.positive_share) == (100, 0.4)


def test_calibration_slope_and_intercept() -> None:
    truth, probability = scores(300)
    probability = np.clip(probability, 0.01, 0.99)
    x = log_odds_of(probability)

    def minus_penalised(b: Floats) -> float:
        """Firth, Biometrika 80 (1993): the logistic likelihood with half the log-determinant of its information."""
        design = np.stack([np.ones_like(x), x], axis=1)
        p = 1 / (1 + np.exp(-design @ b))
        information = design.T @ (design * (p * (1 - p))[:, None])
        return float(-np.log(np.where(truth == 1, p, 1 - p)).sum() - np.linalg.slogdet(information)[1] / 2)

    best = minimize(minus_penalised, [0.0, 1.0], method="BFGS")
    slope, interval = cox_slope(truth, probability, patients_of(range(300)))
    assert slope == pytest.approx(best.x[1], rel=1e-4)
    # Heinze and Schemper, Stat Med 21 (2002): at both ends twice the profile has fallen by the quantile of chi-squared.
    assert interval is not None
    for end in interval:
        held = minimize(lambda a, end=end: minus_penalised(np.array([a[0], end])), [0.0], method="BFGS")
        assert 2 * (held.fun - best.fun) == pytest.approx(3.841459, rel=1e-3)
    # Copies of an image say nothing new: the interval stays about as wide as that of the images without them.
    rows = np.repeat(np.arange(300), 4)
    _, copied = cox_slope(truth[rows], probability[rows], patients_of(rows))
    assert copied == pytest.approx(interval, abs=0.05)
    large = sm.GLM(truth, np.ones((300, 1)), offset=log_odds_of(probability), family=sm.families.Binomial()).fit()
    assert cox_intercept(truth, probability) == pytest.approx(large.params[0], rel=1e-4)


def test_slope_of_two_levels_is_that_of_the_table_with_halves_added() -> None:
    # Heinze and Schemper, Stat Med 21 (2002): for a 2×2 table Firth's odds ratio has one half added to every cell.
    truth = np.repeat([1, 1, 0, 0], [9, 2, 4, 12])
    probability = np.repeat([0.8, 0.2, 0.8, 0.2], [9, 2, 4, 12])
    slope, _ = cox_slope(truth, probability, patients_of(range(27)))
    assert slope == pytest.approx(math.log(9.5 * 12.5 / (2.5 * 4.5)) / (2 * math.log(4)), rel=1e-5)


def test_calibration_of_what_is_calibrated() -> None:
    rng = np.random.default_rng(4)
    probability = rng.random(4000)
    truth = (rng.random(4000) < probability).astype(np.int64)
    found = calibrate(truth, probability, patients_of(range(4000)))
    assert found.slope == pytest.approx(1, abs=0.1)
    assert found.intercept == pytest.approx(0, abs=0.15)
    assert found.ece < 0.03
    assert found.brier == pytest.approx(1 / 6, abs=0.01)
    assert sum(part.images for part in found.bins) == 4000
    # Too extreme by half: twice the log-odds halve the slope, and a temperature of 2 mends them.
    extreme = 1 / (1 + np.exp(-2 * log_odds_of(probability)))
    assert calibrate(truth, extreme, patients_of(range(4000))).slope == pytest.approx((found.slope or 0) / 2, rel=1e-3)
    assert fit_temperature(log_odds_of(extreme), truth) == pytest.approx(2 / (found.slope or 1), rel=0.02)


def test_separated_classes_have_no_slope_and_no_temperature() -> None:
    truth = np.arange(40) % 2
    assert fit_temperature(log_odds_of((0.1 + 0.8 * truth).astype(np.float64)), truth) is None
    for level in (0.1 + 0.8 * truth, 0.9 - 0.8 * truth, np.full(40, 0.5)):
        assert cox_slope(truth, level.astype(np.float64), patients_of(range(40))) == (None, None)


def test_operating_points() -> None:
    truth, probability = scores(200)
    false_rate, true_rate, cuts = roc_curve(truth, probability, drop_intermediate=False)

    def rates(rule: str) -> tuple[float, float]:
        called = probability >= choose_threshold(parse_rule(rule), truth, probability)
        return float(called[truth == 1].mean()), float((~called)[truth == 0].mean())

    assert sum(rates("youden")) - 1 == pytest.approx((true_rate - false_rate).max())
    assert rates("sensitivity=0.95")[0] >= 0.95
    assert rates("sensitivity=0.95")[1] == pytest.approx(1 - false_rate[true_rate >= 0.95].min())
    assert rates("specificity=0.90")[1] >= 0.9
    assert rates("specificity=0.90")[0] == pytest.approx(true_rate[false_rate <= 0.1 + 1e-12].max())
    assert choose_threshold(parse_rule("0.5"), truth, probability) == 0.5
    assert len(cuts) > 10
    assert str(parse_rule("specificity=0.90")) == "specificity=0.9"


@pytest.mark.parametrize("text", ["Youden", "sensitivity", "sensitivity=2", "accuracy=0.9", "0", "", "nan"])
def test_operating_points_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="operating-point"):
        parse_rule(text)


def test_ratio_interval() -> None:
    # Koopman, Biometrics 40 (1984) 513-517: 36 of 40 against 16 of 80.
    assert ratio_interval(36, 40, 16, 80) == pytest.approx((2.94, 7.15), abs=5e-3)
    assert ratio_interval(27, 28, 2, 30) == pytest.approx(
        confint_proportions_2indep(27, 28, 2, 30, method="score", compare="ratio", correction=False)
    )
    assert ratio_interval(0, 9, 0, 3) == (0.0, math.inf)
    # With both proportions 1 the score is n (ratio - 1), which is z squared at the bound.
    assert ratio_interval(28, 28, 28, 28)[1] == pytest.approx(1 + 3.8414588 / 28)
    for a, m, b, n in [(27, 28, 0, 28), (28, 28, 0, 28), (2, 2, 5.4, 9), (14, 28, 28, 28), (28, 28, 20, 20)]:
        low, high = ratio_interval(a, m, b, n)
        turned = ratio_interval(b, n, a, m)
        assert low <= (a / m) / (b / n if b else 1e-9) <= high
        assert (1 / high if math.isfinite(high) else 0.0) == pytest.approx(turned[0])


def test_predictive_values() -> None:
    # 90 of 100 positives and 20 of 100 negatives called: at 10 %, PPV = 0.09 / (0.09 + 0.18) by Bayes' rule.
    truth = np.repeat([1, 0], 100)
    called = np.concatenate([np.arange(100) < 90, np.arange(100) < 20]).astype(np.int64)
    found = predictive_values(truth, called, 0.1, patients_of(range(200)))
    assert found.ppv == pytest.approx(1 / 3)
    assert found.npv == pytest.approx(0.72 / (0.72 + 0.01))
    low, high = ratio_interval(90, 100, 20, 100)
    assert found.ppv_interval == pytest.approx((low / 9 / (1 + low / 9), high / 9 / (1 + high / 9)))
    never = predictive_values(truth, np.zeros(200, dtype=np.int64), 0.1, patients_of(range(200)))
    assert never.ppv is None
    assert never.npv == pytest.approx(0.9)


def test_net_benefit() -> None:
    # Vickers and Elkin, Medical Decision Making 26 (2006): TP/n - FP/n * t/(1 - t). Of 10 images at 0.2: 4 true and 2
    # false positives; treating all is prevalence - (1 - prevalence) * odds.
    truth = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    probability = np.array([0.9, 0.8, 0.4, 0.2, 0.1, 0.7, 0.3, 0.1, 0.1, 0.1])
    found = net_benefit(truth, probability, np.array([0.2, 0.05]))
    assert found == pytest.approx([0.4 - 0.2 * 0.25, 0.5 - 0.5 * 0.05 / 0.95])
    # The decision curve of dcurves 1.1.7, the package of the method's authors, on the same 200 probabilities.
    truth, probability = scores(200)
    assert net_benefit(truth, probability, np.array([0.105, 0.205, 0.505])) == pytest.approx(
        [0.506257, 0.466164, 0.292677], abs=1e-6
    )
    assert net_benefit(truth, np.ones(200), np.array([0.105, 0.205, 0.505])) == pytest.approx(
        [0.502793, 0.440252, 0.101010], abs=1e-6
    )
