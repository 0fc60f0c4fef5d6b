"""How an image of any shape becomes the network's square."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.records.preprocessing import CENTER_CROP, LETTERBOX

if TYPE_CHECKING:
    from PIL.Image import Image


def square_of(grey: Image, side_px: int, resize: str) -> Image:
    """Return a grey image squashed to a square, letterboxed in black, or cropped to the central square."""
    from PIL import Image

    bilinear = Image.Resampling.BILINEAR
    width, height = grey.size
    if resize == CENTER_CROP:
        inner = min(width, height)
        left, top = (width - inner) // 2, (height - inner) // 2
        return grey.resize((side_px, side_px), bilinear, box=(left, top, left + inner, top + inner))
    if resize == LETTERBOX and width != height:
        longer = max(width, height)
        # Rounded half up, at least one row or column.
        across, down = (max(1, (2 * extent * side_px + longer) // (2 * longer)) for extent in (width, height))
        square = Image.new("L", (side_px, side_px), 0)
        square.paste(grey.resize((across, down), bilinear), ((side_px - across) // 2, (side_px - down) // 2))
        return square
    return grey.resize((side_px, side_px), bilinear)
