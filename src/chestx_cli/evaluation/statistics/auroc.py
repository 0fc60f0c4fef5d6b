"""AUROC with DeLong's variance, of one classifier and of two on the same images, also where images share patients."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from chestx_cli.evaluation.statistics.intervals import ALPHA, CHUNK, Interval, Patients

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

LEAST_SCORES = 3
# Smaller p values are reported as this: the tails of these approximations are not accurate beyond it.
SMALLEST_P = 1e-9
DELONG, DELONG_PATIENTS, NEWCOMBE = "DeLong", "DeLong, patients", "Newcombe"


@dataclass(frozen=True, kw_only=True)
class Auroc:
    """An AUROC and what each image adds to its error: `influence` [N] has mean 0 in each class."""

    value: float
    probability: npt.NDArray[np.float64]
    influence: npt.NDArray[np.float64]
    is_positive: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Error:
    """The variance of an AUROC, and how many patients have images of the positive and of the negative class."""

    variance: float
    positives: int
    negatives: int


@dataclass(frozen=True, kw_only=True)
class AurocPair:
    """Two AUROCs on the same images and the correlation of their errors."""

    first: Auroc
    second: Auroc
    patients: Patients
    correlation: float

    @property
    def value(self) -> float:
        """Return the second AUROC less the first."""
        return self.second.value - self.first.value

    @functools.cached_property
    def errors(self) -> tuple[_Error, _Error]:
        """Return the errors of both AUROCs, which the intervals of all levels are made of."""
        return _error_of(self.first, self.patients), _error_of(self.second, self.patients)

    def bounds(self, alpha: float) -> tuple[float, float]:
        """Return the interval of level 1 - alpha of the difference, from those of both AUROCs.

        Zou and Yue, Statistics in Medicine 32, 2013. The symmetric interval of DeLong's test is too short for small
        samples near 1.
        """
        a, b = (
            _interval_of(auroc, self.patients, error, alpha)
            for auroc, error in zip((self.first, self.second), self.errors, strict=True)
        )

        def joined(of_second: float, of_first: float) -> float:
            return math.sqrt(max(0.0, of_second**2 + of_first**2 - 2 * self.correlation * of_second * of_first))

        return (
            max(-1.0, self.value - joined(self.second.value - b.low, a.high - self.first.value)),
            min(1.0, self.value + joined(b.high - self.second.value, self.first.value - a.low)),
        )


@dataclass(frozen=True, kw_only=True)
class AurocDifference:
    """The AUROC of one classifier less that of another on the same images; the mean of several such differences.

    `parts` has one member, or one per fold: the folds' images are disjoint, and scores of different models are not on
    one scale. The interval and every p come from one method: the p of a hypothesis is the largest level at which the
    interval still contains it.
    """

    parts: tuple[AurocPair, ...]

    @property
    def value(self) -> float:
        """Return the second AUROC less the first, its mean over the parts."""
        return sum(part.value for part in self.parts) / len(self.parts)

    def bounds(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Return the interval of level 1 - alpha.

        The distances of a sum's bounds are the roots of the sums of squares of its parts' (Zou and Donner, Statistics
        in Medicine 27, 2008).
        """
        ends = [(part.value, *part.bounds(alpha)) for part in self.parts]
        down = math.sqrt(sum((value - low) ** 2 for value, low, _ in ends)) / len(ends)
        up = math.sqrt(sum((high - value) ** 2 for value, _, high in ends)) / len(ends)
        return max(-1.0, self.value - down), min(1.0, self.value + up)

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval."""
        return self.bounds()

    @property
    def method(self) -> str:
        """Return the name of the method of interval and p."""
        return DELONG

    @property
    def p(self) -> float:
        """Return the two-sided p of no difference."""
        return min(1.0, 2 * min(self.p_at_most(0.0), self.p_at_least(0.0)))

    def p_at_most(self, difference: float) -> float:
        """Return the one-sided p of the hypothesis that the true difference is at most `difference`."""
        return self._one_sided(difference, below=True)

    def p_at_least(self, difference: float) -> float:
        """Return the one-sided p of the hypothesis that the true difference is at least `difference`."""
        return self._one_sided(difference, below=False)

    def _one_sided(self, difference: float, *, below: bool) -> float:
        from scipy.optimize import brentq

        gap = self.value - difference if below else difference - self.value
        if gap <= 0:
            return 0.5 if gap == 0 else 1 - self._one_sided(difference, below=not below)

        def room(z: float) -> float:
            """Return the distance of the hypothesis from the interval of quantile z; negative inside."""
            low, high = self.bounds(two_sided_p(z)) if z else (self.value, self.value)
            return low - difference if below else difference - high

        # The bounds are nearly straight in the quantile.
        widest = normal_quantile(SMALLEST_P)
        return SMALLEST_P / 2 if room(widest) > 0 else two_sided_p(float(brentq(room, 0.0, widest, xtol=1e-6))) / 2


@functools.cache
def normal_quantile(alpha: float = ALPHA) -> float:
    """Return the standard normal quantile of a two-sided test."""
    return NormalDist().inv_cdf(1 - alpha / 2)


def two_sided_p(z: float) -> float:
    """Return the two-sided p of a standard normal statistic."""
    return math.erfc(abs(z) / math.sqrt(2))


def auroc_of(is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64]) -> Auroc:
    """Return the AUROC of probabilities [N] against the truth [N], both classes present; ties count half.

    DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988; by midranks as Sun and Xu, IEEE Signal Processing Letters
    21, 2014.
    """
    import numpy as np
    from scipy.stats import rankdata

    positive = is_positive == 1
    m, n = int(positive.sum()), int((~positive).sum())
    ranks = rankdata(probability)
    above = (ranks[positive] - rankdata(probability[positive])) / n
    below = 1 - (ranks[~positive] - rankdata(probability[~positive])) / m
    value = float(above.mean())
    influence = np.empty(len(probability))
    influence[positive] = (above - value) / m
    influence[~positive] = (below - value) / n
    return Auroc(value=value, probability=probability, influence=influence, is_positive=is_positive)


def influence_variance(
    influence: npt.NDArray[np.float64], is_positive: npt.NDArray[np.int64], patients: Patients
) -> float:
    """Return the variance that influences [N] give, summed within patients (Obuchowski, Biometrics 53, 1997).

    It is DeLong's where no patient has several images.
    """
    positive = is_positive == 1
    up, down = (patients.sums(influence * part) for part in (positive, ~positive))
    # Which patients have images of each class, and how many they are.
    counts = [int((patients.sums(part.astype("float64")) > 0).sum()) for part in (positive, ~positive)]
    unbiased = [k / (k - 1) if k > 1 else math.nan for k in (*counts, patients.n)]
    both = float((up * down).sum())
    variance = unbiased[0] * float((up**2).sum()) + unbiased[1] * float((down**2).sum())
    return max(0.0, variance + (2 * unbiased[2] * both if both else 0.0))


def auroc_interval(auroc: Auroc, patients: Patients, alpha: float = ALPHA) -> Interval:
    """Return the interval of an AUROC, of 95 % by default, on the logit scale, which keeps it within 0 and 1.

    Pepe, The Statistical Evaluation of Medical Tests, 2003, section 5.2. Where patients have several images, Student's
    quantile takes the place of the normal one, with two degrees of freedom less than there are patients. Where the
    variance is 0, as with perfect separation, or a class has one patient, the interval is Newcombe's with patients as
    the unit.
    """
    return _interval_of(auroc, patients, _error_of(auroc, patients), alpha)


def _error_of(auroc: Auroc, patients: Patients) -> _Error:
    positive = auroc.is_positive == 1
    m, n = (int((patients.sums(part.astype("float64")) > 0).sum()) for part in (positive, ~positive))
    variance = influence_variance(auroc.influence, auroc.is_positive, patients)
    return _Error(variance=variance, positives=m, negatives=n)


def _interval_of(auroc: Auroc, patients: Patients, error: _Error, alpha: float) -> Interval:
    from scipy.special import stdtrit

    m, n = error.positives, error.negatives
    if not 0 < auroc.value < 1 or not error.variance > 0:
        low, high = newcombe_interval(auroc.value, m, n, alpha)
        return Interval(low=low, high=high, method=NEWCOMBE)
    repeated = patients.n < len(patients.code)
    quantile = float(stdtrit(max(1, m + n - 2), 1 - alpha / 2)) if repeated else normal_quantile(alpha)
    low, high = _logit_interval(auroc.value, quantile * math.sqrt(error.variance))
    return Interval(low=low, high=high, method=DELONG_PATIENTS if repeated else DELONG)


def _logit_interval(value: float, half: float) -> tuple[float, float]:
    """Return value ± half as an interval on the logit scale, by the delta method."""
    from scipy.special import expit

    logit, reach = math.log(value / (1 - value)), half / (value * (1 - value))
    return float(expit(logit - reach)), float(expit(logit + reach))


def newcombe_interval(value: float, m: int, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Return Newcombe's interval (method 5), of 95 % by default, of an AUROC from m positives and n negatives.

    Newcombe, Statistics in Medicine 25, 2006, 559-573: the variance of Hanley and McNeil at the bound itself, so that
    it has a width at 0 and 1 too.
    """
    from scipy.optimize import brentq

    z, beyond = normal_quantile(alpha), (m + n) / 2 - 1

    def excess(bound: float) -> float:
        spread = bound * (1 - bound) * (1 + beyond * ((1 - bound) / (2 - bound) + bound / (1 + bound)))
        return abs(value - bound) - z * math.sqrt(spread / (m * n))

    def bound(end: float, near: float) -> float:
        # The bound is within 1e-12 of the value.
        return near if excess(near) >= 0 else float(brentq(excess, end, near))

    return 0.0 if value <= 0 else bound(0.0, value - 1e-12), 1.0 if value >= 1 else bound(1.0, value + 1e-12)


def mean_over_seeds(aurocs: Sequence[Auroc]) -> Auroc:
    """Return the mean of AUROCs on the same images, as one whose images add the mean of what they add to each.

    Its probabilities, of which only the order within a class matters, are the means of the normal scores of the ranks.
    """
    import numpy as np
    from scipy.stats import norm, rankdata

    if len(aurocs) == 1:
        return aurocs[0]
    scores = [norm.ppf((rankdata(one.probability) - 0.5) / len(one.probability)) for one in aurocs]
    return Auroc(
        value=sum(one.value for one in aurocs) / len(aurocs),
        probability=np.mean(scores, axis=0),
        influence=np.mean([one.influence for one in aurocs], axis=0),
        is_positive=aurocs[0].is_positive,
    )


def mean_over_folds(aurocs: Sequence[Auroc], patients: Sequence[Patients]) -> tuple[float, Interval]:
    """Return the mean of the folds' AUROCs with its 95 % interval; scores of different models are not on one scale.

    The distances of the bounds are the roots of the sums of squares of the folds' own (Zou and Donner, Statistics in
    Medicine 27, 2008).
    """
    intervals = [auroc_interval(one, own) for one, own in zip(aurocs, patients, strict=True)]
    value = sum(one.value for one in aurocs) / len(aurocs)
    if len(aurocs) == 1:
        return value, intervals[0]
    down, up = (
        math.hypot(*(end - one.value for end, one in zip(ends, aurocs, strict=True))) / len(aurocs)
        for ends in ([one.low for one in intervals], [one.high for one in intervals])
    )
    method = " and ".join(dict.fromkeys(one.method for one in intervals))
    return value, Interval(low=max(0.0, value - down), high=min(1.0, value + up), method=method)


def auroc_difference(first: Auroc, second: Auroc, patients: Patients) -> AurocDifference:
    """Return the second AUROC less the first, on the same images.

    Their correlation is the larger of DeLong's and that of normal scores: DeLong's is too low in small samples near 1.
    """
    own = [influence_variance(auroc.influence, auroc.is_positive, patients) for auroc in (first, second)]
    variance = influence_variance(second.influence - first.influence, first.is_positive, patients)
    spread = math.sqrt(own[0] * own[1])
    # NaN where a class has one patient: the correlation is unknown then.
    delong = max(-1.0, min(1.0, (sum(own) - variance) / (2 * spread))) if spread > 0 else 0.0
    correlation = max(delong, normal_correlation(first, second))
    return AurocDifference(parts=(AurocPair(first=first, second=second, patients=patients, correlation=correlation),))


def normal_correlation(first: Auroc, second: Auroc) -> float:
    """Return the correlation of two AUROCs on the same images if scores are normal in each class.

    Hanley and McNeil (Radiology 148, 1983) tabulate it by the scores' correlation within classes and the mean AUROC;
    here it is computed, from the correlation of the ranks' normal scores. It is 0 where a class has fewer than three
    images or equal scores.
    """
    import numpy as np
    from scipy.stats import multivariate_normal, norm, rankdata

    within = []
    for label in (0, 1):
        rows = first.is_positive == label
        a, b = (norm.ppf((rankdata(one.probability[rows]) - 0.5) / rows.sum()) for one in (first, second))
        if len(a) < LEAST_SCORES or a.std() == 0 or b.std() == 0:
            return 0.0
        within.append(float(np.corrcoef(a, b)[0, 1]))
    m, n = int((first.is_positive == 1).sum()), int((first.is_positive == 0).sum())
    # Perfect separation is replaced by half a discordant pair: at 1 there is no variance.
    least = 0.5 / (m * n)
    area = min(1 - least, max(least, (first.value + second.value) / 2))
    cut = float(norm.ppf(area))

    def shared(correlation: float) -> float:
        """Return the covariance of two pairs' indicators of correct ranking, given the correlation of their scores."""
        covariance = [[1.0, correlation], [correlation, 1.0]]
        return float(multivariate_normal.cdf([cut, cut], cov=covariance, allow_singular=True)) - area**2

    rho = sum(within) / 2
    # Pairs of images that share one image have half of the correlation of a pair with itself.
    beyond = m + n - 2
    return (beyond * shared(rho / 2) + shared(rho)) / (beyond * shared(0.5) + area - area**2)


def bootstrap_interval(
    is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], patients: Patients
) -> tuple[float, float] | None:
    """Return the AUROC's 95 % interval from its variance over bootstrap draws of patients; None without variance.

    Computed on the logit scale, like DeLong's (Pepe 2003, section 5.2): the percentile interval is too short and too
    high near 1. Draws without both classes are left out.
    """
    import numpy as np

    positive = np.flatnonzero(is_positive == 1)
    negative = np.flatnonzero(is_positive == 0)
    negative = negative[np.argsort(probability[negative])]
    # Negatives below each positive, and negatives below or tied with it.
    below, reached = (np.searchsorted(probability[negative], probability[positive], side) for side in ("left", "right"))
    aurocs = []
    for i in range(0, len(patients.drawn), CHUNK):
        drawn = patients.drawn[i : i + CHUNK]
        up = drawn[:, patients.code[positive]].astype(np.float64)
        down = np.zeros((len(drawn), len(negative) + 1))
        np.cumsum(drawn[:, patients.code[negative]], axis=1, out=down[:, 1:])
        area = np.einsum("ij,ij->i", up, down[:, below] + down[:, reached]) / 2
        pairs = up.sum(axis=1) * down[:, -1]
        aurocs.append(area[pairs > 0] / pairs[pairs > 0])
    # The bootstrap's variance is that of a sample of patients with their own mean.
    spread = float(np.concatenate(aurocs).std()) * math.sqrt(patients.n / max(1, patients.n - 1))
    value = auroc_of(is_positive, probability).value
    if not 0 < value < 1 or not spread > 0:
        return None
    return _logit_interval(value, normal_quantile() * spread)
