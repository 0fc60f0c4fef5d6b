"""Text for people: numbers with their nouns, and text of files with control and direction characters escaped."""

from __future__ import annotations

import unicodedata


def printable(text: str, *, keep: str = "") -> str:
    r"""Return text with control characters, direction marks and bytes that are not UTF-8 escaped, as in `\x1b`.

    Characters in `keep` are left alone, such as the line breaks of a multi-line message.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep or _is_space(c) else _spelled(c) for c in text)


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, such as `1 image` or `1,024 images`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def short_number(value: float) -> str:
    """Return a number with about three significant digits, such as 98.5, 4.55 or 0.31."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def paragraph(*sentences: str) -> str:
    """Return sentences as one text; empty ones are left out."""
    return " ".join(sentence for sentence in sentences if sentence)


def _is_space(character: str) -> bool:
    return unicodedata.category(character) == "Zs"


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
