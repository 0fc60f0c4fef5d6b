"""Verdicts of paired comparisons (the endpoint decides, guards can veto), and the images needed to settle one."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from chestx_cli.evaluation.endpoints import ACCURACY, AUROC, Difference, Paired, compare, endpoint_of
from chestx_cli.evaluation.statistics.auroc import normal_quantile
from chestx_cli.evaluation.statistics.intervals import ALPHA, Patients, within
from chestx_cli.evaluation.statistics.paired import holm
from chestx_cli.records.answers import BETTER, BROKEN, EXCEEDED, INCONCLUSIVE, INFERIOR, KEPT, NOT_INFERIOR, OPEN
from chestx_cli.records.evaluation import GuardRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.evaluation.predictions import Predictions

POWER = 0.8
# The baseline's name in sentences.
THE_BASELINE = "the baseline"
# Differences of proportions closer than this count as equal.
ROUNDING = 1e-12
BASELINE_FAULTS = "baseline"
SENSITIVITY, SPECIFICITY = "sensitivity", "specificity"


@dataclass(frozen=True, kw_only=True)
class Margins:
    """Non-inferiority margins: the largest acceptable decrease of each measure.

    endpoint: margin of the endpoint itself; the others are margins of its guards. If half of the images are positive
    and only these are affected, 0.02 of accuracy is 0.04 of sensitivity: with a margin of 0.05 the sensitivity guard
    does not veto what the endpoint allows.
    """

    endpoint: float = 0.02
    sensitivity: float = 0.05
    specificity: float = 0.05
    auroc: float = 0.02


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A comparison on the endpoint with its guards; `faults`: why the first classifier is not a valid reference."""

    endpoint: Paired
    guards: tuple[GuardRow, ...] = ()
    faults: tuple[str, ...] = ()

    def guards_in(self, state: str) -> tuple[str, ...]:
        """Return the names of the guards in a state."""
        return tuple(guard.measure for guard in self.guards if guard.state == state)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One of the four verdicts, after Holm's correction of both p values of the endpoint.

    reasons: the measures that made it inferior, or inconclusive although the endpoint is not inferior. holm_p: p for no
    difference. holm_p_margin: one-sided p for a loss of the margin.
    """

    word: str
    reasons: tuple[str, ...]
    holm_p: float
    holm_p_margin: float
    needed_images: int | None = None
    assumption: str | None = None

    @property
    def short(self) -> str:
        """Return the word with its reasons, as in `inferior (sensitivity)`."""
        return f"{self.word} ({', '.join(self.reasons)})" if self.reasons else self.word


def guards_of(
    variant: str,
    first: Predictions,
    second: Predictions,
    patients: Patients,
    margins: Margins,
    auroc: Difference | None,
    endpoint: str = ACCURACY,
) -> tuple[GuardRow, ...]:
    """Return the guards: changes in sensitivity, specificity and AUROC, except the endpoint itself.

    auroc: None if a class has no images. Their p values are not corrected for multiple comparisons: a missed decrease
    does more harm than a false alarm.
    """
    positive = first.is_positive == 1
    guards = (
        _rate_guard(variant, SENSITIVITY, margins.sensitivity, first, second, positive, patients),
        _rate_guard(variant, SPECIFICITY, margins.specificity, first, second, ~positive, patients),
        _guard(variant, AUROC, margins.auroc)
        if auroc is None
        else _guard(
            variant,
            AUROC,
            margins.auroc,
            difference=auroc.value,
            interval=auroc.bounds(),
            p=auroc.p,
            p_margin=auroc.p_at_most(-margins.auroc),
        ),
    )
    return tuple(guard for guard in guards if guard.measure.lower() != endpoint)


def _rate_guard(
    variant: str,
    measure: str,
    margin: float,
    first: Predictions,
    second: Predictions,
    among: npt.NDArray[np.bool_],
    patients: Patients,
) -> GuardRow:
    if not among.any():
        return _guard(variant, measure, margin)
    paired = compare(first.correct[among], second.correct[among], within(patients, among), margin)
    return _guard(
        variant,
        measure,
        margin,
        difference=paired.difference,
        interval=paired.interval.bounds,
        p=paired.p,
        p_margin=paired.p_margin,
    )


def _guard(
    variant: str,
    measure: str,
    margin: float,
    *,
    difference: float | None = None,
    interval: tuple[float, float] | None = None,
    p: float | None = None,
    p_margin: float | None = None,
) -> GuardRow:
    if difference is None or p is None or p_margin is None:
        state = OPEN
    elif p_margin < ALPHA / 2:
        state = KEPT
    elif p < ALPHA and difference < 0:
        state = BROKEN
    else:
        state = EXCEEDED if difference < -margin - ROUNDING else OPEN
    return GuardRow(
        variant=variant,
        measure=measure,
        difference=difference,
        interval=interval,
        p=p,
        margin=margin,
        p_margin=p_margin,
        state=state,
    )


def judge(comparisons: Sequence[Compared]) -> tuple[Verdict, ...]:
    """Return the verdict of each comparison with one reference, Holm-corrected over all of them."""
    endpoints = [comparison.endpoint for comparison in comparisons]
    corrected = zip(comparisons, holm([f.p for f in endpoints]), holm([f.p_margin for f in endpoints]), strict=True)
    return tuple(_verdict(comparison, p, p_margin) for comparison, p, p_margin in corrected)


def _verdict(compared: Compared, p: float, p_margin: float) -> Verdict:
    endpoint, broken, exceeded = compared.endpoint, compared.guards_in(BROKEN), compared.guards_in(EXCEEDED)
    verdict = Verdict(word=INCONCLUSIVE, reasons=(), holm_p=p, holm_p_margin=p_margin)
    fell = p < ALPHA and endpoint.difference < 0 and p_margin >= ALPHA / 2
    if broken or fell:
        return dataclasses.replace(verdict, word=INFERIOR, reasons=(*((endpoint.endpoint,) if fell else ()), *broken))
    holds = BETTER if p < ALPHA and endpoint.difference > 0 else NOT_INFERIOR if p_margin < ALPHA / 2 else None
    if holds is None:
        needed, assumption = needed_images(endpoint)
        return dataclasses.replace(verdict, needed_images=needed, assumption=assumption)
    if compared.faults:
        return dataclasses.replace(verdict, reasons=(BASELINE_FAULTS,))
    return dataclasses.replace(verdict, reasons=exceeded) if exceeded else dataclasses.replace(verdict, word=holds)


def needed_images(paired: Paired) -> tuple[int | None, str]:
    """Return about how many images would settle a comparison with 80 % power, and the assumption made.

    None if no number would, as for equal models with a margin of 0. The discordance is the observed one, shrunk towards
    one half like the centre of Wilson's interval because discordant images are few. First choice is the number for "not
    inferior" between equally accurate models (Lu and Bean, Statistics in Medicine 14, 1995). If the study already has
    more images, it is the number for the observed difference: for "not inferior" if that lies within the margin,
    otherwise for "inferior" by McNemar's test (Connor, Biometrics 43, 1987). Without discordant images it is the number
    for "not inferior" if none will ever be discordant. For other endpoints or several seeds, the standard error
    replaces the discordance.
    """
    if paired.endpoint != ACCURACY or paired.seeds > 1:
        return _needed_by_width(paired)
    z, power = normal_quantile(), NormalDist().inv_cdf(POWER)
    if not paired.lost + paired.won:
        if not paired.margin:
            return None, "a margin of 0 cannot be reached"
        patients = math.log(ALPHA / 2) / math.log1p(-paired.margin)
        return _rounded(max(paired.n + 1, math.ceil(paired.effect * patients))), "if they continue to agree"
    shift = z**2
    n = paired.n / paired.effect
    discordance = ((paired.lost + paired.won) / paired.effect + shift / 2) / (n + shift)
    both = f"if they disagree on {100 * discordance:.1f} % of images"

    def images(gap: float) -> int:
        """Return the number of images needed to distinguish two differences that are `gap` apart."""
        spread = z * math.sqrt(discordance) + power * math.sqrt(max(0.0, discordance - paired.difference**2))
        return math.ceil(paired.effect * (spread / gap) ** 2)

    if paired.margin:
        equal = math.ceil(paired.effect * discordance * ((z + power) / paired.margin) ** 2)
        if equal > paired.n:
            return _rounded(equal), f"{both} and are equally accurate"
    here = f"{both} and differ by {100 * paired.difference:+.1f} points, as here"
    gap = paired.margin + paired.difference
    if gap > ROUNDING:
        return _rounded(max(paired.n + 1, images(gap))), here
    if paired.difference:
        return _rounded(max(paired.n + 1, images(abs(paired.difference)))), here
    return None, "a margin of 0 cannot be reached"


def _needed_by_width(paired: Paired) -> tuple[int | None, str]:
    """Return `needed_images` for any endpoint, from the interval's width: its square is proportional to 1 / images."""
    z, power = normal_quantile(), NormalDist().inv_cdf(POWER)
    error = max(paired.difference - paired.interval.low, paired.interval.high - paired.difference) / z
    if not 0 < error < math.inf:
        return None, "how far the difference scatters cannot be estimated from these images"

    def images(gap: float) -> int:
        """Return the number of images needed to distinguish two differences that are `gap` apart."""
        return math.ceil(paired.n * ((z + power) * error / gap) ** 2)

    if paired.margin and images(paired.margin) > paired.n:
        return _rounded(images(paired.margin)), "if they are equal and differ from image to image as here"
    here = "if they differ as here"
    gap = paired.margin + paired.difference
    if gap <= ROUNDING:
        gap = abs(paired.difference)
    return (_rounded(max(paired.n + 1, images(gap))), here) if gap else (None, "a margin of 0 cannot be reached")


def _rounded(images: int) -> int:
    """Return a number of images rounded up to two significant digits, the precision of the estimate."""
    step: int = 10 ** max(0, len(str(images)) - 2)
    return -(-images // step) * step


def in_words(compared: Compared, verdict: Verdict, reference: str) -> str:
    """Return a verdict as the rest of a sentence that begins with the variant's name and `is`."""
    endpoint = compared.endpoint
    measure = endpoint_of(endpoint.endpoint)
    gap = (
        f"{measure.change(endpoint.difference, endpoint.interval.bounds)}; {endpoint.lost} of {_decisions(endpoint)} "
        f"correct with {reference} only, {endpoint.won} with the variant only"
        f"{_at_the_border(endpoint)}"
    )
    p = f"p = {verdict.holm_p:.2g}"
    if verdict.holm_p > endpoint.p:
        p = f"corrected {p}"
    if verdict.word == INFERIOR:
        reasons = [_fall(guard) for guard in compared.guards if guard.measure in verdict.reasons]
        if endpoint.endpoint in verdict.reasons:
            gap += f"; {p}"
        return f"{verdict.short.replace('inferior', f'inferior to {reference}', 1)}: {'; '.join([*reasons, gap])}"
    if verdict.word == INCONCLUSIVE:
        head = "inconclusive" if reference == THE_BASELINE else f"inconclusive against {reference}"
        return f"{head}: {_why_inconclusive(compared, verdict, reference)} ({gap})"
    differs = verdict.holm_p < ALPHA
    gap = f"{gap}; {p}" if differs else gap
    if verdict.word == BETTER:
        return f"better than {reference} ({gap}){_unsettled(compared)}"
    head = f"not inferior to {reference} within {endpoint.margin:g}"
    if differs:
        worse = "less accurate" if endpoint.endpoint == ACCURACY else measure.worse
        head = f"{head}, though {worse}"
    return f"{head} ({gap}){_unsettled(compared)}"


def _decisions(endpoint: Paired) -> str:
    """Return the denominator of discordant decisions as text."""
    images = f"{endpoint.n:,} images"
    return (
        f"{endpoint.n * endpoint.seeds:,} decisions ({images} under {endpoint.seeds} seeds)"
        if endpoint.seeds > 1
        else images
    )


def _at_the_border(endpoint: Paired) -> str:
    """Return the p values as text if the interval alone suggests another verdict; empty if they agree."""
    p_values = []
    if (endpoint.p < ALPHA) == (endpoint.interval.low <= 0 <= endpoint.interval.high):
        p_values.append(f"p = {endpoint.p:.2g} for no difference")
    if (endpoint.p_margin < ALPHA / 2) != (endpoint.interval.low > -endpoint.margin):
        p_values.append(f"one-sided p = {endpoint.p_margin:.2g} for a loss of {endpoint.margin:g}")
    return f"; {' and '.join(p_values)}, which the verdict uses: the interval is approximate" if p_values else ""


def _fall(guard: GuardRow) -> str:
    """Return a guard's decrease as text."""
    if guard.difference is None or guard.interval is None or guard.p is None:
        raise ValueError(f"nothing is known about {guard.measure}")
    return f"{guard.measure} {_change(guard.measure, guard.difference, guard.interval)}, p = {guard.p:.2g}"


def _change(measure: str, difference: float, interval: tuple[float, float]) -> str:
    low, high = interval
    if measure == AUROC:
        return f"{difference:+.3f}, 95 % CI {low:+.3f} to {high:+.3f}"
    return f"{100 * difference:+.1f} points, 95 % CI {100 * low:+.1f} to {100 * high:+.1f}"


def _why_inconclusive(compared: Compared, verdict: Verdict, reference: str) -> str:
    if verdict.reasons == (BASELINE_FAULTS,):
        why = "; ".join(compared.faults)
        return f"{reference} is not shown to have learned anything, so being as good proves nothing ({why})"
    if verdict.reasons:
        fell = [
            f"{guard.measure} {_change(guard.measure, guard.difference, guard.interval)}"
            for guard in compared.guards
            if guard.measure in verdict.reasons and guard.difference is not None and guard.interval is not None
        ]
        noun = endpoint_of(compared.endpoint.endpoint).noun
        return f"{noun} holds, but {' and '.join(fell)} exceeds its margin; the images are too few to confirm it"
    if verdict.needed_images is None:
        return verdict.assumption or f"{compared.endpoint.n:,} images are too few"
    return f"{compared.endpoint.n:,} images are too few; about {verdict.needed_images:,} would settle it"


def _unsettled(compared: Compared) -> str:
    unsettled = compared.guards_in(OPEN)
    if not unsettled:
        return ""
    margins = {guard.measure: guard.margin for guard in compared.guards}
    named = ", ".join(f"{measure} (margin {margins[measure]:g})" for measure in unsettled)
    return f"; too few images to settle {named}"
