"""Stored predictions of a variant: one row per image, sufficient to recompute every metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.errors import IntegrityError, StudyError
from chestx_cli.evaluation.statistics.metrics import decide
from chestx_cli.study.tables import csv_text

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.study.split import Split


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
