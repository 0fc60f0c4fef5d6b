"""A model for predicting new images, from a variant or a bundle, with its classes and threshold."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from chestx_cli.core.errors import IntegrityError
from chestx_cli.core.files import storage_error
from chestx_cli.core.printable import printable
from chestx_cli.data.images.formats.readings import doubts_of
from chestx_cli.data.likeness.stored import known_training_images
from chestx_cli.data.scanning import thumbnails
from chestx_cli.evaluation.statistics.metrics import decide
from chestx_cli.inference.prediction import open_file, predicted_batches
from chestx_cli.inference.runtimes import NATIVE, Compute, Model, probabilities_of
from chestx_cli.networks.weights.safe_readers import read_unpacked
from chestx_cli.networks.weights.zstd import SUFFIX
from chestx_cli.records.prediction import PredictionRow, PredictRecord
from chestx_cli.records.variant import DYNAMIC, FIXED
from chestx_cli.store.documents import require_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from chestx_cli.core.command import Run
    from chestx_cli.core.record import Stamp
    from chestx_cli.data.images.decoding import FileFacts
    from chestx_cli.data.likeness.rule import TrainingImages
    from chestx_cli.inference.prediction import Batch
    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model file with a verified hash, its classes, operating point and preprocessing."""

    name: str
    file: Model
    sha256: str
    runtime: str
    classes: tuple[str, ...]
    positive: str
    threshold: float
    threshold_rule: str
    temperature: float
    preprocessing: Preprocessing
    batch_dependent: bool
    # Statistics that images are compared with; None, with the reason, if there are none.
    training_images: TrainingImages | None = None
    why_not_compared: str = ""

    @property
    def negative(self) -> str:
        """Return the negative class."""
        return next(label for label in self.classes if label != self.positive)

    def open(self, threads: int | None) -> Compute:
        """Open the model on the CPU; all processors are used if `threads` is None."""
        return open_file(self.file, threads, batch_dependent=self.batch_dependent, temperature=self.temperature)

    def predictions(
        self,
        compute: Compute,
        images: Iterable[T],
        decode: Callable[[T, Preprocessing], tuple[Image, FileFacts]],
    ) -> Iterator[list[Prediction]]:
        """Yield the predictions of images in order, batch by batch, in bounded memory.

        Raises IntegrityError if the model computes no finite number, of which no class follows.
        """
        for batch in predicted_batches(compute, self.preprocessing, images, decode):
            yield self._predictions_of(batch)

    def _predictions_of(self, batch: Batch) -> list[Prediction]:
        import numpy as np

        by_row = {
            row: Prediction(row=row, probability=None, is_positive=None, problem=printable(refused.fact))
            for row, refused in batch.refused.items()
        }
        if batch.rows:
            if not np.isfinite(batch.logits).all():
                raise IntegrityError(f"{self.file.path} computes logits that are not finite", self.file.remedy)
            probability = probabilities_of(batch.logits)[:, self.classes.index(self.positive)]
            called = decide(probability, self.threshold)
            unlike = self._unlike(batch)
            for at, row in enumerate(batch.rows):
                by_row[row] = Prediction(
                    row=row,
                    probability=float(probability[at]),
                    is_positive=bool(called[at]),
                    problem=None,
                    unlike=unlike[at],
                    doubts=doubts_of(batch.facts[at].readings),
                    pixels=batch.pixels[at],
                    sha256=batch.facts[at].sha256,
                )
        return [by_row[row] for row in sorted(by_row)]

    def _unlike(self, batch: Batch) -> list[str | None]:
        """Return the signs by which each readable image of a batch is unlike the training images."""
        if self.training_images is None:
            return [None] * len(batch.rows)
        thumbs = thumbnails(batch.pixels, self.preprocessing.resize)
        return [", ".join(signs) or None for signs in self.training_images.signs(batch.facts, thumbs)]

    def row_of(self, prediction: Prediction, number: int, path: str | None) -> PredictionRow:
        """Return a prediction as a row of a record; `number` becomes part of the image id."""
        probability = prediction.probability
        return PredictionRow(
            image_id=f"image-{number:06d}",
            path=path,
            probability={self.positive: probability},
            decision=None
            if prediction.is_positive is None
            else (self.positive if prediction.is_positive else self.negative),
            distance_to_threshold=None if probability is None else probability - self.threshold,
            unlike_training=prediction.unlike,
            problem=prediction.problem,
            doubts="; ".join(prediction.doubts) or None,
        )

    def record(self, stamp: Stamp, tally: Tally, *, because: str, csv: str | None = None) -> PredictRecord:
        """Return the record of the counted predictions."""
        return PredictRecord(
            stamp=stamp,
            variant=self.name,
            chosen_because=because,
            runtime=self.runtime,
            model_sha256=self.sha256,
            positive=self.positive,
            negative=self.negative,
            threshold=self.threshold,
            threshold_rule=self.threshold_rule,
            temperature=self.temperature,
            preprocessing=self.preprocessing,
            csv=csv,
            images=tally.images,
            called={label: tally.called[label] for label in (self.positive, self.negative)},
            unreadable=tally.unreadable,
            unlike_training=None if self.training_images is None else tally.unlike,
            resumed=tally.resumed,
            rows=tuple(tally.rows),
        )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one image: the probability of the positive class, or the reason why it cannot be read."""

    row: int
    probability: float | None
    is_positive: bool | None
    problem: str | None
    doubts: tuple[str, ...] = ()
    # The signs by which it is unlike the training images.
    unlike: str | None = None
    # Grey pixels at network size [H, W], and the hash of the file.
    pixels: npt.NDArray[np.uint8] | None = None
    sha256: str = ""


@dataclass(kw_only=True)
class Tally:
    """Counts of predictions, and the first `keep` rows; all rows if it is None."""

    keep: int | None = None
    images: int = 0
    unreadable: int = 0
    unlike: int = 0
    resumed: int = 0
    called: Counter[str] = field(default_factory=Counter)
    rows: list[PredictionRow] = field(default_factory=list)
    first_unreadable: PredictionRow | None = None
    doubted: Counter[str] = field(default_factory=Counter)
    first_unlike: PredictionRow | None = None

    def add(self, *rows: PredictionRow) -> None:
        """Count rows of predictions."""
        for row in rows:
            self.images += 1
            if row.decision is None:
                self.unreadable += 1
                self.first_unreadable = self.first_unreadable or row
            else:
                self.called[row.decision] += 1
            if row.doubts is not None:
                self.doubted[row.doubts] += 1
            if row.unlike_training is not None:
                self.unlike += 1
                self.first_unlike = self.first_unlike or row
            if self.keep is None or len(self.rows) < self.keep:
                self.rows.append(row)


def predictor_of_variant(run: Run, study: Study, record: VariantRecord) -> Predictor:
    """Return a predictor for a study's variant; raises IntegrityError if its file was modified.

    The split is not checked: a variant of an earlier split can still predict new images.
    """
    known = known_training_images(run, study, record)
    path = study.variant(record.name) / record.model_file
    require_hash(path, record.model_sha256, "make the variant again with --force")
    return Predictor(
        name=record.name,
        file=Model(path=str(path), kind=record.kind, backbone=record.backbone, n_classes=len(record.classes)),
        sha256=record.model_sha256,
        runtime=NATIVE[record.kind],
        classes=record.classes,
        positive=record.positive,
        threshold=record.threshold,
        threshold_rule=record.operating_rule,
        temperature=record.temperature,
        preprocessing=record.preprocessing.for_new_images(),
        batch_dependent=record.batch_dependent,
        training_images=known.images,
        why_not_compared=known.why_not,
    )


def predictor_of_bundle(folder: Path) -> tuple[Predictor, tuple[str, ...] | None]:
    """Return a predictor for an exported bundle, and the caveats of its model, None if the bundle is too old for them.

    Raises IntegrityError if the bundle was modified.
    """
    # Imported here: `bundles` imports the evaluation, which prediction does not need.
    from chestx_cli.inference.bundles import COPY_AGAIN, DEVICE_RUNTIME, read_bundle

    description = read_bundle(folder)
    path = folder / description.model.file
    if path.suffix == SUFFIX:
        _require_unpacked_hash(path, description.model.sha256, COPY_AGAIN)
    else:
        require_hash(path, description.model.sha256, COPY_AGAIN)
    predictor = Predictor(
        name=description.variant,
        file=Model(
            path=str(path),
            kind="onnx",
            backbone=description.backbone,
            n_classes=len(description.labels),
            remedy=COPY_AGAIN,
        ),
        sha256=description.model.sha256,
        runtime=DEVICE_RUNTIME,
        classes=description.labels,
        positive=description.positive,
        threshold=description.threshold,
        threshold_rule=description.operating_point.rule if description.operating_point else FIXED,
        temperature=description.temperature,
        preprocessing=description.preprocessing.for_new_images(),
        batch_dependent=description.method == DYNAMIC,
        why_not_compared="a bundle has no statistics of them",
    )
    return predictor, description.caveats


def _require_unpacked_hash(path: Path, sha256: str, remedy: str) -> None:
    """Raise IntegrityError unless a compressed file has the content of this hash."""
    try:
        content = read_unpacked(path)
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing", remedy) from error
    except OSError as error:
        raise storage_error(error, path) from error
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged: {error}", remedy) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise IntegrityError(f"{path} was changed since it was made (sha256 differs from its record)", remedy)
