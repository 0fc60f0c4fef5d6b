"""Sizes of a model file: dense, gzip-compressed, and with zeros removed."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

GZIP_LEVEL = 6
# Same format as `gzip`: a window of 32 KiB, with gzip's header and checksum.
GZIP_WINDOW = 16 + zlib.MAX_WBITS
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class FileSizes:
    """Sizes of a model file in bytes: dense, under gzip, and stored sparsely."""

    dense_bytes: int
    gzip_bytes: int
    sparse_bytes: int


def file_sizes(path: Path, sha256: str, cache: Path) -> FileSizes:
    """Return the sizes of a safetensors or ONNX file, cached in `cache` by the file's hash."""
    kept = cache / f"sizes-{sha256[:16]}.json"
    if kept.exists():
        return FileSizes(**json.loads(kept.read_text(encoding="utf-8")))
    sizes = FileSizes(dense_bytes=path.stat().st_size, gzip_bytes=gzip_bytes(path), sparse_bytes=sparse_bytes(path))
    write_atomic(kept, json.dumps(asdict(sizes)))
    return sizes


def gzip_bytes(path: Path) -> int:
    """Return the size of the file in bytes after gzip at its default level."""
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_WINDOW)
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            total += len(packer.compress(chunk))
    return total + len(packer.flush())


def sparse_bytes(path: Path) -> int:
    """Return the file size in bytes if each tensor were stored as a bitmap and its non-zero values, where smaller.

    A tensor of n values of b bytes with k non-zero values takes the smaller of n b and ceil(n / 8) + k b; the rest of
    the file is unchanged. b is a half for 4-bit integers.
    """
    import numpy as np

    saved = 0
    for tensor, bits in _tensors(path):
        sparse = -(-tensor.size // 8) + -(-int(np.count_nonzero(tensor)) * bits // 8)
        saved += max(0, -(-tensor.size * bits // 8) - sparse)
    return path.stat().st_size - saved


def _tensors(path: Path) -> Iterator[tuple[npt.NDArray[np.generic], int]]:
    """Yield every tensor with the bits that one of its values takes in the file."""
    if path.suffix == ".onnx":
        import onnx
        from onnx import numpy_helper

        for tensor in onnx.load(path).graph.initializer:
            values = numpy_helper.to_array(tensor)
            yield values, 4 if tensor.data_type == onnx.TensorProto.INT4 else 8 * values.itemsize
        return
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            values = file.get_tensor(name)
            yield values, 8 * values.itemsize
