"""Two classifiers on the same images: discordant images, exact tests, and the interval of the difference."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from chestx_cli.delong import normal_quantile
from chestx_cli.stats import Interval, Patients, design_effect

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

TANGO, TANGO_PATIENTS = "Tango", "Tango, patients"
# Shares of images that only the first classifier gets right at which the exact test looks for its largest p.
NUISANCE_STEPS = 201
# How far from its mean a number of images is looked at, and as many images more: what is beyond adds less than 1e-12.
STANDARD_DEVIATIONS = 8


def discordant(first_correct: npt.NDArray[np.bool_], second_correct: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Return how many images only the first classifier, and only the second, gets right."""
    return int((first_correct & ~second_correct).sum()), int((second_correct & ~first_correct).sum())


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p of McNemar's test from the two discordant counts (McNemar, Psychometrika 12, 1947).

    It is 1 where no image is discordant.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    return min(1.0, float(mcnemar([[0, only_first], [only_second, 0]], exact=True).pvalue))


def swap_test(change: npt.NDArray[np.int64]) -> float:
    """Return the two-sided exact p of McNemar's test with patients as the unit.

    change: [patients], images that only the second classifier gets right less those that only the first does. If the
    classifiers were equal, swapping them within a patient would be as likely as not: the p is the share of all such
    swaps with a total at least as far from 0 (Fisher's randomisation test of pairs, The Design of Experiments, 1935,
    section 21). With one image per patient it is McNemar's exact p.
    """
    import numpy as np

    size = np.abs(change[change != 0])
    # The distribution of the total, shifted to begin at 0: each patient adds its size twice over, or nothing.
    ways = np.ones(1)
    for step in size:
        longer = np.zeros(len(ways) + 2 * int(step))
        longer[: len(ways)] += ways / 2
        longer[2 * int(step) :] += ways / 2
        ways = longer
    totals = np.arange(len(ways)) - int(size.sum())
    return min(1.0, float(ways[np.abs(totals) >= abs(int(change.sum()))].sum()))


def tango_z(lost: float, won: float, n: float, difference: float) -> float:
    """Return Tango's score statistic of the hypothesis that (won - lost) / n is `difference`, within -1 and 1.

    Tango, Statistics in Medicine 17, 1998, 891-908. The counts may be effective ones.
    """
    b = (2 * n - won + lost) * difference - won - lost
    c = -lost * difference * (1 - difference)
    lost_share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    variance = n * (2 * lost_share + difference * (1 - difference))
    gap = won - lost - n * difference
    if variance <= 0:
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


@functools.lru_cache(maxsize=1024)
def exact_margin_p(lost: int, won: int, n: int, margin: float) -> float:
    """Return the exact one-sided p of the hypothesis that the second classifier loses `margin` of n images or more.

    It is the chance of an outcome whose score (`tango_z`) is as large, where the loss is exactly the margin, at that
    share of discordant images which makes it largest: the unconditional test of Hsueh, Liu and Chen (Biometrics 57,
    2001). Whatever that share is, at most 2.5 % of such studies have a p of 0.025 or less; of the normal
    approximation up to 2.7 % have. Images are independent.
    """
    import numpy as np
    from scipy.special import bdtrc, gammaln, xlog1py

    needed = _fewest_won(tango_z(lost, won, n, -margin), n, margin)
    # From the share at which nothing is won to the one at which all images are discordant, denser at the low end.
    shares = margin + (1 - margin) / 2 * np.linspace(0, 1, NUISANCE_STEPS) ** 2
    every = np.arange(n + 1)
    log_ways = gammaln(n + 1) - gammaln(every + 1) - gammaln(n - every + 1)
    largest = 0.0
    for share in shares.tolist():
        reach = STANDARD_DEVIATIONS * math.sqrt(n * share * (1 - share)) + STANDARD_DEVIATIONS
        likely = every[max(0, int(n * share - reach)) : int(n * share + reach) + 1]
        chance = np.exp(log_ways[likely] + likely * math.log(share) + xlog1py(n - likely, -share))
        left = n - likely
        wins = bdtrc(np.minimum(needed[likely] - 1, left), left, max(0.0, share - margin) / (1 - share))
        largest = max(largest, float(chance @ wins))
    return min(1.0, largest)


def _fewest_won(z: float, n: int, margin: float) -> npt.NDArray[np.int64]:
    """Return for each number lost [n + 1] the fewest won images whose score is at least `z`; n + 1 where none is."""
    import numpy as np

    needed, won = np.full(n + 1, n + 1, dtype=np.int64), 0
    # The score rises with the images won and falls with those lost: what one more lost needs begins here.
    for lost in range(n + 1):
        while won <= n - lost and tango_z(lost, won, n, -margin) < z - 1e-9:
            won += 1
        if won > n - lost:
            break
        needed[lost] = won
    return needed


def tango_interval(lost: float, won: float, n: float) -> tuple[float, float]:
    """Return Tango's 95 % score interval of the difference (won - lost) / n of two paired proportions."""
    from scipy.optimize import brentq

    z, estimate = normal_quantile(), (won - lost) / n

    def bound(end: float, target: float) -> float:
        if abs(tango_z(lost, won, n, end * (1 - 1e-12))) < z:
            return end
        return float(brentq(lambda d: tango_z(lost, won, n, d) - target, estimate, end * (1 - 1e-12)))

    return bound(-1.0, z), bound(1.0, -z)


def paired_effect(change: npt.NDArray[np.int64], patients: Patients) -> float:
    """Return the design effect of the mean of changes [N], each -1, 0 or 1; 1 where no patient has several images."""
    import numpy as np

    share = float(change.mean())
    variance = float(np.abs(change).mean()) - share**2
    return design_effect(change, np.ones(len(change), dtype=bool), variance, patients)


def difference_interval(lost: int, won: int, n: int, effect: float) -> Interval:
    """Return Tango's interval on counts divided by the design effect."""
    low, high = tango_interval(lost / effect, won / effect, n / effect)
    return Interval(low=low, high=high, method=TANGO if effect == 1.0 else TANGO_PATIENTS)


def paired_difference(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], patients: Patients
) -> tuple[float, Interval]:
    """Return by how much the second share of hits exceeds the first on the same images [N], with its interval."""
    lost, won = discordant(first, second)
    n, change = len(first), second.astype("int64") - first.astype("int64")
    return (won - lost) / n, difference_interval(lost, won, n, paired_effect(change, patients))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return p values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979).

    The i-th smallest of k is multiplied by k - i + 1, and is never below a smaller one. statsmodels' version collects
    garbage at every call, which takes longer than the rest of an evaluation.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = highest
    return tuple(corrected)
