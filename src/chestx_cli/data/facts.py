"""Facts of many images, stored in columns: a fifth of the memory of one object per image."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, overload

from chestx_cli.data.images.decoding import FileFacts

# 32-bit integers suffice, by the limits on files. Other fields have few distinct values, each stored once.
_NUMBERS = ("size_bytes", "width_px", "height_px", "levels", "is_mask", "colour", "air")
_SHARED = tuple(
    field.name for field in dataclasses.fields(FileFacts) if field.name not in _NUMBERS and field.name != "sha256"
)


class FactsTable(Sequence[FileFacts]):
    """A sequence of facts; each element is built when it is accessed."""

    def __init__(self, facts: Iterable[FileFacts] = ()) -> None:
        self._hashes = bytearray()
        self._numbers = {name: array("i") for name in _NUMBERS}
        self._codes = {name: array("i") for name in _SHARED}
        self._values: dict[str, dict[Any, int]] = {name: {} for name in _SHARED}
        self._listed: dict[str, list[Any]] = {name: [] for name in _SHARED}
        for fact in facts:
            self.append(fact)

    def append(self, fact: FileFacts) -> None:
        """Add the facts of one more image."""
        self._hashes += bytes.fromhex(fact.sha256)
        for name, column in self._numbers.items():
            column.append(getattr(fact, name))
        for name, codes in self._codes.items():
            value, known = getattr(fact, name), self._values[name]
            if value not in known:
                known[value] = len(known)
                self._listed[name].append(value)
            codes.append(known[value])

    def __len__(self) -> int:
        return len(self._codes["mode"])

    @overload
    def __getitem__(self, row: int) -> FileFacts: ...
    @overload
    def __getitem__(self, row: slice) -> FactsTable: ...
    def __getitem__(self, row: int | slice) -> FileFacts | FactsTable:
        if isinstance(row, slice):
            return FactsTable(self[one] for one in range(*row.indices(len(self))))
        row = range(len(self))[row]
        values: dict[str, Any] = {name: column[row] for name, column in self._numbers.items()}
        values |= {name: self._listed[name][codes[row]] for name, codes in self._codes.items()}
        return FileFacts(**{**values, "sha256": self.sha256(row), "is_mask": bool(values["is_mask"])})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FactsTable) and len(self) == len(other) and all(map(FileFacts.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]  # it grows

    def sha256(self, row: int) -> str:
        """Return the hash of one file."""
        return self._hashes[32 * row : 32 * row + 32].hex()
