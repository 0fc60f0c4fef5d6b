"""DICOM files as grey images: required elements, the patient, and pixels as `dicom_values` renders them.

An empty element is treated as an absent one, for every tag that is read: both mean "unknown".
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.data.images.formats.dicom_frames import require_decodable
from chestx_cli.data.images.formats.dicom_subject import require_frontal_radiograph
from chestx_cli.data.images.formats.dicom_tags import (
    drop_empty,
    is_present,
    number,
    require_present,
    text,
    values,
    whole,
)
from chestx_cli.data.images.formats.dicom_values import grey_values
from chestx_cli.data.images.formats.refusals import Reason, UnreadableImageError, damaged_where_it_fails, require_size

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from pydicom import Dataset
    from pydicom.dataset import FileDataset

    from chestx_cli.data.images.formats.readings import Reading

SUFFIXES = frozenset({".dcm", ".dicom"})
_MARK, _MARK_AT = b"DICM", 128
HEAD_BYTES = _MARK_AT + len(_MARK)
_META_GROUP = 2
# Bytes per pixel during decoding: its stored value, or three colours computed in 32 bits.
_GREY_BYTES, _COLOUR_BYTES = 2, 12
_REQUIRED = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
)
# What pydicom's decoders read besides.
_OPTIONAL = (
    "NumberOfFrames",
    "PlanarConfiguration",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "FloatPixelData",
    "DoubleFloatPixelData",
)
_BITS_ALLOCATED = (1, 8, 16)
_NOT_A_HEADER = "its DICOM header is cut or broken"


@dataclass(frozen=True, kw_only=True)
class DicomImage:
    """A decoded file: grey pixels [H, W] with air dark, their storage, and PatientID if present."""

    pixels: npt.NDArray[np.uint8]
    mode: str
    patient: str | None
    readings: tuple[Reading, ...]


def begins_as_dicom(head: bytes) -> bool:
    """Return whether the first bytes of a file (HEAD_BYTES of them) are those of a DICOM file."""
    return head[_MARK_AT:HEAD_BYTES] == _MARK


def read_dicom(
    data: bytes, *, window: str | None = None, lateral: bool | None = False, legacy: bool = False
) -> DicomImage:
    """Return the single image of a DICOM file in 8 bits; raises UnreadableImageError with the reason if there is none.

    `window` selects the table or window (`dicom_windows.chosen`). `lateral` views are refused by default; None accepts
    every view and modality. `legacy` reads as preprocessing 2 did: padding as ordinary values, and a uniform image as
    any other image.
    """
    from pydicom import dcmread

    if not begins_as_dicom(data):
        raise UnreadableImageError(Reason.WRONG_FORMAT, "not a DICOM file: no DICM at its byte 128")
    with damaged_where_it_fails(_NOT_A_HEADER):
        _require_inflated(data)
        dataset = dcmread(io.BytesIO(data))
        _require_one_image(dataset)
        doubts = require_frontal_radiograph(dataset, lateral=lateral)
        patient = _patient(dataset)
        mode = f"{text(dataset, 'PhotometricInterpretation')} {whole(dataset, 'BitsStored')} bit"
    require_decodable(dataset)
    pixels, readings = grey_values(dataset, window=window, legacy=legacy)
    return DicomImage(pixels=pixels, mode=mode, patient=patient, readings=(*doubts, *readings))


def read_patient(file: Path | io.BytesIO) -> str | None:
    """Return a DICOM file's PatientID without decoding the file; None if it is missing or unreadable."""
    from pydicom import dcmread

    try:
        dataset = dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"])
        return _patient(dataset)
    # Damaged files can make pydicom raise any kind of exception.
    except Exception:
        return None


def object_without_image(path: Path) -> str | None:
    """Return the kind of a DICOM object without an image, such as a report; None for all other files."""
    from pydicom.filereader import read_file_meta_info

    try:
        return _without_image(read_file_meta_info(path))
    # The fault is reported when the file is decoded.
    except Exception:
        return None


def _without_image(file_meta: Dataset) -> str | None:
    """Return the name of a standard class of objects without images; a segmentation counts as one."""
    if not is_present(file_meta, "MediaStorageSOPClassUID"):
        return None
    kind = file_meta.MediaStorageSOPClassUID
    # Classes unknown to the standard have no name.
    return None if kind.name == str(kind) or "Image" in kind.name else kind.name


def _patient(dataset: Dataset) -> str | None:
    return "\\".join(str(value) for value in values(dataset, "PatientID") if value is not None).strip() or None


def _require_inflated(data: bytes) -> None:
    """Raise UnreadableImageError for a deflated file, which pydicom would inflate without a limit."""
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file = io.BytesIO(data)
    read_preamble(file, False)
    about = read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag.group != _META_GROUP)
    if about.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise UnreadableImageError(Reason.UNSUPPORTED, "a deflated DICOM file; save it without compression")


def _require_one_image(dataset: FileDataset) -> None:
    """Raise UnreadableImageError unless a file contains a single image of an allowed size."""
    if (kind := _without_image(dataset.file_meta)) is not None:
        raise UnreadableImageError(Reason.NO_IMAGE, f"it has no image: a DICOM object of the class {kind}")
    if is_present(dataset, "FloatPixelData") or is_present(dataset, "DoubleFloatPixelData"):
        raise UnreadableImageError(Reason.UNSUPPORTED, "floating-point pixels; convert it to 8 or 16 bits")
    if not is_present(dataset, "PixelData"):
        raise UnreadableImageError(Reason.NO_IMAGE, "it has no image: no PixelData")
    require_present(dataset, *_REQUIRED)
    drop_empty(dataset, *_OPTIONAL)
    samples, allocated = whole(dataset, "SamplesPerPixel"), whole(dataset, "BitsAllocated")
    stored = whole(dataset, "BitsStored") or 0
    if samples != 1:
        require_present(dataset, "PlanarConfiguration")
    require_size(
        whole(dataset, "Columns") or 0,
        whole(dataset, "Rows") or 0,
        _GREY_BYTES if samples == 1 else _COLOUR_BYTES,
    )
    if (frames := number(dataset, "NumberOfFrames") or 1) > 1:
        raise UnreadableImageError(Reason.SEVERAL_IMAGES, f"{frames:.0f} frames, where one image is expected")
    if allocated not in _BITS_ALLOCATED or (samples != 1 and allocated != 8):
        reason = f"{allocated} bits allocated for each value; convert it to 8 or 16 bits, colours to 8"
        raise UnreadableImageError(Reason.UNSUPPORTED, reason)
    if not 0 < stored <= allocated:
        raise UnreadableImageError(Reason.DAMAGED, f"its BitsStored is {stored}, of {allocated} bits allocated")
