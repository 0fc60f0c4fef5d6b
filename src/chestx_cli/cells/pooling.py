"""Pooled results of a study's cells: every image tested once per seed, on the declared endpoint."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.cells.steps import BENCHMARK, EVALUATE, StudyCell, cells_of, state_of
from chestx_cli.evaluation.cells import VariantResult, judge_variants, noise_floor, pooled_rates, seed_pairs
from chestx_cli.evaluation.comparison import predictions_on
from chestx_cli.evaluation.endpoints import ENDPOINTS
from chestx_cli.evaluation.learned import findings
from chestx_cli.evaluation.pareto import front_shares
from chestx_cli.evaluation.predictions import Cell, stacked
from chestx_cli.evaluation.reading import read_study
from chestx_cli.evaluation.results import BENCHMARKS, EVALUATIONS, VARIANTS, StudyResults
from chestx_cli.evaluation.verdicts import THE_BASELINE, Margins, in_words
from chestx_cli.inference.speedups import is_noisy
from chestx_cli.records.cells import CellResultRow, ExemplarRow, NoiseRow, PooledRatesRow, PooledRow, SeedRow
from chestx_cli.records.split import TEST
from chestx_cli.records.variant import BASELINE
from chestx_cli.store.caveats import caveat

if TYPE_CHECKING:
    from pathlib import Path

    from chestx_cli.cells.plan import Plan, Stages
    from chestx_cli.core.record import Options
    from chestx_cli.evaluation.endpoints import Endpoint
    from chestx_cli.records.benchmark import BenchmarkRecord
    from chestx_cli.records.variant import VariantRecord

LOST, WON = "only the baseline is right", "only the variant is right"


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """The pooled tables of a study, and their data warnings.

    `inputs`: the sha256 of all models and predictions of the pooled cells, by their path within the study.
    """

    images: int = 0
    patients: int = 0
    positive: str = ""
    positives: int = 0
    seeds: tuple[int, ...] = ()
    inputs: Mapping[str, str]
    rows: tuple[PooledRow, ...] = ()
    seed_rows: tuple[SeedRow, ...] = ()
    noise: tuple[NoiseRow, ...] = ()
    noise_floor: float | None = None
    noise_sentence: str = ""
    exemplars: tuple[ExemplarRow, ...] = ()
    rates: tuple[PooledRatesRow, ...] = ()
    prevalences: tuple[float, ...] = ()
    cell_rows: tuple[CellResultRow, ...] = ()
    baseline_faults: tuple[str, ...] = ()
    split_caveats: tuple[str, ...] = ()
    # The first cell, in which all variants are timed, and its benchmarks by variant.
    timed: StudyResults | None = None
    benchmarks: Mapping[str, BenchmarkRecord]

    @property
    def records(self) -> dict[str, VariantRecord]:
        """Return the first cell's variants by name; empty without a complete seed."""
        return {variant.name: variant.record for variant in self.timed.variants} if self.timed else {}

    @property
    def caveats(self) -> tuple[str, ...]:
        """Return the data warnings on the split and on the baseline, each sentence with its label."""
        faults = "; ".join(self.baseline_faults)
        return (*self.split_caveats, *([caveat(BASELINE, faults)] if faults else []))


def read_cell(plan: Plan, cell: StudyCell) -> StudyResults:
    """Return the results of a cell's evaluated variants; raises StudyError if one is missing."""
    return read_study(cell.study, parts=(VARIANTS, EVALUATIONS, BENCHMARKS), names=plan.names, check_models=False)


def benchmark_arguments(plan: Plan, cell: StudyCell) -> Options:
    """Return the arguments with which `benchmark` times all variants in a cell."""
    return {"variants": plan.names, "study": cell.study.root, **plan.options[BENCHMARK]}


def benchmarks_of(plan: Plan, cell: StudyCell, results: StudyResults, stages: Stages) -> dict[str, BenchmarkRecord]:
    """Return a cell's benchmarks with the plan's options, by variant."""
    wanted = stages[BENCHMARK].recorded_line(**benchmark_arguments(plan, cell))
    timings = ((variant.name, one) for variant in results.variants for one in variant.benchmarks)
    return {name: one for name, one in timings if one.stamp.command == wanted}


def pool(plan: Plan, root: Path, stages: Stages) -> Pooled:
    """Return the pooled results of all seeds with complete folds; without rows if no seed is complete."""
    done = [
        cell
        for cell in cells_of(plan, root)
        if EVALUATE not in {step.command for step in state_of(plan, cell, stages).left}
    ]
    seeds = tuple(seed for seed in plan.seeds if sum(cell.seed == seed for cell in done) == plan.folds)
    used = [cell for cell in done if cell.seed in seeds]
    if not used:
        return Pooled(inputs={}, benchmarks={})
    read = {cell: read_cell(plan, cell) for cell in used}
    predictions = {name: [_predicted(cell, results, name) for cell, results in read.items()] for name in plan.names}
    baseline = predictions[BASELINE]
    first = next(iter(read.values()))
    # Variants are timed in the first finished cell, whose seed may still lack another fold.
    timed = read[done[0]] if done[0] in read else read_cell(plan, done[0])
    faults = _faults(baseline, seeds, first)
    variants = {name: own for name, own in predictions.items() if name != BASELINE}
    judged = judge_variants(baseline, variants, plan.endpoint, _margins(plan), faults)
    floor = noise_floor(baseline, plan.endpoint)
    everything = stacked(baseline).images
    benchmarks = benchmarks_of(plan, done[0], timed, stages)
    evaluation = first.variants[0].evaluation
    return Pooled(
        images=len(set(everything.ids.tolist())),
        patients=len(set(everything.groups.tolist())),
        positive=first.split.classes[first.split.positive],
        positives=len(set(everything.ids[everything.is_positive == 1].tolist())),
        seeds=seeds,
        inputs={name: sha256 for cell, results in read.items() for name, sha256 in _inputs(cell, results)},
        rows=_rows(plan, timed, benchmarks, baseline, judged, _front_shares(plan, predictions, benchmarks)),
        seed_rows=_seed_rows(plan, baseline, judged, seeds),
        noise=_noise_rows(plan, predictions),
        noise_floor=floor.largest if floor else None,
        noise_sentence=floor.sentence if floor else "",
        exemplars=_exemplars(judged),
        rates=tuple(pooled_rates(name, own) for name, own in predictions.items()),
        prevalences=evaluation.prevalences if evaluation else (),
        cell_rows=_cell_rows(plan, used, predictions),
        baseline_faults=faults,
        split_caveats=tuple(dict.fromkeys(sentence for results in read.values() for sentence in results.split_caveats)),
        timed=timed,
        benchmarks=benchmarks,
    )


def _inputs(cell: StudyCell, results: StudyResults) -> Iterator[tuple[str, str]]:
    for variant in results.variants:
        yield f"{cell.name}/{variant.name}/{variant.record.model_file}", variant.record.model_sha256
        if variant.row:
            yield f"{cell.name}/{variant.name}/predictions.{TEST}.csv", variant.row.predictions_sha256


def _cell_rows(
    plan: Plan, used: Sequence[StudyCell], predictions: Mapping[str, Sequence[Cell]]
) -> tuple[CellResultRow, ...]:
    endpoint = ENDPOINTS[plan.endpoint]
    rows = []
    for at, cell in enumerate(used):
        images = predictions[BASELINE][at].predictions.images
        rows.append(
            CellResultRow(
                cell=cell.name,
                images=len(images.ids),
                patients=len(set(images.groups.tolist())),
                estimates={name: endpoint.total([own[at]]).value for name, own in predictions.items()},
            )
        )
    return tuple(rows)


def _margins(plan: Plan) -> Margins:
    options = plan.options["evaluate"]
    default = Margins()
    return Margins(
        endpoint=plan.margin,
        sensitivity=options.get("sensitivity_margin", default.sensitivity),
        specificity=options.get("specificity_margin", default.specificity),
        auroc=options.get("auroc_margin", default.auroc),
    )


def _predicted(cell: StudyCell, results: StudyResults, name: str) -> Cell:
    predictions, _ = predictions_on(results, name, TEST)
    return Cell(predictions=predictions, fold=f"fold-{cell.fold}", seed=cell.seed)


def _faults(baseline: Sequence[Cell], seeds: Sequence[int], results: StudyResults) -> tuple[str, ...]:
    """Return reasons to doubt that the baseline has learned anything, from the test images of all folds per seed."""
    return tuple(
        f"seed {seed}: {finding}"
        for seed in seeds
        for finding in findings(
            [cell.predictions for cell in baseline if cell.seed == seed], results.split.class_pair, "test images"
        )
    )


def _rows(
    plan: Plan,
    timed: StudyResults,
    benchmarks: Mapping[str, BenchmarkRecord],
    baseline: Sequence[Cell],
    judged: Sequence[VariantResult],
    front: Mapping[str, float],
) -> tuple[PooledRow, ...]:
    endpoint, results = ENDPOINTS[plan.endpoint], {one.variant: one for one in judged}
    rows = []
    for name in plan.names:
        variant, benchmark, own = timed.variant(name), benchmarks.get(name), results.get(name)
        assert variant is not None  # noqa: S101 - it was tested in this cell
        fastest = benchmark.fastest(name) if benchmark else None
        estimate = own.estimate if own else endpoint.estimate(baseline)
        row = PooledRow(
            variant=name,
            estimate=estimate.value,
            interval=estimate.interval.bounds,
            seed_sd=own.sd if own else _sd(endpoint, baseline),
            size_bytes=variant.record.model_bytes,
            latency_p50_ms=fastest.latency_p50_ms if fastest else None,
            speedup=fastest.speedup_over_best_fp32 if fastest else None,
            speedup_interval=fastest.speedup_over_best_fp32_interval if fastest else None,
            front_share=front.get(name),
            is_noisy=benchmark is not None and is_noisy(benchmark),
        )
        rows.append(_judged_row(row, own) if own else row)
    return tuple(rows)


def _judged_row(row: PooledRow, own: VariantResult) -> PooledRow:
    endpoint = own.compared.endpoint
    return dataclasses.replace(
        row,
        difference=endpoint.difference,
        difference_interval=endpoint.interval.bounds,
        p_margin=endpoint.p_margin,
        word=own.verdict.word,
        verdict=own.verdict.short,
        in_words=in_words(own.compared, own.verdict, THE_BASELINE),
        needed_images=own.verdict.needed_images,
        seeds_holding=own.held,
    )


def _sd(endpoint: Endpoint, cells: Sequence[Cell]) -> float | None:
    seeds = dict.fromkeys(cell.seed for cell in cells)
    values = [endpoint.estimate([cell for cell in cells if cell.seed == seed]).value for seed in seeds]
    return statistics.stdev(values) if len(values) > 1 else None


def _seed_rows(
    plan: Plan, baseline: Sequence[Cell], judged: Sequence[VariantResult], seeds: Sequence[int]
) -> tuple[SeedRow, ...]:
    endpoint = ENDPOINTS[plan.endpoint]
    rows = [
        SeedRow(
            variant=BASELINE,
            seed=seed,
            estimate=endpoint.estimate([cell for cell in baseline if cell.seed == seed]).value,
            difference=None,
            difference_interval=None,
            verdict="",
        )
        for seed in seeds
    ]
    rows += [
        SeedRow(
            variant=one.variant,
            seed=result.seed,
            estimate=result.value,
            difference=result.compared.endpoint.difference,
            difference_interval=result.compared.endpoint.interval.bounds,
            verdict=result.verdict.short,
        )
        for one in judged
        for result in one.by_seed
    ]
    return tuple(rows)


def _noise_rows(plan: Plan, predictions: Mapping[str, Sequence[Cell]]) -> tuple[NoiseRow, ...]:
    rows = []
    for name, cells in predictions.items():
        for seeds, pairs in seed_pairs(cells).items():
            comparison = ENDPOINTS[plan.endpoint].compare(pairs, plan.margin)
            rows.append(
                NoiseRow(
                    variant=name,
                    seeds=seeds,
                    difference=comparison.difference,
                    difference_interval=comparison.interval.bounds,
                )
            )
    return tuple(rows)


def _exemplars(judged: Sequence[VariantResult]) -> tuple[ExemplarRow, ...]:
    return tuple(
        ExemplarRow(
            variant=one.variant,
            image_id=image.image_id,
            change=LOST if 2 * image.lost >= image.flips else WON,
            seeds=image.flips,
            of_seeds=image.seeds,
            fold=image.fold,
        )
        for one in judged
        for image in one.exemplars
    )


def _front_shares(
    plan: Plan, predictions: Mapping[str, Sequence[Cell]], benchmarks: Mapping[str, BenchmarkRecord]
) -> dict[str, float]:
    """Return the share of patient bootstrap draws in which no variant is both as fast and as good, and better in one.

    Empty for fewer than two variants with a latency.
    """
    endpoint = ENDPOINTS[plan.endpoint]
    fastest = {name: own.fastest(name) for name, own in benchmarks.items()}
    latency_ms = {name: row.latency_p50_ms for name, row in fastest.items() if row is not None}
    names = [name for name in predictions if name in latency_ms]
    if len(names) < 2:
        return {}
    totals = [endpoint.total(predictions[name]) for name in names]
    shares = front_shares(totals, [(latency_ms[name],) for name in names], is_loss=endpoint.is_loss)
    return dict(zip(names, shares, strict=True))
