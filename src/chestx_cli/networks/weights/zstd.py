"""Model files compressed by Zstandard (RFC 8878), as bundles may have them."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

from chestx_cli.core.errors import UsageError

SUFFIX = ".zst"
# Measured on weights of 4 to 32 bits: higher levels take many times as long, and save less than one per cent.
LEVEL = 9


def compressed(content: bytes) -> bytes:
    """Return compressed content; raises UsageError if no library is installed."""
    packed: bytes
    if sys.version_info >= (3, 14):
        packed = _library().compress(content, level=LEVEL)
    else:
        packed = _library().ZstdCompressor(level=LEVEL).compress(content)
    return packed


def decompressed(packed: bytes, max_bytes: int) -> bytes:
    """Return the content of a compressed file.

    Raises ValueError for damage and for more than `max_bytes`, of which no more is unpacked, and UsageError.
    """
    library, source = _library(), io.BytesIO(packed)
    content: bytes
    try:
        if sys.version_info >= (3, 14):
            content = library.ZstdFile(source).read(max_bytes + 1)
        else:
            content = library.ZstdDecompressor().stream_reader(source).read(max_bytes + 1)
    except (library.ZstdError, EOFError) as error:
        raise ValueError(f"not compressed by zstd, or damaged: {error}") from error
    if len(content) > max_bytes:
        raise ValueError(f"larger than {max_bytes:,} bytes when unpacked")
    return content


def _library() -> Any:
    """Return the module of Python 3.14, or the package for older ones."""
    if sys.version_info >= (3, 14):
        return importlib.import_module("compression.zstd")
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise UsageError("zstd needs the package zstandard", "pip install 'chestx-cli[zstd]'") from error
