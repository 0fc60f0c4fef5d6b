"""Simulated studies over folds and seeds: error rates of the verdicts on each endpoint, and their power.

Run with `python -m tools.benchmarks.endpoint_coverage`. As in `tools.benchmarks.coverage` the truth is known: scores
are normal, half of the noise is the patient's. Part of an image's noise is shared by all trainings, part by both
variants of one seed, and part is each model's own. Probabilities are calibrated, so that the true Brier score also
follows. Every cell is evaluated by the methods that `chestx compare` and `chestx study` use.

At a fixed truth the second variant loses either exactly the margin of an endpoint, and may be called not inferior in at
most 2.5 % of the studies, or nothing, and the rate of "not inferior" is the power. The power is also computed at equal
margins: the loss on each endpoint of one classifier that loses exactly the margin of accuracy.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import norm

from chestx_cli.core.machine import available_threads
from chestx_cli.evaluation.endpoints import ACCURACY, ENDPOINTS
from chestx_cli.evaluation.predictions import CellPair, Images, Predictions, sides
from chestx_cli.evaluation.statistics.intervals import ALPHA
from tools.benchmarks.coverage import IMAGES_OF_PATIENTS, MOST_FALSE_CLAIMS, SHARED_BY_PATIENT, TOLERATED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

STUDIES = 2000
# Shares of an image's noise that are common to all models, and additionally to both variants of one seed.
SHARED_BY_ALL, SHARED_BY_SEED = 0.7, 0.2
ACCURACIES = (0.85, 0.93)
SPECIFICITY_90 = "sensitivity-at-specificity-0.90"
SIMULATED_ENDPOINTS = (ACCURACY, "auroc", "brier", SPECIFICITY_90)


@dataclass(frozen=True, kw_only=True)
class Design:
    """Numbers of images, folds and seeds."""

    images: int
    folds: int
    seeds: int

    def folds_of_patients(self) -> list[npt.NDArray[np.int64]]:
        """Return the patient of each image of each fold."""
        sizes: list[int] = []
        while sum(sizes) < self.images:
            sizes.append(IMAGES_OF_PATIENTS[len(sizes) % len(IMAGES_OF_PATIENTS)])
        sizes[-1] -= sum(sizes) - self.images
        fold_sizes = [sizes[fold :: self.folds] for fold in range(self.folds)]
        return [np.repeat(np.arange(len(sizes_of_fold)), sizes_of_fold) for sizes_of_fold in fold_sizes]


DESIGNS = (
    Design(images=60, folds=1, seeds=3),
    Design(images=378, folds=5, seeds=3),
)


def true_value(endpoint: str, gap: float) -> float:
    """Return an endpoint's true value if the classes' mean scores are `gap` standard deviations apart."""
    if endpoint == ACCURACY:
        return float(norm.cdf(gap / 2))
    if endpoint == "auroc":
        return float(norm.cdf(gap / math.sqrt(2)))
    if endpoint == SPECIFICITY_90:
        return float(norm.cdf(gap - norm.ppf(0.9)))
    score = np.linspace(-12, 12, 4801)
    return float(np.trapezoid(expit(-gap * score) ** 2 * norm.pdf(score - gap / 2), score))


def loss_of(endpoint: str, first: float, second: float) -> float:
    """Return the loss on an endpoint from the first gap to the second."""
    loss = true_value(endpoint, first) - true_value(endpoint, second)
    return -loss if ENDPOINTS[endpoint].is_loss else loss


def gap_losing(endpoint: str, gap: float, loss: float) -> float:
    """Return the gap of a classifier that loses `loss` on an endpoint."""
    return float(brentq(lambda other: loss_of(endpoint, gap, other) - loss, 0.01, gap))


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One design at one truth: the second variant loses the margin of `at_margin_of`, or nothing if that is empty."""

    design: Design
    accuracy: float
    at_margin_of: str = ""
    endpoints: tuple[str, ...]

    @property
    def gaps(self) -> tuple[float, float]:
        """Return the distance between the classes' mean scores for both variants."""
        first = 2 * float(norm.ppf(self.accuracy))
        at = self.at_margin_of
        return first, gap_losing(at, first, ENDPOINTS[at].margin) if at else first


def studies(scenario: Scenario, count: int, rng: np.random.Generator) -> Iterator[list[CellPair]]:
    """Yield simulated studies; all images of a patient have the same class, and each fold has both classes."""
    codes, seeds = scenario.design.folds_of_patients(), range(scenario.design.seeds)
    for _ in range(count):
        yield [
            CellPair(first=first, second=second, fold=f"fold-{fold}", seed=seed)
            for fold, code in enumerate(codes, 1)
            for seed, (first, second) in zip(seeds, _cells(scenario, fold, code, rng), strict=True)
        ]


def _cells(
    scenario: Scenario, fold: int, code: npt.NDArray[np.int64], rng: np.random.Generator
) -> Iterator[tuple[Predictions, Predictions]]:
    n, patients = len(code), int(code.max()) + 1

    def noise() -> Floats:
        image_noise = math.sqrt(1 - SHARED_BY_PATIENT) * rng.normal(size=n)
        return math.sqrt(SHARED_BY_PATIENT) * rng.normal(size=patients)[code] + image_noise

    truth = rng.permutation(np.arange(patients) % 2)[code]
    images = Images(
        ids=np.char.mod(f"{fold}-%04d", np.arange(n)), groups=np.char.mod(f"{fold}-%04d", code), is_positive=truth
    )
    always = math.sqrt(SHARED_BY_ALL) * noise()
    for _ in range(scenario.design.seeds):
        common = always + math.sqrt(SHARED_BY_SEED) * noise()
        first, second = (
            gap * (truth - 0.5) + common + math.sqrt(1 - SHARED_BY_ALL - SHARED_BY_SEED) * noise()
            for gap in scenario.gaps
        )
        a, b = (
            Predictions(images=images, probability=expit(gap * score), decision=(score > 0).astype(np.int64))
            for gap, score in zip(scenario.gaps, (first, second), strict=True)
        )
        yield a, b


@dataclass
class Found:
    """Results for one endpoint, as shares of studies."""

    covered: float = 0.0
    missed_below: float = 0.0
    missed_above: float = 0.0
    not_inferior: float = 0.0
    not_inferior_at_equal_margins: float = 0.0
    level_covered: float | None = None
    equal_margin: float = 0.0


def _decided(name: str, pairs: list[CellPair]) -> tuple[tuple[float, float], bool]:
    """Return the interval of the difference, and whether a loss of the margin is rejected at one-sided 2.5 %."""
    entry = ENDPOINTS[name]
    if entry.difference:
        # Its p would have to be searched for as the level at which the interval ends at the margin, which is slow.
        bounds = entry.difference(pairs).bounds()
        return bounds, bounds[0] > -entry.margin
    paired = entry.compare(pairs, entry.margin)
    return paired.interval.bounds, paired.p_margin < ALPHA / 2


def run_scenario(scenario: Scenario, count: int, seed: int) -> dict[str, Found]:
    """Return for each endpoint how often its interval covers the truth and how often the variant is not inferior."""
    # The same images for every choice of endpoints.
    at = SIMULATED_ENDPOINTS.index(scenario.at_margin_of) + 1 if scenario.at_margin_of else 0
    rng = np.random.default_rng([seed, scenario.design.images, round(100 * scenario.accuracy), at])
    first, second = scenario.gaps
    worse = gap_losing(ACCURACY, first, ENDPOINTS[ACCURACY].margin)
    results = {
        name: Found(equal_margin=loss_of(name, first, worse), level_covered=None if name == ACCURACY else 0.0)
        for name in scenario.endpoints
    }
    truths = {name: (-loss_of(name, first, second), true_value(name, first)) for name in scenario.endpoints}
    share = 1 / count
    for pairs in studies(scenario, count, rng):
        for name, row in results.items():
            entry = ENDPOINTS[name]
            (low, high), settled = _decided(name, pairs)
            difference, level = truths[name]
            row.missed_below += share * (low > difference + 1e-9)
            row.missed_above += share * (high < difference - 1e-9)
            row.not_inferior += share * settled
            if not scenario.at_margin_of:
                # For accuracy, its own margin is the equal one.
                row.not_inferior_at_equal_margins += share * (settled if name == ACCURACY else low > -row.equal_margin)
                # Not for accuracy, whose interval draws patients each time; `tools.benchmarks.coverage` tests it.
                if row.level_covered is not None:
                    interval = entry.estimate(sides(pairs)[0]).interval
                    row.level_covered += share * (interval.low <= level <= interval.high)
    for row in results.values():
        row.covered = 1 - row.missed_below - row.missed_above
    return results


def scenarios(endpoints: tuple[str, ...]) -> list[Scenario]:
    """Return the scenarios for these endpoints."""
    return [
        Scenario(design=design, accuracy=accuracy, at_margin_of=at, endpoints=(at,) if at else endpoints)
        for design in DESIGNS
        for accuracy in ACCURACIES
        for at in ("", *endpoints)
    ]


def _line(name: str, row: Found, *, equal: bool) -> str:
    line = (
        f"{name:32} covers {row.covered:.3f} (below {row.missed_below:.4f}, above {row.missed_above:.4f})  not "
        f"inferior {row.not_inferior:.4f}"
    )
    if not equal:
        return line
    level = "" if row.level_covered is None else f"; one variant covers {row.level_covered:.3f}"
    return f"{line}, at the margin {row.equal_margin:.4f} {row.not_inferior_at_equal_margins:.3f}{level}"


def main(words: Sequence[str] | None = None) -> None:
    """Simulate all scenarios, print the results, and write them as JSON with --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument(
        "--endpoints",
        nargs="+",
        choices=SIMULATED_ENDPOINTS,
        default=SIMULATED_ENDPOINTS,
        help="AUROC and accuracy take longest",
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args(words)
    began, rows, misses = time.perf_counter(), [], []
    every = scenarios(tuple(arguments.endpoints))
    with ProcessPoolExecutor(available_threads()) as pool:
        results = pool.map(run_scenario, every, itertools.repeat(arguments.studies), itertools.repeat(arguments.seed))
        for scenario, found in zip(every, results, strict=False):
            design = scenario.design
            at = f"loses the margin of {scenario.at_margin_of}" if scenario.at_margin_of else "equal"
            where = f"{design.images} images, {design.folds} × {design.seeds}, accuracy {scenario.accuracy}, {at}"
            print(f"\n{where}", flush=True)
            for name, row in found.items():
                print(f"  {_line(name, row, equal=not scenario.at_margin_of)}", flush=True)
                if scenario.at_margin_of and row.not_inferior > MOST_FALSE_CLAIMS:
                    misses.append(f"{where}: false claims {row.not_inferior:.4f}")
                misses += [
                    f"{where}: {name} covers {one:.3f}"
                    for one in (row.covered, None if scenario.at_margin_of else row.level_covered)
                    if one is not None and not TOLERATED[0] <= one <= TOLERATED[1]
                ]
            rows.append(
                {
                    **dataclasses.asdict(scenario),
                    "found": {name: dataclasses.asdict(row) for name, row in found.items()},
                }
            )
    print(f"\n{len(misses)} outside {TOLERATED[0]:.0%}-{TOLERATED[1]:.0%} or above {MOST_FALSE_CLAIMS:.1%}:")
    print("\n".join(f"  {miss}" for miss in misses))
    print(f"{arguments.studies} studies per line, {time.perf_counter() - began:.0f} s")
    if arguments.out:
        document = {"studies": arguments.studies, "seed": arguments.seed, "scenarios": rows}
        arguments.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
