"""Comparisons with the baseline over the cells of a study (folds × training seeds): pooled, by seed, and seed noise."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chestx_cli.core.errors import IntegrityError, StudyError
from chestx_cli.core.printable import counted
from chestx_cli.evaluation.endpoints import DRAWS_SEED, ENDPOINTS, Estimate, auroc_within_folds
from chestx_cli.evaluation.predictions import Cell, CellPair, Predictions, sides, stacked
from chestx_cli.evaluation.statistics.auroc import AurocDifference
from chestx_cli.evaluation.statistics.intervals import (
    bounds,
    draw_patients,
    proportion_interval,
    share,
    undrawn_patients,
)
from chestx_cli.evaluation.verdicts import Compared, Margins, Verdict, guards_of, judge
from chestx_cli.records.cells import PooledRatesRow


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """A variant's endpoint value and verdict against the baseline under one seed, over its folds.

    The verdict is Holm-corrected over the variants of this seed.
    """

    seed: int
    value: float
    compared: Compared
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Exemplar:
    """An image whose decision differs from the baseline's in most seeds.

    flips: number of the `seeds` in which the decision differs; lost: number in which only the baseline is correct.
    Probabilities are means over seeds. Source: Hooker et al., What Do Compressed Deep Neural Networks Forget?, 2019.
    """

    image_id: str
    fold: str
    is_positive: bool
    flips: int
    lost: int
    seeds: int
    baseline_probability: float
    probability: float


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """A variant compared with the baseline over all cells they share.

    estimate: pooled endpoint value. compared, verdict: the pooled comparison, Holm-corrected over the variants. mean,
    sd: of the endpoint value over seeds; sd is None for one seed. held: share of seeds with the same verdict as the
    pooled one.
    """

    variant: str
    estimate: Estimate
    compared: Compared
    verdict: Verdict
    by_seed: tuple[SeedResult, ...]
    mean: float
    sd: float | None
    held: float
    exemplars: tuple[Exemplar, ...]


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """Endpoint differences between trainings of one recipe that differ only in the seed, over all pairs of seeds.

    mean, largest: of the absolute differences; each difference is over all folds.
    """

    endpoint: str
    seeds: int
    pairs: int
    mean: float
    largest: float

    @property
    def sentence(self) -> str:
        """Return the noise floor as a sentence."""
        entry = ENDPOINTS[self.endpoint]
        mean, largest = (
            f"{100 * value:.1f} points" if entry.is_share else f"{value:.3f}" for value in (self.mean, self.largest)
        )
        first = (
            f"Two trainings of the baseline that differ in the seed alone differ by {mean} of {entry.noun} on average, "
            f"by {largest} at most ({counted(self.pairs, 'pair')} of {self.seeds} seeds)"
        )
        return f"{first}: a difference of one seed that is no larger can be chance of training."


def pair_cells(first: Sequence[Cell], second: Sequence[Cell]) -> tuple[CellPair, ...]:
    """Return both variants' predictions for each cell they share, in the order of `first`.

    Raises StudyError if they share no cell, IntegrityError if their images differ in a cell.
    """
    others = {(cell.fold, cell.seed): cell.predictions for cell in second}
    pairs = tuple(
        CellPair(first=cell.predictions, second=others[cell.fold, cell.seed], fold=cell.fold, seed=cell.seed)
        for cell in first
        if (cell.fold, cell.seed) in others
    )
    if not pairs:
        raise StudyError("the two variants were not tested in one cell together", 'run "chestx evaluate" in each cell')
    for pair in pairs:
        if pair.first.images.ids.tolist() != pair.second.images.ids.tolist():
            raise IntegrityError(
                f"{pair.fold or 'the split'}, seed {pair.seed}: the variants were tested on different images",
                'run "chestx evaluate" in it again',
            )
    return pairs


def auroc_gap_of(pairs: Sequence[CellPair]) -> AurocDifference | None:
    """Return the difference in within-fold AUROC (second minus first); None if a fold lacks a class."""
    lacking = any(int(pair.first.is_positive.sum()) in (0, len(pair.first.is_positive)) for pair in pairs)
    return None if lacking else auroc_within_folds(pairs)


def compare_cells(
    variant: str, pairs: Sequence[CellPair], endpoint: str, margins: Margins, faults: tuple[str, ...] = ()
) -> Compared:
    """Compare two variants on an endpoint and its guards, pooled over the cells; a single split is one cell.

    faults: reasons why the first variant is not a valid reference. Raises StudyError if the endpoint is undefined in a
    cell, IntegrityError if the cells are inconsistent.
    """
    first, second = (stacked(side) for side in sides(pairs))
    patients = undrawn_patients(first.images.groups)
    return Compared(
        endpoint=ENDPOINTS[endpoint].compare(pairs, margins.endpoint),
        guards=guards_of(variant, first, second, patients, margins, auroc_gap_of(pairs), endpoint),
        faults=faults,
    )


def judge_variants(
    baseline: Sequence[Cell],
    variants: Mapping[str, Sequence[Cell]],
    endpoint: str,
    margins: Margins,
    faults: tuple[str, ...] = (),
) -> tuple[VariantResult, ...]:
    """Compare each variant with the baseline, pooled over folds and seeds and separately for each seed.

    Holm's correction covers all variants in the pooled comparison and, within each seed, the variants of that seed.
    """
    paired = {name: pair_cells(baseline, cells) for name, cells in variants.items()}
    compared = [compare_cells(name, pairs, endpoint, margins, faults) for name, pairs in paired.items()]
    by_seed: dict[str, list[SeedResult]] = {name: [] for name in paired}
    for seed in dict.fromkeys(pair.seed for pairs in paired.values() for pair in pairs):
        pairs_of_seed = {name: [pair for pair in pairs if pair.seed == seed] for name, pairs in paired.items()}
        pairs_of_seed = {name: pairs for name, pairs in pairs_of_seed.items() if pairs}
        comparisons = [compare_cells(name, pairs, endpoint, margins, faults) for name, pairs in pairs_of_seed.items()]
        for (name, pairs), comparison, verdict in zip(
            pairs_of_seed.items(), comparisons, judge(comparisons), strict=True
        ):
            value = ENDPOINTS[endpoint].estimate(sides(pairs)[1]).value
            by_seed[name].append(SeedResult(seed=seed, value=value, compared=comparison, verdict=verdict))
    return tuple(
        _variant_result(name, pairs, endpoint, comparison, verdict, by_seed[name])
        for (name, pairs), comparison, verdict in zip(paired.items(), compared, judge(compared), strict=True)
    )


def _variant_result(
    variant: str,
    pairs: Sequence[CellPair],
    endpoint: str,
    compared: Compared,
    verdict: Verdict,
    by_seed: Sequence[SeedResult],
) -> VariantResult:
    values = [result.value for result in by_seed]
    return VariantResult(
        variant=variant,
        estimate=ENDPOINTS[endpoint].estimate(sides(pairs)[1]),
        compared=compared,
        verdict=verdict,
        by_seed=tuple(by_seed),
        mean=statistics.fmean(values),
        sd=statistics.stdev(values) if len(values) > 1 else None,
        held=sum(result.verdict.word == verdict.word for result in by_seed) / len(by_seed),
        exemplars=exemplars(pairs),
    )


def pooled_rates(variant: str, cells: Sequence[Cell]) -> PooledRatesRow:
    """Return sensitivity and specificity at each cell's stored threshold, over all cells.

    Intervals as for a single split: predictions of an image under several seeds count as several images of its patient.
    """
    import numpy as np

    own = stacked(cells)
    patients = draw_patients(own.images.groups, np.random.default_rng(DRAWS_SEED))
    positive = own.is_positive == 1
    return PooledRatesRow(
        variant=variant,
        sensitivity=share(own.correct, positive),
        sensitivity_interval=bounds(proportion_interval(own.correct, positive, patients)),
        specificity=share(own.correct, ~positive),
        specificity_interval=bounds(proportion_interval(own.correct, ~positive, patients)),
    )


def seed_pairs(cells: Sequence[Cell]) -> dict[tuple[int, int], tuple[CellPair, ...]]:
    """Return one variant's trainings for each pair of seeds, over the folds they share; empty for one seed."""
    by_seeds = {}
    for a, b in itertools.combinations(dict.fromkeys(cell.seed for cell in cells), 2):
        of_b = {cell.fold: cell.predictions for cell in cells if cell.seed == b}
        pairs = tuple(
            CellPair(first=cell.predictions, second=of_b[cell.fold], fold=cell.fold)
            for cell in cells
            if cell.seed == a and cell.fold in of_b
        )
        if pairs:
            by_seeds[a, b] = pairs
    return by_seeds


def noise_floor(cells: Sequence[Cell], endpoint: str) -> NoiseFloor | None:
    """Return the differences between trainings of one variant that differ only in the seed; None for one seed."""
    pairs = seed_pairs(cells)
    if not pairs:
        return None
    entry = ENDPOINTS[endpoint]
    gaps = [abs(entry.compare(of_folds, entry.margin).difference) for of_folds in pairs.values()]
    return NoiseFloor(
        endpoint=endpoint,
        seeds=len({cell.seed for cell in cells}),
        pairs=len(gaps),
        mean=statistics.fmean(gaps),
        largest=max(gaps),
    )


def exemplars(pairs: Sequence[CellPair]) -> tuple[Exemplar, ...]:
    """Return the images whose decision differs from the baseline's in most seeds, the most frequent first."""
    folds: dict[str, list[tuple[Predictions, Predictions]]] = {}
    for pair in pairs:
        folds.setdefault(pair.fold, []).append((pair.first, pair.second))
    changed = [exemplar for fold, predictions in folds.items() for exemplar in _exemplars_of(fold, predictions)]
    return tuple(
        sorted(changed, key=lambda one: (-one.flips / one.seeds, -abs(one.probability - one.baseline_probability)))
    )


def _exemplars_of(fold: str, predictions: Sequence[tuple[Predictions, Predictions]]) -> list[Exemplar]:
    import numpy as np

    images = predictions[0][0].images
    flipped = np.stack([first.decision != second.decision for first, second in predictions])
    lost = np.stack([first.correct & ~second.correct for first, second in predictions])
    before, after = (np.mean([pair[side].probability for pair in predictions], axis=0) for side in (0, 1))
    return [
        Exemplar(
            image_id=str(images.ids[i]),
            fold=fold,
            is_positive=bool(images.is_positive[i] == 1),
            flips=int(flipped[:, i].sum()),
            lost=int(lost[:, i].sum()),
            seeds=len(predictions),
            baseline_probability=float(before[i]),
            probability=float(after[i]),
        )
        for i in np.flatnonzero(2 * flipped.sum(axis=0) > len(predictions))
    ]
