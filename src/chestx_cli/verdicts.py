"""What a paired comparison allows to be said, and how many images would be needed to say more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from chestx_cli.delong import normal_quantile
from chestx_cli.paired import (
    difference_interval,
    discordant,
    exact_margin_p,
    holm,
    mcnemar_exact,
    paired_effect,
    swap_test,
    tango_z,
)
from chestx_cli.stats import ALPHA, Interval, Patients

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

POWER = 0.8
BETTER, NOT_INFERIOR, INFERIOR, UNDECIDED = "better", "not inferior", "inferior", "cannot tell"
MCNEMAR, SWAP = "McNemar", "swap of patients"


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two classifiers' decisions on the same n images, before any correction for other comparisons.

    lost and won are the images that only the first, and only the second, gets right; `effect` is the design effect of
    the difference; `p` is the exact p of no difference, by `test`; `p_margin` the one-sided p of a loss of `margin`.
    """

    n: int
    lost: int
    won: int
    effect: float
    interval: Interval
    p_images: float
    p: float
    test: str
    margin: float
    p_margin: float

    @property
    def difference(self) -> float:
        """Return the second classifier's share of right decisions less the first's."""
        return (self.won - self.lost) / self.n


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What may be said, one of the four words, after Holm's correction of both p values."""

    word: str
    holm_p: float
    holm_p_margin: float
    needed_images: int | None
    assumption: str | None


def compare(
    first_correct: npt.NDArray[np.bool_], second_correct: npt.NDArray[np.bool_], patients: Patients, margin: float
) -> Paired:
    """Return the comparison of the second classifier with the first on the same images [N]."""
    from scipy.stats import t as student

    lost, won = discordant(first_correct, second_correct)
    n, change = len(first_correct), second_correct.astype("int64") - first_correct.astype("int64")
    repeated = patients.n < n
    effect = paired_effect(change, patients)
    p_images = mcnemar_exact(lost, won)
    per_patient = patients.sums(change.astype("float64")).round().astype("int64")
    if repeated:
        # The score with n - 1 for n, which claims less in small samples (Laud, Pharmaceutical Statistics 16, 2017).
        z = tango_z(lost / effect, won / effect, n / effect, -margin) * math.sqrt(max(0.0, 1 - effect / n))
        # The variance comes from the few patients on whom both disagree, as many as a loss of the margin makes at
        # least. The relative variance of such a variance is 1 / units (Satterthwaite, Biometrics Bulletin 2, 1946).
        disagreed = int((patients.sums(abs(change).astype("float64")) > 0.5).sum())
        units = max(float(disagreed), margin * patients.n)
        p_margin = float(student.sf(z, 2 * units))
    else:
        p_margin = exact_margin_p(lost, won, n, margin)
    return Paired(
        n=n,
        lost=lost,
        won=won,
        effect=effect,
        interval=difference_interval(lost, won, n, effect),
        p_images=p_images,
        p=swap_test(per_patient) if repeated else p_images,
        test=SWAP if repeated else MCNEMAR,
        margin=margin,
        p_margin=p_margin,
    )


def judge(found: Sequence[Paired]) -> tuple[Verdict, ...]:
    """Return the verdict of each of several comparisons with one reference; Holm's correction is over all of them."""
    corrected = zip(found, holm([f.p for f in found]), holm([f.p_margin for f in found]), strict=True)
    return tuple(_verdict(paired, p, p_margin, len(found)) for paired, p, p_margin in corrected)


def _verdict(found: Paired, p: float, p_margin: float, comparisons: int) -> Verdict:
    needed, assumption = None, None
    if p < ALPHA and found.difference > 0:
        word = BETTER
    elif p_margin < ALPHA / 2:
        word = NOT_INFERIOR
    elif p < ALPHA:
        word = INFERIOR
    else:
        word = UNDECIDED
        needed, assumption = needed_images(found, comparisons)
    return Verdict(word=word, holm_p=p, holm_p_margin=p_margin, needed_images=needed, assumption=assumption)


def needed_images(found: Paired, comparisons: int = 1) -> tuple[int, str]:
    """Return about how many images would be needed for a verdict with 80 % power, and on what assumption.

    The share of discordant images is taken as observed, drawn towards one half as the centre of Wilson's interval is,
    since few are seen. First for "not inferior" where both are equally accurate (Lu and Bean, Statistics in Medicine
    14, 1995); where the images at hand exceed that, for the observed difference by McNemar's test (Connor, Biometrics
    43, 1987). The level is divided by the number of comparisons.
    """
    alpha = ALPHA / comparisons
    z, power = normal_quantile(alpha), NormalDist().inv_cdf(POWER)
    shift = normal_quantile() ** 2
    n = found.n / found.effect
    discordance = ((found.lost + found.won) / found.effect + shift / 2) / (n + shift)
    equal = math.ceil(found.effect * discordance * ((z + power) / found.margin) ** 2)
    both = f"if they disagree on {100 * discordance:.1f} % of images"
    if equal > found.n:
        return _rounded(equal), f"{both} and are equally accurate"
    size = max(abs(found.difference), 1 / found.n)
    spread = z * math.sqrt(discordance) + power * math.sqrt(max(0.0, discordance - size**2))
    told = math.ceil(found.effect * (spread / size) ** 2)
    return _rounded(max(told, found.n + 1)), f"{both} and differ by {100 * size:.1f} points, as here"


def _rounded(images: int) -> int:
    """Return a number of images with two digits, rounded up: more would pretend to know it better."""
    step: int = 10 ** max(0, len(str(images)) - 2)
    return -(-images // step) * step


def in_words(paired: Paired, verdict: Verdict, reference: str) -> str:
    """Return a verdict as the end of a sentence that begins with the variant's name and `is`."""
    n, margin = f"{paired.n:,} images", f"{paired.margin:g}"
    low, high = (f"{100 * end:+.1f}" for end in paired.interval.bounds)
    gap = f"{paired.lost} lost, {paired.won} won of {n}: {100 * paired.difference:+.1f} points, 95 % {low} to {high}"
    if verdict.word == BETTER:
        return f"better than {reference} ({gap}; p = {verdict.holm_p:.2g})"
    if verdict.word == NOT_INFERIOR:
        less = f", though less accurate (p = {verdict.holm_p:.2g})" if verdict.holm_p < ALPHA else ""
        return f"not inferior to {reference} within {margin}{less} ({gap})"
    if verdict.word == INFERIOR:
        return f"inferior to {reference} ({gap}; p = {verdict.holm_p:.2g})"
    return (
        f"neither shown to differ from {reference} nor to be within {margin} of it: cannot tell with {n}; about "
        f"{verdict.needed_images:,} would be needed {verdict.assumption} ({gap}; p = {verdict.holm_p:.2g})"
    )
