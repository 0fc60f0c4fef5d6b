"""Images: decoding with a reason for every refusal."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.errors import DataError, IntegrityError
from chestx_cli.data.images.films import AIR_UNDECIDED, MASK, ONE_GREY, counts_of, is_mask, is_one_grey, levels_of
from chestx_cli.data.images.formats import dicom
from chestx_cli.data.images.formats.rasters import Raster, raster_kind, raster_of_pixels, read_raster, silence_decoders
from chestx_cli.data.images.formats.refusals import NO_BYTES, Reason, UnreadableImageError
from chestx_cli.data.images.places import read_image, suffix_of
from chestx_cli.data.images.squares import square_of
from chestx_cli.records.preprocessing import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from chestx_cli.data.images.formats.readings import Reading
    from chestx_cli.data.images.places import Place

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}) | dicom.SUFFIXES
_ENDINGS = tuple(SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """Facts of one file, known after decoding it."""

    sha256: str
    size_bytes: int
    width_px: int
    height_px: int
    # Pixel layout and file format as stored, such as L and PNG; only DICOM files name a patient.
    mode: str
    file_type: str
    patient: str | None = None
    # Bits used by grey of more than 8 bits, number of grey levels of 256 in use, and the readings applied.
    value_bits: int | None = None
    levels: int = 256
    is_mask: bool = False
    readings: tuple[Reading, ...] = ()
    # Mean difference between the largest and the smallest channel of a pixel, 0 to 255; 0 for grey.
    colour: int = 0
    # Whether air is dark, bright or undecided, by `films.air_of`.
    air: int = AIR_UNDECIDED


def decode_grey(
    place: Place, preprocessing: Preprocessing | None = None, *, own_range: bool = False
) -> tuple[Image, FileFacts]:
    """Return an image decoded to 8-bit grey at its full size, upright, and its facts; raises UnreadableImageError.

    The format is detected from the content, not the name; only supported formats are tried. Grey of more than 8 bits
    is scaled from the value range of `preprocessing`; without one, or with `own_range`, from the bits that the image
    itself uses.
    """
    return decode_content(read_image(place), place, preprocessing, own_range=own_range)


def decode_content(
    data: bytes, place: Place, preprocessing: Preprocessing | None, *, own_range: bool = False
) -> tuple[Image, FileFacts]:
    """Return an image decoded from its bytes, as by `decode_grey`."""
    if not data:
        raise UnreadableImageError(Reason.EMPTY, NO_BYTES)
    if preprocessing is None:
        preprocessing, own_range = Preprocessing(lateral=False), True
    if is_dicom(place, data):
        raster, patient = _read_dicom(data, preprocessing)
    else:
        value_bits = None if own_range else preprocessing.value_bits
        raster, patient = read_raster(data, value_bits=value_bits, legacy=preprocessing.is_legacy), None
    return _checked(raster, data, patient, legacy=preprocessing.is_legacy)


def decode_pixels(pixels: npt.NDArray[np.uint8 | np.uint16], preprocessing: Preprocessing) -> tuple[Image, FileFacts]:
    """Return grey pixels [H, W] of 8 or 16 bits, processed as `decode_grey` processes those of a file."""
    raster = raster_of_pixels(pixels, value_bits=preprocessing.value_bits, legacy=preprocessing.is_legacy)
    return _checked(raster, pixels.tobytes(), None, legacy=preprocessing.is_legacy)


def _checked(raster: Raster, content: bytes, patient: str | None, *, legacy: bool) -> tuple[Image, FileFacts]:
    grey = raster.grey
    counts = counts_of(grey)
    if not legacy and is_one_grey(grey, counts):
        raise UnreadableImageError(Reason.ONE_GREY, ONE_GREY)
    return grey, FileFacts(
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        width_px=grey.width,
        height_px=grey.height,
        levels=levels_of(counts),
        is_mask=is_mask(grey, counts),
        mode=raster.mode,
        file_type=raster.file_type,
        patient=patient,
        value_bits=raster.value_bits,
        readings=raster.readings,
        colour=raster.colour,
    )


def is_dicom(place: Place, content: bytes) -> bool:
    """Return whether a file is DICOM: by its first bytes, or by its name if these match no image format."""
    if dicom.begins_as_dicom(content):
        return True
    return raster_kind(content) is None and suffix_of(place) in dicom.SUFFIXES


def _read_dicom(data: bytes, preprocessing: Preprocessing) -> tuple[Raster, str | None]:
    """Return the image of a DICOM file, and its patient."""
    from PIL import Image

    silence_decoders()
    film = dicom.read_dicom(
        data, window=preprocessing.window, lateral=preprocessing.lateral, legacy=preprocessing.is_legacy
    )
    grey = Image.fromarray(film.pixels)
    raster = Raster(grey=grey, mode=film.mode, file_type="DICOM", value_bits=None, readings=film.readings)
    return raster, film.patient


def refuse_mask(facts: FileFacts) -> None:
    """Raise UnreadableImageError for a mask, which would otherwise count as an image."""
    if facts.is_mask:
        raise UnreadableImageError(Reason.MASK, MASK)


def load_pixels(place: Place, preprocessing: Preprocessing, *, sha256: str, image_id: str) -> npt.NDArray[np.uint8]:
    """Return an image of the split at network size, grey [H, W].

    Raises DataError if it cannot be read, or IntegrityError if the file has changed; both name the image by its id.
    """
    what = f"image {image_id} (split.csv has its path)"
    try:
        grey, facts = decode_grey(place, preprocessing)
    except UnreadableImageError as error:
        if error.reason is Reason.LATERAL:
            # Of a split that has not opened its images: others have refused it.
            remedy = '"chestx split DATA --force --allow-lateral" takes lateral views'
            raise DataError(f"cannot read {what}: {error.fact}", remedy) from error
        raise DataError(
            f"cannot read {what}: {error.fact}",
            'it was readable when the split was made: restore it, or run "chestx split DATA --force" with the new '
            "place of the images (variants stay valid if the files are unchanged)",
        ) from error
    if facts.sha256 != sha256:
        raise IntegrityError(f"{what} has changed since the split was made", 'run "chestx split DATA --force" again')
    return at_network_size(grey, preprocessing)


def pixels_sha256(place: Place, preprocessing: Preprocessing) -> str:
    """Return the SHA-256 of an image's decoded grey pixels at full size; raises UnreadableImageError."""
    return hashlib.sha256(decode_grey(place, preprocessing)[0].tobytes()).hexdigest()


def at_network_size(grey: Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Return a decoded image as the square network input, [H, W], by the `resize` of the preprocessing."""
    return as_array(square_of(grey, preprocessing.image_size_px, preprocessing.resize))


def as_array(grey: Image) -> npt.NDArray[np.uint8]:
    """Return an image of mode L as a read-only array [H, W]; NumPy's conversion through Pillow copies twice."""
    import numpy as np

    return np.frombuffer(grey.tobytes(), dtype=np.uint8).reshape(grey.height, grey.width)


def is_image_name(name: str) -> bool:
    """Return whether a file name has the ending of an image format."""
    return name.lower().endswith(_ENDINGS)
