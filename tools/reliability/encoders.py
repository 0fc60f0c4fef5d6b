"""Image writers with control over what libraries decide themselves: depth, polarity, byte order, compression.

They share no code with the decoders, so that a file of known values can be compared with the values read.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

    Values = npt.NDArray[Any]

NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, JPEG, CCITT = 1, 5, 8, 32946, 32773, 7, 4


def packed(values: Values, bits: int, order: str = ">") -> list[bytes]:
    """Return rows [H, W] of values as bytes: up to 8 bits and 12 bits packed from the left, others in byte order."""
    import numpy as np

    if bits in (1, 2, 4, 12):
        planes = (values[..., None].astype(np.uint32) >> np.arange(bits - 1, -1, -1)) & 1
        rows = planes.reshape(len(values), -1).astype(np.uint8)
        return [np.packbits(row).tobytes() for row in rows]
    kind = {"u": "u", "i": "i", "f": "f"}[values.dtype.kind]
    stored = values.astype(f"{order}{kind}{bits // 8}")
    return [row.tobytes() for row in stored.reshape(len(values), -1)]


def png(
    values: Values, *, bits: int, colour: int, filter_type: int = 0, palette: bytes = b"", interlaced: bool = False
) -> bytes:
    """Return samples [H, W] or [H, W, n] as PNG of a bit depth, colour type and filter."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = values.shape[:2]
    samples = 1 if values.ndim == 2 else values.shape[2]
    step = max(1, bits * samples // 8)
    passes = (
        [values[y::dy, x::dx] for x, y, dx, dy in _ADAM7 if len(values[y::dy]) and values[:, x::dx].shape[1]]
        if interlaced
        else [values]
    )
    lines = b"".join(_filtered(packed(part, bits), filter_type, step) for part in passes)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    body = chunk(b"PLTE", palette) if palette else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + body
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _filtered(rows: list[bytes], filter_type: int, step: int) -> bytes:
    found, above = [], bytes(len(rows[0]))
    for row in rows:
        line = bytearray([filter_type])
        for at, value in enumerate(row):
            left = row[at - step] if at >= step else 0
            corner = above[at - step] if at >= step else 0
            guess = (0, left, above[at], (left + above[at]) // 2, _paeth(left, above[at], corner))[filter_type]
            line.append((value - guess) % 256)
        found.append(bytes(line))
        above = row
    return b"".join(found)


def _paeth(left: int, above: int, corner: int) -> int:
    guess = left + above - corner
    return min((abs(guess - one), place, one) for place, one in enumerate((left, above, corner)))[2]


@dataclass(frozen=True, kw_only=True)
class Tiff:
    """A TIFF file's description of its samples."""

    bits: int
    photometric: int | None
    order: str = "<"
    compression: int = NONE
    sample_format: int = 1
    big: bool = False
    tiled: bool = False
    fill_order: int = 1
    colours: tuple[int, ...] = ()

    def write(self, values: Values) -> bytes:
        """Return samples [H, W] or [H, W, n] as a file of one image."""
        import numpy as np

        height, width = values.shape[:2]
        samples = 1 if values.ndim == 2 else values.shape[2]
        if self.tiled:
            side = 16 * -(-max(height, width) // 16)
            blank = np.zeros((side, side, *values.shape[2:]), dtype=values.dtype)
            blank[:height, :width] = values
            pieces = [b"".join(packed(blank, self.bits, self.order))]
        else:
            rows = packed(values, self.bits, self.order)
            pieces = [b"".join(rows[at : at + _ROWS]) for at in range(0, height, _ROWS)]
        if self.fill_order == 2:
            pieces = [bytes(int(f"{byte:08b}"[::-1], 2) for byte in piece) for piece in pieces]
        stored = [self._compressed(piece) for piece in pieces]
        entries: dict[int, tuple[int, list[int]]] = {
            256: (_SHORT, [width]),
            257: (_SHORT, [height]),
            258: (_SHORT, [self.bits] * samples),
            259: (_SHORT, [self.compression]),
            266: (_SHORT, [self.fill_order]),
            277: (_SHORT, [samples]),
            339: (_SHORT, [self.sample_format] * samples),
        }
        if self.photometric is not None:
            entries[262] = (_SHORT, [self.photometric])
        if self.colours:
            entries[320] = (_SHORT, list(self.colours))
        if self.tiled:
            entries |= {322: (_SHORT, [side]), 323: (_SHORT, [side])}
        else:
            entries[278] = (_SHORT, [_ROWS])
        return self._laid_out(entries, stored)

    def _compressed(self, piece: bytes) -> bytes:
        if self.compression in (DEFLATE, OLD_DEFLATE):
            return zlib.compress(piece)
        return {PACKBITS: packbits, LZW: _lzw}.get(self.compression, bytes)(piece)

    def _laid_out(self, entries: dict[int, tuple[int, list[int]]], pieces: list[bytes]) -> bytes:
        word = f"{self.order}Q" if self.big else f"{self.order}I"
        at = 16 if self.big else 8
        offsets, content = [], b""
        for piece in pieces:
            offsets.append(at + len(content))
            content += piece + b"\0" * (len(piece) % 2)
        where, sizes = (324, 325) if self.tiled else (273, 279)
        entries |= {where: (_LONG, offsets), sizes: (_LONG, [len(piece) for piece in pieces])}
        directory_at = at + len(content)
        count = struct.pack(f"{self.order}Q" if self.big else f"{self.order}H", len(entries))
        size = len(count) + len(entries) * (20 if self.big else 12) + struct.calcsize(word)
        lines, beside = [], b""
        for tag, (kind, numbers) in sorted(entries.items()):
            body = struct.pack(f"{self.order}{len(numbers)}{'H' if kind == _SHORT else 'I'}", *numbers)
            room = struct.calcsize(word)
            if len(body) > room:
                place = struct.pack(word, directory_at + size + len(beside))
                beside += body + b"\0" * (len(body) % 2)
            else:
                place = body + bytes(room - len(body))
            lines.append(struct.pack(f"{self.order}HH", tag, kind) + struct.pack(word, len(numbers)) + place)
        mark = {"<": b"II", ">": b"MM"}[self.order]
        head = (
            mark + struct.pack(f"{self.order}HHHQ", 43, 8, 0, directory_at)
            if self.big
            else mark + struct.pack(f"{self.order}HI", 42, directory_at)
        )
        return head + content + count + b"".join(lines) + struct.pack(word, 0) + beside


_ROWS = 7
_SHORT, _LONG = 3, 4


def packbits(piece: bytes) -> bytes:
    """Return bytes as literal runs, with one repeated run if there is any."""
    found, at = bytearray(), 0
    while at < len(piece):
        run = 1
        while at + run < len(piece) and run < 128 and piece[at + run] == piece[at]:
            run += 1
        if run > 1:
            found += bytes([257 - run, piece[at]])
        else:
            found += bytes([0, piece[at]])
        at += run
    return bytes(found)


def _lzw(piece: bytes) -> bytes:
    """Return bytes as TIFF LZW codes, most significant bit first, with a clear code before the table is full."""
    clear, end, full = 256, 257, 4094

    def width(following: int) -> int:
        return 9 if following < 512 else 10 if following < 1024 else 11 if following < 2048 else 12

    def fresh() -> dict[bytes, int]:
        return {bytes([value]): value for value in range(256)}

    table, known, bits = fresh(), b"", [f"{clear:09b}"]
    for value in piece:
        longer = known + bytes([value])
        if longer not in table:
            # Codes start at 258; this is the next free one.
            following = len(table) + 2
            bits.append(f"{table[known]:0{width(following)}b}")
            table[longer] = following
            if following + 1 >= full:
                bits.append(f"{clear:0{width(following + 1)}b}")
                table = fresh()
            longer = bytes([value])
        known = longer
    if known:
        bits.append(f"{table[known]:0{width(len(table) + 2)}b}")
    bits.append(f"{end:0{width(len(table) + 3)}b}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def bmp(
    values: Values, *, bits: int, palette: list[tuple[int, int, int]] | None = None, top_down: bool = False
) -> bytes:
    """Return indices [H, W] or colours [H, W, 3] as a BMP of one depth."""
    import numpy as np

    height, width = values.shape[:2]
    if bits == 16:
        red, green, blue = (values[..., index].astype(np.uint16) >> 3 for index in range(3))
        rows = packed((red << 10) | (green << 5) | blue, 16, "<")
    elif bits >= 24:
        padded = np.zeros((height, width, bits // 8), dtype=np.uint8)
        padded[..., :3] = values[..., ::-1]
        rows = packed(padded, 8)
    else:
        rows = packed(values, bits)
    rows = [row + b"\0" * (-len(row) % 4) for row in rows]
    body = b"".join(rows if top_down else rows[::-1])
    table = b"".join(bytes([blue, green, red, 0]) for red, green, blue in palette or [])
    start = 14 + 40 + len(table)
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, -height if top_down else height, 1, bits, 0, len(body), 0, 0, len(palette or []), 0
    )
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + table + body


def lossless_jpeg(values: Values, bits: int) -> bytes:
    """Return values [H, W] as lossless JPEG (ITU-T T.81, process 14, predictor 1), one component."""
    import numpy as np

    height, width = values.shape
    wide = values.astype(np.int64)
    guess = np.empty_like(wide)
    guess[:, 1:] = wide[:, :-1]
    guess[1:, 0] = wide[:-1, 0]
    guess[0, 0] = 2 ** (bits - 1)
    # Categories 0 to 16, each with a 5-bit code: the shortest table with all of them.
    codes = {category: f"{category:05b}" for category in range(17)}
    stream = []
    # Differences are modulo 2^16; that of 16 bits has no sign bit.
    for difference in ((wide - guess + 2**15) % 2**16 - 2**15).ravel().tolist():
        size = abs(difference).bit_length()
        stream.append(codes[size])
        if 0 < size < 16:
            stream.append(f"{difference if difference > 0 else difference + 2**size - 1:0{size}b}")
    text = "".join(stream)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    counts = bytes([0] * 4 + [17] + [0] * 11)

    def marker(code: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, code, len(body) + 2) + body

    return (
        b"\xff\xd8"
        + marker(0xC3, struct.pack(">BHHB", bits, height, width, 1) + bytes([1, 0x11, 0]))
        + marker(0xC4, b"\0" + counts + bytes(range(17)))
        + marker(0xDA, bytes([1, 1, 0, 1, 0, 0]))
        + scan
        + b"\xff\xd9"
    )


def jpeg_frame(marker: int, *, bits: int, width: int, height: int, components: int = 1) -> bytes:
    """Return the start of a JPEG of one kind: its size, and a scan without content."""
    frame = struct.pack(">BHHB", bits, height, width, components) + b"".join(
        bytes([1 + index, 0x11, 0]) for index in range(components)
    )
    return (
        b"\xff\xd8"
        + struct.pack(">BBH", 0xFF, marker, len(frame) + 2)
        + frame
        + struct.pack(">BBH", 0xFF, 0xDA, 6 + 2 * components)
        + bytes([components, *(part for index in range(components) for part in (1 + index, 0)), 0, 0, 0])
        + b"\xff\xd9"
    )
