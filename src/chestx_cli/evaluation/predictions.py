"""Stored predictions of a variant: one row per image, sufficient to recompute every metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.errors import IntegrityError, StudyError
from chestx_cli.evaluation.statistics.metrics import decide
from chestx_cli.store.tables import csv_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.store.split import Split


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of an evaluation, arrays [N]: ids, patients' hashes, and 1 for those of the positive class."""

    ids: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]
    is_positive: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A variant's predictions for images [N]; probability and decision are of the positive class."""

    images: Images
    probability: npt.NDArray[np.float64]
    decision: npt.NDArray[np.int64]

    @property
    def is_positive(self) -> npt.NDArray[np.int64]:
        """Return the true labels [N]: 1 for the positive class."""
        return self.images.is_positive

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Return which images [N] were classified correctly."""
        right: npt.NDArray[np.bool_] = self.decision == self.is_positive
        return right


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A variant's predictions of the images that one cell tests; `fold` is empty for a study of one split."""

    predictions: Predictions
    fold: str = ""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class CellPair:
    """Two variants' predictions of the same images in one cell."""

    first: Predictions
    second: Predictions
    fold: str = ""
    seed: int = 0

    @property
    def cells(self) -> tuple[Cell, Cell]:
        """Return both sides as cells."""
        first, second = (Cell(predictions=own, fold=self.fold, seed=self.seed) for own in (self.first, self.second))
        return first, second


def sides(pairs: Sequence[CellPair]) -> tuple[tuple[Cell, ...], tuple[Cell, ...]]:
    """Return the cells of the first variant and those of the second."""
    return tuple(pair.cells[0] for pair in pairs), tuple(pair.cells[1] for pair in pairs)


def by_fold(cells: Sequence[Cell]) -> tuple[tuple[Predictions, ...], ...]:
    """Return for each fold the predictions under each seed; raises IntegrityError where they are of other images.

    It is raised as well where a cell is there twice, or an image is tested in two folds.
    """
    folds: dict[str, list[Cell]] = {}
    for cell in cells:
        folds.setdefault(cell.fold, []).append(cell)
    seen: set[str] = set()
    for fold, own in folds.items():
        ids = own[0].predictions.images.ids.tolist()
        if any(cell.predictions.images.ids.tolist() != ids for cell in own):
            raise IntegrityError(f"{fold or 'the split'} tests other images under another seed", "make the folds again")
        if len({cell.seed for cell in own}) < len(own):
            raise IntegrityError(f"{fold or 'the split'} is there twice under one seed", "give each cell once")
        if not seen.isdisjoint(ids):
            raise IntegrityError("an image is tested in two folds", "make the folds again")
        seen.update(ids)
    return tuple(tuple(cell.predictions for cell in own) for own in folds.values())


def stacked(cells: Sequence[Cell]) -> Predictions:
    """Return the predictions of all cells one after another; an image is there once per seed."""
    import numpy as np

    parts = [own for fold in by_fold(cells) for own in fold]
    if len(parts) == 1:
        return parts[0]
    images = Images(
        ids=np.concatenate([part.images.ids for part in parts]),
        groups=np.concatenate([part.images.groups for part in parts]),
        is_positive=np.concatenate([part.is_positive for part in parts]),
    )
    return Predictions(
        images=images,
        probability=np.concatenate([part.probability for part in parts]),
        decision=np.concatenate([part.decision for part in parts]),
    )


def images_of(split: Split, rows: npt.NDArray[np.int64]) -> Images:
    """Return rows of a split's manifest as the images of an evaluation."""
    return Images(ids=split.ids[rows], groups=split.groups[rows], is_positive=split.is_positive(rows))


def predictions_of(images: Images, probability: npt.NDArray[np.float64], threshold: float) -> Predictions:
    """Return probabilities [N] of the positive class as predictions at a threshold."""
    return Predictions(images=images, probability=probability, decision=decide(probability, threshold))


def predictions_csv(predictions: Predictions) -> str:
    """Return predictions as CSV; probabilities keep all their digits."""
    return csv_text(
        {
            "image_id": predictions.images.ids,
            "group": predictions.images.groups,
            "is_positive": predictions.is_positive,
            "probability": predictions.probability,
            "decision": predictions.decision,
        }
    )


def read_predictions(path: Path) -> Predictions:
    """Return stored predictions; raises IntegrityError for a damaged file, StudyError for a missing one."""
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype={"image_id": str, "group": str}, keep_default_na=False)
        images = Images(
            ids=table["image_id"].to_numpy(str),
            groups=table["group"].to_numpy(str),
            is_positive=table["is_positive"].to_numpy("int64"),
        )
        return Predictions(
            images=images,
            probability=table["probability"].to_numpy("float64"),
            decision=table["decision"].to_numpy("int64"),
        )
    except FileNotFoundError as error:
        raise StudyError(
            f"{path} no longer exists: it was removed, or its variant was replaced in the meantime",
            'run "chestx evaluate" again',
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise IntegrityError(f"{path} is damaged: {error}", 'run "chestx evaluate" again') from error
