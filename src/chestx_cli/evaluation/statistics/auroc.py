"""AUROC with DeLong's variance for one classifier, or two on the same images; images may share patients."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from chestx_cli.evaluation.statistics.intervals import ALPHA, CHUNK, Interval, Patients, undrawn_patients

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

LEAST_SCORES = 3
# Weight of a design effect of 1, in patients of the rarer class. In simulations the interval then covers 93-97.5 % for
# 30 to 183 patients at AUROCs of 0.93 to 0.98, with one image or several per patient, one seed or three.
PRIOR_PATIENTS = 3
# Smaller p values are reported as this value: beyond it the tails of these approximations are inaccurate.
SMALLEST_P = 1e-9
# Of a difference of two AUROCs.
DELONG, DELONG_PATIENTS = "DeLong", "DeLong, patients"
# Of one AUROC: with a design effect by DeLong's variance, or without one.
NEWCOMBE_DELONG, NEWCOMBE_DELONG_PATIENTS, NEWCOMBE = "Newcombe-DeLong", "Newcombe-DeLong, patients", "Newcombe"


@dataclass(frozen=True, kw_only=True)
class Auroc:
    """An AUROC with the influence of each image on its error; `influence` [N] has mean 0 within each class."""

    value: float
    probability: npt.NDArray[np.float64]
    influence: npt.NDArray[np.float64]
    is_positive: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Error:
    """Variance of an AUROC, and the numbers of patients with positive and with negative images."""

    variance: float
    positives: int
    negatives: int


@dataclass(frozen=True, kw_only=True)
class AurocDifference:
    """Difference of two AUROCs on the same images (second minus first), with the correlation of their errors.

    Interval and p values are consistent: the p of a hypothesis is the largest alpha at which the interval still
    contains it.
    """

    first: Auroc
    second: Auroc
    patients: Patients
    correlation: float

    @property
    def value(self) -> float:
        """Return the second AUROC minus the first."""
        return self.second.value - self.first.value

    @functools.cached_property
    def errors(self) -> tuple[_Error, _Error]:
        """Return the errors of both AUROCs, computed once for the intervals of all levels."""
        return _error_of(self.first, self.patients), _error_of(self.second, self.patients)

    def bounds(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Return the interval of level 1 - alpha of the difference, from intervals of both AUROCs.

        Zou and Yue, Statistics in Medicine 32, 2013. DeLong's symmetric interval is too short in small samples with an
        AUROC near 1. The intervals joined are on the logit scale, of DeLong's variance alone: those of
        `auroc_interval` would make the difference of 30 patients cover always, and hardly ever exclude a margin.
        """
        a, b = (
            _logit_interval(auroc, self.patients, error, alpha)
            for auroc, error in zip((self.first, self.second), self.errors, strict=True)
        )

        def joined(of_second: float, of_first: float) -> float:
            return math.sqrt(max(0.0, of_second**2 + of_first**2 - 2 * self.correlation * of_second * of_first))

        return (
            max(-1.0, self.value - joined(self.second.value - b[0], a[1] - self.first.value)),
            min(1.0, self.value + joined(b[1] - self.second.value, self.first.value - a[0])),
        )

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval."""
        return self.bounds()

    @property
    def method(self) -> str:
        """Return the name of the method behind the interval and p values."""
        return DELONG_PATIENTS if _has_repeats(self.patients) else DELONG

    @property
    def p(self) -> float:
        """Return the two-sided p for no difference."""
        return min(1.0, 2 * min(self.p_at_most(0.0), self.p_at_least(0.0)))

    def p_at_most(self, difference: float) -> float:
        """Return the one-sided p for the hypothesis that the true difference is at most `difference`."""
        return self._one_sided(difference, below=True)

    def p_at_least(self, difference: float) -> float:
        """Return the one-sided p for the hypothesis that the true difference is at least `difference`."""
        return self._one_sided(difference, below=False)

    def _one_sided(self, difference: float, *, below: bool) -> float:
        from scipy.optimize import brentq

        gap = self.value - difference if below else difference - self.value
        if gap <= 0:
            return 0.5 if gap == 0 else 1 - self._one_sided(difference, below=not below)

        def room(z: float) -> float:
            """Return the distance from the hypothesis to the interval of quantile z; negative inside it."""
            low, high = self.bounds(two_sided_p(z)) if z else (self.value, self.value)
            return low - difference if below else difference - high

        # The bounds are almost linear in the quantile, so the search converges quickly.
        widest = normal_quantile(SMALLEST_P)
        return SMALLEST_P / 2 if room(widest) > 0 else two_sided_p(float(brentq(room, 0.0, widest, xtol=1e-6))) / 2


@functools.cache
def normal_quantile(alpha: float = ALPHA) -> float:
    """Return the standard normal quantile for a two-sided test at level alpha."""
    return NormalDist().inv_cdf(1 - alpha / 2)


def two_sided_p(z: float) -> float:
    """Return the two-sided p of a standard normal statistic."""
    return math.erfc(abs(z) / math.sqrt(2))


def auroc_of(is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64]) -> Auroc:
    """Return the AUROC of probabilities [N] against labels [N] with both classes present; ties count half.

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
    """Return the variance from influence values [N] summed within patients (Obuchowski, Biometrics 53, 1997).

    Equals DeLong's variance if no patient has several images.
    """
    positive = is_positive == 1
    up, down = (patients.sums(influence * part) for part in (positive, ~positive))
    # Numbers of patients with images of each class.
    counts = [int((patients.sums(part.astype("float64")) > 0).sum()) for part in (positive, ~positive)]
    unbiased = [k / (k - 1) if k > 1 else math.nan for k in (*counts, patients.n)]
    both = float((up * down).sum())
    variance = unbiased[0] * float((up**2).sum()) + unbiased[1] * float((down**2).sum())
    return max(0.0, variance + (2 * unbiased[2] * both if both else 0.0))


def auroc_interval(auroc: Auroc, patients: Patients, alpha: float = ALPHA) -> Interval:
    """Return the interval of level 1 - alpha of an AUROC.

    Newcombe's method with patients as the unit, its variance multiplied by a design effect: DeLong's variance relative
    to Hanley and McNeil's of the same patients. In small samples with an AUROC near 1, DeLong's variance is often much
    too small, so the design effect is averaged with 1, which has the weight of `PRIOR_PATIENTS`. If patients have
    several images, Student's t quantile replaces the normal one; its degrees of freedom are the positive plus the
    negative patients, minus 2. If the variance is 0 (perfect separation) or a class has only one patient, the design
    effect is 1.
    """
    error = _error_of(auroc, patients)
    m, n = error.positives, error.negatives
    if not _has_variance(auroc, error):
        low, high = _without_variance(auroc, error, alpha)
        return Interval(low=low, high=high, method=NEWCOMBE)
    units = min(m, n)
    measured = error.variance / _variance_of_patients(auroc.value, m, n)
    effect = (units * measured + PRIOR_PATIENTS) / (units + PRIOR_PATIENTS)
    low, high = newcombe_interval(auroc.value, m, n, _quantile(patients, error, alpha), effect)
    method = NEWCOMBE_DELONG_PATIENTS if _has_repeats(patients) else NEWCOMBE_DELONG
    return Interval(low=low, high=high, method=method)


def _error_of(auroc: Auroc, patients: Patients) -> _Error:
    positive = auroc.is_positive == 1
    m, n = (int((patients.sums(part.astype("float64")) > 0).sum()) for part in (positive, ~positive))
    variance = influence_variance(auroc.influence, auroc.is_positive, patients)
    return _Error(variance=variance, positives=m, negatives=n)


def _logit_interval(auroc: Auroc, patients: Patients, error: _Error, alpha: float) -> tuple[float, float]:
    """Return the interval of DeLong's variance on the logit scale (Pepe 2003, section 5.2); Newcombe's without one."""
    if not _has_variance(auroc, error):
        return _without_variance(auroc, error, alpha)
    return _on_logit_scale(auroc.value, _quantile(patients, error, alpha) * math.sqrt(error.variance))


def _has_variance(auroc: Auroc, error: _Error) -> bool:
    # NaN if a class has one patient.
    return 0 < auroc.value < 1 and error.variance > 0


def _without_variance(auroc: Auroc, error: _Error, alpha: float) -> tuple[float, float]:
    return newcombe_interval(auroc.value, error.positives, error.negatives, normal_quantile(alpha))


def _has_repeats(patients: Patients) -> bool:
    return patients.n < len(patients.code)


def _quantile(patients: Patients, error: _Error, alpha: float) -> float:
    from scipy.special import stdtrit

    if not _has_repeats(patients):
        return normal_quantile(alpha)
    return float(stdtrit(max(1, error.positives + error.negatives - 2), 1 - alpha / 2))


def _on_logit_scale(value: float, half: float) -> tuple[float, float]:
    """Return the interval value ± half, transformed to the logit scale by the delta method.

    Pepe, The Statistical Evaluation of Medical Tests, 2003, section 5.2.
    """
    from scipy.special import expit

    logit, reach = math.log(value / (1 - value)), half / (value * (1 - value))
    return float(expit(logit - reach)), float(expit(logit + reach))


def _variance_of_patients(value: float, m: int, n: int) -> float:
    """Return the variance of an AUROC from m positives and n negatives (Hanley and McNeil, in Newcombe's form)."""
    beyond = (m + n) / 2 - 1
    return value * (1 - value) * (1 + beyond * ((1 - value) / (2 - value) + value / (1 + value))) / (m * n)


def newcombe_interval(
    value: float, m: int, n: int, quantile: float | None = None, effect: float = 1.0
) -> tuple[float, float]:
    """Return Newcombe's interval (method 5) of an AUROC from m positives and n negatives, for a quantile (95 %).

    Newcombe, Statistics in Medicine 25, 2006, 559-573: uses Hanley and McNeil's variance at the bound itself, so the
    interval also has a width at 0 and 1. effect: factor of that variance.
    """
    from scipy.optimize import brentq

    z = (normal_quantile() if quantile is None else quantile) * math.sqrt(effect)

    def excess(bound: float) -> float:
        return abs(value - bound) - z * math.sqrt(_variance_of_patients(bound, m, n))

    def bound(end: float, near: float) -> float:
        # A positive excess here means that the bound is within 1e-12 of the value.
        return near if excess(near) >= 0 else float(brentq(excess, end, near))

    return 0.0 if value <= 0 else bound(0.0, value - 1e-12), 1.0 if value >= 1 else bound(1.0, value + 1e-12)


def mean_over_seeds(aurocs: Sequence[Auroc]) -> Auroc:
    """Return the mean of AUROCs on the same images as one AUROC with averaged influence values.

    Its probabilities are averaged normal scores of the ranks; only their order within a class matters.
    """
    import numpy as np

    if len(aurocs) == 1:
        return aurocs[0]
    return Auroc(
        value=sum(auroc.value for auroc in aurocs) / len(aurocs),
        probability=np.mean([_normal_scores(auroc.probability) for auroc in aurocs], axis=0),
        influence=np.mean([auroc.influence for auroc in aurocs], axis=0),
        is_positive=aurocs[0].is_positive,
    )


def mean_over_folds(aurocs: Sequence[Auroc], groups: Sequence[npt.NDArray[np.str_]]) -> tuple[Auroc, Patients]:
    """Return the mean of the folds' AUROCs as one AUROC over all images, with the patients of all folds.

    groups: patients' keys of each fold's images; patients may be in several folds, as those of validation images are.
    Scores are never compared between folds, whose models have different scales. An image's influence is divided by the
    number of folds and carries its fold's small-sample correction; its probability is the normal score of its rank
    within the fold.
    """
    import numpy as np

    patients = [undrawn_patients(of_fold) for of_fold in groups]
    if len(aurocs) == 1:
        return aurocs[0], patients[0]
    influence = []
    for auroc, fold_patients in zip(aurocs, patients, strict=True):
        scale = np.ones(len(auroc.influence))
        for label in (0, 1):
            among = auroc.is_positive == label
            k = int((fold_patients.sums(among.astype(np.float64)) > 0).sum())
            scale[among] = math.sqrt(k / (k - 1)) if k > 1 else 1.0
        influence.append(scale * auroc.influence / len(aurocs))
    mean = Auroc(
        value=sum(auroc.value for auroc in aurocs) / len(aurocs),
        probability=np.concatenate([_normal_scores(auroc.probability) for auroc in aurocs]),
        influence=np.concatenate(influence),
        is_positive=np.concatenate([auroc.is_positive for auroc in aurocs]),
    )
    return mean, undrawn_patients(np.concatenate(groups))


def _normal_scores(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    from scipy.special import ndtri
    from scipy.stats import rankdata

    scores: npt.NDArray[np.float64] = ndtri((rankdata(probability) - 0.5) / len(probability))
    return scores


def auroc_difference(first: Auroc, second: Auroc, patients: Patients) -> AurocDifference:
    """Return the second AUROC minus the first on the same images, with interval and tests.

    The correlation is the larger of DeLong's and the normal-score one: DeLong's is too low in small samples with AUROCs
    near 1.
    """
    variances = [influence_variance(auroc.influence, auroc.is_positive, patients) for auroc in (first, second)]
    variance = influence_variance(second.influence - first.influence, first.is_positive, patients)
    spread = math.sqrt(variances[0] * variances[1])
    # If a class has one patient, the variance is NaN and the correlation unknown.
    delong = max(-1.0, min(1.0, (sum(variances) - variance) / (2 * spread))) if spread > 0 else 0.0
    correlation = max(delong, normal_correlation(first, second))
    return AurocDifference(first=first, second=second, patients=patients, correlation=correlation)


def normal_correlation(first: Auroc, second: Auroc) -> float:
    """Return the correlation of two AUROCs on the same images, assuming normal scores within each class.

    Hanley and McNeil (Radiology 148, 1983) tabulate it by within-class score correlation and mean AUROC; here it is
    computed from the correlation of the ranks' normal scores. Return 0 if a class has fewer than three images or only
    equal scores.
    """
    import numpy as np
    from scipy.stats import multivariate_normal, norm, rankdata

    within = []
    for label in (0, 1):
        rows = first.is_positive == label
        a, b = (norm.ppf((rankdata(auroc.probability[rows]) - 0.5) / rows.sum()) for auroc in (first, second))
        if len(a) < LEAST_SCORES or a.std() == 0 or b.std() == 0:
            return 0.0
        within.append(float(np.corrcoef(a, b)[0, 1]))
    m, n = int((first.is_positive == 1).sum()), int((first.is_positive == 0).sum())
    # Count perfect separation as half a discordant pair: an AUROC of exactly 1 has no variance.
    least = 0.5 / (m * n)
    area = min(1 - least, max(least, (first.value + second.value) / 2))
    cut = float(norm.ppf(area))

    def shared(correlation: float) -> float:
        """Return the covariance of the correct-ranking indicators of two pairs whose scores have this correlation."""
        covariance = [[1.0, correlation], [correlation, 1.0]]
        return float(multivariate_normal.cdf([cut, cut], cov=covariance, allow_singular=True)) - area**2

    rho = sum(within) / 2
    # Two pairs that share one image have half the correlation of a pair with itself.
    beyond = m + n - 2
    return (beyond * shared(rho / 2) + shared(rho)) / (beyond * shared(0.5) + area - area**2)


def bootstrap_interval(
    is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], patients: Patients
) -> tuple[float, float] | None:
    """Return the AUROC's 95 % interval from its patient-level bootstrap variance; None if that is 0.

    is_positive, probability: [N]. Computed on the logit scale (Pepe, The Statistical Evaluation of Medical Tests, 2003,
    section 5.2): the percentile interval is too short and too high near 1. Draws that lack a class are skipped.
    """
    import numpy as np

    positive = np.flatnonzero(is_positive == 1)
    negative = np.flatnonzero(is_positive == 0)
    negative = negative[np.argsort(probability[negative])]
    # For each positive: the number of negatives below it, and of those below or tied with it.
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
    # Bessel's correction: the bootstrap variance is (n - 1) / n of the unbiased one.
    spread = float(np.concatenate(aurocs).std()) * math.sqrt(patients.n / max(1, patients.n - 1))
    value = auroc_of(is_positive, probability).value
    if not 0 < value < 1 or not spread > 0:
        return None
    return _on_logit_scale(value, normal_quantile() * spread)
