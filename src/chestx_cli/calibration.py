"""Calibration: whether a probability of 0.8 comes true in 8 of 10 images, and the temperature that mends it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chestx_cli.stats import Patients, percentile_interval, wilson_interval

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MOST_BINS, IMAGES_PER_BIN = 10, 10
# Probabilities of exactly 0 or 1 have no logit and an infinite log-loss; this is their float32 neighbour's order.
SMALLEST = 1e-7
TEMPERATURES = (0.05, 20.0)
NEAR_THE_END = 1e-3


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Images of neighbouring probabilities: how many, their mean probability, the share that is positive."""

    images: int
    mean_probability: float
    positive_share: float
    positive_interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far probabilities can be taken at their word; slope and intercept are None where the fit has no optimum."""

    brier: float
    log_loss: float
    slope: float | None
    slope_interval: tuple[float, float] | None
    intercept: float | None
    ece: float
    ece_interval: tuple[float, float] | None
    bins: tuple[Bin, ...]


def logits(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return probabilities as log-odds, those nearest 0 and 1 held away from them."""
    import numpy as np

    held = np.clip(probability, SMALLEST, 1 - SMALLEST)
    found: npt.NDArray[np.float64] = np.log(held / (1 - held))
    return found


def calibrate(
    is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], patients: Patients
) -> Calibration:
    """Return the calibration of probabilities [N] of the positive class against the truth [N]."""
    from sklearn.metrics import brier_score_loss, log_loss

    edges = bin_starts(probability)
    slope, slope_interval = cox_slope(is_positive, probability, patients)
    return Calibration(
        brier=float(brier_score_loss(is_positive, probability)),
        log_loss=float(log_loss(is_positive, probability.clip(SMALLEST, 1 - SMALLEST), labels=[0, 1])),
        slope=slope,
        slope_interval=slope_interval,
        intercept=cox_intercept(is_positive, probability),
        ece=expected_error(is_positive, probability),
        ece_interval=expected_error_interval(is_positive, probability, patients),
        bins=_bins(is_positive, probability, edges),
    )


def bin_starts(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return where bins of equal mass begin among the sorted probabilities: ten at most, ten images each at least.

    Equal probabilities are in one bin: which of them would be on which side is the order of the files.
    """
    import numpy as np

    n, ordered = len(probability), np.sort(probability)
    bins = max(1, min(MOST_BINS, n // IMAGES_PER_BIN))
    levels = ordered[(np.arange(bins) * n) // bins]
    return np.unique(np.searchsorted(ordered, levels, side="left")).astype(np.int64)


def expected_error(is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64]) -> float:
    """Return the expected calibration error over bins of equal mass (Nguyen and O'Connor, EMNLP 2015).

    The mean over images of |mean probability - share positive| of their bin; positively biased in small samples.
    """
    import numpy as np

    order = np.argsort(probability, kind="stable")
    gap = np.add.reduceat((probability - is_positive)[order], bin_starts(probability))
    return float(np.abs(gap).sum() / len(probability))


def expected_error_interval(
    is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], patients: Patients
) -> tuple[float, float] | None:
    """Return the middle 95 % of the calibration error over the bootstrap draws of patients, bins held fixed."""
    import numpy as np

    order = np.argsort(probability, kind="stable")
    bin_of = np.empty(len(probability), dtype=np.int64)
    starts = bin_starts(probability)
    bin_of[order] = np.searchsorted(starts, np.arange(len(probability)), side="right") - 1
    gap = (probability - is_positive).astype(np.float64)
    totals = patients.totals(*(gap * (bin_of == i) for i in range(len(starts))), np.ones(len(gap)))
    return percentile_interval(np.abs(totals[:-1]).sum(axis=0) / totals[-1])


def _bins(
    is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], starts: npt.NDArray[np.int64]
) -> tuple[Bin, ...]:
    import numpy as np

    order = np.argsort(probability, kind="stable")
    return tuple(
        Bin(
            images=len(rows),
            mean_probability=float(probability[rows].mean()),
            positive_share=float(is_positive[rows].mean()),
            positive_interval=wilson_interval(int(is_positive[rows].sum()), len(rows)),
        )
        for rows in np.split(order, starts[1:])
    )


def cox_slope(
    is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], patients: Patients
) -> tuple[float | None, tuple[float, float] | None]:
    """Return the slope of a logistic regression of the truth on the log-odds, and its 95 % interval.

    Below 1 the probabilities are too extreme, above 1 too timid (Cox, Biometrika 45, 1958). The variance is summed
    within patients. None where the log-odds separate the classes or do not vary: the likelihood has no maximum then.
    """
    import numpy as np

    from chestx_cli.delong import normal_quantile

    x = logits(probability)
    positive = is_positive == 1
    if not positive.any() or positive.all() or x[positive].min() >= x[~positive].max() or np.ptp(x) == 0:
        return None, None
    if x[positive].max() <= x[~positive].min():
        return None, None
    design = np.stack([np.ones_like(x), x], axis=1)
    with warnings.catch_warnings():
        # Where the classes are nearly separated some predictions are 1, and there is a slope but no interval.
        warnings.simplefilter("ignore")
        found = _logistic(is_positive, design, None).fit(cov_type="cluster", cov_kwds={"groups": patients.code})
        slope, half = float(found.params[1]), normal_quantile() * float(found.bse[1])
    return slope, (slope - half, slope + half) if math.isfinite(half) else None


def cox_intercept(is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64]) -> float | None:
    """Return calibration in the large: the intercept with the slope held at 1. None where one class is absent.

    Above 0 the probabilities are too low on the whole.
    """
    import numpy as np

    if not 0 < int(is_positive.sum()) < len(is_positive):
        return None
    return float(_logistic(is_positive, np.ones((len(is_positive), 1)), logits(probability)).fit().params[0])


def _logistic(
    is_positive: npt.NDArray[np.int64], design: npt.NDArray[np.float64], offset: npt.NDArray[np.float64] | None
) -> Any:
    """Return a logistic regression, not yet fitted."""
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    return GLM(is_positive, design, family=Binomial(), offset=offset)


def fit_temperature(logit: npt.NDArray[np.float64], is_positive: npt.NDArray[np.int64]) -> float | None:
    """Return the temperature that gives log-odds [N] divided by it the lowest log-loss (Guo et al., ICML 2017).

    None where there is no lowest between 0.05 and 20, as where the log-odds separate the classes.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        eta = logit / np.exp(log_temperature)
        return float((np.logaddexp(0, eta) - is_positive * eta).mean())

    low, high = np.log(TEMPERATURES)
    found = float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x)
    return float(np.exp(found)) if min(found - low, high - found) > NEAR_THE_END else None
