"""Preprocessing from image file to network input, stored with every variant."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PREPROCESSING_VERSION = 3
# Supported in stored variants; version 2 is kept as it was, for variants trained with it.
LEGACY_PREPROCESSING_VERSION = 2
READ_PREPROCESSING_VERSIONS = (LEGACY_PREPROCESSING_VERSION, PREPROCESSING_VERSION)
MAX_IMAGE_SIZE_PX = 4096
# Range of bits per grey value.
MIN_VALUE_BITS, MAX_VALUE_BITS = 8, 16
# Fields added since caches are named by them, which keep their names where such a field has its default.
_ADDED: dict[str, Any] = {"window": None}
# Which images are taken, not how.
_WITHOUT_EFFECT = {"lateral"}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing from image file to network input; stored with every variant.

    A file is decoded to 8-bit grey, rotated by its EXIF orientation, resized to a square (ignoring the aspect ratio) by
    bilinear resampling with antialiasing, scaled to 0-1, repeated on three channels and normalised with ImageNet's
    channel means and standard deviations. Grey of more than 8 bits is scaled from 0 to 2^value_bits - 1, the range of
    the study's images. Version 1 ignored EXIF orientation; version 2 scaled from 16 bits, read white-is-zero images of
    more than 8 bits as black-is-zero, and DICOM padding as pixels. A DICOM file is shown by the VOI window or table of
    the number or name `window`, by default the first; lateral views are refused unless `lateral`. Raises ValueError for
    invalid values.
    """

    version: int = PREPROCESSING_VERSION
    image_size_px: int = 224
    value_bits: int = MAX_VALUE_BITS
    window: str | None = None
    lateral: bool = False
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
        if not all(math.isfinite(value) for value in self.mean) or not all(0 < value < math.inf for value in self.std):
            raise ValueError("a mean or standard deviation that is no usable number")

    @property
    def is_legacy(self) -> bool:
        """Return whether files are read as in version 2."""
        return self.version <= LEGACY_PREPROCESSING_VERSION

    @property
    def identity(self) -> str:
        """Return a string that differs whenever pixels would; for version 2, the string that names its caches."""
        if not self.is_legacy:
            left_out = {name for name, default in _ADDED.items() if getattr(self, name) == default} | _WITHOUT_EFFECT
            named = [field.name for field in fields(self) if field.name not in left_out]
            return f"Preprocessing({', '.join(f'{name}={getattr(self, name)!r}' for name in named)})"
        old = f"version={self.version}, image_size_px={self.image_size_px}, mean={self.mean}, std={self.std}"
        return f"Preprocessing({old})"

    def taking_lateral(self, also: bool) -> Preprocessing:
        """Return the same, which takes lateral views if `also` is true, or if this takes them."""
        return replace(self, lateral=self.lateral or also)

    def normalised(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return grey pixels [N, H, W] (0-255) as normalised network input [N, 3, H, W]."""
        import numpy as np

        mean = np.asarray(self.mean, dtype=np.float32).reshape(1, 3, 1, 1)
        std = np.asarray(self.std, dtype=np.float32).reshape(1, 3, 1, 1)
        return (pixels[:, None].astype(np.float32) / np.float32(255) - mean) / std
