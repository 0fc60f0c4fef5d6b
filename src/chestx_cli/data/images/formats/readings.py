"""Readings of ambiguous or contradictory files; the table of the split lists each decision."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """Matter, decision and reason."""

    matter: str
    taken_as: str
    because: str


class Reading(StrEnum):
    """A decision made in reading one file."""

    WHITE_IS_ZERO = "white-is-zero"
    NO_TIFF_POLARITY = "no-tiff-polarity"
    MONOCHROME1 = "monochrome1"
    MONOCHROME1_IDENTITY = "monochrome1-identity"
    MONOCHROME2_INVERSE = "monochrome2-inverse"
    MONOCHROME1_SIGN = "monochrome1-sign"
    MONOCHROME2_SIGN = "monochrome2-sign"
    NO_WINDOW = "no-window"
    UNUSABLE_WINDOW = "unusable-window"
    SEVERAL_WINDOWS = "several-windows"
    WANTED_WINDOW = "wanted-window"
    PADDING = "padding"
    UPPER_BITS = "upper-bits"
    DEEP_COLOUR = "deep-colour"
    OTHER_MODALITY = "other-modality"
    NO_MODALITY = "no-modality"
    OTHER_BODY_PART = "other-body-part"
    LATERAL = "lateral"
    OTHER_VIEW = "other-view"
    CONTRADICTING_VIEW = "contradicting-view"
    FOR_PROCESSING = "for-processing"
    COLOUR = "colour"


POLARITY, SHOWN, STORED = "Polarity", "Shown values", "Stored values"
# Doubts about the image content, based on the file's own elements, whatever the pixels look like.
SUBJECT = "Subject"
_FRONTAL = "frontal chest film"
_INVERTED, _AS_IT_IS, _ALL = "inverted, air dark", "not inverted", "smallest to largest, padding left out"

MEANINGS = {
    reading: Meaning(matter=matter, taken_as=taken_as, because=because)
    for reading, matter, taken_as, because in (
        (Reading.WHITE_IS_ZERO, POLARITY, _INVERTED, "TIFF with PhotometricInterpretation 0, white is zero"),
        (Reading.NO_TIFF_POLARITY, POLARITY, _AS_IT_IS, "TIFF without PhotometricInterpretation"),
        (Reading.MONOCHROME1, POLARITY, _INVERTED, "DICOM with MONOCHROME1"),
        (
            Reading.MONOCHROME1_IDENTITY,
            POLARITY,
            _INVERTED,
            "conflict: MONOCHROME1 with PresentationLUTShape IDENTITY",
        ),
        (
            Reading.MONOCHROME2_INVERSE,
            POLARITY,
            _AS_IT_IS,
            "conflict: MONOCHROME2 with PresentationLUTShape INVERSE",
        ),
        (
            Reading.MONOCHROME1_SIGN,
            POLARITY,
            _INVERTED,
            "conflict: MONOCHROME1 with PixelIntensityRelationshipSign -1",
        ),
        (
            Reading.MONOCHROME2_SIGN,
            POLARITY,
            _AS_IT_IS,
            "conflict: MONOCHROME2 with PixelIntensityRelationshipSign 1",
        ),
        (Reading.NO_WINDOW, SHOWN, _ALL, "DICOM without a window or table"),
        (Reading.UNUSABLE_WINDOW, SHOWN, _ALL, "DICOM whose window has no width"),
        (Reading.SEVERAL_WINDOWS, SHOWN, "by the first window or table", "DICOM with several of them"),
        (Reading.WANTED_WINDOW, SHOWN, "by the window or table of --window", "DICOM with it"),
        (Reading.PADDING, SHOWN, "padding as background, black", "DICOM with PixelPaddingValue"),
        (Reading.UPPER_BITS, STORED, "BitsStored bits up to HighBit", "DICOM with other bits set beside them"),
        (Reading.DEEP_COLOUR, STORED, "the upper 8 of 16 bits", "16-bit colour, or 16-bit grey with transparency"),
        (Reading.OTHER_MODALITY, SUBJECT, _FRONTAL, "doubt: DICOM whose Modality is not CR, DX or RG"),
        (Reading.NO_MODALITY, SUBJECT, _FRONTAL, "doubt: DICOM without Modality"),
        (Reading.OTHER_BODY_PART, SUBJECT, _FRONTAL, "doubt: DICOM whose BodyPartExamined is not the chest"),
        (Reading.LATERAL, SUBJECT, "lateral chest film", "doubt: DICOM of a lateral view, by --allow-lateral"),
        (Reading.OTHER_VIEW, SUBJECT, _FRONTAL, "doubt: DICOM of an oblique, decubitus or other view"),
        (
            Reading.CONTRADICTING_VIEW,
            SUBJECT,
            _FRONTAL,
            "doubt: DICOM whose elements contradict each other on its view",
        ),
        (Reading.FOR_PROCESSING, SUBJECT, "film to be looked at", "doubt: DICOM for processing, raw values"),
        (Reading.COLOUR, SUBJECT, "film, by its brightness", "doubt: DICOM in colour"),
    )
}


def doubts_of(readings: Iterable[Reading]) -> tuple[str, ...]:
    """Return the doubts about the content of an image, given its readings."""
    return tuple(MEANINGS[reading].because for reading in readings if MEANINGS[reading].matter == SUBJECT)
