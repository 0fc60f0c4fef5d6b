"""The statistics of a study's training images, computed once and stored in the study."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chestx_cli.core.errors import ChestxError, StorageError
from chestx_cli.data.images.decoding import decode_grey
from chestx_cli.data.images.formats.refusals import UnreadableImageError
from chestx_cli.data.images.pixel_cache import in_order
from chestx_cli.data.images.places import place_of
from chestx_cli.data.likeness.rule import FEWEST_IMAGES, TrainingImages, fit, sampled_of
from chestx_cli.data.scanning import THUMB_PX, thumbnails
from chestx_cli.data.streams import open_images
from chestx_cli.records.split import TRAIN, VAL
from chestx_cli.records.training_images import TrainingImagesRecord, encoded
from chestx_cli.store.documents import read_record, write_record

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chestx_cli.core.command import Run
    from chestx_cli.core.progress import Advance
    from chestx_cli.data.images.decoding import FileFacts
    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study
    from chestx_cli.store.split import Split

    Rows = npt.NDArray[np.int64]

# Larger sets are sampled at equal spacing.
MAX_TRAINING, MAX_VALIDATION, MAX_FILES = 1000, 500, 64


@dataclass(frozen=True, kw_only=True)
class Known:
    """The statistics that images are compared with, or the reason why there are none."""

    images: TrainingImages | None
    why_not: str = ""


def known_training_images(run: Run, study: Study, variant: VariantRecord) -> Known:
    """Return the statistics for a variant's images: stored ones, or else computed now from its split and stored.

    An older study has none yet; if it is not writable, they are computed each time. Raises IntegrityError for an edited
    document.
    """
    path = study.training_images(variant.split_sha256, variant.preprocessing.identity)
    if path.is_file():
        return Known(images=TrainingImages(read_record(TrainingImagesRecord, path)))
    try:
        split = study.read_split()
        if split.sha256 != variant.split_sha256:
            return Known(images=None, why_not="the variant is of another split")
        record = _made(run, study, split, variant.preprocessing)
    except ChestxError as error:
        return Known(images=None, why_not=error.fact)
    if record is None:
        return Known(images=None, why_not=f"fewer than {FEWEST_IMAGES} training images")
    with contextlib.suppress(StorageError):
        write_record(path, record)
    return Known(images=TrainingImages(record))


def keep_training_images(run: Run, study: Study, split: Split, preprocessing: Preprocessing) -> None:
    """Compute and store the statistics for variants with this preprocessing.

    Does nothing if they exist, or if there are too few images.
    """
    path = study.training_images(split.sha256, preprocessing.identity)
    if not path.is_file() and (record := _made(run, study, split, preprocessing)) is not None:
        write_record(path, record)


def _made(run: Run, study: Study, split: Split, preprocessing: Preprocessing) -> TrainingImagesRecord | None:
    train, held_out = _spaced(split.indices(TRAIN), MAX_TRAINING), _spaced(split.indices(VAL), MAX_VALIDATION)
    if len(train) < FEWEST_IMAGES:
        return None
    pixels = open_images(study, split, preprocessing, run.reporter)

    def thumbs_of(rows: Rows) -> npt.NDArray[np.uint8]:
        import numpy as np

        chunks = [np.empty((0, THUMB_PX, THUMB_PX), dtype=np.uint8)]
        for thumbs in in_order(
            lambda some: thumbnails(pixels[rows[some.start : some.stop]], preprocessing.resize), len(rows)
        ):
            chunks.append(thumbs)
            advance(len(thumbs))
        return np.concatenate(chunks)

    files = _spaced(train, MAX_FILES)
    total = len(train) + len(held_out) + len(files)
    with run.reporter.progress("Describing the training images", total) as advance:
        fitted = fit(thumbs_of(train), split.groups[train].astype(str), thumbs_of(held_out))
        sampled = sampled_of(_facts_of(split, files, preprocessing, advance))
    return TrainingImagesRecord(
        # Of these images alone: a command that was resumed, or another one that makes them, has read other inputs.
        stamp=replace(run.stamp(), inputs={"split.csv": split.sha256}, data_stamps=()),
        split_sha256=split.sha256,
        preprocessing=preprocessing,
        images=len(train),
        held_out=fitted.held_out,
        held_out_unlike=fitted.held_out_unlike / fitted.held_out,
        **vars(sampled),
        air=fitted.air,
        layout_mean=encoded(fitted.layouts.mean),
        layout_axes=encoded(fitted.layouts.axes),
        layout_limit=fitted.layout_limit,
        greys_mean=tuple(fitted.greys.mean.tolist()),
        greys_precision=tuple(map(tuple, fitted.greys.precision.tolist())),
        greys_limit=fitted.greys_limit,
    )


def _spaced(rows: Rows, most: int) -> Rows:
    import numpy as np

    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _facts_of(split: Split, rows: Rows, preprocessing: Preprocessing, advance: Advance) -> list[FileFacts]:
    """Return the facts of readable files; training can use the pixel cache when the files are gone."""
    facts = []
    for row in rows.tolist():
        with contextlib.suppress(UnreadableImageError):
            facts.append(decode_grey(place_of(split, row), preprocessing)[1])
        advance()
    return facts
