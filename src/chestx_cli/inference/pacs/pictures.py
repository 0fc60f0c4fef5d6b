"""An image with its prediction written above it, as a DICOM secondary capture that any viewer shows."""

from __future__ import annotations

import datetime
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
from chestx_cli.inference.pictures.captions import class_names, font, note_on_names, wrapped

if TYPE_CHECKING:
    from PIL.Image import Image
    from pydicom import Dataset

    from chestx_cli.inference.pictures.heatmaps import Overlay

# Letters are this share of the picture's width.
_LETTER_SHARE, _MIN_LETTER_PX = 1 / 45, 10
# Longer side of a film shown beside its heatmap: the network has seen fewer pixels, and two pictures of full size in
# colour would take six times the film's memory.
_BESIDE_PX = 1024


def picture_of(source: Dataset, grey: Image, finding: Finding, overlay: Overlay | None) -> Dataset:
    """Return an image, decoded to 8-bit grey, below a banner with the finding; no part of it is covered.

    With an overlay the picture is in colour, with the overlay to the right of the image.
    """
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    sentences = [*finding.sentences(class_names(finding.classes)), *note_on_names(finding.classes)]
    if overlay is not None:
        sentences.append(f"Right: {overlay.meaning}.")
    shown = with_banner(grey if overlay is None else beside(grey, overlay), tuple(sentences))
    uid = finding.picture_uid(source, with_overlay=overlay is not None)
    now = datetime.datetime.now()
    picture = Dataset()
    picture.file_meta = FileMetaDataset()
    picture.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    picture.SpecificCharacterSet = CHARACTER_SET
    for name, value in filed_by(source).items():
        setattr(picture, name, value)
    picture.SOPClassUID, picture.SOPInstanceUID = SecondaryCaptureImageStorage, uid
    picture.Modality, picture.ConversionType = "OT", "WSD"
    picture.SeriesInstanceUID = series_uid(source, finding.model_sha256, "pictures")
    picture.SeriesNumber, picture.InstanceNumber = PICTURE_SERIES, instance_number(source)
    picture.SeriesDescription = SERIES_DESCRIPTION
    picture.Manufacturer, picture.ManufacturerModelName, picture.SoftwareVersions = MANUFACTURER, MODEL, SOFTWARE
    picture.ContentDate, picture.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    picture.InstanceCreationDate, picture.InstanceCreationTime = picture.ContentDate, picture.ContentTime
    picture.ImageType = ["DERIVED", "SECONDARY"]
    what = "Grey of 8 bits" if overlay is None else "Film and heatmap"
    picture.DerivationDescription = f"{what} below a banner with a prediction"
    in_words = finding.sentences({label: label for label in finding.classes})
    picture.ImageComments = f"{RESEARCH_ONLY}. {'. '.join(in_words[1:])}"
    picture.PatientOrientation, picture.Laterality = source.get("PatientOrientation") or "", ""
    if source.get("BurnedInAnnotation"):
        picture.BurnedInAnnotation = source.BurnedInAnnotation
    if source.get("LossyImageCompression") == "01":
        picture.LossyImageCompression = "01"
    film = Dataset()
    film.ReferencedSOPClassUID, film.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    picture.SourceImageSequence = [film]
    picture.SamplesPerPixel, picture.PhotometricInterpretation = 1, "MONOCHROME2"
    if overlay is not None:
        picture.SamplesPerPixel, picture.PhotometricInterpretation, picture.PlanarConfiguration = 3, "RGB", 0
    picture.Rows, picture.Columns = shown.height, shown.width
    picture.BitsAllocated, picture.BitsStored, picture.HighBit, picture.PixelRepresentation = 8, 8, 7, 0
    content = shown.tobytes()
    picture.PixelData = content + b"\0" * (len(content) % 2)
    picture["PixelData"].VR = "OB"
    return picture


def with_banner(shown: Image, sentences: tuple[str, ...]) -> Image:
    """Return white lines of text on black, above an image."""
    from PIL import Image, ImageDraw

    letter_px = max(_MIN_LETTER_PX, round(shown.width * _LETTER_SHARE))
    letters = font(letter_px)
    text = "\n".join(line for sentence in sentences for line in wrapped(sentence, letters, shown.width - letter_px))
    measured = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=letters)
    banner_px = int(measured[3]) + letter_px
    whole = Image.new(shown.mode, (shown.width, shown.height + banner_px), "black")
    ImageDraw.Draw(whole).multiline_text((letter_px // 2, letter_px // 2), text, fill="white", font=letters)
    whole.paste(shown, (0, banner_px))
    return whole


def beside(grey: Image, overlay: Overlay) -> Image:
    """Return an image and, to its right at the same height, its overlay in colour."""
    from PIL import Image

    scale = min(1.0, _BESIDE_PX / max(grey.size))
    size = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
    right = size if overlay.is_squashed else (size[1], size[1])
    both = Image.new("RGB", (size[0] + right[0], size[1]), "black")
    both.paste(grey.resize(size, Image.Resampling.BILINEAR), (0, 0))
    both.paste(overlay.picture.resize(right, Image.Resampling.BILINEAR), (size[0], 0))
    return both
