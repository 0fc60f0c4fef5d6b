"""The models that a search has built, in one split or in every fold: validation quality and cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chestx_cli.compression.cost_probe import ROUNDS, cost_of, time_latency
from chestx_cli.compression.search import Bounds, Candidate, Cost, Network, Quality
from chestx_cli.compression.search_folds import Fold, validation_of
from chestx_cli.compression.validation_quality import AUROC, quality_of
from chestx_cli.evaluation.endpoints import ACCURACY, ENDPOINTS, compare
from chestx_cli.evaluation.pareto import front_shares, on_front
from chestx_cli.evaluation.predictions import Cell, CellPair, Predictions, stacked
from chestx_cli.evaluation.statistics.intervals import Patients, proportion_interval
from chestx_cli.inference.onnx_export import model_for
from chestx_cli.inference.runtimes import RUNTIMES
from chestx_cli.inference.thresholds import freeze
from chestx_cli.records.commands import CompressRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestx_cli.core.command import Run
    from chestx_cli.records.variant import VariantRecord

PARENT = Candidate(network=Network(), int8=None)


@dataclass(kw_only=True)
class SearchedModels:
    """The parent and the candidates that were built, with their variants and validation predictions in every fold."""

    run: Run
    folds: tuple[Fold, ...]
    patients: Patients
    bounds: Bounds
    endpoint: str | None
    threads: int
    runtime: str
    records: dict[Candidate, tuple[VariantRecord, ...]] = field(default_factory=dict)
    predictions: dict[Candidate, tuple[Predictions, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with the parent."""
        self.records[PARENT] = tuple(fold.parent for fold in self.folds)
        self.predictions[PARENT] = tuple(fold.reference for fold in self.folds)

    def add(self, candidate: Candidate, variants: Sequence[VariantRecord]) -> Quality:
        """Add a candidate's variants, one per fold, with thresholds by their parents' rules; return its quality."""
        records = tuple(
            freeze(
                self.run,
                fold.study,
                fold.split,
                record,
                rule=fold.parent.operating_rule,
                temperature=fold.parent.temperature_fit is not None,
                threads=self.threads,
            )
            for fold, record in zip(self.folds, variants, strict=True)
        )
        self.records[candidate] = records
        self.predictions[candidate] = tuple(
            validation_of(self.run, fold.study, fold.split, record, self.threads)
            for fold, record in zip(self.folds, records, strict=True)
        )
        return self.quality(self.pairs(candidate))

    def pairs(self, candidate: Candidate) -> tuple[CellPair, ...]:
        """Return the parent's and a candidate's predictions in each fold."""
        return tuple(fold.pair(own) for fold, own in zip(self.folds, self.predictions[candidate], strict=True))

    def quality(self, pairs: Sequence[CellPair]) -> Quality:
        """Return the quality of a model from its predictions in each fold."""
        return quality_of(pairs, self.patients, self.endpoint)

    def size_bytes(self, candidate: Candidate) -> int:
        """Return the size of a candidate's file, the largest of the folds."""
        return max(record.model_bytes for record in self.records[candidate])

    def costs(self) -> dict[Candidate, Cost]:
        """Return the cost of every model, timed in one interleaved run; over folds, that of the first fold's models."""
        first = self.folds[0]
        models = []
        for records in self.records.values():
            models.append(model_for(self.run, first.study, first.split, records[0], RUNTIMES[self.runtime].needs))
            for fold, record in zip(self.folds, records, strict=True):
                path = "/".join(filter(None, (fold.name, record.name, record.model_file)))
                self.run.uses(path, record.model_sha256)
        side = first.parent.preprocessing.image_size_px
        with self.run.reporter.progress("Timing all variants", ROUNDS * len(models)) as advance:
            timed = time_latency(models, side, self.threads, self.runtime, advance)
        return {
            candidate: cost_of(rounds, self.size_bytes(candidate))
            for candidate, rounds in zip(self.records, timed, strict=True)
        }

    def rows(self, costs: dict[Candidate, Cost]) -> dict[Candidate, CompressRow]:
        """Return a row for each model, the parent included, which states whether it is on the Pareto front."""
        endpoint = ENDPOINTS[self.endpoint or ACCURACY]
        totals = [endpoint.total(_cells(self.pairs(candidate))) for candidate in costs]
        prices = [(cost.latency_ms, cost.size_mb) for cost in costs.values()]
        sign = 1 if endpoint.is_loss else -1
        front = on_front([(*price, sign * total.value) for price, total in zip(prices, totals, strict=True)])
        shares = front_shares(totals, prices, is_loss=endpoint.is_loss)
        return {
            candidate: self._row(candidate, costs, is_on_front=is_on_front, front_share=share)
            for candidate, is_on_front, share in zip(costs, front, shares, strict=True)
        }

    def _row(
        self, candidate: Candidate, costs: dict[Candidate, Cost], *, is_on_front: bool, front_share: float
    ) -> CompressRow:
        import numpy as np

        pairs, cost, record = self.pairs(candidate), costs[candidate], self.records[candidate][0]
        choice = candidate.network.choice
        worth = self.quality(pairs)
        reference, model = (stacked([pair.cells[side] for pair in pairs]) for side in (0, 1))
        paired = compare(reference.correct, model.correct, self.patients, margin=0.0)
        interval = proportion_interval(model.correct, np.ones(len(model.decision), dtype=bool), self.patients)
        assert interval is not None  # noqa: S101 - there are validation images
        auroc, reference_auroc = (ENDPOINTS[AUROC].total([pair.cells[side] for pair in pairs]).value for side in (1, 0))
        return CompressRow(
            variant=record.name,
            criterion=choice.criterion if choice else None,
            method=choice.method if choice else None,
            int8=candidate.int8,
            macs_removed=1 - record.macs / self.folds[0].parent.macs,
            latency_p50_ms=cost.latency_ms,
            speedup=costs[PARENT].latency_ms / cost.latency_ms,
            size_mb=cost.size_mb,
            accuracy=worth.accuracy,
            accuracy_interval=interval.bounds,
            lost=paired.lost,
            won=paired.won,
            difference=paired.difference,
            difference_interval=paired.interval.bounds,
            p=paired.p,
            auroc=auroc,
            auroc_difference=auroc - reference_auroc,
            loss=worth.loss,
            is_on_front=is_on_front,
            missed=self.bounds.missed(cost, worth),
            model_sha256=record.model_sha256,
            student=candidate.network.student,
            dropped=worth.dropped,
            drop=worth.drop,
            drop_interval=worth.drop_interval,
            front_share=front_share,
            energy_mj=cost.energy_mj,
            is_rough=cost.is_rough,
        )


def _cells(pairs: Sequence[CellPair]) -> tuple[Cell, ...]:
    return tuple(pair.cells[1] for pair in pairs)
