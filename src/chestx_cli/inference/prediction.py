"""Predicting: a variant's class probabilities for images of a study, or for any image files."""

from __future__ import annotations

import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.machine import available_threads
from chestx_cli.data.facts import FactsTable
from chestx_cli.data.images.decoding import at_network_size, decode_grey, refuse_mask
from chestx_cli.data.images.refusals import UnreadableImageError
from chestx_cli.data.streams import open_images
from chestx_cli.inference.runtimes import NATIVE, PREDICT_BATCH, RUNTIMES, Compute, Model, predict, probabilities_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.core.progress import Reporter
    from chestx_cli.data.images.decoding import FileFacts
    from chestx_cli.data.images.places import Place
    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study
    from chestx_cli.store.split import Split

    # A file's pixels at network size and its facts, or why it is refused.
    Decoded = tuple[npt.NDArray[np.uint8], FileFacts] | UnreadableImageError

# Batches that are decoded before they are needed: enough to hide a slow file, few enough to bound memory.
BATCHES_AHEAD = 2


def open_model(study: Study, record: VariantRecord, threads: int | None) -> Compute:
    """Return a variant opened on the CPU by the runtime of its own file, its logits divided by its temperature.

    All processors are used where `threads` is None. An image's logits never depend on the other images.
    """
    import numpy as np

    model = Model(
        path=str(study.variant(record.name) / record.model_file),
        kind=record.kind,
        backbone=record.backbone,
        n_classes=len(record.classes),
    )
    bare = RUNTIMES[NATIVE[record.kind]].open(model, threads or available_threads(), "cpu")
    if record.batch_dependent:
        bare = _one_by_one(bare)
    if record.temperature == 1.0:
        return bare
    return lambda inputs: bare(inputs) / np.float32(record.temperature)


def _one_by_one(compute: Compute) -> Compute:
    """Return a function of a batch that computes each image alone.

    Dynamic INT8 takes the range of a layer's input from the whole batch: its rounding would depend on the other images.
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
    """Return a variant's class probabilities [len(rows), classes] for rows of the manifest."""
    pixels = open_images(study, split, record.preprocessing, reporter)
    with reporter.progress(f"Predicting {len(rows):,} images with {record.name}", None):
        return predict(open_model(study, record, threads), pixels, rows, record.preprocessing)


@dataclass(frozen=True, kw_only=True)
class FilePredictions:
    """Class probabilities [len(rows), classes] of the readable files, their rows and facts; why others are refused."""

    rows: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    facts: FactsTable
    refused: dict[int, UnreadableImageError]


def predict_files(
    compute: Compute,
    preprocessing: Preprocessing,
    files: Sequence[Place],
    advance: Callable[..., None],
    look: Callable[[npt.NDArray[np.uint8]], None] | None = None,
) -> FilePredictions:
    """Decode image files and predict them, decoding ahead of the network on other threads, in bounded memory.

    `advance` is called with the number of files of each finished batch, `look` with the pixels of the readable ones.
    """
    import numpy as np

    rows: list[int] = []
    facts = FactsTable()
    logits: list[npt.NDArray[np.float32]] = []
    refused: dict[int, UnreadableImageError] = {}
    for batch in _decoded_ahead(files, preprocessing):
        refused.update((row, result) for row, result in batch if isinstance(result, UnreadableImageError))
        readable = [(row, *result) for row, result in batch if not isinstance(result, UnreadableImageError)]
        if readable:
            rows += [row for row, _, _ in readable]
            for _, _, fact in readable:
                facts.append(fact)
            pixels = np.stack([grey for _, grey, _ in readable])
            if look:
                look(pixels)
            logits.append(compute(preprocessing.normalised(pixels)))
        advance(len(batch))
    empty = np.empty((0, 0), dtype=np.float32)
    return FilePredictions(
        rows=np.array(rows, dtype=np.int64),
        probabilities=probabilities_of(np.concatenate(logits)) if logits else empty.astype(np.float64),
        facts=facts,
        refused=refused,
    )


def _decoded_ahead(files: Sequence[Place], preprocessing: Preprocessing) -> Iterator[list[tuple[int, Decoded]]]:
    """Yield files in order, in batches of pixels and facts or the reason of a refusal, decoded ahead."""

    def decode(row: int) -> Decoded:
        try:
            grey, facts = decode_grey(files[row], preprocessing)
            refuse_mask(facts)
        except UnreadableImageError as error:
            return error
        return at_network_size(grey, preprocessing), facts

    with ThreadPoolExecutor(available_threads()) as pool:
        pending: list[tuple[range, list[Future[Decoded]]]] = []
        starts = iter(range(0, len(files), PREDICT_BATCH))

        def order(n_batches: int) -> None:
            for start in itertools.islice(starts, n_batches):
                rows = range(start, min(start + PREDICT_BATCH, len(files)))
                pending.append((rows, [pool.submit(decode, row) for row in rows]))

        order(BATCHES_AHEAD)
        while pending:
            rows, futures = pending.pop(0)
            order(1)
            yield [(row, future.result()) for row, future in zip(rows, futures, strict=True)]
