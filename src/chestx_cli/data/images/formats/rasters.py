"""PNG, JPEG, TIFF, BMP and WebP files as 8-bit grey images, with a reason for every refusal."""

from __future__ import annotations

import functools
import io
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.data.images.formats.jpegs import SCAN, jpeg_header
from chestx_cli.data.images.formats.readings import Reading
from chestx_cli.data.images.formats.refusals import (
    MAX_PIXELS,
    MAX_SCANNED_PIXELS,
    Reason,
    UnreadableImageError,
    damaged_where_it_fails,
    require_size,
)
from chestx_cli.data.images.formats.tiffs import SIGNED, WHITE_IS_ZERO, TiffHeader, tiff_header
from chestx_cli.records.preprocessing import MAX_VALUE_BITS, MIN_VALUE_BITS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Sizes of the second header of a bitmap; "BM" alone may also begin a text.
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}
# Bytes per pixel.
_MODES = {"1": 1, "L": 1, "P": 1, "LA": 2, "PA": 2, "RGB": 3, "YCbCr": 3, "RGBA": 4, "RGBX": 4, "CMYK": 4}
_WIDE_MODES = {"I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2, "I": 4}
# Lossless compressions; JPEG inside TIFF would bypass the limit on JPEG scans.
_TIFF_COMPRESSIONS = {"raw", "tiff_raw_16", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate"}
_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 322, 323
_EXIF_ORIENTATION = 0x0112
_STRIP_ROWS = 256
_COLOUR_PX = 64
# Only the upper 8 bits of 16-bit colour are read: fewer distinct values than this mean that they are nearly empty.
_MIN_DEEP_COLOUR = 64


@dataclass(frozen=True, kw_only=True)
class Raster:
    """A decoded file: mode L, upright, and its storage; `value_bits`: bits used by grey of more than 8 bits."""

    grey: Image
    mode: str
    file_type: str
    value_bits: int | None
    readings: tuple[Reading, ...]
    # Mean difference between the largest and the smallest channel of a pixel, 0 to 255; 0 for grey.
    colour: int = 0


def raster_kind(head: bytes) -> str | None:
    """Return the supported format with the signature of these first bytes; empty without one."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(_TIFF_SIGNATURES):
        return "TIFF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and len(head) >= 18 and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return None


def read_raster(data: bytes, *, value_bits: int | None, legacy: bool = False) -> Raster:
    """Return the single image of a file; raises UnreadableImageError with the reason if there is none.

    Grey of more than 8 bits is scaled from 0 to 2^value_bits - 1, or from the bits that the image itself uses. `legacy`
    reads as preprocessing 2 did: white-is-zero of more than 8 bits is not inverted.
    """
    from PIL import Image, ImageFile, UnidentifiedImageError

    # Half an X-ray padded with grey is not an X-ray; another library may have enabled this.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    silence_decoders()
    header = tiff_header(data)
    inverted = header is not None and _lies_inverted(header)
    if header is not None and inverted:
        # Pillow supports a single polarity for some depths and byte orders, and ignores it for others.
        data = header.black_is_zero(data)
    with damaged_where_it_fails("it is cut or broken"):
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _require_decodable(image, data, header)
                mode, file_type = image.mode, str(image.format)
                deep = _is_deep_colour(image, data, header)
                grey, used_bits = _upright_grey(image, value_bits, legacy=legacy)
                colour = _colour_of(image)
        except UnidentifiedImageError as error:
            raise _unidentified(data, header) from error
        except Image.DecompressionBombError as error:
            raise UnreadableImageError(Reason.TOO_LARGE, f"more than {MAX_PIXELS:,} pixels") from error
    readings = []
    if inverted and (used_bits is None or not legacy):
        grey = _inverted(grey)
    if file_type == "TIFF" and header is not None and not legacy:
        if inverted:
            readings.append(Reading.WHITE_IS_ZERO)
        if header.photometric is None:
            # Pillow reads these as white-is-zero, other readers as black-is-zero.
            grey = grey if used_bits is not None else _inverted(grey)
            readings.append(Reading.NO_TIFF_POLARITY)
    if deep and not legacy:
        _require_upper_bits(grey)
        readings.append(Reading.DEEP_COLOUR)
    return Raster(
        grey=grey, mode=mode, file_type=file_type, value_bits=used_bits, readings=tuple(readings), colour=colour
    )


def raster_of_pixels(
    pixels: npt.NDArray[np.uint8 | np.uint16], *, value_bits: int | None, legacy: bool = False
) -> Raster:
    """Return grey pixels [H, W] of 8 or 16 bits, black is zero, processed as `read_raster` processes those of a file.

    Raises UnreadableImageError.
    """
    from PIL import Image

    height, width = pixels.shape
    require_size(width, height, pixels.itemsize)
    image = Image.fromarray(pixels)
    grey, used_bits = _upright_grey(image, value_bits, legacy=legacy)
    return Raster(grey=grey, mode=image.mode, file_type="pixels", value_bits=used_bits, readings=())


def used_bits(data: bytes) -> int | None:
    """Return the bits used by grey of more than 8 bits; None for all other images, which are not decoded.

    Raises UnreadableImageError.
    """
    from PIL import Image

    with damaged_where_it_fails("it is cut or broken"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        is_wide = image.mode in _WIDE_MODES
    return read_raster(data, value_bits=None).value_bits if is_wide else None


@functools.cache
def silence_decoders() -> None:
    """Silence the decoders' messages about unusual files: they may quote the content of files."""
    for library in ("PIL", "pydicom", "highdicom"):
        warnings.filterwarnings("ignore", module=rf"{library}\.")


def _lies_inverted(header: TiffHeader) -> bool:
    return header.photometric == WHITE_IS_ZERO and len(header.bits) == 1


def _unidentified(data: bytes, header: TiffHeader | None) -> UnreadableImageError:
    """Return why Pillow cannot open a file: another format, an unsupported variant, or a broken file."""
    kind = raster_kind(data[:32])
    if kind is None:
        return UnreadableImageError(Reason.WRONG_FORMAT, "not a PNG, JPEG, BMP, TIFF or WebP image")
    if kind == "TIFF" and header is not None:
        return UnreadableImageError(Reason.UNSUPPORTED, f"{header}; save it as PNG")
    jpeg = jpeg_header(data) if kind == "JPEG" else None
    if jpeg is not None and jpeg.kind:
        return UnreadableImageError(Reason.UNSUPPORTED, f"{jpeg.kind}; save it as PNG")
    return UnreadableImageError(Reason.DAMAGED, "its header is cut or broken")


def _require_decodable(image: Image, data: bytes, header: TiffHeader | None) -> None:
    """Raise UnreadableImageError if the header shows that decoding is too costly or meaningless."""
    if image.mode == "F":
        raise UnreadableImageError(Reason.UNSUPPORTED, "floating-point pixels; convert it to 8 or 16 bits")
    known = {**_MODES, **_WIDE_MODES}
    if image.mode not in known:
        raise UnreadableImageError(Reason.UNSUPPORTED, f"pixels of mode {image.mode}; convert it to grey")
    require_size(*image.size, known[image.mode])
    if image.format == "TIFF":
        _require_plain_tiff(image, header)
    elif getattr(image, "is_animated", False) and image.format != "MPO":
        # A photograph with a preview is MPO; its first image is the photograph.
        raise UnreadableImageError(Reason.SEVERAL_IMAGES, "an animation, where one image is expected")
    if image.format == "JPEG" and (jpeg := jpeg_header(data)) is not None and jpeg.is_hierarchical:
        raise UnreadableImageError(Reason.UNSUPPORTED, f"{jpeg.kind}; save it as PNG")
    if image.format in {"JPEG", "MPO"} and data.count(SCAN) * math.prod(image.size) > MAX_SCANNED_PIXELS:
        raise UnreadableImageError(Reason.TOO_LARGE, "too many JPEG scans; save it again")
    # Attributes of single formats, which the types of Pillow lack.
    if image.format == "BMP" and image.tile[0][0] == "bmp_rle":  # type: ignore[attr-defined]
        raise UnreadableImageError(Reason.UNSUPPORTED, "a run-length coded BMP; save it as PNG")


def _require_plain_tiff(image: Image, header: TiffHeader | None) -> None:
    tags = image.tag_v2  # type: ignore[attr-defined]  # as above
    if tags.next:
        raise UnreadableImageError(Reason.SEVERAL_IMAGES, "several pages, where one image is expected")
    compression = image.info.get("compression")
    if compression not in _TIFF_COMPRESSIONS:
        raise UnreadableImageError(Reason.UNSUPPORTED, f"a TIFF compressed by {compression}; save it as PNG")
    if header is not None and header.sample_format == SIGNED and max(header.bits) <= MIN_VALUE_BITS:
        raise UnreadableImageError(Reason.UNSUPPORTED, "a TIFF of signed 8-bit values; save it as PNG")
    # Tiles are decoded completely, even if the image uses little of them.
    if tags.get(_TIFF_TILE_WIDTH, 0) * tags.get(_TIFF_TILE_HEIGHT, 0) > MAX_PIXELS:
        raise UnreadableImageError(Reason.TOO_LARGE, f"tiles of more than {MAX_PIXELS:,} pixels")


def _is_deep_colour(image: Image, data: bytes, header: TiffHeader | None) -> bool:
    if image.format == "TIFF":
        return header is not None and header.is_deep_colour
    # Bits per sample and colour type of its first chunk; type 0 is plain grey.
    return image.format == "PNG" and data[24] == MAX_VALUE_BITS and data[25] != 0


def _require_upper_bits(grey: Image) -> None:
    """Raise UnreadableImageError for 16-bit colour whose values leave its upper bits empty."""
    _, highest = grey.getextrema()
    if int(str(highest)) < _MIN_DEEP_COLOUR:
        fact = "16-bit colour that leaves its upper bits empty; save it as 16-bit grey or 8-bit colour"
        raise UnreadableImageError(Reason.UNSUPPORTED, fact)


def _colour_of(image: Image) -> int:
    """Return the colourfulness of a decoded image, from a sample of its pixels."""
    import numpy as np
    from PIL import Image as PillowImage

    if image.mode in {"L", "1", "LA", *_WIDE_MODES}:
        return 0
    some = image.resize((_COLOUR_PX, _COLOUR_PX), PillowImage.Resampling.NEAREST).convert("RGB")
    return round(float(np.ptp(np.asarray(some), axis=2).mean()))


def _upright_grey(image: Image, value_bits: int | None, *, legacy: bool) -> tuple[Image, int | None]:
    """Return an image as mode L, upright, and the bits used by grey of more than 8 bits.

    Pillow's conversion would clip 16-bit grey at 255.
    """
    from PIL import Image as PillowImage

    image.load()
    # For TIFF the orientation has already been applied and removed.
    orientation = image.getexif().get(_EXIF_ORIENTATION)
    turn = PillowImage.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    used_bits = None
    if image.mode in _WIDE_MODES:
        image, used_bits = _narrowed(image, value_bits, legacy=legacy)
    elif image.mode != "L":
        image = image.convert("L")
    return (image.transpose(turns[orientation]) if orientation in turns else image), used_bits


def _narrowed(image: Image, value_bits: int | None, *, legacy: bool) -> tuple[Image, int]:
    """Return grey of more than 8 bits as 8-bit grey, the largest value of the range as 255, and the bits in use."""
    import numpy as np
    from PIL import Image as PillowImage

    wide = np.asarray(image)
    # In strips, so that intermediate values stay in the processor cache.
    strips = [slice(start, start + _STRIP_ROWS) for start in range(0, len(wide), _STRIP_ROWS)]
    lowest, highest = (int(min(wide[at].min() for at in strips)), int(max(wide[at].max() for at in strips)))
    if lowest < 0:
        raise UnreadableImageError(Reason.UNSUPPORTED, "negative pixel values; convert it to 8 or 16 bits")
    if highest >= 2**MAX_VALUE_BITS:
        raise UnreadableImageError(Reason.UNSUPPORTED, "pixels of more than 16 bits; convert it to 8 or 16 bits")
    if lowest == highest and not legacy:
        raise UnreadableImageError(Reason.ONE_GREY, "all its pixels are one grey")
    used_bits = max(MIN_VALUE_BITS, highest.bit_length())
    bits = value_bits or used_bits
    if used_bits > bits:
        fact = f"it uses {used_bits} bits, where the images of the split use {bits}; convert it to their range"
        raise UnreadableImageError(Reason.VALUE_RANGE, fact)
    top = 2**bits - 1
    table = ((np.arange(top + 1) * 255 + top // 2) // top).astype(np.uint8)
    narrow = np.empty(wide.shape, dtype=np.uint8)
    for at in strips:
        table.take(wide[at], out=narrow[at])
    return PillowImage.fromarray(narrow), used_bits


def _inverted(grey: Image) -> Image:
    return grey.point([255 - value for value in range(256)])
