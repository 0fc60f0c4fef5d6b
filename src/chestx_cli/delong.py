"""AUROC with DeLong's variance, of one classifier and of two on the same images, also where images share patients."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from chestx_cli.stats import ALPHA, CHUNK, Interval, Patients

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LEAST_SCORES = 3
DELONG, DELONG_PATIENTS, NEWCOMBE = "DeLong", "DeLong, patients", "Newcombe"


@dataclass(frozen=True, kw_only=True)
class Auroc:
    """An AUROC and what each image adds to its error: `influence` [N] has mean 0 in each class."""

    value: float
    probability: npt.NDArray[np.float64]
    influence: npt.NDArray[np.float64]
    is_positive: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class AurocDifference:
    """The AUROC of one classifier less that of another on the same images, its 95 % interval and DeLong's p."""

    value: float
    variance: float
    interval: tuple[float, float]
    p: float | None


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


def auroc_interval(found: Auroc, patients: Patients) -> Interval:
    """Return the 95 % interval of an AUROC on the logit scale, which keeps it within 0 and 1.

    Pepe, The Statistical Evaluation of Medical Tests, 2003, section 5.2. Where patients have several images, Student's
    quantile takes the place of the normal one, with two degrees of freedom less than there are patients. Where the
    variance is 0, as with perfect separation, the interval is Newcombe's with patients as the unit.
    """
    from scipy.stats import t as student

    positive = found.is_positive == 1
    m, n = (int((patients.sums(part.astype("float64")) > 0).sum()) for part in (positive, ~positive))
    variance = influence_variance(found.influence, found.is_positive, patients)
    if not 0 < found.value < 1 or not variance > 0:
        low, high = newcombe_interval(found.value, m, n)
        return Interval(low=low, high=high, method=NEWCOMBE)
    repeated = patients.n < len(patients.code)
    quantile = float(student.ppf(1 - ALPHA / 2, max(1, m + n - 2))) if repeated else normal_quantile()
    low, high = _logit_interval(found.value, quantile * math.sqrt(variance))
    return Interval(low=low, high=high, method=DELONG_PATIENTS if repeated else DELONG)


def _logit_interval(value: float, half: float) -> tuple[float, float]:
    """Return value ± half as an interval on the logit scale, by the delta method."""
    logit, reach = math.log(value / (1 - value)), half / (value * (1 - value))
    return 1 / (1 + math.exp(reach - logit)), 1 / (1 + math.exp(-reach - logit))


def newcombe_interval(value: float, m: int, n: int) -> tuple[float, float]:
    """Return Newcombe's 95 % interval (method 5) of an AUROC from m positives and n negatives.

    Newcombe, Statistics in Medicine 25, 2006, 559-573: the variance of Hanley and McNeil at the bound itself, so that
    it has a width at 0 and 1 too.
    """
    from scipy.optimize import brentq

    z, beyond = normal_quantile(), (m + n) / 2 - 1

    def excess(bound: float) -> float:
        spread = bound * (1 - bound) * (1 + beyond * ((1 - bound) / (2 - bound) + bound / (1 + bound)))
        return abs(value - bound) - z * math.sqrt(spread / (m * n))

    low = 0.0 if value <= 0 else float(brentq(excess, 0.0, value - 1e-12))
    high = 1.0 if value >= 1 else float(brentq(excess, value + 1e-12, 1.0))
    return low, high


def auroc_difference(first: Auroc, second: Auroc, patients: Patients) -> AurocDifference:
    """Return the second AUROC less the first, on the same images.

    The p is of DeLong's paired test; 1 where both rank all images alike, None where the variance of a difference is 0,
    as between perfect separation and equal scores. The interval joins those of the two AUROCs by
    their correlation (Zou and Yue, Statistics in Medicine 32, 2013), the larger of DeLong's and that of normal scores:
    the symmetric one of the test is too short for small samples near 1, and DeLong's correlation too low.
    """
    variance = influence_variance(second.influence - first.influence, first.is_positive, patients)
    value = second.value - first.value
    own = [influence_variance(found.influence, found.is_positive, patients) for found in (first, second)]
    spread = math.sqrt(own[0] * own[1])
    delong = max(-1.0, min(1.0, (sum(own) - variance) / (2 * spread))) if spread else 0.0
    correlation = max(delong, normal_correlation(first, second))
    a, b = (auroc_interval(found, patients) for found in (first, second))

    def joined(of_second: float, of_first: float) -> float:
        return math.sqrt(max(0.0, of_second**2 + of_first**2 - 2 * correlation * of_second * of_first))

    # Below this only rounding is left.
    differs = variance > 1e-18
    return AurocDifference(
        value=value,
        variance=variance,
        interval=(
            max(-1.0, value - joined(second.value - b.low, a.high - first.value)),
            min(1.0, value + joined(b.high - second.value, first.value - a.low)),
        ),
        p=two_sided_p(value / math.sqrt(variance)) if differs else None if value else 1.0,
    )


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
    # Perfect separation is taken as half a pair less: at 1 nothing varies.
    least = 0.5 / (m * n)
    area = min(1 - least, max(least, (first.value + second.value) / 2))
    cut = float(norm.ppf(area))

    def shared(correlation: float) -> float:
        """Return the covariance of two comparisons that both say "above", whose differences correlate so."""
        covariance = [[1.0, correlation], [correlation, 1.0]]
        return float(multivariate_normal.cdf([cut, cut], cov=covariance, allow_singular=True)) - area**2

    rho = sum(within) / 2
    # Pairs of images that share one image have half of the correlation of a pair with itself.
    beyond = m + n - 2
    return (beyond * shared(rho / 2) + shared(rho)) / (beyond * shared(0.5) + area - area**2)


def bootstrap_interval(
    is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], patients: Patients
) -> tuple[float, float] | None:
    """Return the AUROC's 95 % interval from its variance over bootstrap draws of patients; None where all agree.

    It is on the logit scale, as DeLong's (Pepe 2003, section 5.2): the middle 95 % of the draws are too short and too
    high near 1. Draws without both classes are left out.
    """
    import numpy as np

    positive = np.flatnonzero(is_positive == 1)
    negative = np.flatnonzero(is_positive == 0)
    negative = negative[np.argsort(probability[negative])]
    # How many negatives lie below each positive, and how many do or are tied with it.
    below, reached = (np.searchsorted(probability[negative], probability[positive], side) for side in ("left", "right"))
    found = []
    for i in range(0, len(patients.drawn), CHUNK):
        drawn = patients.drawn[i : i + CHUNK]
        up = drawn[:, patients.code[positive]].astype(np.float64)
        down = np.zeros((len(drawn), len(negative) + 1))
        np.cumsum(drawn[:, patients.code[negative]], axis=1, out=down[:, 1:])
        area = np.einsum("ij,ij->i", up, down[:, below] + down[:, reached]) / 2
        pairs = up.sum(axis=1) * down[:, -1]
        found.append(area[pairs > 0] / pairs[pairs > 0])
    # The bootstrap's variance is that of a sample of patients with their own mean.
    spread = float(np.concatenate(found).std()) * math.sqrt(patients.n / max(1, patients.n - 1))
    value = auroc_of(is_positive, probability).value
    if not 0 < value < 1 or not spread > 0:
        return None
    return _logit_interval(value, normal_quantile() * spread)
