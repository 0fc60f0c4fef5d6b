"""Inference from influence values for any measure of one classifier or the difference of two, clustered by patient."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chestx_cli.evaluation.statistics.auroc import SMALLEST_P
from chestx_cli.evaluation.statistics.intervals import ALPHA, EXACT_PATIENTS, Interval, undrawn_patients

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Labels = npt.NDArray[np.int64]

STUDENT_PATIENTS, WILSON_PATIENTS = "t, patients", "Wilson, patients"
# The ROC slope at a false-positive rate is the slope of a straight line in probit coordinates between these multiples
# of that rate, limited to these factors of the slope under two normal distributions with equal variances.
SLOPE_BETWEEN, SLOPE_FACTORS = (0.4, 2.5), (0.4, 2.0)
HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measure of one classifier on the images [N] of one cell, with the influence of each image on its error.

    influence: [N], with mean 0. To first order the value's error is their sum, so summing within patients, squaring and
    adding gives its variance. weight: the cell's weight in the mean over folds.
    """

    value: float
    influence: Floats
    weight: float


@dataclass(frozen=True, kw_only=True)
class Total:
    """A measure over all cells, or its difference between classifiers, with each patient's contribution to its error.

    of_patients: sums of influence values [patients]. images: the sum of the folds' weights (the number of images for a
    share). units: about how many patients have these images.
    """

    value: float
    of_patients: Floats
    images: float
    units: float

    @property
    def method(self) -> str:
        """Return the name of the method behind the interval and p values."""
        return STUDENT_PATIENTS

    @property
    def error(self) -> float:
        """Return the cluster-robust standard error, with patients as clusters; NaN for one patient.

        The square root of the sum of squares by patient (Liang and Zeger, Biometrika 73, 1986) times G / (G - 1) for G
        patients.
        """
        g = len(self.of_patients)
        return math.sqrt(float((self.of_patients**2).sum()) * g / (g - 1)) if g > 1 else math.nan

    @property
    def degrees(self) -> float:
        """Return the degrees of freedom of the variance estimate, by Satterthwaite's approximation.

        Satterthwaite, Biometrics Bulletin 2, 1946: about two per contributing patient if these are few, and at most G -
        1 for G patients.
        """
        g, squares = len(self.of_patients), self.of_patients**2
        variance = float(squares.sum())
        scatter = float((squares**2).sum()) - variance**2 / max(1, g)
        most = max(1.0, g - 1.0)
        return max(1.0, min(most, 2 * variance**2 / scatter)) if scatter > 0 else most

    def bounds(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Return the interval of level 1 - alpha by Student's t."""
        from scipy.special import stdtrit

        if not self.error > 0:
            return (self.value, self.value) if self.error == 0 else (-math.inf, math.inf)
        reach = float(stdtrit(self.degrees, 1 - alpha / 2)) * self.error
        return self.value - reach, self.value + reach

    def _one_sided(self, value: float, *, below: bool) -> float:
        from scipy.special import stdtr

        gap = self.value - value if below else value - self.value
        if not self.error > 0:
            return 1.0 if math.isnan(self.error) or gap < 0 else 0.5 if gap == 0 else SMALLEST_P / 2
        return max(SMALLEST_P / 2, float(stdtr(self.degrees, -gap / self.error)))

    def p_at_most(self, value: float) -> float:
        """Return the one-sided p for the hypothesis that the true value is at most `value`."""
        return self._one_sided(value, below=True)

    @property
    def p(self) -> float:
        """Return the two-sided p for the hypothesis that the true value is 0."""
        return min(1.0, 2 * min(self._one_sided(0.0, below=True), self._one_sided(0.0, below=False)))

    def less(self, first: Total) -> Total:
        """Return this measure minus another on the same images and patients."""
        return replace(self, value=self.value - first.value, of_patients=self.of_patients - first.of_patients)

    def with_one_more(self, least: float = 0.0) -> Total:
        """Return a difference whose error includes one more patient as extreme as the most extreme; its value is kept.

        Without this pseudo-observation the variance is too small with few patients or few discordant images. In the
        degrees of freedom it is one patient; as two halves it would make the variance look steadier than it is. least:
        the smallest contribution to add, one image's for a share (Agresti and Min, Statistics in Medicine 24, 2005, add
        as much to a table of discordant images).
        """
        import numpy as np

        more = max(least, float(np.abs(self.of_patients).max(initial=0.0)))
        return replace(self, of_patients=np.append(self.of_patients, more))

    @property
    def interval(self) -> Interval:
        """Return the 95 % interval."""
        low, high = self.bounds()
        return Interval(low=low, high=high, method=STUDENT_PATIENTS)

    def loss_interval(self) -> Interval:
        """Return the 95 % interval of a loss, on the logarithmic scale because mean losses are right-skewed."""
        low, high = self.bounds()
        if not (self.value > 0 and self.error > 0):
            return Interval(low=low, high=high, method=STUDENT_PATIENTS)
        factor = math.exp((high - self.value) / self.value)
        return Interval(low=self.value / factor, high=self.value * factor, method=STUDENT_PATIENTS)

    def share_interval(self) -> Interval:
        """Return the 95 % interval of a share of images: Wilson's with the effective sample size.

        The effective sample size is the number of images with this binomial variance (Dean and Pagano, J Surv Stat
        Methodol 3, 2015). If the variance is 0, the interval is Clopper and Pearson's with patients as the unit.
        """
        from scipy.special import stdtrit

        nearest = (ALPHA / 2) ** (1 / max(1.0, self.units))
        variance = self.value * (1 - self.value)
        if not self.error > 0 or variance <= 0:
            low = nearest if self.value >= HALF else 0.0
            return Interval(low=min(low, self.value), high=max(self.value, 1 - nearest), method=EXACT_PATIENTS)
        effective = variance / self.error**2
        z2 = float(stdtrit(max(1, len(self.of_patients) - 1), 1 - ALPHA / 2)) ** 2
        centre = (self.value + z2 / (2 * effective)) / (1 + z2 / effective)
        half = math.sqrt(z2 * (variance / effective + z2 / (4 * effective**2))) / (1 + z2 / effective)
        low, high = min(centre - half, nearest), max(centre + half, 1 - nearest)
        return Interval(low=max(0.0, low), high=min(1.0, high), method=WILSON_PATIENTS)


def total_of(folds: Sequence[Sequence[Measured]], groups: Sequence[npt.NDArray[np.str_]]) -> Total:
    """Combine a measure over cells: the mean over seeds within each fold, then the weighted mean over folds.

    folds: for each fold, the measure under each seed on the same images. groups: for each fold, the patient of each
    image [N]. A patient counts once, regardless of the number of seeds.
    """
    import numpy as np

    patients = undrawn_patients(np.concatenate(groups))
    weights = [float(np.mean([measured.weight for measured in seeds])) for seeds in folds]
    whole = sum(weights)
    value = sum(
        w * float(np.mean([measured.value for measured in seeds])) for w, seeds in zip(weights, folds, strict=True)
    )
    parts = [
        w * np.mean([measured.influence for measured in seeds], axis=0) / whole
        for w, seeds in zip(weights, folds, strict=True)
    ]
    return Total(
        value=value / whole,
        of_patients=patients.sums(np.concatenate(parts)),
        images=whole,
        units=whole * patients.n / len(patients.code),
    )


def mean_of(values: Floats) -> Measured:
    """Return the mean of values per image [N]; folds are weighted by their number of images."""
    value, n = float(values.mean()), len(values)
    return Measured(value=value, influence=(values - value) / n, weight=float(n))


def brier_of(is_positive: Labels, probability: Floats) -> Measured:
    """Return the Brier score of probabilities [N], their mean squared error (Monthly Weather Review 78, 1950)."""
    return mean_of((probability - is_positive) ** 2)


def sensitivity_at(specificity: float, is_positive: Labels, probability: Floats) -> Measured:
    """Return the sensitivity at the threshold with this specificity on the same images [N], both classes present.

    The threshold is the order statistic of the negatives whose false-positive rate on new images has median 1 -
    specificity, so that the sensitivity is median-unbiased too (definition 8 of Hyndman and Fan, American Statistician
    50, 1996). Between two ranks the sensitivity is interpolated; with very few negatives the threshold is the highest
    of them. Ties count as if broken at random. Folds are weighted by their number of positive images.

    The threshold is itself an estimate: a negative above it lowers the sensitivity in proportion to the ROC slope there
    (Linnet, Clinical Chemistry 33, 1987; Hsieh and Turnbull, Annals of Statistics 24, 1996).
    """
    import numpy as np
    from scipy.special import ndtri

    positive = is_positive == 1
    negatives, m = np.sort(probability[~positive]), int(positive.sum())
    n = len(negatives)
    above = n - np.searchsorted(negatives, probability, side="right")
    tied = n - np.searchsorted(negatives, probability, side="left") - above
    places = np.where(positive, tied + 1, tied)

    def called(alarms: float) -> Floats:
        """Return each image's probability [N] of exceeding the threshold at this false-positive rate."""
        rank = min(float(n), max(1.0, alarms * (n + 1 / 3) + 1 / 3))
        return np.asarray(np.clip((rank - above) / places, 0.0, 1.0))

    def probit(alarms: float) -> float:
        # The added half image keeps the probit finite.
        return float(ndtri((called(alarms)[positive].sum() + HALF) / (m + 1)))

    alarms = 1 - specificity
    near, far = (alarms * factor for factor in SLOPE_BETWEEN)
    straight = (probit(far) - probit(near)) / float(ndtri(far) - ndtri(near))
    equal = math.exp((float(ndtri(alarms)) ** 2 - probit(alarms) ** 2) / 2)
    slope = min(SLOPE_FACTORS[1], max(SLOPE_FACTORS[0], straight)) * equal
    detected = called(alarms)
    value = float(detected[positive].mean())
    false = float(detected[~positive].mean())
    influence = np.where(positive, (detected - value) / m, -slope * (detected - false) / n)
    return Measured(value=value, influence=influence, weight=float(m))
