"""An image with its prediction written above it, as a DICOM secondary capture that any viewer shows."""

from __future__ import annotations

import datetime
import textwrap
from typing import TYPE_CHECKING

from chestx_cli.inference.pacs.sources import (
    CHARACTER_SET,
    MANUFACTURER,
    MODEL,
    PICTURE_SERIES,
    RESEARCH_ONLY,
    SERIES_DESCRIPTION,
    SOFTWARE,
    Finding,
    filed_by,
    instance_number,
    series_uid,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from pydicom import Dataset

# Height of letters as a share of the picture's width; lines are wrapped to fit.
_LETTER_SHARE, _MIN_LETTER_PX, _WIDTH_OF_A_LETTER = 1 / 45, 10, 0.6
_INK = 255


def picture_of(source: Dataset, grey: Image, finding: Finding) -> Dataset:
    """Return an image, decoded to 8-bit grey, below a banner with the finding; no part of it is covered."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    shown = with_banner(grey, finding.sentences)
    now = datetime.datetime.now()
    picture = Dataset()
    picture.file_meta = FileMetaDataset()
    picture.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    picture.SpecificCharacterSet = CHARACTER_SET
    for name, value in filed_by(source).items():
        setattr(picture, name, value)
    picture.SOPClassUID, picture.SOPInstanceUID = SecondaryCaptureImageStorage, finding.uid(source, "picture")
    picture.Modality, picture.ConversionType = "OT", "WSD"
    picture.SeriesInstanceUID = series_uid(source, finding.model_sha256, "pictures")
    picture.SeriesNumber, picture.InstanceNumber = PICTURE_SERIES, instance_number(source)
    picture.SeriesDescription = SERIES_DESCRIPTION
    picture.Manufacturer, picture.ManufacturerModelName, picture.SoftwareVersions = MANUFACTURER, MODEL, SOFTWARE
    picture.ContentDate, picture.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    picture.InstanceCreationDate, picture.InstanceCreationTime = picture.ContentDate, picture.ContentTime
    picture.ImageType = ["DERIVED", "SECONDARY"]
    picture.DerivationDescription = "Grey of 8 bits below a banner with a prediction"
    picture.ImageComments = f"{RESEARCH_ONLY}. {'. '.join(finding.sentences[1:])}"
    picture.PatientOrientation, picture.Laterality = source.get("PatientOrientation") or "", ""
    if source.get("BurnedInAnnotation"):
        picture.BurnedInAnnotation = source.BurnedInAnnotation
    if source.get("LossyImageCompression") == "01":
        picture.LossyImageCompression = "01"
    film = Dataset()
    film.ReferencedSOPClassUID, film.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    picture.SourceImageSequence = [film]
    picture.SamplesPerPixel, picture.PhotometricInterpretation = 1, "MONOCHROME2"
    picture.Rows, picture.Columns = shown.height, shown.width
    picture.BitsAllocated, picture.BitsStored, picture.HighBit, picture.PixelRepresentation = 8, 8, 7, 0
    content = shown.tobytes()
    picture.PixelData = content + b"\0" * (len(content) % 2)
    picture["PixelData"].VR = "OB"
    return picture


def with_banner(grey: Image, sentences: tuple[str, ...]) -> Image:
    """Return white lines of text on black, above an image."""
    from PIL import Image, ImageDraw, ImageFont

    letter_px = max(_MIN_LETTER_PX, round(grey.width * _LETTER_SHARE))
    font = ImageFont.load_default(letter_px)
    in_a_line = max(1, int(grey.width / (letter_px * _WIDTH_OF_A_LETTER)))
    text = "\n".join(line for sentence in sentences for line in textwrap.wrap(sentence, in_a_line))
    measured = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    banner_px = int(measured[3]) + letter_px
    shown = Image.new("L", (grey.width, grey.height + banner_px), 0)
    ImageDraw.Draw(shown).multiline_text((letter_px // 2, letter_px // 2), text, fill=_INK, font=font)
    shown.paste(grey, (0, banner_px))
    return shown
