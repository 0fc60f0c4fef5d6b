"""Intervals and paired tests, from statsmodels; what they allow to be said in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ALPHA = 0.05
BOOTSTRAP_DRAWS = 2000


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a proportion (Wilson, JASA 22, 1927)."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=ALPHA, method="wilson")
    return float(low), float(high)


def auroc_interval(
    is_positive: npt.NDArray[np.int64],
    probability: npt.NDArray[np.float64],
    patients: npt.NDArray[np.str_],
    rng: np.random.Generator,
) -> tuple[float, float] | None:
    """Return a 95 % percentile interval of the AUROC from 2,000 bootstrap draws of whole patients.

    None where all draws agree, as with perfect separation or equal scores: that is no sign of certainty.

    All arrays are [N]. Patients, not images, are drawn, since images of one patient resemble each other (Davison and
    Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Draws without both classes are left out.
    """
    import numpy as np
    from scipy.stats import rankdata

    _, patient = np.unique(patients, return_inverse=True)
    members = [np.flatnonzero(patient == index) for index in range(patient.max() + 1)]
    found = []
    for _ in range(BOOTSTRAP_DRAWS):
        rows = np.concatenate([members[index] for index in rng.integers(len(members), size=len(members))])
        positive = is_positive[rows] == 1
        n_positive, n_negative = int(positive.sum()), int((~positive).sum())
        if n_positive and n_negative:
            rank_sum = rankdata(probability[rows])[positive].sum()
            found.append((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
    low, high = np.percentile(found, [2.5, 97.5])
    return (float(low), float(high)) if low < high else None


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p of McNemar's test from the two discordant counts (McNemar, Psychometrika 12, 1947).

    It is 1 where no image is discordant.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    return min(1.0, float(mcnemar([[0, only_first], [only_second, 0]], exact=True).pvalue))


def discordant(first_correct: npt.NDArray[np.bool_], second_correct: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Return how many images only the first classifier, and only the second, gets right."""
    return int((first_correct & ~second_correct).sum()), int((second_correct & ~first_correct).sum())


def verdict(only_reference: int, only_variant: int, n: int, reference: str = "the baseline") -> str:
    """Return what a paired comparison with a reference on n images allows to be said."""
    p = mcnemar_exact(only_reference, only_variant)
    said = f"{only_reference} lost, {only_variant} won of {n} images, McNemar exact p = {p:.3g}"
    if p >= ALPHA:
        return f"not distinguishable from {reference} ({said})"
    return f"{'worse' if only_reference > only_variant else 'better'} than {reference} ({said}, before any correction)"
