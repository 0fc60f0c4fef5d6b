"""Predictions of a variant, stored as one row per image; every metric can be recomputed from them."""

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
    """The images of an evaluation as arrays [N]: ids, hashed patient keys, labels (1 for the positive class)."""

    ids: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]
    is_positive: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A variant's predictions for images [N]: probability of the positive class, decision (1 positive, 0 negative)."""

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
    """A variant's predictions for the test images of one cell; `fold` is empty for a study with a single split."""

    predictions: Predictions
    fold: str = ""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class CellPair:
    """Two variants' predictions for the same images in one cell."""

    first: Predictions
    second: Predictions
    fold: str = ""
    seed: int = 0

    @property
    def cells(self) -> tuple[Cell, Cell]:
        """Return both sides as cells."""
        first, second = (
            Cell(predictions=predictions, fold=self.fold, seed=self.seed) for predictions in (self.first, self.second)
        )
        return first, second


def sides(pairs: Sequence[CellPair]) -> tuple[tuple[Cell, ...], tuple[Cell, ...]]:
    """Return the first variant's cells and the second's."""
    return tuple(pair.cells[0] for pair in pairs), tuple(pair.cells[1] for pair in pairs)


def by_fold(cells: Sequence[Cell]) -> tuple[tuple[Predictions, ...], ...]:
    """Return for each fold the predictions under each seed.

    Raises IntegrityError if seeds of a fold have different images, a cell occurs twice, or an image is tested in two
    folds.
    """
    folds: dict[str, list[Cell]] = {}
    for cell in cells:
        folds.setdefault(cell.fold, []).append(cell)
    seen: set[str] = set()
    for fold, of_fold in folds.items():
        ids = of_fold[0].predictions.images.ids.tolist()
        if any(cell.predictions.images.ids.tolist() != ids for cell in of_fold):
            raise IntegrityError(
                f"{fold or 'the split'} has other test images under another seed", "make the folds again"
            )
        if len({cell.seed for cell in of_fold}) < len(of_fold):
            raise IntegrityError(f"{fold or 'the split'} occurs twice under one seed", "give each cell once")
        if not seen.isdisjoint(ids):
            raise IntegrityError("an image is tested in two folds", "make the folds again")
        seen.update(ids)
    return tuple(tuple(cell.predictions for cell in of_fold) for of_fold in folds.values())


def stacked(cells: Sequence[Cell]) -> Predictions:
    """Return the predictions of all cells, concatenated; an image occurs once per seed."""
    import numpy as np

    parts = [predictions for fold in by_fold(cells) for predictions in fold]
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
    """Return the images of an evaluation from rows [n] of a split's manifest."""
    return Images(ids=split.ids[rows], groups=split.groups[rows], is_positive=split.is_positive(rows))


def predictions_of(images: Images, probability: npt.NDArray[np.float64], threshold: float) -> Predictions:
    """Return predictions from probabilities [N] of the positive class and a threshold."""
    return Predictions(images=images, probability=probability, decision=decide(probability, threshold))


def predictions_csv(predictions: Predictions) -> str:
    """Return predictions as CSV text; probabilities keep all digits."""
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
    """Read stored predictions; raises IntegrityError for a damaged file, StudyError for a missing one."""
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
