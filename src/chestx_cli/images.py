"""Images: decoding with a reason for every refusal, and the preprocessing that is part of a variant."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.errors import DataError, IntegrityError
from chestx_cli.files import storage_error

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
MAX_PIXELS = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image file becomes a network's input; stored with every variant.

    A file is decoded to 8-bit grey, squashed to a square by bilinear resampling with antialiasing, scaled to 0-1,
    repeated on three channels and normalised with ImageNet's channel means and standard deviations.
    """

    version: int = 1
    image_size_px: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def normalised(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return grey pixels [N, H, W] (0-255) as network input [N, 3, H, W]."""
        import numpy as np

        mean = np.asarray(self.mean, dtype=np.float32).reshape(1, 3, 1, 1)
        std = np.asarray(self.std, dtype=np.float32).reshape(1, 3, 1, 1)
        return (pixels[:, None].astype(np.float32) / np.float32(255) - mean) / std


class UnreadableImageError(DataError):
    """An image file that cannot be decoded, with the reason."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What decoding a file tells of it."""

    sha256: str
    size_bytes: int
    width_px: int
    height_px: int


def decode_grey(path: Path) -> tuple[Image, FileFacts]:
    """Return a file decoded to 8-bit grey at its full size, and its facts; raises UnreadableImageError.

    Only the formats meant are tried, whatever the file's name says. 16-bit images are scaled to 8 bits.
    """
    from PIL import Image, ImageFile, UnidentifiedImageError

    # Half an X-ray padded with grey is not an X-ray; another library may have switched this on.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error)) from error
    if not data:
        raise UnreadableImageError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadableImageError(f"{width}×{height} pixels, more than {MAX_PIXELS:,}")
            grey = _to_grey(image)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not a PNG, JPEG, BMP, TIFF or WebP image") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"damaged: {error}") from error
    facts = FileFacts(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), width_px=width, height_px=height)
    return grey, facts


def _to_grey(image: Image) -> Image:
    """Return an image as mode L; Pillow's own conversion would clip 16-bit grey at 255."""
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        import numpy as np
        from PIL import Image as PillowImage

        wide = np.asarray(image).astype(np.float64)
        if wide.max() > 65535 or wide.min() < 0:
            raise UnreadableImageError("pixels of more than 16 bits; convert it to 8 or 16 bits")
        return PillowImage.fromarray(np.clip(wide / 257.0 + 0.5, 0, 255).astype(np.uint8))
    return image.convert("L")


def load_pixels(path: Path, preprocessing: Preprocessing, *, sha256: str) -> npt.NDArray[np.uint8]:
    """Return a file at network size, grey [H, W]; raises DataError, or IntegrityError where the file has changed."""
    try:
        grey, facts = decode_grey(path)
    except UnreadableImageError as error:
        raise DataError(
            f"cannot read {path}: {error.fact}",
            'the split found it readable: restore it, or run "chestx split DATA --force" with the images\' new place '
            "(variants stay valid if the files are the same)",
        ) from error
    if facts.sha256 != sha256:
        raise IntegrityError(f"{path} has changed since the split was made", 'run "chestx split DATA --force" again')
    return fitted(grey, preprocessing)


def fitted(grey: Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Return a grey image at network size [H, W]."""
    import numpy as np
    from PIL import Image as PillowImage

    side = preprocessing.image_size_px
    return np.asarray(grey.resize((side, side), PillowImage.Resampling.BILINEAR), dtype=np.uint8)


def list_files(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted, hidden ones left out; raises StorageError."""
    found: list[Path] = []
    try:
        for entry in sorted(folder.iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found.extend(list_files(entry))
            else:
                found.append(entry)
    except OSError as error:
        raise storage_error(error, folder) from error
    return found
