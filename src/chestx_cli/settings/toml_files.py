"""TOML files that users write, with line numbers for errors."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chestx_cli.core.errors import UsageError
from chestx_cli.core.files import storage_error
from chestx_cli.core.record import Document

SENTINEL = "key-that-nobody-writes"


def read_toml(path: Path, remedy: str) -> tuple[Document, str]:
    """Return the document and the text of a TOML file.

    Raises UsageError, which names the line of a syntax error and shows `remedy`, and StorageError for an unreadable
    file.
    """
    try:
        # Some editors write a byte order mark, which TOML does not allow.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise storage_error(error, path) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8", "save it as UTF-8") from error
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}", remedy) from error


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """Return the line number, from 1, of the key at `path` in a TOML text; None if it is not found.

    The parser reports no positions, so each candidate line is tried: renaming the key on the right line renames the key
    at `path`.
    """
    keys = [part for part in path if isinstance(part, str)]
    if not keys:
        return None
    # The last key of the path; an item of a list is located by its list or by a key inside it.
    last = max(at for at, part in enumerate(path) if isinstance(part, str))
    key, above = str(path[last]), path[:last]
    pattern = re.compile(rf"(?<![\w-])(?:{re.escape(key)}|\"{re.escape(key)}\")(?=\s*[.=\]])")
    lines = text.split("\n")
    for number, line in enumerate(lines):
        for match in pattern.finditer(line):
            renamed = f"{line[: match.start()]}{SENTINEL}{line[match.end() :]}"
            try:
                document = tomllib.loads("\n".join([*lines[:number], renamed, *lines[number + 1 :]]))
            except tomllib.TOMLDecodeError:
                continue
            if SENTINEL in (_at(document, above) or {}):
                return number + 1
    return line_of(text, above) if above else None


def _at(document: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        try:
            document = document[part]
        except (KeyError, IndexError, TypeError):
            return None
    return document if isinstance(document, dict) else None
