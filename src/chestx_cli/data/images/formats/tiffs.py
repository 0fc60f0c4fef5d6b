"""Pixel format from the first directory of a TIFF file: Pillow honours the polarity of some depths only."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_BITS, _PHOTOMETRIC, _FORMAT = 258, 262, 339
# Field types of directory entries: byte, short and long.
_KINDS = {1: "B", 3: "H", 4: "I"}
_MAX_ENTRIES = 1000
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class TiffHeader:
    """Bits per sample, sample format (unsigned, signed, ...), and the polarity if stated.

    `kind` is the byte order and the size of offsets as text; `polarity_at` is the position of the polarity value in the
    file.
    """

    kind: str
    bits: tuple[int, ...]
    sample_format: int
    photometric: int | None
    polarity_at: int
    polarity_format: str

    @property
    def is_deep_colour(self) -> bool:
        """Return whether a pixel has several samples of more than 8 bits."""
        return len(self.bits) > 1 and max(self.bits) > 8

    def __str__(self) -> str:
        """Return a description of the samples."""
        form = {SIGNED: "signed ", FLOAT: "floating-point "}.get(self.sample_format, "")
        bits = "+".join(map(str, self.bits[:4]))
        photometric = "no" if self.photometric is None else self.photometric
        return f"{self.kind} of {form}{bits} bits and {photometric} PhotometricInterpretation"

    def black_is_zero(self, data: bytes) -> bytes:
        """Return the file with the opposite polarity and the same values."""
        at = self.polarity_at
        one = struct.pack(self.polarity_format, BLACK_IS_ZERO)
        return b"".join((data[:at], one, data[at + len(one) :]))


def tiff_header(data: bytes) -> TiffHeader | None:
    """Return the pixel format of the first image; None if the file is no TIFF or its directory is broken."""
    try:
        return _header(data)
    except (struct.error, OverflowError):
        return None


def _header(data: bytes) -> TiffHeader | None:
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return None
    is_big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    word, count_of, entry_bytes = (f"{order}Q", f"{order}Q", 20) if is_big else (f"{order}I", f"{order}H", 12)
    at = struct.unpack_from(word, data, 8 if is_big else 4)[0]
    entries = struct.unpack_from(count_of, data, at)[0]
    at += struct.calcsize(count_of)
    value_bytes = struct.calcsize(word)
    fields: dict[int, tuple[int, ...]] = {}
    place, form = 0, ""
    for _ in range(min(entries, _MAX_ENTRIES)):
        tag, kind = struct.unpack_from(f"{order}HH", data, at)
        n = struct.unpack_from(word, data, at + 4)[0]
        here = at + 4 + value_bytes
        if tag in (_BITS, _PHOTOMETRIC, _FORMAT) and kind in _KINDS and 0 < n <= _MAX_ENTRIES:
            values = f"{order}{n}{_KINDS[kind]}"
            there = here if struct.calcsize(values) <= value_bytes else struct.unpack_from(word, data, here)[0]
            fields[tag] = struct.unpack_from(values, data, there)
            if tag == _PHOTOMETRIC:
                place, form = there, values
        at += entry_bytes
    if _BITS not in fields and _PHOTOMETRIC not in fields:
        return None
    return TiffHeader(
        kind=f"{'little' if order == '<' else 'big'}-endian {'BigTIFF' if is_big else 'TIFF'}",
        bits=fields.get(_BITS, (1,)),
        sample_format=fields.get(_FORMAT, (UNSIGNED,))[0],
        photometric=fields[_PHOTOMETRIC][0] if _PHOTOMETRIC in fields else None,
        polarity_at=place,
        polarity_format=form,
    )
