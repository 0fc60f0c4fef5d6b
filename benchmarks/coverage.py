"""Do the 95 % intervals cover 95 %, and do the verdicts err as rarely as they promise? Over simulated studies.

Run with `python -m benchmarks.coverage`; it takes some minutes on one thread. Truth is known: a patient's images share
half of their noise, two classifiers on the same images share 90 % of it, and accuracy, AUROC and their differences
follow from the normal distribution.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from chestx_cli.calibration import cox_slope, expected_error, expected_error_interval
from chestx_cli.delong import auroc_difference, auroc_interval, auroc_of, bootstrap_interval
from chestx_cli.evaluation import bounds
from chestx_cli.operating import predictive_values
from chestx_cli.paired import tango_interval
from chestx_cli.stats import Patients, draw_patients, percentile_interval, proportion_interval, wilson_interval
from chestx_cli.verdicts import BETTER, INFERIOR, NOT_INFERIOR, compare, judge

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

STUDIES = 2000
MARGIN = 0.02
PREVALENCE = 0.1
IMAGES_OF_PATIENTS = (1, 1, 2, 1, 3, 1, 4, 2, 1, 1, 6)
SHARED_BY_PATIENT, SHARED_BY_CLASSIFIERS = 0.5, 0.9
# Log-odds twice too large: the true slope is one half.
OVERCONFIDENCE = 2.0
TOLERATED = (0.93, 0.97)
MOST_FALSE_DIFFERENCES, MOST_FALSE_CLAIMS = 0.05, 0.025


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is simulated: the number of images, whether patients have several, the accuracy, and the second's loss."""

    images: int
    clustered: bool
    accuracy: float
    loss: float = 0.0

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

    @property
    def gaps(self) -> tuple[float, float]:
        """Return the distance between the classes' mean scores, of both classifiers."""
        return 2 * float(norm.ppf(self.accuracy)), 2 * float(norm.ppf(self.accuracy - self.loss))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One simulated study: the truth and both classifiers' scores, all [N]."""

    truth: npt.NDArray[np.int64]
    scores: tuple[Floats, Floats]


@dataclass
class Coverage:
    """How often an interval covered the truth, and how wide it was."""

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


def sample(scenario: Scenario, code: npt.NDArray[np.int64], rng: np.random.Generator) -> Sample:
    """Return one simulated study; all images of a patient are of one class."""
    n, n_patients = len(code), int(code.max()) + 1
    share = SHARED_BY_PATIENT if scenario.clustered else 0.0

    def noise() -> Floats:
        return math.sqrt(share) * rng.normal(size=n_patients)[code] + math.sqrt(1 - share) * rng.normal(size=n)

    truth = rng.integers(0, 2, n_patients)
    # The shared part decides both classes are there, so that an AUROC exists.
    truth[:2] = 0, 1
    common = math.sqrt(SHARED_BY_CLASSIFIERS) * noise()
    first, second = (
        gap * (truth[code] - 0.5) + common + math.sqrt(1 - SHARED_BY_CLASSIFIERS) * noise() for gap in scenario.gaps
    )
    return Sample(truth=truth[code], scores=(first, second))


def true_error(scenario: Scenario) -> float:
    """Return the calibration error of the first classifier's probabilities over infinitely many images."""
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 1_000_000)
    gap = scenario.gaps[0]
    score = gap * (truth - 0.5) + rng.normal(size=len(truth))
    return expected_error(truth, expit(OVERCONFIDENCE * gap * score))


def run_scenario(scenario: Scenario, studies: int, seed: int) -> tuple[dict[str, Coverage], dict[str, float]]:
    """Return the coverage of every interval and the rate of every verdict over simulated studies."""
    rng = np.random.default_rng(seed)
    code = np.repeat(np.arange(len(scenario.sizes)), scenario.sizes)
    patients = draw_patients(np.char.mod("%06d", code), rng)
    found: dict[str, Coverage] = defaultdict(Coverage)
    rates: dict[str, float] = defaultdict(float)
    truths = {"error": true_error(scenario)} if not scenario.loss else {}
    for _ in range(studies):
        drawn = sample(scenario, code, rng)
        right = [(score > 0) == (drawn.truth == 1) for score in drawn.scores]
        paired = compare(right[0], right[1], patients, MARGIN)
        (verdict,) = judge([paired])
        rates["McNemar on images, p < 0.05"] += (paired.p_images < 0.05) / studies
        rates["differs (better or p < 0.05)"] += (verdict.holm_p < 0.05) / studies
        for word in (BETTER, NOT_INFERIOR, INFERIOR):
            rates[word] += (verdict.word == word) / studies
        found["difference (Tango; design effect)"].add(paired.interval.bounds, -scenario.loss)
        if scenario.clustered:
            found["difference (Tango on images)"].add(tango_interval(paired.lost, paired.won, paired.n), -scenario.loss)
        if not scenario.loss:
            add_single(found, scenario, drawn, right[0], patients, truths["error"])
        else:
            add_differences(found, scenario, drawn, patients)
    return dict(found), dict(rates)


def add_single(
    found: dict[str, Coverage],
    scenario: Scenario,
    drawn: Sample,
    right: npt.NDArray[np.bool_],
    patients: Patients,
    error: float,
) -> None:
    """Count the intervals of one classifier."""
    every, truth, score = np.ones(len(right), dtype=bool), drawn.truth, drawn.scores[0]
    accuracy, area = scenario.accuracy, float(norm.cdf(scenario.gaps[0] / math.sqrt(2)))
    found["accuracy"].add(bounds(proportion_interval(right, every, patients)), accuracy)
    if scenario.clustered:
        total, n = patients.totals(right.astype(float), every.astype(float))
        found["accuracy (plain percentile bootstrap)"].add(percentile_interval(total / n), accuracy)
        found["accuracy (Wilson on images)"].add(wilson_interval(int(right.sum()), len(right)), accuracy)
    found["sensitivity"].add(bounds(proportion_interval(right, truth == 1, patients)), accuracy)
    found["AUROC"].add(auroc_interval(auroc_of(truth, score), patients).bounds, area)
    found["AUROC (percentile bootstrap)"].add(bootstrap_interval(truth, score, patients), area)
    values = predictive_values(truth, (score > 0).astype(np.int64), PREVALENCE, patients)
    ppv = accuracy * PREVALENCE / (accuracy * PREVALENCE + (1 - accuracy) * (1 - PREVALENCE))
    npv = accuracy * (1 - PREVALENCE) / (accuracy * (1 - PREVALENCE) + (1 - accuracy) * PREVALENCE)
    found["PPV at 10 %"].add(values.ppv_interval, ppv)
    found["NPV at 10 %"].add(values.npv_interval, npv)
    probability = expit(OVERCONFIDENCE * scenario.gaps[0] * score)
    found["calibration slope"].add(cox_slope(truth, probability, patients)[1], 1 / OVERCONFIDENCE)
    found["ECE"].add(expected_error_interval(truth, probability, patients), error)


def add_differences(found: dict[str, Coverage], scenario: Scenario, drawn: Sample, patients: Patients) -> None:
    """Count the interval of the difference of two AUROCs."""
    areas = [float(norm.cdf(gap / math.sqrt(2))) for gap in scenario.gaps]
    first, second = (auroc_of(drawn.truth, score) for score in drawn.scores)
    found["ΔAUROC"].add(auroc_difference(first, second, patients).interval, areas[1] - areas[0])


def scenarios() -> list[Scenario]:
    """Return all that is simulated."""
    return [
        Scenario(images=images, clustered=clustered, accuracy=accuracy, loss=loss)
        for images in (56, 624)
        for clustered in (False, True)
        for accuracy in (0.85, 0.95)
        for loss in (0.0, MARGIN)
    ]


def main() -> None:
    """Run all scenarios, print the table and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    began, rows, misses = time.perf_counter(), [], []
    for number, scenario in enumerate(scenarios()):
        coverage, rates = run_scenario(scenario, asked.studies, asked.seed + number)
        kind = f"{len(scenario.sizes)} patients" if scenario.clustered else "independent"
        where = f"n = {scenario.images}, {kind}, accuracy {scenario.accuracy:.2f}, true loss {scenario.loss:.2f}"
        print(f"\n{where}")
        for name, one in coverage.items():
            counted = one.studies - one.absent
            covered = one.covered / counted if counted else math.nan
            missed = not TOLERATED[0] <= covered <= TOLERATED[1]
            print(
                f"  {name:40} covers {covered:.3f}  mean width {one.width / max(1, counted):.4f}"
                f"{f'  ({one.absent} without)' if one.absent else ''}{'  MISS' if missed else ''}"
            )
            misses += [f"{where}: {name} {covered:.3f}"] if missed else []
        differs, claims = rates["differs (better or p < 0.05)"], rates[NOT_INFERIOR]
        print("  " + ", ".join(f"{name}: {rate:.3f}" for name, rate in rates.items()))
        if not scenario.loss and differs > MOST_FALSE_DIFFERENCES:
            misses.append(f"{where}: false differences {differs:.3f}")
        if scenario.loss and claims > MOST_FALSE_CLAIMS:
            misses.append(f"{where}: false claims of non-inferiority {claims:.4f}")
        rows.append(
            {
                **dataclasses.asdict(scenario),
                "patients": len(scenario.sizes),
                "intervals": {name: dataclasses.asdict(one) for name, one in coverage.items()},
                "rates": rates,
            }
        )
        sys.stdout.flush()
    print(f"\n{len(misses)} outside {TOLERATED[0]:.0%}-{TOLERATED[1]:.0%} or above the promised error rates:")
    print("\n".join(f"  {miss}" for miss in misses))
    print(f"{asked.studies} studies per scenario, {time.perf_counter() - began:.0f} s")
    if asked.out:
        asked.out.write_text(json.dumps({"studies": asked.studies, "seed": asked.seed, "scenarios": rows}, indent=1))


if __name__ == "__main__":
    main()
