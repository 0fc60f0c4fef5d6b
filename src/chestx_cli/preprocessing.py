"""How an image file becomes a network's input: a value that is stored with every variant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PREPROCESSING_VERSION = 2
MAX_IMAGE_SIZE_PX = 4096


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image file becomes a network's input; stored with every variant.

    A file is decoded to 8-bit grey, turned upright as its EXIF orientation says, squashed to a square by bilinear
    resampling with antialiasing, scaled to 0-1, repeated on three channels and normalised with ImageNet's channel means
    and standard deviations. Version 1 left images as they lay. Raises ValueError for values that no variant can have.
    """

    version: int = PREPROCESSING_VERSION
    image_size_px: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not 1 <= self.image_size_px <= MAX_IMAGE_SIZE_PX:
            raise ValueError(f"an image size of {self.image_size_px} pixels")
        if not all(math.isfinite(value) for value in self.mean) or not all(0 < value < math.inf for value in self.std):
            raise ValueError("a mean or standard deviation that is no usable number")

    def normalised(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return grey pixels [N, H, W] (0-255) as network input [N, 3, H, W]."""
        import numpy as np

        mean = np.asarray(self.mean, dtype=np.float32).reshape(1, 3, 1, 1)
        std = np.asarray(self.std, dtype=np.float32).reshape(1, 3, 1, 1)
        return (pixels[:, None].astype(np.float32) / np.float32(255) - mean) / std
