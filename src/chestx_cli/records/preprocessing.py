"""Preprocessing from image file to network input, stored with every variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PREPROCESSING_VERSION = 4
# Supported in stored variants; version 2 is kept as it was, for variants trained with it. Version 3 squashes as 4 does.
LEGACY_PREPROCESSING_VERSION, SQUASHING_VERSION = 2, 3
READ_PREPROCESSING_VERSIONS = (LEGACY_PREPROCESSING_VERSION, SQUASHING_VERSION, PREPROCESSING_VERSION)
SQUASH, LETTERBOX, CENTER_CROP = "squash", "letterbox", "center-crop"
# How an image of another shape becomes a square, in words that end a sentence.
RESIZED: Mapping[str, str] = {
    SQUASH: "squashed to a square",
    LETTERBOX: "scaled to fit a square, which is black around it",
    CENTER_CROP: "cropped to its central square",
}
MAX_IMAGE_SIZE_PX = 4096
# Range of a channel's mean and standard deviation, of values of 0 to 1: beyond it FP32 saturates.
MIN_STD, MAX_STATISTIC = 1e-6, 1e6
# Range of bits per grey value.
MIN_VALUE_BITS, MAX_VALUE_BITS = 8, 16


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing from image file to network input; stored with every variant.

    A file is decoded to 8-bit grey, rotated by its EXIF orientation, resized to a square by bilinear resampling with
    antialiasing, scaled to 0-1, repeated on three channels and normalised with ImageNet's channel means and standard
    deviations. `resize` is what becomes of the aspect ratio: squash ignores it, letterbox keeps it and leaves black
    bands, as air and collimated borders are black, center-crop keeps it and cuts off what is outside the central
    square. Grey of more than 8 bits is scaled from 0 to 2^value_bits - 1, the range of the study's images. A DICOM file
    is shown by the VOI window or table of the number or name `window`, by default the first; lateral views are refused
    unless `lateral`, which is None where the images were divided before views and modalities were read: none of them is
    refused for what it shows. Version 1 ignored EXIF orientation; version 2 scaled from 16 bits, read white-is-zero
    images of more than 8 bits as black-is-zero, and DICOM padding as pixels; versions before 4 squashed. Raises
    ValueError for invalid values.
    """

    version: int = PREPROCESSING_VERSION
    image_size_px: int = 224
    value_bits: int = MAX_VALUE_BITS
    resize: str = SQUASH
    window: str | None = None
    lateral: bool | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not 1 <= self.image_size_px <= MAX_IMAGE_SIZE_PX:
            raise ValueError(f"an image size of {self.image_size_px} pixels")
        least = MAX_VALUE_BITS if self.is_legacy else MIN_VALUE_BITS
        if not least <= self.value_bits <= MAX_VALUE_BITS:
            raise ValueError(f"a value range of {self.value_bits} bits")
        if self.window is not None and not self.window.strip():
            raise ValueError("a window without a name")
        if self.resize not in RESIZED or (self.version < PREPROCESSING_VERSION and self.resize != SQUASH):
            raise ValueError(f"preprocessing {self.version} that resizes by {self.resize}")
        if not all(abs(value) <= MAX_STATISTIC for value in self.mean) or not all(
            MIN_STD <= value <= MAX_STATISTIC for value in self.std
        ):
            raise ValueError("a mean or standard deviation that is no usable number")

    @property
    def is_legacy(self) -> bool:
        """Return whether files are read as in version 2."""
        return self.version <= LEGACY_PREPROCESSING_VERSION

    @property
    def identity(self) -> str:
        """Return a string that differs whenever pixels would; squashed pixels have the names of versions 2 and 3."""
        version = LEGACY_PREPROCESSING_VERSION if self.is_legacy else SQUASHING_VERSION
        bits = "" if self.is_legacy else f", value_bits={self.value_bits}"
        size = f"image_size_px={self.image_size_px}{bits}"
        parts = [f"Preprocessing(version={version}, {size}, mean={self.mean}, std={self.std})"]
        parts += [] if self.resize == SQUASH else [self.resize]
        parts += [] if self.window is None else [f"window={self.window!r}"]
        return ", ".join(parts)

    def for_new_images(self, *, allow_lateral: bool = False) -> Preprocessing:
        """Return the same for images outside of the split: lateral views are taken if this does, or if allowed."""
        return replace(self, lateral=bool(self.lateral) or allow_lateral)

    def normalised(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return grey pixels [N, H, W] (0-255) as normalised network input [N, 3, H, W]."""
        import numpy as np

        mean = np.asarray(self.mean, dtype=np.float32).reshape(1, 3, 1, 1)
        std = np.asarray(self.std, dtype=np.float32).reshape(1, 3, 1, 1)
        return (pixels[:, None].astype(np.float32) / np.float32(255) - mean) / std
