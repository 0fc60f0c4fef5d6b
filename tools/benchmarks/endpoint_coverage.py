"""Simulated studies over folds and seeds: coverage of each endpoint's intervals, error rates of its verdicts, power.

Run with `python -m tools.benchmarks.endpoint_coverage`. As in `tools.benchmarks.coverage` the truth is known: scores
are normal, half of the noise is the patient's. Part of an image's noise is shared by all trainings, part by both
variants of one seed, and part is each model's own. Probabilities are calibrated, so that the true Brier score also
follows. Every cell is evaluated by the methods that `chestx compare` and `chestx study` use.

Coverage is judged, as there, by its mean over studies whose truth is drawn for each, and false claims at fixed truths,
whose coverage is printed too.

At a fixed truth the second variant loses either exactly the margin of an endpoint, and may be called not inferior in at
most 2.5 % of the studies, or nothing, and the rate of "not inferior" is the power. The power is also computed at equal
margins: the loss on each endpoint of one classifier that loses exactly the margin of accuracy.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
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
from scipy.special import expit, ndtr, ndtri

from chestx_cli.core.machine import available_threads
from chestx_cli.evaluation.endpoints import ACCURACY, ENDPOINTS
from chestx_cli.evaluation.predictions import CellPair, Images, Predictions, sides
from chestx_cli.evaluation.statistics.intervals import ALPHA
from tools.benchmarks.coverage import (
    IMAGES_OF_PATIENTS,
    LARGE,
    MOST_FALSE_CLAIMS,
    SHARED_BY_PATIENT,
    TOLERATED,
    Truth,
    drawn_truth,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

STUDIES = 2000
# For the rate of false claims, which is close to its limit: a rate of 2.5 % has a standard error of 0.16 points.
CLAIM_STUDIES = 10_000
# Of the noise that both variants of one seed have in common, the share that is common to all seeds.
SHARED_BY_SEEDS = 7 / 9
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
# Studies with drawn truths also have the larger size of `tools.benchmarks.coverage`.
DRAWN_DESIGNS = (*DESIGNS, Design(images=LARGE, folds=5, seeds=3))


@functools.lru_cache(maxsize=16)
def true_value(endpoint: str, gap: float) -> float:
    """Return an endpoint's true value if the classes' mean scores are `gap` standard deviations apart."""
    if endpoint == ACCURACY:
        return float(ndtr(gap / 2))
    if endpoint == "auroc":
        return float(ndtr(gap / math.sqrt(2)))
    if endpoint == SPECIFICITY_90:
        return float(ndtr(gap - ndtri(0.9)))
    noise = np.linspace(-10, 10, 2001)
    density = np.exp(-(noise**2) / 2) / math.sqrt(2 * math.pi)
    return float(np.trapezoid(expit(-gap * (noise + gap / 2)) ** 2 * density, noise))


def loss_of(endpoint: str, first: float, second: float) -> float:
    """Return the loss on an endpoint from the first gap to the second."""
    loss = true_value(endpoint, first) - true_value(endpoint, second)
    return -loss if ENDPOINTS[endpoint].is_loss else loss


def gap_losing(endpoint: str, gap: float, loss: float) -> float:
    """Return the gap of a classifier that loses `loss` on an endpoint."""
    return float(brentq(lambda other: loss_of(endpoint, gap, other) - loss, 0.01, gap))


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One design at one truth; without an accuracy the truth is drawn for each study.

    At a fixed truth the second variant loses the margin of `at_margin_of`, or nothing if that is empty.
    """

    design: Design
    accuracy: float | None
    at_margin_of: str = ""
    endpoints: tuple[str, ...]

    @property
    def fixed(self) -> Truth | None:
        """Return the truth of all studies, None if each has its own."""
        if self.accuracy is None:
            return None
        if not self.at_margin_of:
            return Truth(accuracy=self.accuracy, loss=0.0)
        margin = ENDPOINTS[self.at_margin_of].margin
        second = gap_losing(self.at_margin_of, 2 * float(ndtri(self.accuracy)), margin)
        return Truth(accuracy=self.accuracy, loss=self.accuracy - true_value(ACCURACY, second))


@dataclass(frozen=True, kw_only=True)
class Fold:
    """The images of one fold: their names, patients as keys and as numbers, all [N]."""

    ids: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]
    code: npt.NDArray[np.int64]


def studies(scenario: Scenario, count: int, rng: np.random.Generator) -> Iterator[tuple[Truth, list[CellPair]]]:
    """Yield simulated studies with their truth; all images of a patient have the same class, each fold has both."""
    seeds, fixed = range(scenario.design.seeds), scenario.fixed
    folds = {
        f"fold-{number}": Fold(
            ids=np.char.mod(f"{number}-%04d", np.arange(len(code))),
            groups=np.char.mod(f"{number}-%04d", code),
            code=code,
        )
        for number, code in enumerate(scenario.design.folds_of_patients(), 1)
    }
    for _ in range(count):
        known = fixed or drawn_truth(rng)
        yield (
            known,
            [
                CellPair(first=first, second=second, fold=name, seed=seed)
                for name, fold in folds.items()
                for seed, (first, second) in zip(seeds, _cells(known, len(seeds), fold, rng), strict=True)
            ],
        )


def _cells(known: Truth, seeds: int, fold: Fold, rng: np.random.Generator) -> Iterator[tuple[Predictions, Predictions]]:
    code, gaps = fold.code, known.gaps
    n, patients = len(code), int(code.max()) + 1

    def noise() -> Floats:
        image_noise = math.sqrt(1 - SHARED_BY_PATIENT) * rng.normal(size=n)
        return math.sqrt(SHARED_BY_PATIENT) * rng.normal(size=patients)[code] + image_noise

    truth = rng.permutation(np.arange(patients) % 2)[code]
    images = Images(ids=fold.ids, groups=fold.groups, is_positive=truth)
    always = math.sqrt(known.shared * SHARED_BY_SEEDS) * noise()
    for _ in range(seeds):
        common = always + math.sqrt(known.shared * (1 - SHARED_BY_SEEDS)) * noise()
        first, second = (gap * (truth - 0.5) + common + math.sqrt(1 - known.shared) * noise() for gap in gaps)
        a, b = (
            Predictions(images=images, probability=expit(gap * score), decision=(score > 0).astype(np.int64))
            for gap, score in zip(gaps, (first, second), strict=True)
        )
        yield a, b


@dataclass
class Found:
    """Results for one endpoint, as shares of studies; None where a scenario does not give them.

    missed_below, missed_above: of the difference's interval. level_covered: by the interval of one variant.
    equal_margin: the loss on this endpoint of a classifier that loses exactly the margin of accuracy.
    """

    missed_below: float = 0.0
    missed_above: float = 0.0
    level_covered: float | None = None
    not_inferior: float | None = None
    equal_margin: float | None = None
    not_inferior_at_equal_margins: float | None = None

    @property
    def covered(self) -> float:
        """Return how often the difference's interval covers the truth."""
        return 1 - self.missed_below - self.missed_above


def _decided(name: str, pairs: list[CellPair]) -> tuple[tuple[float, float], bool]:
    """Return the interval of the difference, and whether a loss of the margin is rejected at one-sided 2.5 %."""
    entry = ENDPOINTS[name]
    if entry.exactly:
        paired = entry.exactly(pairs, entry.margin)
        return paired.interval.bounds, paired.p_margin < ALPHA / 2
    # Without p values: that of the margin is below 2.5 % exactly if the interval ends above it, but takes longer.
    bounds = (entry.difference(pairs) if entry.difference else entry.gain(pairs)).bounds()
    return bounds, bounds[0] > -entry.margin


def _empty(name: str, scenario: Scenario) -> Found:
    if scenario.at_margin_of:
        return Found(not_inferior=0.0)
    if not scenario.fixed:
        return Found(level_covered=0.0)
    first = scenario.fixed.gaps[0]
    loss = loss_of(name, first, gap_losing(ACCURACY, first, ENDPOINTS[ACCURACY].margin))
    return Found(level_covered=0.0, not_inferior=0.0, equal_margin=loss, not_inferior_at_equal_margins=0.0)


def run_scenario(scenario: Scenario, count: int, seed: int) -> dict[str, Found]:
    """Return for each endpoint how often its intervals cover the truth and how often the variant is not inferior."""
    # The same images for every choice of endpoints.
    at = SIMULATED_ENDPOINTS.index(scenario.at_margin_of) + 1 if scenario.at_margin_of else 0
    rng = np.random.default_rng([seed, scenario.design.images, round(100 * (scenario.accuracy or 0)), at])
    results = {name: _empty(name, scenario) for name in scenario.endpoints}
    share = 1 / count
    for known, pairs in studies(scenario, count, rng):
        gaps = known.gaps
        for name, row in results.items():
            (low, high), settled = _decided(name, pairs)
            difference = -loss_of(name, *gaps)
            row.missed_below += share * (low > difference + 1e-9)
            row.missed_above += share * (high < difference - 1e-9)
            if row.not_inferior is not None:
                row.not_inferior += share * settled
            if row.equal_margin is not None and row.not_inferior_at_equal_margins is not None:
                # For accuracy, its own margin is the equal one.
                row.not_inferior_at_equal_margins += share * (settled if name == ACCURACY else low > -row.equal_margin)
            if row.level_covered is not None:
                interval = ENDPOINTS[name].estimate(sides(pairs)[0]).interval
                row.level_covered += share * (interval.low <= true_value(name, gaps[0]) <= interval.high)
    return results


def scenarios(endpoints: tuple[str, ...]) -> list[Scenario]:
    """Return the scenarios for these endpoints: those with drawn truths first, then those with fixed truths."""
    return [
        *(Scenario(design=design, accuracy=None, endpoints=endpoints) for design in DRAWN_DESIGNS),
        *(
            Scenario(design=design, accuracy=accuracy, at_margin_of=at, endpoints=(at,) if at else endpoints)
            for design in DESIGNS
            for accuracy in ACCURACIES
            for at in ("", *endpoints)
        ),
    ]


def misses_of(scenario: Scenario, found: dict[str, Found]) -> list[str]:
    """Return the violations: mean coverage outside 93-97 %, or false claims too often at a fixed truth."""
    if scenario.accuracy is None:
        return [
            f"{name}: {what} covers {share:.3f}"
            for name, row in found.items()
            for what, share in (("difference", row.covered), ("one variant", row.level_covered))
            if share is not None and not TOLERATED[0] <= share <= TOLERATED[1]
        ]
    if not scenario.at_margin_of:
        return []
    claims = found[scenario.at_margin_of].not_inferior or 0.0
    return [f"false claims {claims:.4f}"] if claims > MOST_FALSE_CLAIMS else []


def _line(name: str, row: Found) -> str:
    parts = [f"{name:32} covers {row.covered:.3f} (below {row.missed_below:.4f}, above {row.missed_above:.4f})"]
    if row.level_covered is not None:
        parts.append(f"one variant {row.level_covered:.3f}")
    if row.not_inferior is not None:
        parts.append(f"not inferior {row.not_inferior:.4f}")
    if row.equal_margin is not None:
        parts.append(f"at the margin {row.equal_margin:.4f} {row.not_inferior_at_equal_margins:.3f}")
    return ", ".join(parts)


def _where(scenario: Scenario) -> str:
    design = scenario.design
    patients = sum(len(np.unique(code)) for code in design.folds_of_patients())
    where = f"{design.images} images, {patients} patients, {design.folds} × {design.seeds}"
    if scenario.accuracy is None:
        return f"{where}, truth drawn"
    at = f"loses the margin of {scenario.at_margin_of}" if scenario.at_margin_of else "equal"
    return f"{where}, accuracy {scenario.accuracy}, {at}"


def main(words: Sequence[str] | None = None) -> None:
    """Simulate all scenarios, print the results, and write them as JSON with --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=STUDIES, help="per line of drawn truths or equal variants")
    parser.add_argument(
        "--claim-studies", type=int, default=CLAIM_STUDIES, help="per line of a variant that loses a margin"
    )
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
    counts = [arguments.claim_studies if scenario.at_margin_of else arguments.studies for scenario in every]
    with ProcessPoolExecutor(available_threads()) as pool:
        results = pool.map(run_scenario, every, counts, itertools.repeat(arguments.seed))
        for scenario, count, found in zip(every, counts, results, strict=True):
            where = _where(scenario)
            print(f"\n{where}, {count:,} studies")
            for name, row in found.items():
                print(f"  {_line(name, row)}", flush=True)
            misses += [f"{where}: {miss}" for miss in misses_of(scenario, found)]
            rows.append(
                {
                    **dataclasses.asdict(scenario),
                    "studies": count,
                    "found": {name: {"covered": row.covered, **dataclasses.asdict(row)} for name, row in found.items()},
                }
            )
    print(f"\n{len(misses)} outside {TOLERATED[0]:.0%}-{TOLERATED[1]:.0%} or above {MOST_FALSE_CLAIMS:.1%}:")
    print("\n".join(f"  {miss}" for miss in misses))
    print(f"{time.perf_counter() - began:.0f} s")
    if arguments.out:
        document = {"seed": arguments.seed, "scenarios": rows}
        arguments.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
