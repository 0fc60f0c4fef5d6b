"""The header of a JPEG image of any kind, read without a decoder."""

from __future__ import annotations

import struct
from dataclasses import dataclass

SCAN = b"\xff\xda"
_START = b"\xff\xd8"
_CODESTREAM = b"\xff\x4f\xff\x51"
# Frame markers C0 to CF without the three for tables and reserved use, and that of JPEG-LS.
_FRAMES = (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
_LOSSLESS, _ARITHMETIC, _HIERARCHICAL = {0xC3, 0xC7, 0xCB, 0xCF, 0xF7}, range(0xC9, 0xD0), {0xC5, 0xC6, 0xC7}


@dataclass(frozen=True, kw_only=True)
class JpegHeader:
    """Size, components and bits per component, and whether it is JPEG 2000."""

    width: int
    height: int
    components: int
    bits: int
    is_2000: bool
    # The frame marker; 0 for JPEG 2000.
    marker: int

    @property
    def is_hierarchical(self) -> bool:
        """Return whether the image is hierarchical: one of several of increasing size."""
        return self.marker in _HIERARCHICAL

    @property
    def kind(self) -> str:
        """Return how the image differs from JPEG that every decoder reads; empty if it does not."""
        if self.marker == 0xF7:
            return "JPEG-LS"
        words = [f"{self.bits}-bit"] if self.bits != 8 else []
        words += ["hierarchical"] if self.is_hierarchical else []
        words += ["arithmetic-coded"] if self.marker in _ARITHMETIC else []
        words += ["lossless"] if self.marker in _LOSSLESS else []
        return " ".join([*words, "JPEG"]) if words else ""


def jpeg_header(data: bytes) -> JpegHeader | None:
    """Return the header of a JPEG, JPEG-LS or JPEG 2000 image; None if it is missing or broken."""
    try:
        if data.startswith(_START):
            return _frame_header(data)
        at = data.find(_CODESTREAM, 0, 2**16)
        if at < 0:
            return None
        right, lower, left, upper = struct.unpack_from(">IIII", data, at + 8)
        components, depth = struct.unpack_from(">HB", data, at + 40)
    except struct.error:
        return None
    return JpegHeader(
        width=right - left,
        height=lower - upper,
        components=components,
        bits=(depth & 0x7F) + 1,
        is_2000=True,
        marker=0,
    )


def _frame_header(data: bytes) -> JpegHeader | None:
    at = len(_START)
    while True:
        start, marker = struct.unpack_from(">BB", data, at)
        if start != 0xFF or marker == SCAN[1]:
            return None
        if marker == 0xFF:
            at += 1
        elif marker in _FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            return JpegHeader(
                width=width, height=height, components=components, bits=bits, is_2000=False, marker=marker
            )
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
