"""Seeded mutations of files: of bytes anywhere, and of single values, in part with corrected checksums and lengths."""

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
    mutated = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if not mutated:
            break
        at = _place(len(mutated), rng)
        length = min(rng.choice((1, 2, 4, 16, 256)), len(mutated) - at)
        choice = rng.randrange(8 if words else 7)
        if choice == 0:
            mutated[at] ^= 1 << rng.randrange(8)
        elif choice == 1:
            mutated[at] = rng.randrange(256)
        elif choice == 2:
            del mutated[at : at + length]
        elif choice == 3:
            mutated[at:at] = rng.randbytes(length)
        elif choice == 4:
            mutated[at:at] = mutated[at : at + length] * rng.randint(1, 8)
        elif choice == 5:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) % 256**width
            mutated[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif choice == 6:
            del mutated[at if rng.random() < 0.2 else len(mutated) - length :]
        else:
            mutated[at:at] = rng.choice(words)
    return bytes(mutated)


def _place(length: int, rng: random.Random) -> int:
    """Return a random position, more often near both ends, where formats have most of their structure."""
    ends = min(length, 4096)
    return rng.choice((rng.randrange(length), rng.randrange(ends), length - 1 - rng.randrange(ends)))


def mutate_png(content: bytes, rng: random.Random) -> bytes:
    """Return a mutated PNG; half of them have corrected checksums, so that the code behind these checks is reached."""
    changed = mutate_bytes(content, rng)
    return _with_checksums(changed) if rng.random() < 0.5 else changed


def _with_checksums(content: bytes) -> bytes:
    mutated, at = bytearray(content), 8
    while at + 12 <= len(mutated):
        (length,) = struct.unpack_from(">I", mutated, at)
        end = at + 8 + length
        if end + 4 > len(mutated):
            break
        struct.pack_into(">I", mutated, end, zlib.crc32(mutated[at + 4 : end]))
        at = end + 4
    return bytes(mutated)


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
    values = []
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        values += [(document, key), *_values(document[key])]
    return values


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
