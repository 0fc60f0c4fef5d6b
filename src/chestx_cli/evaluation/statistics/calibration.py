"""Calibration (are 8 of 10 images with probability 0.8 positive?) and temperature scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.evaluation.statistics.auroc import normal_quantile
from chestx_cli.evaluation.statistics.intervals import Patients, percentile_interval, proportion_interval
from chestx_cli.evaluation.statistics.outcome import log_loss, log_odds_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MOST_BINS, IMAGES_PER_BIN = 10, 10
TEMPERATURES = (0.05, 20.0)
NEAR_THE_END = 1e-3


@dataclass(frozen=True, kw_only=True)
class Bin:
    """A reliability bin: number of images, mean probability, share of positive images with its 95 % interval."""

    images: int
    mean_probability: float
    positive_share: float
    positive_interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration measures of probabilities; slope and intercept are None if their fit has no optimum."""

    brier: float
    log_loss: float
    slope: float | None
    slope_interval: tuple[float, float] | None
    intercept: float | None
    ece: float
    ece_interval: tuple[float, float] | None
    bins: tuple[Bin, ...]


def calibrate(
    is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], patients: Patients
) -> Calibration:
    """Return the calibration of probabilities [N] of the positive class against labels [N]."""
    from sklearn.metrics import brier_score_loss

    slope, slope_interval = cox_slope(is_positive, probability, patients)
    return Calibration(
        brier=float(brier_score_loss(is_positive, probability)),
        log_loss=log_loss(log_odds_of(probability), is_positive),
        slope=slope,
        slope_interval=slope_interval,
        intercept=cox_intercept(is_positive, probability),
        ece=expected_error(is_positive, probability),
        ece_interval=expected_error_interval(is_positive, probability, patients),
        bins=_bins(is_positive, probability, patients),
    )


def bin_starts(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the start indices of equal-mass bins in the sorted probabilities: at most ten bins of at least ten images.

    probability: [N]. Equal probabilities share a bin, so that the bins do not depend on file order.
    """
    import numpy as np

    n, ordered = len(probability), np.sort(probability)
    bins = max(1, min(MOST_BINS, n // IMAGES_PER_BIN))
    levels = ordered[(np.arange(bins) * n) // bins]
    return np.unique(np.searchsorted(ordered, levels, side="left")).astype(np.int64)


def expected_error(is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64]) -> float:
    """Return the expected calibration error over bins of equal mass (Nguyen and O'Connor, EMNLP 2015).

    is_positive, probability: [N]. The mean over images of |mean probability - positive share| of the image's bin;
    biased upwards in small samples.
    """
    import numpy as np

    order = np.argsort(probability, kind="stable")
    gap = np.add.reduceat((probability - is_positive)[order], bin_starts(probability))
    return float(np.abs(gap).sum() / len(probability))


def expected_error_interval(
    is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], patients: Patients
) -> tuple[float, float] | None:
    """Return the patient-level bootstrap percentile interval (95 %) of the calibration error, with fixed bins.

    is_positive, probability: [N]. Resampling noise biases the error upwards, so the interval is extended to include the
    estimate. None if all draws are equal.
    """
    import numpy as np

    order = np.argsort(probability, kind="stable")
    bin_of = np.empty(len(probability), dtype=np.int64)
    starts = bin_starts(probability)
    bin_of[order] = np.searchsorted(starts, np.arange(len(probability)), side="right") - 1
    gap = (probability - is_positive).astype(np.float64)
    totals = patients.totals(*(gap * (bin_of == i) for i in range(len(starts))), np.ones(len(gap)))
    drawn = percentile_interval(np.abs(totals[:-1]).sum(axis=0) / totals[-1])
    estimate = expected_error(is_positive, probability)
    return (min(drawn[0], estimate), max(drawn[1], estimate)) if drawn else None


def _bins(
    is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], patients: Patients
) -> tuple[Bin, ...]:
    import numpy as np

    bins = []
    for rows in np.split(np.argsort(probability, kind="stable"), bin_starts(probability)[1:]):
        among = np.zeros(len(probability), dtype=bool)
        among[rows] = True
        interval = proportion_interval(is_positive == 1, among, patients)
        assert interval is not None  # noqa: S101 - no bin is empty
        bins.append(
            Bin(
                images=len(rows),
                mean_probability=float(probability[rows].mean()),
                positive_share=float(is_positive[rows].mean()),
                positive_interval=interval.bounds,
            )
        )
    return tuple(bins)


def cox_slope(
    is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], patients: Patients
) -> tuple[float | None, tuple[float, float] | None]:
    """Return the slope of a logistic regression of the labels on the log-odds, and its 95 % interval.

    is_positive, probability: [N]. Below 1 the probabilities are too extreme, above 1 too moderate (Cox, Biometrika 45,
    1958). Firth's penalised likelihood (Biometrika 80, 1993) keeps the slope finite for nearly separated classes; the
    interval is the profile penalised likelihood interval (Heinze and Schemper, Stat Med 21, 2002), widened by the
    square root of the ratio of patient-level to model variance if that exceeds 1. None if the log-odds separate the
    classes or are constant.
    """
    import numpy as np
    from scipy.optimize import brentq, minimize

    x = log_odds_of(probability)
    positive = is_positive == 1
    if not positive.any() or positive.all() or x[positive].min() >= x[~positive].max() or np.ptp(x) == 0:
        return None, None
    if x[positive].max() <= x[~positive].min():
        return None, None
    # Standardised, so that every image has a gradient at the start of the search.
    unit = float(x.std())
    firth = _Firth((x - x.mean()) / unit, is_positive)
    top = minimize(lambda b: -firth.likelihood(b[0], b[1]), (0.0, 1.0), method="Nelder-Mead", options={"xatol": 1e-7})
    intercept, slope = (float(value) for value in top.x)

    def excess(bound: float) -> float:
        return -2 * float(top.fun) - 2 * firth.profile(bound, intercept) - normal_quantile() ** 2

    widened = firth.spread(intercept, slope, patients)

    def reach(side: int) -> float:
        step = side * firth.error(intercept, slope)
        while excess(slope + step) < 0:
            step *= 1.5
        return widened * (float(brentq(excess, slope, slope + step, xtol=1e-6)) - slope)

    return slope / unit, ((slope + reach(-1)) / unit, (slope + reach(1)) / unit)


@dataclass(frozen=True)
class _Firth:
    """Firth's logistic likelihood: the log-likelihood plus half the log-determinant of its information."""

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.int64]

    def information(self, intercept: float, slope: float) -> tuple[npt.NDArray[np.float64], tuple[float, float, float]]:
        """Return the fitted probabilities [N] and the information matrix's entries: intercept, off-diagonal, slope."""
        from scipy.special import expit

        p = expit(intercept + slope * self.x)
        weight = p * (1 - p)
        return p, (float(weight.sum()), float(weight @ self.x), float(weight @ self.x**2))

    def likelihood(self, intercept: float, slope: float) -> float:
        """Return the penalised log-likelihood; minus infinity if the information is singular."""
        import numpy as np

        eta = intercept + slope * self.x
        _, (a, b, c) = self.information(intercept, slope)
        determinant = a * c - b * b
        if determinant <= 0:
            return -math.inf
        return float((self.y * eta - np.logaddexp(0, eta)).sum()) + 0.5 * math.log(determinant)

    def profile(self, slope: float, intercept: float) -> float:
        """Return the profile log-likelihood of a slope; the search starts at `intercept`."""
        from scipy.optimize import minimize_scalar

        lowest = minimize_scalar(
            lambda at: -self.likelihood(at, slope), bracket=(intercept, intercept + 0.5), options={"xtol": 1e-6}
        )
        return -float(lowest.fun)

    def error(self, intercept: float, slope: float) -> float:
        """Return the model's standard error of the slope."""
        _, (a, b, c) = self.information(intercept, slope)
        return math.sqrt(a / (a * c - b * b))

    def spread(self, intercept: float, slope: float, patients: Patients) -> float:
        """Return the ratio of the slope's patient-level (clustered) standard error to the model's; at least 1."""
        p, (a, b, c) = self.information(intercept, slope)
        determinant = a * c - b * b
        # The influence of each image on the slope.
        influence = (self.y - p) * (a * self.x - b) / determinant
        variance = float((patients.sums(influence) ** 2).sum()) * patients.n / max(1, patients.n - 1)
        return math.sqrt(max(1.0, variance * determinant / a)) if patients.n < len(self.x) else 1.0


def cox_intercept(is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64]) -> float | None:
    """Return calibration-in-the-large: the intercept with the slope fixed at 1. None if a class is absent.

    is_positive, probability: [N]. A value above 0 means that the probabilities are too low on average.
    """
    import numpy as np
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    if not 0 < int(is_positive.sum()) < len(is_positive):
        return None
    fit = GLM(is_positive, np.ones((len(is_positive), 1)), family=Binomial(), offset=log_odds_of(probability)).fit()
    return float(fit.params[0])


def fit_temperature(log_odds: npt.NDArray[np.float64], is_positive: npt.NDArray[np.int64]) -> float | None:
    """Return the temperature by which log-odds [N] are divided for the lowest log-loss (Guo et al., ICML 2017).

    None if there is no minimum between 0.05 and 20, as for log-odds that separate the classes. scikit-learn 1.8 offers
    temperature scaling only through CalibratedClassifierCV around a classifier that it fits; its private class for
    scores agrees to 6 digits, but returns 0.19 for separated classes instead of no temperature.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return log_loss(log_odds / np.exp(log_temperature), is_positive)

    low, high = np.log(TEMPERATURES)
    best = float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x)
    return float(np.exp(best)) if min(best - low, high - best) > NEAR_THE_END else None
