"""Operating points: threshold choice on validation images, predictive values at a prevalence, net benefit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.errors import UsageError
from chestx_cli.evaluation.statistics.auroc import normal_quantile
from chestx_cli.evaluation.statistics.intervals import Patients, design_effect

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

YOUDEN = "youden"
FURTHEST_RATIO = 1e9
CHOICES_HELP = "youden, sensitivity=0.95, specificity=0.90 or 0.5"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Rule for choosing a threshold: the best Youden index, a required rate, or a fixed probability."""

    kind: str
    value: float = 0.0

    def __str__(self) -> str:
        """Return the rule as typed on the command line."""
        if self.kind == YOUDEN:
            return YOUDEN
        return f"{self.value:g}" if self.kind == "threshold" else f"{self.kind}={self.value:g}"


def parse_rule(text: str) -> Rule:
    """Parse an operating point as typed on the command line; raises UsageError."""
    if text == YOUDEN:
        return Rule(kind=YOUDEN)
    kind, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if kind not in ("", "sensitivity", "specificity") or not 0 < value < 1:
        raise UsageError(f"unknown --operating-point {text!r}", f"give {CHOICES_HELP}")
    return Rule(kind=kind or "threshold", value=value)


def choose_threshold(rule: Rule, is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64]) -> float:
    """Return a rule's threshold from validation images [N]; probabilities at or above it are classified as positive.

    Youden's index is sensitivity + specificity - 1 (Youden, Cancer 3, 1950). For a required sensitivity the threshold
    is the highest that reaches it; for a required specificity, the lowest. Thresholds lie midway between neighbouring
    probabilities.
    """
    import numpy as np

    if rule.kind == "threshold":
        return rule.value
    levels = np.unique(probability)
    # Midway between neighbours, so that rounding on another machine does not change a validation decision.
    cuts = np.concatenate([[levels[0] / 2], (levels[1:] + levels[:-1]) / 2, [(1 + levels[-1]) / 2]])
    positive, negative = np.sort(probability[is_positive == 1]), np.sort(probability[is_positive == 0])
    sensitivity = 1 - np.searchsorted(positive, cuts) / len(positive)
    specificity = np.searchsorted(negative, cuts) / len(negative)
    if rule.kind == "sensitivity":
        # The highest cut; the lowest, which calls every image positive, always qualifies.
        return float(cuts[np.flatnonzero(sensitivity >= rule.value - 1e-12)[-1]])
    if rule.kind == "specificity":
        return float(cuts[np.flatnonzero(specificity >= rule.value - 1e-12)[0]])
    index = sensitivity + specificity
    best = np.flatnonzero(index >= index.max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best] - 0.5))]])


@dataclass(frozen=True, kw_only=True)
class PredictiveValues:
    """PPV and NPV with 95 % intervals; None if no image was classified as positive (PPV) or as negative (NPV)."""

    ppv: float | None
    ppv_interval: tuple[float, float]
    npv: float | None
    npv_interval: tuple[float, float]


def predictive_values(
    is_positive: npt.NDArray[np.int64], decision: npt.NDArray[np.int64], prevalence: float, patients: Patients
) -> PredictiveValues:
    """Return PPV and NPV at a prevalence from sensitivity and specificity, by Bayes' rule.

    is_positive, decision: [N]. The intervals follow from score intervals of the likelihood ratios, each a ratio of two
    independent proportions (Koopman, Biometrics 40, 1984), with effective counts if patients have several images.
    """
    positive, called = is_positive == 1, decision == 1
    effective: dict[str, tuple[float, float]] = {}
    for name, among in (("positive", positive), ("negative", ~positive)):
        images = int(among.sum())
        share = float((called & among).sum()) / images
        effect = design_effect(called & among, among, share * (1 - share), patients)
        effective[name] = (share * images / effect, images / effect)
    (called_true, m), (called_false, n) = effective["positive"], effective["negative"]
    odds = prevalence / (1 - prevalence)
    of_call = ratio_interval(called_true, m, called_false, n)
    of_none = ratio_interval(n - called_false, n, m - called_true, m)

    def value(hit: float, odd: float) -> float | None:
        return hit / (hit + odd) if hit + odd else None

    def bounds(ratio: tuple[float, float], chance: float) -> tuple[float, float]:
        low, high = (1.0 if math.isinf(r) else r * chance / (1 + r * chance) for r in ratio)
        return low, high

    return PredictiveValues(
        ppv=value(called_true / m * prevalence, called_false / n * (1 - prevalence)),
        ppv_interval=bounds(of_call, odds),
        npv=value((1 - called_false / n) * (1 - prevalence), (1 - called_true / m) * prevalence),
        npv_interval=bounds(of_none, 1 / odds),
    )


def ratio_interval(a: float, m: float, b: float, n: float) -> tuple[float, float]:
    """Return Koopman's 95 % score interval of (a / m) / (b / n); counts may be fractional (effective).

    statsmodels 0.15 (confint_proportions_2indep, "score") returns complex numbers for 20 of 20 against 30 of 30
    (Koopman's interval: 0.839 to 1.128), and finds no lower end in some small samples.
    """
    from scipy.optimize import brentq

    z2 = normal_quantile() ** 2
    if a == m and b == n:
        # Here the score is n (ratio - 1), and the search would have no starting bracket.
        return 1 / (1 + z2 / m), 1 + z2 / n

    def excess(log_ratio: float) -> float:
        ratio = math.exp(log_ratio)
        # Maximum-likelihood estimate of the second proportion under the constraint p = ratio * q.
        half = (ratio * (m + b) + a + n) / 2
        q = (a + b) / (half + math.sqrt(max(0.0, half**2 - ratio * (m + n) * (a + b))))
        p = min(1.0, ratio * q)
        variance = p * (1 - p) / m + ratio**2 * q * (1 - q) / n
        return (a / m - ratio * b / n) ** 2 - z2 * variance

    beyond = math.log(FURTHEST_RATIO)
    middle = math.log(a / m / (b / n)) if a > 0 and b > 0 else math.copysign(beyond, a - b)
    low = math.exp(brentq(excess, -beyond, middle)) if a > 0 else 0.0
    high = math.exp(brentq(excess, middle, beyond)) if b > 0 else math.inf
    return low, high


def net_benefit(
    is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], thresholds: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the net benefit per image of treating images whose probability reaches each threshold, [thresholds].

    (True positives - false positives × odds of the threshold) / N (Vickers and Elkin, Medical Decision Making 26,
    2006).
    """
    import numpy as np

    positive = is_positive == 1
    called = probability[None, :] >= thresholds[:, None]
    true, false = (called & positive).mean(axis=1), (called & ~positive).mean(axis=1)
    return np.asarray(true - false * thresholds / (1 - thresholds), dtype=np.float64)


def counts_by_threshold(
    is_positive: npt.NDArray[np.int64], probability: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return true and false positives [M + 1]: 0, then the counts at the M distinct probabilities, highest first.

    These are the points of the ROC and precision-recall curves (Fawcett, Pattern Recognition Letters 27, 2006).
    scikit-learn's roc_curve and precision_recall_curve give the same points (a test compares them), but importing
    sklearn.metrics takes over a second in each process that draws figures, and each call takes 0.4 ms instead of 0.04
    ms for 624 images.
    """
    import numpy as np

    levels = np.unique(probability)
    above = [
        np.append(0, (len(part) - np.searchsorted(part, levels))[::-1])
        for part in (np.sort(probability[is_positive == 1]), np.sort(probability[is_positive == 0]))
    ]
    return above[0], above[1]
