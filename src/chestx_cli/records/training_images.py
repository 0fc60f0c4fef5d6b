"""The record of statistics of a study's training images, with which other images are compared."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from chestx_cli.core.record import col
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.records.tabular import TabularRecord

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Side of the square whose greys are the layout of an image.
LAYOUT_PX = 32
_LAYOUT = LAYOUT_PX * LAYOUT_PX


@dataclass(frozen=True, kw_only=True)
class TrainingImagesRecord(TabularRecord):
    """`training-images.KEY.json`: statistics of the training images with one preprocessing, and limits for others.

    An image beyond a limit looks unlike the training images. `layout_mean` [1024] and `layout_axes` [k, 1024] are
    float32 in base64, little-endian.
    """

    schema: ClassVar[str] = "chestx.training-images/1"
    title: ClassVar[str] = "Training images"
    remedy: ClassVar[str] = "remove the file: it is made again when it is needed"

    split_sha256: str
    preprocessing: Preprocessing
    images: int = col("Training images", ",")
    # Images judged by statistics that they are no part of, from which the limits are set, and the share beyond them.
    held_out: int = col("Images held out", ",")
    held_out_unlike: float = col("Of these found unlike", ".1%")
    # Of a sample of files: the largest mean difference of a pixel's channels, the least and largest width over height,
    # and the least shorter side. None if none could be read.
    colour: int | None = col("Colour at most", ",")
    aspects: tuple[float, float] | None = col("Width over height", ".2f")
    shorter_px: int | None = col("Shorter side at least (px)", ",")
    # Whether air is dark in them, by `films.air_of`.
    air: int
    layout_mean: str
    layout_axes: str
    layout_limit: float = col("Limit of the layout", ".3f")
    greys_mean: tuple[float, ...]
    greys_precision: tuple[tuple[float, ...], ...]
    greys_limit: float = col("Limit of the greys", ".3f")

    def __post_init__(self) -> None:
        """Raise ValueError for arrays of other shapes."""
        if len(self.axes) < 1 or self.mean.shape != (_LAYOUT,):
            raise ValueError("a layout of another size")
        if {len(row) for row in (self.greys_mean, self.greys_precision, *self.greys_precision)} != {
            len(self.greys_mean)
        }:
            raise ValueError("greys of another number")

    @property
    def mean(self) -> npt.NDArray[np.float32]:
        """Return the mean layout [1024]."""
        return _decoded(self.layout_mean)

    @property
    def axes(self) -> npt.NDArray[np.float32]:
        """Return the principal axes of the layouts [k, 1024]."""
        return _decoded(self.layout_axes).reshape(-1, _LAYOUT)

    @property
    def headline(self) -> str:
        """Return the number of images and the share of held-out ones found unlike them."""
        return f"{self.images:,} training images; {self.held_out_unlike:.1%} of {self.held_out:,} others unlike them"


def encoded(values: npt.NDArray[np.floating]) -> str:
    """Return an array of any shape as base64 text of little-endian float32 numbers; the shape is not stored."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _decoded(text: str) -> npt.NDArray[np.float32]:
    import numpy as np

    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")
