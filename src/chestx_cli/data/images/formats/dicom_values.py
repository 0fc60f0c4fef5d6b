"""Stored DICOM values as 8-bit grey with air dark: modality and VOI transformation, padding and polarity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chestx_cli.data.images.formats.dicom_frames import keeps_all_bits, stored_values
from chestx_cli.data.images.formats.dicom_tags import number, numbers, require_present, text, whole
from chestx_cli.data.images.formats.dicom_windows import VOI_TABLES, Shown, chosen, tables_of, window_function
from chestx_cli.data.images.formats.readings import Reading
from chestx_cli.data.images.formats.refusals import Reason, UnreadableImageError, damaged_where_it_fails

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from pydicom import Dataset
    from pydicom.dataset import FileDataset

    Table = npt.NDArray[np.float64]

_ROWS_AT_ONCE = 256
_GREY = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_MODALITY_TABLES = "ModalityLUTSequence"
_IDENTITY, _INVERSE = "IDENTITY", "INVERSE"
_MAX_TABLE_BITS = 16
# Grey stored as colours may contain faint colours from compression, and a coloured mark.
_COLOURED_SPREAD, _COLOURED_SHARE = 32, 0.01


def grey_values(
    dataset: FileDataset, *, window: str | None, legacy: bool
) -> tuple[npt.NDArray[np.uint8], tuple[Reading, ...]]:
    """Return the image of a file as grey [H, W], and its readings; raises UnreadableImageError.

    Stored values pass the modality and then the VOI transformation (DICOM PS3.3 C.11.1 and C.11.2), whose output range
    becomes 0 to 255. The standard does not define the display without a VOI transformation: the range from the smallest
    to the largest value, except padding, is used. MONOCHROME1 is inverted; padding is black in either polarity.
    `window` is the number or the name of the VOI transformation, the first by default.
    """
    import numpy as np
    from PIL import Image

    kind, samples = text(dataset, "PhotometricInterpretation") or "", whole(dataset, "SamplesPerPixel")
    if kind not in (*_GREY, _PALETTE, *_COLOURS) or (samples == 1) != (kind not in _COLOURS):
        fact = f"PhotometricInterpretation {kind[:16]} with {samples} samples; convert it to grey"
        raise UnreadableImageError(Reason.UNSUPPORTED, fact)
    stored = stored_values(dataset)
    if kind == _PALETTE:
        stored = _coloured(stored, dataset)
    if stored.ndim == 3:
        colours = stored.view(np.uint8)
        doubts = (Reading.COLOUR,) if _is_in_colour(colours) else ()
        return np.asarray(Image.fromarray(colours).convert("L")), doubts
    return _monochrome(stored, dataset, window, inverted=kind == _GREY[0], legacy=legacy)


def _is_in_colour(colours: npt.NDArray[np.uint8]) -> bool:
    """Return whether an image with colours [H, W, 3] is more than grey stored as colours."""
    share = sum(
        int((strip.max(axis=-1) - strip.min(axis=-1) > _COLOURED_SPREAD).sum())
        for strip in (colours[start : start + _ROWS_AT_ONCE] for start in range(0, len(colours), _ROWS_AT_ONCE))
    ) / (colours.shape[0] * colours.shape[1])
    return bool(share > _COLOURED_SHARE)


def _monochrome(
    stored: npt.NDArray[Any], dataset: FileDataset, window: str | None, *, inverted: bool, legacy: bool
) -> tuple[npt.NDArray[np.uint8], tuple[Reading, ...]]:
    import numpy as np

    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind not in "iu" or native.dtype.itemsize > 2:
        raise UnreadableImageError(Reason.UNSUPPORTED, "values of more than 16 bits; convert it to 8 or 16 bits")
    patterns: npt.NDArray[np.unsignedinteger] = native.view(np.uint8 if native.dtype.itemsize == 1 else np.uint16)
    n_patterns = 2 ** (8 * native.dtype.itemsize)
    strips = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(patterns), _ROWS_AT_ONCE)]
    occurs = np.zeros(n_patterns, dtype=bool)
    for strip in strips:
        occurs[patterns[strip]] = True
    # The result depends on the stored value alone: it is computed once per possible value, not per pixel.
    every = np.arange(n_patterns).astype(patterns.dtype).view(native.dtype)
    meant = _held_bits(every, dataset)
    readings = [Reading.UPPER_BITS] if (meant != every)[occurs].any() else []
    padded = _padding(meant, dataset, legacy=legacy)
    if padded[occurs].any() and not legacy:
        readings.append(Reading.PADDING)
    shown = occurs & ~padded
    if not shown.any():
        if not legacy:
            raise UnreadableImageError(Reason.ONE_GREY, "all its pixels are padding")
        shown = occurs
    share, how = _shown_share(meant, shown, dataset, window)
    grey = (np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8)
    if not legacy and (grey[shown] == grey[shown][0]).all():
        raise UnreadableImageError(Reason.ONE_GREY, "all its pixels are one grey after windowing")
    grey = 255 - grey if inverted else grey
    if not legacy:
        grey[padded] = 0
    greys = np.empty(patterns.shape, dtype=np.uint8)
    for strip in strips:
        grey.take(patterns[strip], out=greys[strip])
    return greys, (*readings, *how, *_polarity(dataset, inverted=inverted))


def _held_bits(every: npt.NDArray[np.integer], dataset: FileDataset) -> npt.NDArray[np.integer]:
    """Return values with only the bits given by HighBit and BitsStored, shifted and sign-extended."""
    import numpy as np

    width = 8 * every.dtype.itemsize
    if not keeps_all_bits(dataset.file_meta.TransferSyntaxUID) or whole(dataset, "BitsAllocated") != width:
        return every
    stored, high = whole(dataset, "BitsStored") or 0, whole(dataset, "HighBit")
    high = stored - 1 if high is None or not stored - 1 <= high < width else high
    held: npt.NDArray[np.integer] = np.right_shift(np.left_shift(every, width - 1 - high), width - stored)
    return held


def _padding(meant: npt.NDArray[np.integer], dataset: FileDataset, *, legacy: bool) -> npt.NDArray[np.bool_]:
    """Return which values [V] are padding: PixelPaddingValue, or the range from it to PixelPaddingRangeLimit."""
    import numpy as np

    value, limit = whole(dataset, "PixelPaddingValue"), whole(dataset, "PixelPaddingRangeLimit")
    if value is None:
        return np.zeros(len(meant), dtype=bool)
    # Either may be stored as the unsigned number with the same bits.
    period = 2 ** (8 * meant.dtype.itemsize)
    least = int(np.iinfo(meant.dtype).min)
    ends = [(end - least) % period + least for end in (value, value if limit is None or legacy else limit)]
    is_padding: npt.NDArray[np.bool_] = (meant >= min(ends)) & (meant <= max(ends))
    return is_padding


def _shown_share(
    meant: npt.NDArray[np.integer], shown: npt.NDArray[np.bool_], dataset: FileDataset, window: str | None
) -> tuple[Table, list[Reading]]:
    """Return the grey of each value [V] from black (0) to white (1), before inversion, and the reading."""
    import numpy as np

    modality = _rescaled(meant, dataset)
    voi, how = chosen(dataset, window)
    if voi is None:
        share = _stretched(modality, shown)
    elif voi.table is not None:
        share = _looked_up(modality, voi.table, dataset, VOI_TABLES) / _table_top(voi.table, VOI_TABLES)
    else:
        share = _windowed(modality, voi, dataset)
    if not np.isfinite(share[shown]).all():
        raise UnreadableImageError(Reason.DAMAGED, "its shown values are not numbers")
    return share, how


def _rescaled(meant: npt.NDArray[np.integer], dataset: FileDataset) -> Table:
    """Return values after the modality transformation; a missing slope is 1, a missing intercept 0."""
    import numpy as np

    if tables := tables_of(dataset, _MODALITY_TABLES):
        return _looked_up(meant.astype(np.float64), tables[0], dataset, _MODALITY_TABLES)
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    rescaled: Table = meant.astype(np.float64)
    if slope is not None or intercept is not None:
        rescaled = rescaled * (1.0 if slope is None else slope) + (intercept or 0.0)
    return rescaled


def _descriptor(item: Dataset, where: str) -> tuple[int, int, int]:
    """Return the number of entries of a table, the first value that it maps, and the bits per entry."""
    descriptor = [None if value is None else int(value) for value in numbers(item, "LUTDescriptor")]
    entries, first, bits = descriptor if len(descriptor) == 3 else (None, None, None)
    if first is None or bits is None or not 0 < bits <= _MAX_TABLE_BITS:
        raise UnreadableImageError(Reason.DAMAGED, f"the LUTDescriptor of its {where} describes no table")
    # A count of 65,536 exceeds 16 bits and is stored as 0.
    return (entries or 0) % 2**16 or 2**16, first, bits


def _table_top(item: Dataset, where: str) -> float:
    return float(2 ** _descriptor(item, where)[2] - 1)


def _looked_up(inputs: Table, item: Dataset, dataset: FileDataset, where: str) -> Table:
    """Return the output of a table; values below its first and above its last entry are clamped.

    pydicom's implementation counts entries with the number of bits of an entry, so 8-bit tables with more than 256
    entries come out wrong.
    """
    import numpy as np
    from pydicom.uid import ExplicitVRBigEndian

    entries, first, _ = _descriptor(item, where)
    if first >= 2**15 and _is_signed_input(dataset, where):
        first -= 2**16
    data = item.get("LUTData")
    with damaged_where_it_fails(f"the table of its {where} cannot be read"):
        if isinstance(data, bytes):
            order = ">" if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
            kind = "u1" if len(data) in (entries, entries + entries % 2) else f"{order}u2"
            table = np.frombuffer(data[: len(data) // int(kind[-1]) * int(kind[-1])], dtype=kind)
        else:
            table = np.atleast_1d(np.asarray(data, dtype=np.int64))
    if len(table) < entries:
        raise UnreadableImageError(Reason.DAMAGED, f"the table of its {where} is shorter than it should be")
    at = np.clip(np.floor(inputs) - first, 0, entries - 1).astype(np.int64)
    outputs: Table = table.astype(np.float64)[at]
    return outputs


def _is_signed_input(dataset: Dataset, where: str) -> bool:
    """Return whether a table maps signed values: stored signed values, and VOI tables after a negative intercept.

    In a file without value representations, its first value may be stored as the unsigned number with the same bits.
    """
    is_rescaled = where == VOI_TABLES and not tables_of(dataset, _MODALITY_TABLES)
    intercept = number(dataset, "RescaleIntercept") if is_rescaled else None
    return whole(dataset, "PixelRepresentation") == 1 or (intercept is not None and intercept < 0)


def _windowed(modality: Table, shown: Shown, dataset: Dataset) -> Table:
    import numpy as np
    from pydicom import Dataset as Elements
    from pydicom.pixels.processing import apply_windowing

    # A copy without empty elements, which pydicom would parse as numbers.
    window = Elements()
    window.PhotometricInterpretation, window.PixelRepresentation = _GREY[1], 0
    window.BitsStored = whole(dataset, "BitsStored")
    window.WindowCenter, window.WindowWidth = shown.centre, shown.width
    window.VOILUTFunction = window_function(dataset)
    with np.errstate(over="ignore"):
        share: Table = apply_windowing(modality, window) / (2.0**window.BitsStored - 1)
    return share


def _stretched(modality: Table, shown: npt.NDArray[np.bool_]) -> Table:
    low, high = float(modality[shown].min()), float(modality[shown].max())
    return (modality - low) / max(high - low, 1e-12)


def _polarity(dataset: Dataset, *, inverted: bool) -> list[Reading]:
    """Return the reading of the polarity, and the element that contradicts it."""
    shape, sign = text(dataset, "PresentationLUTShape"), whole(dataset, "PixelIntensityRelationshipSign")
    if (slope := number(dataset, "RescaleSlope")) is not None and slope < 0 and sign is not None:
        sign = -sign
    tables = tables_of(dataset, _MODALITY_TABLES) or tables_of(dataset, VOI_TABLES)
    readings = [Reading.MONOCHROME1] if inverted else []
    if shape == (_IDENTITY if inverted else _INVERSE):
        readings.append(Reading.MONOCHROME1_IDENTITY if inverted else Reading.MONOCHROME2_INVERSE)
    # In an X-ray image 1 means that values grow with the beam intensity: air has the largest. A table may invert them.
    if not tables and sign == (-1 if inverted else 1):
        readings.append(Reading.MONOCHROME1_SIGN if inverted else Reading.MONOCHROME2_SIGN)
    return readings


def _coloured(stored: npt.NDArray[Any], dataset: FileDataset) -> npt.NDArray[np.uint8]:
    """Return palette indices as 8-bit colours, [H, W, 3]."""
    import numpy as np
    from pydicom.pixels.processing import apply_color_lut

    for colour in ("Red", "Green", "Blue"):
        require_present(dataset, f"{colour}PaletteColorLookupTableDescriptor", f"{colour}PaletteColorLookupTableData")
    with damaged_where_it_fails("its palette cannot be read"):
        colours = apply_color_lut(stored, dataset)[..., :3]
        upper = colours >> 8 if colours.dtype.itemsize == 2 else colours
        return np.ascontiguousarray(upper.astype(np.uint8))
