"""Prediction: a variant's class probabilities for images of a study or any image files."""

from __future__ import annotations

import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from chestx_cli.core.machine import available_threads
from chestx_cli.data.facts import FactsTable
from chestx_cli.data.images.decoding import at_network_size, decode_grey, refuse_mask
from chestx_cli.data.images.formats.refusals import UnreadableImageError
from chestx_cli.data.streams import open_images
from chestx_cli.inference.runtimes import NATIVE, PREDICT_BATCH, RUNTIMES, Compute, Model, predict, probabilities_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from chestx_cli.core.progress import Reporter
    from chestx_cli.data.images.decoding import FileFacts
    from chestx_cli.data.images.places import Place
    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study
    from chestx_cli.store.split import Split

    # An image's pixels at network size and its facts, or the reason for its rejection.
    Decoded = tuple[npt.NDArray[np.uint8], FileFacts] | UnreadableImageError

T = TypeVar("T")

# Number of batches decoded in advance: enough to hide a slow file, few enough to bound memory.
BATCHES_AHEAD = 2


def open_model(study: Study, record: VariantRecord, threads: int | None) -> Compute:
    """Open a variant on the CPU in the native runtime of its file; its logits are divided by its temperature.

    All processors are used if `threads` is None. An image's logits never depend on other images.
    """
    model = Model(
        path=str(study.variant(record.name) / record.model_file),
        kind=record.kind,
        backbone=record.backbone,
        n_classes=len(record.classes),
    )
    return open_file(model, threads, batch_dependent=record.batch_dependent, temperature=record.temperature)


def open_file(model: Model, threads: int | None, *, batch_dependent: bool, temperature: float) -> Compute:
    """Open a model file on the CPU; arguments and result as for `open_model`."""
    import numpy as np

    bare = RUNTIMES[NATIVE[model.kind]].open(model, threads or available_threads(), "cpu")
    if batch_dependent:
        bare = _one_by_one(bare)
    if temperature == 1.0:
        return bare
    return lambda inputs: bare(inputs) / np.float32(temperature)


def _one_by_one(compute: Compute) -> Compute:
    """Return a function of a batch that computes each image separately.

    Dynamic INT8 derives the range of a layer's input from the whole batch, so rounding would depend on other images.
    """
    import numpy as np

    return lambda inputs: np.concatenate([compute(inputs[row : row + 1]) for row in range(len(inputs))])


def predict_split(
    study: Study,
    split: Split,
    record: VariantRecord,
    rows: npt.NDArray[np.int64],
    reporter: Reporter,
    *,
    threads: int | None,
) -> npt.NDArray[np.float64]:
    """Return a variant's class probabilities [len(rows), classes] for rows of the split's manifest."""
    pixels = open_images(study, split, record.preprocessing, reporter)
    with reporter.progress(f"Predicting {len(rows):,} images with {record.name}", len(rows)) as advance:
        return predict(open_model(study, record, threads), pixels, rows, record.preprocessing, advance)


@dataclass(frozen=True, kw_only=True)
class FilePredictions:
    """Class probabilities [len(rows), classes] of the readable files, their rows and facts; errors of the others."""

    rows: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    facts: FactsTable
    refused: dict[int, UnreadableImageError]


def predict_files(
    compute: Compute,
    preprocessing: Preprocessing,
    files: Sequence[Place],
    advance: Callable[..., None],
    look: Callable[[npt.NDArray[np.uint8], list[FileFacts]], None] | None = None,
) -> FilePredictions:
    """Decode image files and predict them as `predicted_batches` does.

    advance: called with the number of files of each finished batch. look: called with the
    pixels [n, side, side] and the facts of the readable files of each batch.
    """
    import numpy as np

    rows: list[int] = []
    facts = FactsTable()
    logits: list[npt.NDArray[np.float32]] = []
    refused: dict[int, UnreadableImageError] = {}
    for batch in predicted_batches(compute, preprocessing, files, decode_grey):
        refused.update(batch.refused)
        if batch.rows:
            rows += batch.rows
            for fact in batch.facts:
                facts.append(fact)
            if look:
                look(batch.pixels, batch.facts)
            logits.append(batch.logits)
        advance(batch.images)
    empty = np.empty((0, 0), dtype=np.float32)
    return FilePredictions(
        rows=np.array(rows, dtype=np.int64),
        probabilities=probabilities_of(np.concatenate(logits)) if logits else empty.astype(np.float64),
        facts=facts,
        refused=refused,
    )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of consecutive images: their number, the rows of the readable ones, and the errors of the others.

    pixels: grey at network size [len(rows), side, side]. logits: [len(rows), classes], divided by the temperature.
    """

    images: int
    rows: list[int]
    facts: list[FileFacts]
    pixels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]
    refused: dict[int, UnreadableImageError]


def predicted_batches(
    compute: Compute,
    preprocessing: Preprocessing,
    images: Iterable[T],
    decode: Callable[[T, Preprocessing], tuple[Image, FileFacts]],
) -> Iterator[Batch]:
    """Predict images in order and yield them in batches, decoding ahead on other threads, in bounded memory.

    decode: returns an image in grey at full size with its facts, or raises UnreadableImageError.
    """
    import numpy as np

    side = preprocessing.image_size_px
    for batch in _decoded_ahead(images, preprocessing, decode):
        readable = [(row, *result) for row, result in batch if not isinstance(result, UnreadableImageError)]
        pixels = np.stack([grey for _, grey, _ in readable]) if readable else np.empty((0, side, side), dtype=np.uint8)
        yield Batch(
            images=len(batch),
            rows=[row for row, _, _ in readable],
            facts=[fact for _, _, fact in readable],
            pixels=pixels,
            logits=compute(preprocessing.normalised(pixels)) if readable else np.empty((0, 0), dtype=np.float32),
            refused={row: result for row, result in batch if isinstance(result, UnreadableImageError)},
        )


def _decoded_ahead(
    images: Iterable[T],
    preprocessing: Preprocessing,
    decode: Callable[[T, Preprocessing], tuple[Image, FileFacts]],
) -> Iterator[list[tuple[int, Decoded]]]:
    """Yield decoded images in order, in batches of (row, pixels and facts, or error)."""

    def decoded(image: T) -> Decoded:
        try:
            grey, facts = decode(image, preprocessing)
            refuse_mask(facts)
        except UnreadableImageError as error:
            return error
        return at_network_size(grey, preprocessing), facts

    with ThreadPoolExecutor(available_threads()) as pool:
        pending: list[list[tuple[int, Future[Decoded]]]] = []
        numbered = enumerate(images)

        def order(n_batches: int) -> None:
            for _ in range(n_batches):
                batch = list(itertools.islice(numbered, PREDICT_BATCH))
                pending.extend([[(row, pool.submit(decoded, image)) for row, image in batch]] if batch else [])

        order(BATCHES_AHEAD)
        while pending:
            batch = pending.pop(0)
            order(1)
            yield [(row, future.result()) for row, future in batch]
