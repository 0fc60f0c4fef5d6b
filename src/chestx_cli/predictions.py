"""Predictions stored beside a variant: one row per image, enough to compute every metric again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.errors import IntegrityError
from chestx_cli.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Arrays over the images of one part of the split [N]; probability and decision are of the positive class."""

    image_ids: npt.NDArray[np.str_]
    is_positive: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]
    decision: npt.NDArray[np.int64]

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Return which images were decided rightly."""
        right: npt.NDArray[np.bool_] = self.decision == self.is_positive
        return right


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions as CSV; probabilities keep all their digits."""
    import pandas as pd

    table = pd.DataFrame(
        {
            "image_id": predictions.image_ids,
            "is_positive": predictions.is_positive,
            "probability": predictions.probability,
            "decision": predictions.decision,
        }
    )
    write_atomic(path, table.to_csv(index=False, lineterminator="\n"))


def read_predictions(path: Path) -> Predictions:
    """Return stored predictions; raises IntegrityError for a file that is damaged."""
    import pandas as pd

    try:
        table = pd.read_csv(path)
        return Predictions(
            image_ids=table["image_id"].to_numpy(str),
            is_positive=table["is_positive"].to_numpy("int64"),
            probability=table["probability"].to_numpy("float64"),
            decision=table["decision"].to_numpy("int64"),
        )
    except (OSError, ValueError, KeyError) as error:
        raise IntegrityError(f"{path} is damaged: {error}", 'run "chestx evaluate" again') from error
