"""Text from files made safe to show: control and direction characters are escaped."""

from __future__ import annotations

import unicodedata


def printable(text: str, *, keep: str = "") -> str:
    r"""Return text with control characters, marks of direction and bytes that are no UTF-8 spelled out, as `\x1b`.

    Characters in `keep` stay, such as the line ends of a message of several lines.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep or _is_space(c) else _spelled(c) for c in text)


def _is_space(character: str) -> bool:
    return unicodedata.category(character) == "Zs"


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
