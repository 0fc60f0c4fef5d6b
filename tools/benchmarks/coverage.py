"""Simulated studies: do the 95 % intervals cover 95 %, and do verdicts stay within their error rates?

Run with `python -m tools.benchmarks.coverage`. The truth is known: images of one patient share half of their noise, and
accuracy, AUROC and their differences follow from the normal distribution. Coverage is averaged over studies whose true
accuracy, true loss and correlation of the classifiers are drawn for each study, as studies differ (Newcombe, Stat Med
17, 1998; Brown, Cai and DasGupta, Stat Sci 16, 2001): at a single fixed truth, the coverage of discrete data jumps with
any method.

The error rates of verdicts are tested at fixed truths, where averaging cannot hide a failure. The rate at which a
variant is falsely called not inferior is close to its limit, so 2,000 studies would be too noisy: for independent
images it is computed exactly, over all outcomes; for patients with several images it is estimated from 40,000 further
studies.

Two further kinds of study: classifiers expected to disagree on 0 to 3 images, and a second classifier whose threshold
is shifted so that its sensitivity falls by exactly the margin of that guard.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit
from scipy.stats import binom, multivariate_normal, norm

from chestx_cli.core.machine import available_threads
from chestx_cli.evaluation.endpoints import compare
from chestx_cli.evaluation.predictions import Images, Predictions
from chestx_cli.evaluation.statistics.auroc import auroc_difference, auroc_interval, auroc_of, bootstrap_interval
from chestx_cli.evaluation.statistics.calibration import cox_slope, expected_error_interval
from chestx_cli.evaluation.statistics.intervals import (
    ALPHA,
    Patients,
    bounds,
    draw_patients,
    percentile_interval,
    proportion_interval,
    wilson_interval,
)
from chestx_cli.evaluation.statistics.operating_points import predictive_values
from chestx_cli.evaluation.statistics.paired import Changes, changes_of, difference_interval, exact_margin_p, margin_p
from chestx_cli.evaluation.verdicts import SENSITIVITY, Compared, Margins, guards_of, judge
from chestx_cli.records.answers import BETTER, BROKEN, INFERIOR, KEPT, NOT_INFERIOR

if TYPE_CHECKING:
    import numpy.typing as npt

    from chestx_cli.records.evaluation import GuardRow

    Floats = npt.NDArray[np.float64]

STUDIES = 2000
# For the rate of false claims with several images per patient: resolves 0.1 percentage points.
CLAIM_STUDIES = 40_000
SMALL, LARGE = 56, 624
MARGINS = Margins()
MARGIN = MARGINS.endpoint
# Largest expected number of discordant images in a rare study, drawn uniformly.
MOST_DISCORDANT = 3
PREVALENCE = 0.1
IMAGES_OF_PATIENTS = (1, 1, 2, 1, 3, 1, 4, 2, 1, 1, 6)
SHARED_BY_PATIENT, SHARED_BY_CLASSIFIERS = 0.5, 0.9
# Ranges: mediocre to very good classifiers; a compression that gains 2 points to one that loses 10; the share of noise
# that both variants have in common, from a strongly to a hardly changed variant.
ACCURACIES, LOSSES, SHARES = (0.80, 0.97), (-0.02, 0.10), (0.6, 0.95)
# Log-odds are too large by this factor: the true calibration slope is its inverse.
OVERCONFIDENCE = 2.0
TOLERATED = (0.93, 0.97)
MOST_FALSE_DIFFERENCES, MOST_FALSE_CLAIMS = 0.05, 0.025
# Shares of images that only the reference classifies correctly, for which the exact rate of false claims is printed.
LOST_SHARES = (0.02, 0.0225, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2)
EXACT_SIZES = (SMALL, 100, 200, 378, LARGE, 1000)
# Outcomes rarer than this are negligible.
NEGLIGIBLE = 1e-11


@dataclass(frozen=True, kw_only=True)
class Truth:
    """True accuracy of the first classifier, loss of the second, and the share of noise that both have in common."""

    accuracy: float
    loss: float
    shared: float = SHARED_BY_CLASSIFIERS
    # Shift of the second classifier's threshold towards the negative class.
    moved: float = 0.0

    @property
    def gaps(self) -> tuple[float, float]:
        """Return the distance between the classes' mean scores for both classifiers, in noise standard deviations."""
        return 2 * float(norm.ppf(self.accuracy)), 2 * float(norm.ppf(self.accuracy - self.loss))

    @property
    def lost_share(self) -> float:
        """Return the share of images that only the first gets right."""
        ends = [float(norm.ppf(self.accuracy)), float(norm.ppf(self.accuracy - self.loss))]
        both = multivariate_normal.cdf(ends, mean=[0, 0], cov=[[1, self.shared], [self.shared, 1]], abseps=1e-10)
        return self.accuracy - float(both)

    @property
    def areas(self) -> tuple[float, float]:
        """Return the AUROC of both classifiers."""
        first, second = (float(norm.cdf(gap / math.sqrt(2))) for gap in self.gaps)
        return first, second

    @property
    def calibration_error(self) -> float:
        """Return the mean absolute error of the first classifier's probabilities, by quadrature."""
        gap, score = self.gaps[0], np.linspace(-15, 15, 6001)
        density = (norm.pdf(score - gap / 2) + norm.pdf(score + gap / 2)) / 2
        return float(np.trapezoid(np.abs(expit(OVERCONFIDENCE * gap * score) - expit(gap * score)) * density, score))


def moved_truth(accuracy: float) -> Truth:
    """Return a truth whose second classifier loses exactly the margin of sensitivity, by a shift of its threshold."""
    moved = float(norm.ppf(accuracy) - norm.ppf(accuracy - MARGINS.sensitivity))
    return Truth(accuracy=accuracy, loss=0.0, moved=moved)


def drawn_truth(rng: np.random.Generator) -> Truth:
    """Return a truth drawn uniformly from plausible values."""
    accuracy, loss, shared = (float(rng.uniform(*ends)) for ends in (ACCURACIES, LOSSES, SHARES))
    return Truth(accuracy=accuracy, loss=loss, shared=shared)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A simulation: number of images, whether patients have several, and the truth; None draws one per study."""

    images: int
    clustered: bool
    truth: Truth | None

    @property
    def sizes(self) -> list[int]:
        """Return the number of images of each patient."""
        if not self.clustered:
            return [1] * self.images
        sizes: list[int] = []
        while sum(sizes) < self.images:
            sizes.append(IMAGES_OF_PATIENTS[len(sizes) % len(IMAGES_OF_PATIENTS)])
        sizes[-1] -= sum(sizes) - self.images
        return sizes


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One simulated study: the truth and both classifiers' scores, all [N]; scores above 0 are positive."""

    truth: npt.NDArray[np.int64]
    scores: tuple[Floats, Floats]

    def predictions(self, classifier: int) -> Predictions:
        """Return the predictions of one classifier."""
        score = self.scores[classifier]
        names = np.arange(len(score)).astype(np.str_)
        images = Images(ids=names, groups=names, is_positive=self.truth)
        return Predictions(images=images, probability=expit(score), decision=(score > 0).astype(np.int64))


@dataclass
class Coverage:
    """How often an interval covered the truth, and its mean width."""

    studies: int = 0
    covered: int = 0
    width: float = 0.0
    absent: int = 0

    def add(self, interval: tuple[float, float] | None, truth: float) -> None:
        """Count one study's interval."""
        self.studies += 1
        if interval is None or not all(map(math.isfinite, interval)):
            self.absent += 1
            return
        self.covered += interval[0] - 1e-9 <= truth <= interval[1] + 1e-9
        self.width += interval[1] - interval[0]

    @property
    def share(self) -> float:
        """Return the share of studies with an interval in which it covered the truth."""
        counted = self.studies - self.absent
        return self.covered / counted if counted else math.nan

    @property
    def mean_width(self) -> float:
        """Return the mean width."""
        return self.width / max(1, self.studies - self.absent)


def sample(known: Truth, code: npt.NDArray[np.int64], rng: np.random.Generator) -> Sample:
    """Return one simulated study; all images of a patient have the same class."""
    n, n_patients = len(code), int(code.max()) + 1
    share = SHARED_BY_PATIENT if n_patients < n else 0.0

    def noise() -> Floats:
        return math.sqrt(share) * rng.normal(size=n_patients)[code] + math.sqrt(1 - share) * rng.normal(size=n)

    truth = rng.integers(0, 2, n_patients)
    # The first two patients have different classes, so that an AUROC exists.
    truth[:2] = 0, 1
    common = math.sqrt(known.shared) * noise()
    first, second = (gap * (truth[code] - 0.5) + common + math.sqrt(1 - known.shared) * noise() for gap in known.gaps)
    return Sample(truth=truth[code], scores=(first, second - known.moved))


def run_scenario(scenario: Scenario, studies: int, seed: int) -> tuple[dict[str, Coverage], dict[str, float]]:
    """Return the coverage of every interval and the rate of every verdict over simulated studies."""
    rng = np.random.default_rng(seed)
    code = np.repeat(np.arange(len(scenario.sizes)), scenario.sizes)
    patients = draw_patients(np.char.mod("%06d", code), rng)
    coverage: dict[str, Coverage] = defaultdict(Coverage)
    rates: dict[str, float] = defaultdict(float)
    for _ in range(studies):
        known = scenario.truth or drawn_truth(rng)
        drawn = sample(known, code, rng)
        right = [(score > 0) == (drawn.truth == 1) for score in drawn.scores]
        paired = compare(right[0], right[1], patients, MARGIN)
        rates["McNemar on images, p < 0.05"] += (paired.p_images < 0.05) / studies
        rates["differs (better or p < 0.05)"] += (paired.p < 0.05) / studies
        if not known.moved:
            coverage["difference"].add(paired.interval.bounds, -known.loss)
        if scenario.clustered and not known.moved:
            alone = Changes(
                n=paired.n, n_patients=paired.n, lost_by_patient=_ones(paired.lost), won_by_patient=_ones(paired.won)
            )
            coverage["difference (Tango on images)"].add(difference_interval(alone).bounds, -known.loss)
        if scenario.truth is not None:
            add_verdicts(rates, Compared(endpoint=paired, guards=guards(drawn, patients)), studies)
        # At a fixed truth, large studies only test the verdicts.
        if scenario.truth is None or (scenario.images == SMALL and not known.moved):
            add_single(coverage, known, drawn, right[0], patients)
            add_differences(coverage, known, drawn, patients)
    return dict(coverage), dict(rates)


def _ones(images: int) -> npt.NDArray[np.int64]:
    return np.ones(images, dtype=np.int64)


def guards(drawn: Sample, patients: Patients) -> tuple[GuardRow, ...]:
    """Return the guards of the second classifier in one study."""
    first, second = (auroc_of(drawn.truth, score) for score in drawn.scores)
    gap = auroc_difference(first, second, patients)
    return guards_of("second", drawn.predictions(0), drawn.predictions(1), patients, MARGINS, gap)


def add_verdicts(rates: dict[str, float], compared: Compared, studies: int) -> None:
    """Count one study's verdict and the states of its guards."""
    (verdict,) = judge([compared])
    for word in (BETTER, NOT_INFERIOR, INFERIOR):
        rates[word] += (verdict.word == word) / studies
    for guard in compared.guards:
        rates[f"{guard.measure} fell"] += (guard.state == BROKEN) / studies
        rates[f"{guard.measure} kept"] += (guard.state == KEPT) / studies


@dataclass(frozen=True, kw_only=True)
class Rare:
    """Studies of classifiers expected to disagree on 0 to 3 images: `one_way` if all are lost, else some are won."""

    images: int
    clustered: bool
    one_way: bool


def run_rare(rare: Rare, studies: int, seed: int) -> dict[str, Coverage]:
    """Return the coverage of the difference, by the number of discordant images that occurred."""
    rng = np.random.default_rng(seed)
    sizes = Scenario(images=rare.images, clustered=rare.clustered, truth=None).sizes
    code, n = np.repeat(np.arange(len(sizes)), sizes), sum(sizes)
    patients = draw_patients(np.char.mod("%06d", code), rng)
    shared = SHARED_BY_PATIENT if rare.clustered else 0.0
    coverage: dict[str, Coverage] = defaultdict(Coverage)

    def drawn(share: float) -> npt.NDArray[np.bool_]:
        noise = math.sqrt(shared) * rng.normal(size=len(sizes))[code] + math.sqrt(1 - shared) * rng.normal(size=n)
        return np.asarray(noise < norm.ppf(share))

    for _ in range(studies):
        total = float(rng.uniform(0, MOST_DISCORDANT)) / n
        lost_share = total if rare.one_way else total * float(rng.uniform())
        lost = drawn(lost_share)
        won = drawn(total - lost_share) & ~lost
        changes = changes_of(~won, ~lost, patients)
        interval, difference = difference_interval(changes).bounds, total - 2 * lost_share
        coverage["all"].add(interval, difference)
        discordant = changes.lost + changes.won
        coverage[f"{discordant} discordant" if discordant <= MOST_DISCORDANT else "more"].add(interval, difference)
    return dict(coverage)


def rares() -> list[Rare]:
    """Return the settings of studies with few discordant images."""
    choices = (False, True)
    return [Rare(images=n, clustered=c, one_way=o) for n in (SMALL, LARGE) for c in choices for o in choices]


def add_single(
    found: dict[str, Coverage], known: Truth, drawn: Sample, right: npt.NDArray[np.bool_], patients: Patients
) -> None:
    """Count the intervals of one classifier."""
    every, truth, score = np.ones(len(right), dtype=bool), drawn.truth, drawn.scores[0]
    accuracy = known.accuracy
    found["accuracy"].add(bounds(proportion_interval(right, every, patients)), accuracy)
    if patients.n < len(right):
        total, n = patients.totals(right.astype(float), every.astype(float))
        found["accuracy (plain percentile bootstrap)"].add(percentile_interval(total / n), accuracy)
        found["accuracy (Wilson on images)"].add(wilson_interval(int(right.sum()), len(right)), accuracy)
    found["sensitivity"].add(bounds(proportion_interval(right, truth == 1, patients)), accuracy)
    found["AUROC"].add(auroc_interval(auroc_of(truth, score), patients).bounds, known.areas[0])
    found["AUROC, bootstrap"].add(bootstrap_interval(truth, score, patients), known.areas[0])
    values = predictive_values(truth, (score > 0).astype(np.int64), PREVALENCE, patients)
    ppv = accuracy * PREVALENCE / (accuracy * PREVALENCE + (1 - accuracy) * (1 - PREVALENCE))
    npv = accuracy * (1 - PREVALENCE) / (accuracy * (1 - PREVALENCE) + (1 - accuracy) * PREVALENCE)
    found["PPV at 10 %"].add(values.ppv_interval, ppv)
    found["NPV at 10 %"].add(values.npv_interval, npv)
    probability = expit(OVERCONFIDENCE * known.gaps[0] * score)
    found["calibration slope"].add(cox_slope(truth, probability, patients)[1], 1 / OVERCONFIDENCE)
    found["ECE"].add(expected_error_interval(truth, probability, patients), known.calibration_error)


def add_differences(found: dict[str, Coverage], known: Truth, drawn: Sample, patients: Patients) -> None:
    """Count the interval of the difference of two AUROCs."""
    first, second = (auroc_of(drawn.truth, score) for score in drawn.scores)
    found["ΔAUROC"].add(auroc_difference(first, second, patients).interval, known.areas[1] - known.areas[0])


def exact_claims(images: int, lost_share: float) -> float:
    """Return how often a loss of exactly the margin is called not inferior, over all outcomes of independent images."""
    needed = fewest_won(images)
    lost = np.arange(len(needed))
    won_share = (lost_share - MARGIN) / (1 - lost_share)
    return float(binom.pmf(lost, images, lost_share) @ binom.sf(np.array(needed) - 1, images - lost, won_share))


@functools.cache
def fewest_won(images: int) -> tuple[int, ...]:
    """Return the smallest number of images won for the verdict "not inferior", for 0, 1, ... images lost."""
    needed, won = [], 0
    for lost in range(images + 1):
        while won <= images - lost and exact_margin_p(lost, won, images, MARGIN) >= ALPHA / 2:
            won += 1
        if won > images - lost or binom.sf(lost, images, LOST_SHARES[-1]) < NEGLIGIBLE:
            break
        needed.append(won)
    return tuple(needed)


def simulated_claims(scenario: Scenario, studies: int, seed: int) -> float:
    """Return how often a loss of exactly the margin is called not inferior by the endpoint alone, simulated."""
    if scenario.truth is None:
        raise ValueError("claims are counted at a fixed truth")
    rng = np.random.default_rng(seed)
    code = np.repeat(np.arange(len(scenario.sizes)), scenario.sizes)
    claims = 0
    patients = draw_patients(np.char.mod("%06d", code), rng)
    for _ in range(studies):
        drawn = sample(scenario.truth, code, rng)
        first, second = ((score > 0) == (drawn.truth == 1) for score in drawn.scores)
        claims += margin_p(changes_of(first, second, patients), MARGIN) < ALPHA / 2
    return claims / studies


def false_claims(scenario: Scenario, seed: int) -> float | None:
    """Return the rate of false claims of non-inferiority at a loss of the margin; None for other scenarios."""
    if scenario.truth is None or not scenario.truth.loss:
        return None
    if scenario.clustered:
        return simulated_claims(scenario, CLAIM_STUDIES, seed)
    return exact_claims(scenario.images, scenario.truth.lost_share)


def scenarios() -> list[Scenario]:
    """Return all scenarios: those with drawn truths first, then those with fixed truths."""
    designs = [(images, clustered) for images in (LARGE, SMALL) for clustered in (False, True)]
    fixed = [Truth(accuracy=accuracy, loss=loss) for accuracy in (0.85, 0.95) for loss in (0.0, MARGIN)]
    return [
        Scenario(images=images, clustered=clustered, truth=truth)
        for truth in (None, *fixed, *(moved_truth(accuracy) for accuracy in (0.85, 0.95)))
        for images, clustered in designs
    ]


def misses_of(
    scenario: Scenario, coverage: dict[str, Coverage], rates: dict[str, float], claims: float | None
) -> list[str]:
    """Return the violations: mean coverage outside 93-97 %, or a verdict wrong too often at a fixed truth."""
    if scenario.truth is None:
        shown = {name: interval for name, interval in coverage.items() if "(" not in name}
        return [
            f"{name} {interval.share:.3f}"
            for name, interval in shown.items()
            if not TOLERATED[0] <= interval.share <= TOLERATED[1]
        ]
    differs = rates["differs (better or p < 0.05)"]
    if scenario.truth.moved:
        kept = rates[f"{SENSITIVITY} kept"]
        return [f"sensitivity falsely kept {kept:.3f}"] if kept > MOST_FALSE_CLAIMS else []
    if claims is None:
        return [f"false differences {differs:.3f}"] if differs > MOST_FALSE_DIFFERENCES else []
    return [f"false claims of non-inferiority {claims:.4f}"] if claims > MOST_FALSE_CLAIMS else []


def main() -> None:
    """Run all scenarios, print the table and write it as JSON with --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    began, rows, misses = time.perf_counter(), [], []
    all_scenarios = scenarios()
    seeds = range(arguments.seed, arguments.seed + len(all_scenarios))
    with ProcessPoolExecutor(available_threads()) as pool:
        results = pool.map(run_scenario, all_scenarios, [arguments.studies] * len(all_scenarios), seeds)
        all_claims = pool.map(false_claims, all_scenarios, seeds)
        for scenario, (coverage, rates), claims in zip(all_scenarios, results, all_claims, strict=True):
            truth = scenario.truth
            kind = f"{len(scenario.sizes)} patients" if scenario.clustered else "independent"
            fixed = f"accuracy {truth.accuracy:.2f}, loss {truth.loss:.2f}" if truth else "truth drawn"
            fixed += ", sensitivity falls by its margin" if truth and truth.moved else ""
            where = f"n = {scenario.images}, {kind}, {fixed}"
            print(f"\n{where}")
            for name, interval in coverage.items():
                absent = f"  ({interval.absent} without)" if interval.absent else ""
                print(f"  {name:40} covers {interval.share:.3f}  mean width {interval.mean_width:.4f}{absent}")
            print("  " + ", ".join(f"{name}: {rate:.3f}" for name, rate in rates.items()))
            if claims is not None:
                how = f"over {CLAIM_STUDIES:,} studies" if scenario.clustered else "exactly"
                print(f"  not inferior, {how}: {claims:.4f}")
            misses += [f"{where}: {miss}" for miss in misses_of(scenario, coverage, rates, claims)]
            rows.append(
                {
                    **dataclasses.asdict(scenario),
                    "patients": len(scenario.sizes),
                    "intervals": {name: dataclasses.asdict(interval) for name, interval in coverage.items()},
                    "rates": rates,
                    "false_claims": claims,
                }
            )
            sys.stdout.flush()
        print("\nclassifiers that are expected to disagree on 0 to 3 images")
        for rare, covered in zip(rares(), pool.map(run_rare, rares(), [arguments.studies] * 8, range(8)), strict=True):
            kind = "patients" if rare.clustered else "independent"
            print(f"n = {rare.images}, {kind}, {'lost only' if rare.one_way else 'lost and won'}")
            for name, interval in sorted(covered.items()):
                print(f"  {name:14} covers {interval.share:.3f}  of {interval.studies:,}")
            if covered["all"].share < TOLERATED[0]:
                misses.append(f"{rare}: {covered['all'].share:.3f}")
    print("\nfalse claims of non-inferiority, exactly, by the share of images that only the reference gets right")
    print("  n     " + " ".join(f"{share:6.2%}" for share in LOST_SHARES))
    for images in EXACT_SIZES:
        print(f"  {images:<5} " + " ".join(f"{exact_claims(images, share):6.2%}" for share in LOST_SHARES))
    print(f"\n{len(misses)} outside {TOLERATED[0]:.0%}-{TOLERATED[1]:.0%} or above the promised error rates:")
    print("\n".join(f"  {miss}" for miss in misses))
    print(f"{arguments.studies} studies per scenario, {time.perf_counter() - began:.0f} s")
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"studies": arguments.studies, "seed": arguments.seed, "scenarios": rows}, indent=1)
        )
    if misses:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
