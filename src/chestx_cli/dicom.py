"""DICOM files as grey images: modality and VOI transformation, MONOCHROME1 and the patient's identifier."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.refusals import MAX_SCANNED_PIXELS, Reason, UnreadableImageError, require_size

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from pydicom import Dataset

SUFFIXES = frozenset({".dcm", ".dicom"})
_META_GROUP = 2
_ROWS_AT_ONCE = 256
# Bytes that a pixel takes on its way: its stored value, or three colours that are computed in 32 bits.
_GREY_BYTES, _COLOUR_BYTES = 2, 12
# Run lengths are decoded in Python, which a file of shortest runs makes slow.
_MAX_RLE_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class DicomImage:
    """A decoded file: grey pixels [H, W] with air dark, how they were stored, and PatientID where it has one."""

    pixels: npt.NDArray[np.uint8]
    mode: str
    patient: str | None


def read_dicom(data: bytes) -> DicomImage:
    """Return the one image of a DICOM file in 8 bits; raises UnreadableImageError with the reason where it has none.

    Stored values pass the modality and then the VOI transformation (DICOM PS3.3 C.11.1 and C.11.2) and are scaled from
    the output range of the latter. Without a VOI transformation the standard leaves the display open: the smallest to
    the largest value, padding left out, are shown. MONOCHROME1 is inverted.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        _require_plain(data)
        dataset = dcmread(io.BytesIO(data))
        _require_one_image(dataset)
        pixels = _grey(dataset)
        mode = f"{dataset.PhotometricInterpretation} {dataset.BitsStored} bit"
        return DicomImage(pixels=pixels, mode=mode, patient=_patient(dataset))
    except (UnreadableImageError, MemoryError):
        raise
    except InvalidDicomError as error:
        raise UnreadableImageError(Reason.WRONG_FORMAT, "not a DICOM file") from error
    except AttributeError as error:
        raise UnreadableImageError(Reason.DAMAGED, f"it has no image: {error}") from error
    # Damaged files make pydicom and its decoders raise whatever their authors did not think of.
    except Exception as error:
        raise UnreadableImageError(Reason.DAMAGED, str(error)) from error


def read_patient(path: Path) -> str | None:
    """Return a DICOM file's PatientID without decoding it; None where it has none or cannot be read."""
    from pydicom import dcmread

    try:
        dataset = dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
    # Damaged files make pydicom raise whatever its authors did not think of.
    except Exception:
        return None
    return _patient(dataset)


def _patient(dataset: Dataset) -> str | None:
    return str(dataset.get("PatientID") or "").strip() or None


def _require_plain(data: bytes) -> None:
    """Raise UnreadableImageError for a deflated file: pydicom would inflate it without a limit."""
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file = io.BytesIO(data)
    read_preamble(file, False)
    about = read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag.group != _META_GROUP)
    if about.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise UnreadableImageError(Reason.UNSUPPORTED, "a deflated DICOM file; save it without compression")


def _require_one_image(dataset: Dataset) -> None:
    """Raise UnreadableImageError where a file holds no single image of a size that may be decoded."""
    from pydicom.encaps import generate_frames
    from pydicom.uid import RLELossless

    height, width = int(dataset.Rows), int(dataset.Columns)
    require_size(width, height, _GREY_BYTES if int(dataset.SamplesPerPixel) == 1 else _COLOUR_BYTES)
    if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
        raise UnreadableImageError(Reason.SEVERAL_IMAGES, f"{frames} frames, where one image is expected")
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    if syntax == RLELossless:
        if len(dataset.PixelData) > _MAX_RLE_BYTES:
            said = f"run-length coded pixels of more than {_MAX_RLE_BYTES:,} bytes; save it without compression"
            raise UnreadableImageError(Reason.TOO_LARGE, said)
        return
    for frame in generate_frames(dataset.PixelData, number_of_frames=1):
        _require_frame(frame, (width, height))


def _require_frame(frame: bytes, size: tuple[int, int]) -> None:
    """Raise UnreadableImageError where a frame is no JPEG, or would unfold to another size than the file tells."""
    from PIL import Image

    with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
        if image.size != size:
            said = f"its frame has {image.width}×{image.height} pixels, the file tells of {size[0]}×{size[1]}"
            raise UnreadableImageError(Reason.DAMAGED, said)
        if image.format == "JPEG" and frame.count(b"\xff\xda") * image.width * image.height > MAX_SCANNED_PIXELS:
            raise UnreadableImageError(Reason.TOO_LARGE, "too many scans of all its pixels; save it anew")


def _grey(dataset: Dataset) -> npt.NDArray[np.uint8]:
    import numpy as np
    from PIL import Image

    stored = dataset.pixel_array
    if stored.dtype.kind not in "iu" or stored.dtype.itemsize > (1 if stored.ndim == 3 else 2):
        fact = f"pixels of type {stored.dtype}; convert it to 8 or 16 bits, colours to 8"
        raise UnreadableImageError(Reason.UNSUPPORTED, fact)
    if stored.ndim == 3:
        return np.asarray(Image.fromarray(stored.view(np.uint8)).convert("L"))
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    patterns: npt.NDArray[np.unsignedinteger] = native.view(np.uint8 if native.dtype.itemsize == 1 else np.uint16)
    n_patterns = 2 ** (8 * native.dtype.itemsize)
    strips = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(patterns), _ROWS_AT_ONCE)]
    occurs = np.zeros(n_patterns, dtype=bool)
    for strip in strips:
        occurs[patterns[strip]] = True
    # All that happens to a value depends on the value alone: once for each that there can be, not for each pixel.
    table = _table(np.arange(n_patterns).astype(patterns.dtype).view(native.dtype), occurs, dataset)
    grey = np.empty(patterns.shape, dtype=np.uint8)
    for strip in strips:
        table.take(patterns[strip], out=grey[strip])
    return grey


def _table(stored: npt.NDArray[np.integer], occurs: npt.NDArray[np.bool_], dataset: Dataset) -> npt.NDArray[np.uint8]:
    """Return the grey of every stored value [V]; `occurs` tells which of them the image has."""
    import numpy as np
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    rescaled = apply_modality_lut(stored, dataset)
    values = np.asarray(apply_voi_lut(rescaled, dataset), dtype=np.float64)
    if "VOILUTSequence" in dataset:
        low, high = 0.0, 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    elif "WindowCenter" in dataset:
        # The window maps everything below and above it to the two ends of the output range.
        low, high = np.asarray(apply_voi_lut(np.array([-1e12, 1e12]), dataset), dtype=np.float64)
    else:
        padding = dataset.get("PixelPaddingValue")
        shown = occurs if padding is None or (stored[occurs] == padding).all() else occurs & (stored != padding)
        low, high = float(values[shown].min()), float(values[shown].max())
    if not np.isfinite([low, high, *values[occurs]]).all():
        raise UnreadableImageError(Reason.DAMAGED, "its values come out as no numbers")
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255
    grey = (scaled + 0.5).astype(np.uint8)
    inverted: npt.NDArray[np.uint8] = 255 - grey
    return inverted if dataset.PhotometricInterpretation == "MONOCHROME1" else grey
