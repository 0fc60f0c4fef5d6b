"""Images: decoding with a reason for every refusal."""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli import dicom
from chestx_cli.errors import DataError, IntegrityError
from chestx_cli.files import read_regular, storage_error
from chestx_cli.refusals import (
    MAX_FILE_BYTES,
    MAX_PIXELS,
    MAX_SCANNED_PIXELS,
    Reason,
    UnreadableImageError,
    refused_by_system,
    require_size,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from chestx_cli.preprocessing import Preprocessing

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}) | dicom.SUFFIXES
_ENDINGS = tuple(SUFFIXES)
_LEADS_NOWHERE = {errno.ELOOP, errno.ENOTDIR, errno.ENOENT}
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"RIFF")
# Bytes per pixel.
_MODES = {"1": 1, "L": 1, "P": 1, "LA": 2, "PA": 2, "RGB": 3, "YCbCr": 3, "RGBA": 4, "RGBX": 4, "CMYK": 4}
_WIDE_MODES = {"I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2, "I": 4}
# Lossless ones; JPEG inside TIFF brings the costs of JPEG past the limit of its scans.
_TIFF_COMPRESSIONS = {"raw", "tiff_raw_16", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate"}
_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 322, 323
_EXIF_ORIENTATION = 0x0112
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What decoding a file tells of it."""

    sha256: str
    size_bytes: int
    width_px: int
    height_px: int
    # Pixel layout and file format as stored, such as L and PNG; the patient is known from DICOM alone.
    mode: str
    file_type: str
    patient: str | None = None


def decode_grey(path: Path) -> tuple[Image, FileFacts]:
    """Return a file decoded to 8-bit grey at its full size, upright, and its facts; raises UnreadableImageError.

    A file named .dcm or .dicom is DICOM; of the others only the formats meant are tried, whatever the name says. 16-bit
    images are scaled to 8 bits.
    """
    try:
        # Such a name can be neither printed nor stored.
        str(path).encode()
        data = read_regular(path, MAX_FILE_BYTES)
    except OSError as error:
        raise refused_by_system(error) from error
    except UnicodeEncodeError as error:
        raise UnreadableImageError(Reason.BAD_NAME, "its name is not UTF-8") from error
    except ValueError as error:
        raise UnreadableImageError(Reason.BAD_NAME, f"no file can have this name: {error}") from error
    if not data:
        raise UnreadableImageError(Reason.EMPTY, "the file has no bytes")
    grey, mode, file_type, patient = (_decode_dicom if path.suffix.lower() in dicom.SUFFIXES else _decode)(data)
    return grey, FileFacts(
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        width_px=grey.width,
        height_px=grey.height,
        mode=mode,
        file_type=file_type,
        patient=patient,
    )


def _decode_dicom(data: bytes) -> tuple[Image, str, str, str | None]:
    from PIL import Image

    _silence_decoders()
    found = dicom.read_dicom(data)
    return Image.fromarray(found.pixels), found.mode, "DICOM", found.patient


def _decode(data: bytes) -> tuple[Image, str, str, str | None]:
    from PIL import Image, ImageFile, UnidentifiedImageError

    # Half an X-ray padded with grey is not an X-ray; another library may have switched this on.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    _silence_decoders()
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _require_decodable(image, data)
            mode, file_type = image.mode, str(image.format)
            return _to_grey(image), mode, file_type, None
    except (UnreadableImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES):
            raise UnreadableImageError(Reason.DAMAGED, "its header is cut or broken") from error
        raise UnreadableImageError(Reason.WRONG_FORMAT, "not a PNG, JPEG, BMP, TIFF or WebP image") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(Reason.TOO_LARGE, f"more than {MAX_PIXELS:,} pixels") from error
    # Damaged files make decoders raise whatever their authors did not think of.
    except Exception as error:
        raise UnreadableImageError(Reason.DAMAGED, str(error)) from error


@functools.cache
def _silence_decoders() -> None:
    """Keep what decoders say of odd files, in the files' own words, away from the terminal."""
    for library in ("PIL", "pydicom"):
        warnings.filterwarnings("ignore", module=rf"{library}\.")


def _require_decodable(image: Image, data: bytes) -> None:
    """Raise UnreadableImageError where a file's header tells that decoding it would cost too much, or mean nothing."""
    if image.mode == "F":
        raise UnreadableImageError(Reason.UNSUPPORTED, "floating-point pixels; convert it to 8 or 16 bits")
    known = {**_MODES, **_WIDE_MODES}
    if image.mode not in known:
        raise UnreadableImageError(Reason.UNSUPPORTED, f"pixels of mode {image.mode}; convert it to grey")
    require_size(*image.size, known[image.mode])
    if image.format == "TIFF":
        _require_plain_tiff(image)
    elif getattr(image, "is_animated", False) and image.format != "MPO":
        # A photograph with a preview behind it is MPO; its first image is the photograph.
        raise UnreadableImageError(Reason.SEVERAL_IMAGES, "an animation, where one image is expected")
    if image.format in {"JPEG", "MPO"} and data.count(b"\xff\xda") * math.prod(image.size) > MAX_SCANNED_PIXELS:
        raise UnreadableImageError(Reason.TOO_LARGE, "too many scans of all its pixels; save it anew")
    # What files of one format alone have, Pillow's types do not know.
    if image.format == "BMP" and image.tile[0].codec_name == "bmp_rle":  # type: ignore[attr-defined]
        raise UnreadableImageError(Reason.UNSUPPORTED, "a run-length coded BMP; save it as PNG")


def _require_plain_tiff(image: Image) -> None:
    tags = image.tag_v2  # type: ignore[attr-defined]  # as above
    if tags.next:
        raise UnreadableImageError(Reason.SEVERAL_IMAGES, "several pages, where one image is expected")
    compression = image.info.get("compression")
    if compression not in _TIFF_COMPRESSIONS:
        raise UnreadableImageError(Reason.UNSUPPORTED, f"a TIFF compressed by {compression}; save it as PNG")
    # A tile is decoded whole, however little of it the image takes.
    if tags.get(_TIFF_TILE_WIDTH, 0) * tags.get(_TIFF_TILE_HEIGHT, 0) > MAX_PIXELS:
        raise UnreadableImageError(Reason.TOO_LARGE, f"tiles of more than {MAX_PIXELS:,} pixels")


def _to_grey(image: Image) -> Image:
    """Return an image as mode L, upright; Pillow's own conversion would clip 16-bit grey at 255."""
    from PIL import Image as PillowImage

    image.load()
    # Of a TIFF it has been applied by now, and is gone.
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
    if image.mode != "L":
        image = _narrowed(image) if image.mode in _WIDE_MODES else image.convert("L")
    return image.transpose(turns[orientation]) if orientation in turns else image


def _narrowed(image: Image) -> Image:
    """Return 16-bit grey as 8-bit grey, 65535 as 255."""
    import numpy as np
    from PIL import Image as PillowImage

    wide = np.asarray(image)
    narrow = np.empty(wide.shape, dtype=np.uint8)
    table = ((np.arange(2**16) + 128) // 257).astype(np.uint8)
    # In strips, whose intermediate values stay in the processor's cache.
    for start in range(0, len(wide), _ROWS_AT_ONCE):
        rows = wide[start : start + _ROWS_AT_ONCE]
        if rows.max() > 65535 or rows.min() < 0:
            fact = "pixels of more than 16 bits; convert it to 8 or 16 bits"
            raise UnreadableImageError(Reason.UNSUPPORTED, fact)
        table.take(rows, out=narrow[start : start + _ROWS_AT_ONCE])
    return PillowImage.fromarray(narrow)


def load_pixels(path: Path, preprocessing: Preprocessing, *, sha256: str, image_id: str) -> npt.NDArray[np.uint8]:
    """Return a split's image at network size, grey [H, W].

    Raises DataError, or IntegrityError where the file has changed; both name the image by its id.
    """
    what = f"image {image_id} (split.csv tells its file)"
    try:
        grey, facts = decode_grey(path)
    except UnreadableImageError as error:
        raise DataError(
            f"cannot read {what}: {error.fact}",
            'the split found it readable: restore it, or run "chestx split DATA --force" with the images\' new place '
            "(variants stay valid if the files are the same)",
        ) from error
    if facts.sha256 != sha256:
        raise IntegrityError(f"{what} has changed since the split was made", 'run "chestx split DATA --force" again')
    return at_network_size(grey, preprocessing)


def pixels_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's decoded grey pixels at full size; raises UnreadableImageError."""
    return hashlib.sha256(decode_grey(path)[0].tobytes()).hexdigest()


def at_network_size(grey: Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Return a decoded image squashed to the network's square, [H, W]."""
    from PIL import Image

    side = preprocessing.image_size_px
    return as_array(grey.resize((side, side), Image.Resampling.BILINEAR))


def as_array(grey: Image) -> npt.NDArray[np.uint8]:
    """Return an image of mode L as [H, W], read-only; NumPy's own way through Pillow copies twice."""
    import numpy as np

    return np.frombuffer(grey.tobytes(), dtype=np.uint8).reshape(grey.height, grey.width)


def list_files(folder: Path) -> list[str]:
    """Return all files below a folder, relative to it with forward slashes, sorted; raises StorageError.

    Hidden ones are left out. A folder named like an image is listed, not looked into; a link to a folder that it lies
    in is left out.
    """
    found: list[str] = []
    # Path, name from here, whether it is a folder, and the folders that it lies in, outermost first. Not by recursion,
    # which deep folders would exhaust.
    waiting: list[tuple[str, str, bool, tuple[tuple[int, int], ...]]] = [(str(folder), "", True, ())]
    while waiting:
        path, name, is_folder, above = waiting.pop()
        if not is_folder:
            found.append(name)
            continue
        try:
            told = Path(path).stat()
            here = (told.st_dev, told.st_ino)
            if here in above:
                continue
            with os.scandir(path) as scanned:
                entries = [(entry.name, entry.path, _is_folder(entry)) for entry in scanned if entry.name[0] != "."]
        except OSError as error:
            raise storage_error(error, Path(path)) from error
        inside = f"{name}/" if name else ""
        for entry_name, entry_path, looked_into in sorted(entries, reverse=True):
            waiting.append((entry_path, inside + entry_name, looked_into, (*above, here) if looked_into else ()))
    return found


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is meant as an image."""
    return name.lower().endswith(_ENDINGS)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    if is_image_name(entry.name):
        return False
    try:
        return entry.is_dir()
    except OSError as error:
        # A link that leads nowhere is no folder; of another that cannot be asked, opening it will tell why.
        return error.errno not in _LEADS_NOWHERE
