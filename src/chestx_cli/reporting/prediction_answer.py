"""The answer of `predict`, in a file of its own: importing the code of verdicts takes longer than predicting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.core.printable import paragraph
from chestx_cli.core.record import Answer
from chestx_cli.records.answers import MarkedPredictionRow, PredictionAnswerRow

if TYPE_CHECKING:
    from chestx_cli.records.prediction import PredictionRow, PredictRecord

# New images shown; the counts are of all.
SHOWN_PREDICTIONS = 8


def _answer_row(row: PredictionRow) -> PredictionAnswerRow:
    return PredictionAnswerRow(
        image=row.path or row.image_id,
        probability=row.probability,
        decision=row.decision or "unreadable",
        distance=row.distance_to_threshold,
    )


def _marked(row: PredictionRow) -> MarkedPredictionRow:
    first, *others = (row.unlike_training or "").split(", ")
    return MarkedPredictionRow(**vars(_answer_row(row)), unlike=f"{first} +{len(others)}" if others else first)


def of_predictions(record: PredictRecord) -> Answer:
    """Return the first predictions, the number of images per decision, and the model."""
    shown = record.rows[:SHOWN_PREDICTIONS]
    has_more = record.images > len(shown)
    marked = any(row.unlike_training for row in shown)
    return Answer(
        rows=tuple(_marked(row) if marked else _answer_row(row) for row in shown),
        sentence=paragraph(
            f"{record.headline}; called at {record.threshold:.3g}.",
            f"The first {len(shown)} are shown." if has_more else "",
            f"{record.csv} has all {record.images:,}, with their paths." if record.csv else "",
            f"Model: {record.variant}.",
            f"Why: {record.chosen_because}.",
        ),
        warnings=record.notes,
        next_command="" if record.csv or not has_more else "chestx predict IMAGE --csv predictions.csv",
    )
