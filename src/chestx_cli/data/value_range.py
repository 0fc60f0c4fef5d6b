"""The preprocessing of a study's networks: what its images of more than 8 bits are scaled from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.data.images.decoding import is_dicom
from chestx_cli.data.images.formats.rasters import raster_kind, used_bits
from chestx_cli.data.images.formats.refusals import UnreadableImageError
from chestx_cli.data.images.pixel_cache import in_order
from chestx_cli.data.images.places import place_of, read_image, read_start
from chestx_cli.records.preprocessing import MAX_VALUE_BITS, Preprocessing

if TYPE_CHECKING:
    from chestx_cli.core.progress import Reporter
    from chestx_cli.data.images.places import Place
    from chestx_cli.records.split import SplitRecord
    from chestx_cli.store.split import Split


# Enough to tell the kinds of files by.
_MARK_BYTES = 32


def preprocessing_of(record: SplitRecord, image_size_px: int) -> Preprocessing:
    """Return how a study's images are prepared, as its split read them and in the value range that it found."""
    return Preprocessing(
        image_size_px=image_size_px,
        value_bits=record.value_bits or MAX_VALUE_BITS,
        window=record.window,
        lateral=record.lateral,
    )


def found_value_bits(record: SplitRecord, split: Split, reporter: Reporter) -> int:
    """Return the value range for training: where the split did not look at its images, it is found now.

    Unreadable images are skipped here: decoding reports them.
    """
    if record.value_bits is not None:
        return record.value_bits
    used_bits: list[int] = []
    with reporter.progress("Finding the value range", len(split.paths)) as advance:
        for some in in_order(lambda rows: [_used_bits(place_of(split, row)) for row in rows], len(split.paths)):
            used_bits += [one for one in some if one is not None]
            advance(len(some))
    bits = max(used_bits, default=MAX_VALUE_BITS)
    if used_bits:
        reporter.note(
            f"values of more than 8 bits are scaled from {bits} bits, which {len(used_bits):,} images use at most"
        )
    return bits


def _used_bits(place: Place) -> int | None:
    try:
        # They have 8 bits, and need not be read for that.
        if raster_kind(read_start(place, _MARK_BYTES)) in {"JPEG", "WebP"}:
            return None
        data = read_image(place)
        return None if is_dicom(place, data) else used_bits(data)
    except (OSError, ValueError, UnreadableImageError):
        return None
