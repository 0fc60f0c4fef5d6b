"""Seeded mutations of files: of bytes anywhere, and of values where a checksum would reveal changed bytes."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2, 10**9, 10**30, 0.5, -0.0, 1e308, "", "x" * 300, "../../etc/passwd", "\x00", "\u202e",
    "torch", "onnx", "resnet50", [], [1, 2, 3], ["a", "b"], {}, {"a": {"b": []}},
)  # fmt: skip
JSON_WORDS = (
    b"NaN",
    b"Infinity",
    b"1e999",
    b"-1e999",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\\ud800",
    b"9" * 5000,
    b'"',
    b"}",
)
CSV_WORDS = (
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\x00",
    b'""',
    b"=1+1",
    b"../",
    b"\xff\xfe",
    b"'",
    b";",
    b"\xef\xbb\xbf",
    b"a" * 5000,
)
JPEG_WORDS = (b"\xff\xda", b"\xff\xd8", b"\xff\xd9", b"\xff\xc2", b"\xff\xe1", b"\xff\xff", b"\xff\x00")
Mutation = Callable[[bytes, random.Random], bytes]


def mutate_bytes(content: bytes, rng: random.Random, words: tuple[bytes, ...] = ()) -> bytes:
    """Return content with one to four changes: bits, bytes, numbers, and moved, repeated or lost pieces."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if not found:
            break
        at = _place(len(found), rng)
        length = min(rng.choice((1, 2, 4, 16, 256)), len(found) - at)
        choice = rng.randrange(8 if words else 7)
        if choice == 0:
            found[at] ^= 1 << rng.randrange(8)
        elif choice == 1:
            found[at] = rng.randrange(256)
        elif choice == 2:
            del found[at : at + length]
        elif choice == 3:
            found[at:at] = rng.randbytes(length)
        elif choice == 4:
            found[at:at] = found[at : at + length] * rng.randint(1, 8)
        elif choice == 5:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) % 256**width
            found[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif choice == 6:
            del found[at if rng.random() < 0.2 else len(found) - length :]
        else:
            found[at:at] = rng.choice(words)
    return bytes(found)


def _place(length: int, rng: random.Random) -> int:
    """Return a random position, more often near both ends, where formats have most of their structure."""
    ends = min(length, 4096)
    return rng.choice((rng.randrange(length), rng.randrange(ends), length - 1 - rng.randrange(ends)))


def mutate_png(content: bytes, rng: random.Random) -> bytes:
    """Return a mutated PNG; half of them have corrected checksums, so that the code behind these checks is reached."""
    changed = mutate_bytes(content, rng)
    return _with_checksums(changed) if rng.random() < 0.5 else changed


def _with_checksums(content: bytes) -> bytes:
    found, at = bytearray(content), 8
    while at + 12 <= len(found):
        (length,) = struct.unpack_from(">I", found, at)
        end = at + 8 + length
        if end + 4 > len(found):
            break
        struct.pack_into(">I", found, end, zlib.crc32(found[at + 4 : end]))
        at = end + 4
    return bytes(found)


def mutate_jpeg(content: bytes, rng: random.Random) -> bytes:
    """Return a mutated JPEG."""
    return mutate_bytes(content, rng, JPEG_WORDS)


def mutate_csv(content: bytes, rng: random.Random) -> bytes:
    """Return a mutated table."""
    return mutate_bytes(content, rng, CSV_WORDS)


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Return a mutated document: half by bytes, half by one of its values."""
    if rng.random() < 0.5:
        return mutate_bytes(content, rng, JSON_WORDS)
    document = json.loads(content)
    owner, key = rng.choice(list(_values(document)))
    if rng.random() < 0.2:
        del owner[key]
    else:
        owner[key] = rng.choice(VALUES)
    return json.dumps(document).encode()


def _values(document: Any) -> list[tuple[Any, Any]]:
    found = []
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        found += [(document, key), *_values(document[key])]
    return found


def mutate_header(content: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file with a changed header; half of them have the correct header length again."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    changed = mutate_json(header, rng) if rng.random() < 0.8 else header
    declared_bytes = (
        len(changed) if rng.random() < 0.8 else rng.choice((*NUMBERS, size, len(changed) + rng.randint(-9, 9)))
    )
    if rng.random() < 0.2:
        data = mutate_bytes(data, rng)
    return (declared_bytes % 2**64).to_bytes(8, "little") + changed + data
