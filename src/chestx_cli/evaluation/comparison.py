"""Comparison of two variants on the same images, from stored predictions; over the folds of a study with folds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.errors import StudyError, quoted
from chestx_cli.evaluation.endpoints import ENDPOINTS, Paired, compare
from chestx_cli.evaluation.predictions import CellPair, Predictions, read_predictions, sides
from chestx_cli.evaluation.result_tables import auroc_gap
from chestx_cli.evaluation.statistics.auroc import auroc_interval, auroc_of
from chestx_cli.evaluation.statistics.intervals import (
    Patients,
    bounds,
    draw_patients,
    proportion_interval,
    share,
    within,
)
from chestx_cli.evaluation.statistics.paired import changes_of, difference_interval
from chestx_cli.records.evaluation import EvaluationRecord, PairedAurocRow, PairedEndpointRow, PairedFoldRow, PairedRow
from chestx_cli.records.split import TEST
from chestx_cli.store.caveats import stamped
from chestx_cli.store.directory import Study
from chestx_cli.store.documents import require_hash

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chestx_cli.evaluation.results import StudyResults

FOLDS_FILE = "folds.json"
_FOLD = re.compile(r"fold-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Pair(CellPair):
    """Stored predictions of two variants for the same images.

    caveats: data warnings recorded with the evaluations, each with its label.
    """

    caveats: tuple[str, ...]


def cells_of(study: Study) -> tuple[tuple[str, Study], ...]:
    """Return the sub-studies of a study with their names: one per fold, or the study itself with an empty name."""
    if not (study.root / FOLDS_FILE).exists():
        return (("", study),)
    numbered = sorted((int(m[1]), path) for path in study.root.iterdir() if (m := _FOLD.fullmatch(path.name)))
    return tuple((path.name, Study(path)) for _, path in numbered)


def read_pair(results: StudyResults, fold: str, first: str, second: str, where: str) -> Pair:
    """Return the predictions of two variants' current models for the image set `where`.

    Raises StudyError if a variant was not evaluated on these images with its current model, or the two were evaluated
    on different images; IntegrityError if a predictions file was modified since its evaluation.
    """
    (a, a_record), (b, b_record) = (predictions_on(results, name, where) for name in (first, second))
    if a_record.images_sha256 != b_record.images_sha256 or a.images.ids.tolist() != b.images.ids.tolist():
        raise StudyError(
            f"{first} and {second} were evaluated on different images",
            f'run "{_command(results.study, where, first, second)}"',
        )
    notes = tuple(dict.fromkeys((*stamped(a_record.notes), *stamped(b_record.notes))))
    return Pair(fold=fold, first=a, second=b, caveats=notes)


def _command(study: Study, where: str, *names: str) -> str:
    of = "" if where == TEST else f" --data DATA --name {where}"
    return f"chestx evaluate {' '.join(names)} --study {quoted(str(study.root))}{of}"


def predictions_on(results: StudyResults, name: str, where: str) -> tuple[Predictions, EvaluationRecord]:
    """Return the predictions of a variant's current model for the image set `where`, and their record.

    Raises StudyError if the variant was not evaluated on these images with its current model, IntegrityError if the
    predictions file was modified since.
    """
    study, variant = results.study, results.variant(name)
    evaluation = variant.evaluation_on(where) if variant else None
    command = _command(study, where, name)
    if evaluation is None:
        if not (study.variant(name) / f"evaluation.{where}.json").exists():
            raise StudyError(f"{name} has not been evaluated on {where} in {study.root}/", f'run "{command}" first')
        raise StudyError(f"{name} was evaluated with another model or split than the current ones", f'run "{command}"')
    predictions = study.variant(name) / f"predictions.{where}.csv"
    require_hash(predictions, evaluation.rows[0].predictions_sha256, f'run "{command}" again')
    return read_predictions(predictions), evaluation


def paired_rows(
    first: Predictions, second: Predictions, patients: Patients, margin: float, positive: str
) -> tuple[PairedRow, ...]:
    """Return accuracy, sensitivity and specificity of both variants, and the paired differences."""
    import numpy as np

    truth = first.is_positive == 1
    every = np.ones(len(truth), dtype=bool)
    measures = (("Accuracy", every), (f"Sensitivity ({positive})", truth), ("Specificity", ~truth))
    return tuple(_paired_row(name, first, second, among, patients, margin) for name, among in measures if among.any())


def _paired_row(
    measure: str,
    first: Predictions,
    second: Predictions,
    among: npt.NDArray[np.bool_],
    patients: Patients,
    margin: float,
) -> PairedRow:
    paired = compare(first.correct[among], second.correct[among], within(patients, among), margin)
    return PairedRow(
        measure=measure,
        images=paired.n,
        first=share(first.correct, among),
        first_interval=bounds(proportion_interval(first.correct, among, patients)),
        second=share(second.correct, among),
        second_interval=bounds(proportion_interval(second.correct, among, patients)),
        lost=paired.lost,
        won=paired.won,
        difference=paired.difference,
        difference_interval=paired.interval.bounds,
        method=paired.interval.method,
        p=paired.p,
        test=paired.test,
    )


def endpoint_row(pairs: Sequence[CellPair], paired: Paired) -> PairedEndpointRow:
    """Return both variants' endpoint values and the result of their comparison."""
    entry = ENDPOINTS[paired.endpoint]
    first, second = (entry.estimate(side) for side in sides(pairs))
    low, high = paired.interval.bounds
    noun = f"{entry.noun[0].upper()}{entry.noun[1:]}"
    return PairedEndpointRow(
        measure=f"{noun}, smaller is better" if entry.is_loss else noun,
        first=first.value,
        first_interval=first.interval.bounds,
        second=second.value,
        second_interval=second.interval.bounds,
        difference=-paired.difference if entry.is_loss else paired.difference,
        difference_interval=(-high, -low) if entry.is_loss else (low, high),
        method=paired.interval.method,
        p=paired.p,
        margin=paired.margin,
        p_margin=paired.p_margin,
    )


def auroc_rows(pairs: Sequence[Pair], seed: int) -> tuple[PairedAurocRow, ...]:
    """Return both AUROCs and DeLong's paired comparison; empty for a study with folds or images of one class."""
    import numpy as np

    if len(pairs) > 1:
        return ()
    pair = pairs[0]
    patients = draw_patients(pair.first.images.groups, np.random.default_rng(seed))
    difference = auroc_gap(pair.first, pair.second, patients)
    if difference is None:
        return ()
    a, b = (auroc_of(predictions.is_positive, predictions.probability) for predictions in (pair.first, pair.second))
    return (
        PairedAurocRow(
            first=a.value,
            first_interval=auroc_interval(a, patients).bounds,
            second=b.value,
            second_interval=auroc_interval(b, patients).bounds,
            difference=difference.value,
            difference_interval=difference.interval,
            method=difference.method,
            p=difference.p,
        ),
    )


def fold_rows(pairs: Sequence[Pair], seed: int) -> tuple[PairedFoldRow, ...]:
    """Return the comparison in each fold; empty for a study without folds."""
    return () if len(pairs) == 1 else tuple(_fold_row(pair, seed) for pair in pairs)


def _fold_row(pair: Pair, seed: int) -> PairedFoldRow:
    import numpy as np

    first, second = pair.first.correct, pair.second.correct
    patients, every = draw_patients(pair.first.images.groups, np.random.default_rng(seed)), np.ones(len(first), bool)
    changes, gap = changes_of(first, second, patients), auroc_gap(pair.first, pair.second, patients)
    return PairedFoldRow(
        fold=pair.fold,
        images=len(first),
        first=float(first.mean()),
        first_interval=bounds(proportion_interval(first, every, patients)),
        second=float(second.mean()),
        second_interval=bounds(proportion_interval(second, every, patients)),
        lost=changes.lost,
        won=changes.won,
        difference=changes.difference,
        difference_interval=difference_interval(changes).bounds,
        auroc_difference=gap.value if gap else None,
        auroc_difference_interval=gap.interval if gap else None,
    )
