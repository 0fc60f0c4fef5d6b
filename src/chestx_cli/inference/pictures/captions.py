"""Text in pictures: in a font that has most letters, wrapped by measured width."""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.ImageFont import FreeTypeFont

_NUMBERED = "A class whose name has letters that this font lacks is shown by its number; results as text have the name."
# Letters that are written from right to left, and marks that are placed on others: drawn wrongly one by one.
_RIGHT_TO_LEFT, _MARKS = {"R", "AL"}, {"Mn", "Mc", "Me"}


def _font_file() -> Path:
    """Return DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic and more, while Pillow's has Latin."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def font(size_px: int) -> FreeTypeFont:
    """Return the font of a size."""
    from PIL import ImageFont

    return ImageFont.truetype(str(_font_file()), size_px)


@functools.cache
def _letters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_font_file())).get_charmap())


def can_be_drawn(text: str) -> bool:
    """Return whether the font has a glyph for every character of a text, each of which is drawn separately."""
    from PIL import features

    composed = unicodedata.normalize("NFC", text)
    is_plain = not any(
        unicodedata.bidirectional(letter) in _RIGHT_TO_LEFT or unicodedata.category(letter) in _MARKS
        for letter in composed
    )
    return (is_plain or bool(features.check("raqm"))) and all(ord(letter) in _letters() for letter in composed)


def class_names(classes: Sequence[str]) -> dict[str, str]:
    """Return each class's name for a picture: its own, or its number if the font lacks letters of it."""
    return {
        label: unicodedata.normalize("NFC", label) if can_be_drawn(label) else f"class {number} of {len(classes)}"
        for number, label in enumerate(classes, start=1)
    }


def note_on_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence on classes shown by their number; empty if there are none."""
    return () if all(map(can_be_drawn, classes)) else (_NUMBERED,)


def wrapped(text: str, drawn_in: FreeTypeFont, width_px: float) -> list[str]:
    """Return a text as lines that are at most that wide; a longer word is divided."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if drawn_in.getlength(longer) <= width_px:
            line = longer
            continue
        lines += [line] if line else []
        line = word
        while drawn_in.getlength(line) > width_px and len(line) > 1:
            fits = next((n for n in range(len(line) - 1, 1, -1) if drawn_in.getlength(line[:n]) <= width_px), 1)
            lines.append(line[:fits])
            line = line[fits:]
    return [*lines, line] if line else lines
