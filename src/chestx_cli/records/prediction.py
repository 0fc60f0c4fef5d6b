"""The record of `predict`: the model's output for each new image, and how it was produced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from chestx_cli.core.printable import counted
from chestx_cli.core.record import NOT_A_DEVICE, col, named_cols
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.records.tabular import TabularRecord


@dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """One image: the probability of the positive class (keyed by class name) and the decision at the threshold.

    `distance_to_threshold` is the probability minus the threshold. If the image cannot be read, `problem` states the
    reason and these fields are None. `unlike_training` names the signs by which the image looks unlike the training
    images, such as "layout, inverted"; None if there are none, or nothing to compare with. `path` is None for a file
    found in a folder, unless paths are to be shown. `doubts` are reasons of the file's own not to trust the prediction,
    such as that it shows a hand.
    """

    image_id: str = col("Image")
    path: str | None = col("File")
    probability: Mapping[str, float | None] = named_cols("Probability of", ".4f", names={})
    decision: str | None = col("Decision")
    distance_to_threshold: float | None = col("Distance to threshold", "+.4f")
    unlike_training: str | None = col("Unlike training images", default=None)
    problem: str | None = col("Problem")
    doubts: str | None = col("Doubts", default=None)
    # File of the image's heatmap in the folder that was named.
    heatmap: str | None = None


@dataclass(frozen=True, kw_only=True)
class PredictRecord(TabularRecord):
    """Predictions of new images by one model; with a CSV file, `rows` are only its first rows."""

    schema: ClassVar[str] = "chestx.predict/1"
    title: ClassVar[str] = "Predictions"

    notice: str = NOT_A_DEVICE
    variant: str = col("Variant")
    chosen_because: str = col("Chosen because")
    runtime: str = col("Runtime")
    model_sha256: str
    positive: str = col("Positive class")
    negative: str = col("Negative class")
    # An image is called positive if its probability reaches the threshold, which the rule chose on validation images.
    threshold: float = col("Threshold", ".4g")
    threshold_rule: str = col("Rule of the threshold")
    temperature: float = col("Temperature", ".4g")
    preprocessing: Preprocessing
    csv: str | None = col("CSV file")
    images: int = col("Images", ",")
    # Number of images per decision.
    called: Mapping[str, int]
    unreadable: int = col("Could not be read", ",")
    # None where the statistics of the training images are not known.
    unlike_training: int | None = col("Unlike the training images", ",", default=None)
    # Images that the CSV file already contained from an earlier run.
    resumed: int = col("Predicted by an earlier run", ",")
    rows: tuple[PredictionRow, ...] = ()

    @property
    def headline(self) -> str:
        """Return the number of images per decision."""
        called = [f"{n:,} {label}" for label, n in self.called.items()]
        unread = [f"{self.unreadable:,} unreadable"] if self.unreadable else []
        return f"{counted(self.images, 'image')}: {', '.join([*called, *unread])}"

    @property
    def exit_code(self) -> int:
        """Return 1 if an image could not be read."""
        return 1 if self.unreadable else 0
