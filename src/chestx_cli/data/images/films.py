"""Properties of a decoded image: grey levels in use, whether it is a mask, and whether air is dark or bright."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    Counts = npt.NDArray[np.int64]

# Up to this many of the 256 grey levels are few, as when 14-bit values are scaled from 16 bits.
FEW_LEVELS = 64
# Counting all pixels of a large image would take a third of its decoding time.
_COUNTED_PIXELS = 2**19
AIR_DARK, AIR_BRIGHT, AIR_UNDECIDED = 1, -1, 0
# The score was above 0.57 for each of 378 frontal images of children, and below -0.57 for each of them inverted.
_DECIDED = 0.3
_FRAME_RANGE = 8
_MIN_INSIDE = 32
# A mask with the traces of compression: this share of its pixels lies within a few greys of two that are far from each
# other, and of those that are not at the first of them, this share at the second. In areas, not as dots.
_MASK_SHARE, _MASK_SECOND_SHARE, _MASK_SPREAD, _MASK_DISTANCE, _MASK_MAX_EDGES = 0.95, 0.85, 8, 128, 0.2
_MASK_LEVELS = 4
# What is said of an image that is refused.
ONE_GREY = "all its pixels are one grey"
MASK = "a few areas of uniform grey: a mask, not a radiograph"


def counts_of(grey: Image) -> Counts:
    """Return the histogram of the 256 grey levels; large images are sampled in evenly spaced rows."""
    import numpy as np
    from PIL import Image as PillowImage

    rows = min(grey.height, max(1, _COUNTED_PIXELS // grey.width))
    if rows < grey.height:
        grey = grey.resize((grey.width, rows), PillowImage.Resampling.NEAREST)
    return np.asarray(grey.histogram(), dtype=np.int64)


def levels_of(counts: Counts) -> int:
    """Return the number of the 256 grey levels that an image uses."""
    import numpy as np

    return int(np.count_nonzero(counts))


def is_one_grey(grey: Image, counts: Counts) -> bool:
    """Return whether all pixels of an image are equal."""
    lowest, highest = grey.getextrema() if levels_of(counts) == 1 else (0, 1)
    return lowest == highest


def is_mask(grey: Image, counts: Counts) -> bool:
    """Return whether an image consists of areas of two or a few grey levels, which no radiograph does."""
    import numpy as np

    used = np.flatnonzero(counts)
    if len(used) <= _MASK_LEVELS:
        # Label maps have the greys 0, 1, 2, next to each other.
        low, high = int(used[0]), int(used[-1])
    else:
        total, first = int(counts.sum()), int(counts.argmax())
        near = slice(max(first - _MASK_SPREAD, 0), first + _MASK_SPREAD + 1)
        rest = counts.copy()
        rest[near] = 0
        second, others = int(rest.argmax()), int(rest.sum())
        at_second = int(rest[max(second - _MASK_SPREAD, 0) : second + _MASK_SPREAD + 1].sum())
        two = total - others + at_second >= _MASK_SHARE * total and at_second >= _MASK_SECOND_SHARE * others
        if not two or abs(first - second) < _MASK_DISTANCE:
            return False
        low, high = min(first, second), max(first, second)
    bright = np.asarray(grey) > (low + high) / 2
    return float((bright[:, 1:] != bright[:, :-1]).mean()) <= _MASK_MAX_EDGES


def air_of(thumb: npt.NDArray[np.uint8]) -> int:
    """Return whether air is dark or bright in the thumbnail [64, 64] of a frontal chest image, or undecided.

    Spine and abdomen absorb much of the beam; air beside the shoulders and in the lungs absorbs little. The grey ranks
    of the middle and the bottom are compared with those of the lungs and the upper corners. A uniform frame is ignored.
    Images of other views or with much of the field masked may remain undecided.
    """
    import numpy as np

    inside = without_frame(thumb)
    if min(inside.shape) < _MIN_INSIDE:
        return AIR_UNDECIDED
    counts = np.bincount(inside.ravel(), minlength=256)
    rank = ((np.cumsum(counts) - counts / 2) / inside.size)[inside]
    height, width = rank.shape

    def mean(top: float, bottom: float, left: float, right: float) -> float:
        part = rank[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
        return float(part.mean())

    dense = mean(0.25, 0.875, 0.4375, 0.5625) + mean(0.875, 1, 0.25, 0.75)
    lungs = (mean(0.3125, 0.6875, 0.1875, 0.375) + mean(0.3125, 0.6875, 0.625, 0.8125)) / 2
    corners = (mean(0, 0.15625, 0, 0.15625) + mean(0, 0.15625, 0.84375, 1)) / 2
    score = dense - lungs - corners
    return AIR_DARK if score > _DECIDED else AIR_BRIGHT if score < -_DECIDED else AIR_UNDECIDED


def without_frame(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return an image [H, W] without uniform rows and columns at its edges, such as padding; possibly empty."""
    import numpy as np

    rows, columns = (
        np.flatnonzero(grey.max(axis=axis).astype(int) - grey.min(axis=axis) > _FRAME_RANGE) for axis in (1, 0)
    )
    if not len(rows) or not len(columns):
        return grey[:0, :0]
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
