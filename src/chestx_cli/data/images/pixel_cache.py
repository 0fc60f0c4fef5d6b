"""The pixel cache: every image decoded once per study, stored as 8-bit grey at network size, memory-mapped.

A cache is one .npy file with an array [N, H, W], followed by one 64-bit checksum per image. Damage by a crash, a full
disk or a bad sector is detected when the cache is opened, and the cache is rebuilt; it is therefore not synced when
written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chestx_cli.core.files import folder_if_used, hidden_file, read_json, storage_error, write_atomic
from chestx_cli.core.machine import available_threads
from chestx_cli.data.images.decoding import load_pixels
from chestx_cli.data.images.places import place_of
from chestx_cli.records.preprocessing import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedRandom

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.core.progress import Reporter
    from chestx_cli.store.directory import Study
    from chestx_cli.store.split import Split

    Pixels = npt.NDArray[np.uint8]

T = TypeVar("T")

CHUNK = 32
# Caches up to this size are verified at every opening, which takes a fraction of a second.
ALWAYS_CHECKED_BYTES = 2**30
_WORD_BYTES = 8


def open_pixels(study: Study, split: Split, preprocessing: Preprocessing, reporter: Reporter) -> Pixels:
    """Return the pixels of all images of a split, [N, H, W], in manifest order; they are read from disk on access.

    The cache is keyed by the hashes of the images and the preprocessing; a missing or damaged one is built. Raises
    DataError or IntegrityError for an image that cannot be read or has changed, StorageError.
    """
    path = cache_path(study, split.image_sha256.tolist(), preprocessing)
    shape = (len(split.ids), preprocessing.image_size_px, preprocessing.image_size_px)
    if path.is_file():
        if (pixels := _intact(path, shape)) is not None:
            return pixels
        reporter.warn(f"{path} is damaged; rebuilding it")

    def load(rows: range) -> Pixels:
        import numpy as np

        return np.stack(
            [
                load_pixels(
                    place_of(split, row),
                    preprocessing,
                    sha256=str(split.image_sha256[row]),
                    image_id=str(split.ids[row]),
                )
                for row in rows
            ]
        )

    with (
        write_pixels(path.parent, preprocessing.image_size_px) as writer,
        reporter.progress("Decoding images", shape[0]) as advance,
    ):
        first = 0
        for chunk in in_order(load, shape[0]):
            writer.places.put(first, chunk)
            writer.took(first, sums_of(chunk))
            first += len(chunk)
            advance(len(chunk))
        writer.keep(path)
    return _mapped(path)


def cache_path(study: Study, image_sha256: list[str], preprocessing: Preprocessing) -> Path:
    """Return the path of the cache for these images, in this order, with this preprocessing."""
    digest = hashlib.sha256(f"{preprocessing.identity}\n".encode())
    digest.update("\n".join(image_sha256).encode())
    return study.cache / f"pixels-{preprocessing.image_size_px}-{digest.hexdigest()[:16]}.npy"


def in_order(function: Callable[[range], T], total: int) -> Iterator[T]:
    """Yield `function` of each chunk of rows, in order, computed on all processors a bounded number of chunks ahead."""
    threads = available_threads()
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Any] = deque()
        try:
            for start in range(0, total, CHUNK):
                waiting.append(pool.submit(function, range(start, min(start + CHUNK, total))))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def sums_of(pixels: Pixels) -> npt.NDArray[np.uint64]:
    """Return the checksum of each image [N]: the sum of its 64-bit words, modulo 2^64.

    It detects every change within one word, and any other change except with probability 2^-64; it is no defence
    against an adversary. It runs at memory speed, ten times as fast as a CRC.
    """
    import numpy as np

    # Not -1, which NumPy cannot infer for no images.
    flat = np.ascontiguousarray(pixels).reshape(len(pixels), math.prod(pixels.shape[1:]))
    whole = flat.shape[1] // _WORD_BYTES * _WORD_BYTES
    sums = flat[:, :whole].view(np.uint64).sum(axis=1, dtype=np.uint64)
    checksums: npt.NDArray[np.uint64] = sums + flat[:, whole:].sum(axis=1, dtype=np.uint64)
    return checksums


@dataclass(frozen=True, kw_only=True)
class Places:
    """Positions of images in a cache that is being written; plain values, so that other processes can write there."""

    path: str
    header_bytes: int
    side_px: int

    def byte_of(self, row: int) -> int:
        """Return the offset in the file of the image of a row."""
        return self.header_bytes + row * self.side_px**2

    def put(self, first: int, pixels: Pixels) -> None:
        """Write images [n, H, W] for n rows from `first` on; raises StorageError."""
        path = Path(self.path)
        # Not through a memory map, so that a full disk is an error and not a crash.
        try:
            with path.open("r+b") as file:
                file.seek(self.byte_of(first))
                file.write(pixels.data)
        except OSError as error:
            raise storage_error(error, path.parent) from error


class PixelWriter:
    """A cache being written: images are written to `places`, recorded in order, and the file is then renamed."""

    def __init__(self, file: BufferedRandom, hidden: Path, side_px: int) -> None:
        self._file, self._hidden, self._side_px = file, hidden, side_px
        self._taken: list[tuple[int, npt.NDArray[np.uint64]]] = []
        self._write_header(0)
        self.places = Places(path=str(hidden), header_bytes=file.tell(), side_px=side_px)
        self._file.flush()

    def _write_header(self, images: int) -> None:
        import numpy as np

        # NumPy pads a header for any number of images, so it can be rewritten when the number is known.
        shape = (images, self._side_px, self._side_px)
        np.lib.format.write_array_header_1_0(
            self._file,
            {"descr": "|u1", "fortran_order": False, "shape": shape},
        )

    @property
    def sums(self) -> npt.NDArray[np.uint64]:
        """Return the checksums [n] of all images so far."""
        import numpy as np

        return np.concatenate([np.empty(0, dtype=np.uint64), *(sums for _, sums in self._taken)])

    def took(self, first: int, sums: npt.NDArray[np.uint64]) -> None:
        """Record the checksums [n] of the rows starting at `first`. Rows never recorded are gaps."""
        self._taken.append((first, sums))

    def begin_again(self) -> None:
        """Discard the images so far; all are written again."""
        self._taken.clear()

    def keep(self, path: Path) -> None:
        """Close the gaps between the images, finish the file and rename it; raises StorageError.

        Images after a refused one are moved up.
        """
        try:
            images = 0
            for first, sums in self._taken:
                self._move(first, images, len(sums))
                images += len(sums)
            self._file.seek(self.places.byte_of(images))
            self._file.write(self.sums.astype("<u8").tobytes())
            self._file.truncate()
            self._file.seek(0)
            self._write_header(images)
            self._file.flush()
            self._hidden.replace(path)
        except OSError as error:
            raise storage_error(error, path) from error
        _note_checked(path)

    def _move(self, first: int, to: int, images: int) -> None:
        if first == to:
            return
        self._file.seek(self.places.byte_of(first))
        content = self._file.read(images * self._side_px**2)
        self._file.seek(self.places.byte_of(to))
        self._file.write(content)


@contextmanager
def write_pixels(folder: Path, side_px: int) -> Iterator[PixelWriter]:
    """Yield a writer of a hidden file in `folder`, which is removed unless it is finished; raises StorageError."""
    with folder_if_used(folder), contextlib.ExitStack() as held:
        try:
            hidden = held.enter_context(hidden_file(folder / "pixels"))
            writer = PixelWriter(held.enter_context(_closing_quietly(hidden)), hidden, side_px)
        except OSError as error:
            raise storage_error(error, folder) from error
        yield writer


@contextmanager
def _closing_quietly(path: Path) -> Iterator[BufferedRandom]:
    """Open a file for writing; if closing it fails after an error, no second error is raised."""
    file = path.open("w+b")
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            file.close()


def _mapped(path: Path) -> Pixels:
    import numpy as np

    # Not np.load, which also opens files other than arrays; nothing is unpickled either way.
    pixels: Pixels = np.lib.format.open_memmap(path, mode="r")
    return pixels


def _intact(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    """Return the pixels of a cache, or None if they are damaged.

    A large cache is verified once, and again only if its inode, size or times have changed.
    """
    import numpy as np

    try:
        pixels = _mapped(path)
        sums = np.fromfile(path, dtype="<u8", offset=path.stat().st_size - _WORD_BYTES * shape[0])
    except (OSError, ValueError, EOFError):
        return None
    header_bytes = path.stat().st_size - pixels.nbytes - sums.nbytes
    if pixels.shape != shape or pixels.dtype != np.uint8 or not 0 < header_bytes < 2**10:
        return None
    if pixels.nbytes > ALWAYS_CHECKED_BYTES and _identity(path) == _noted(path):
        return pixels
    for start in range(0, len(pixels), CHUNK):
        if not np.array_equal(sums_of(pixels[start : start + CHUNK]), sums[start : start + CHUNK]):
            return None
    _note_checked(path)
    return pixels


def _identity(path: Path) -> list[int]:
    """Return values that change when a file is replaced or written, even if its modification time is set back."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _note_checked(path: Path) -> None:
    if path.stat().st_size > ALWAYS_CHECKED_BYTES:
        write_atomic(path.with_suffix(".checked.json"), json.dumps(_identity(path)))


def _noted(path: Path) -> list[int] | None:
    try:
        noted: list[int] = read_json(path.with_suffix(".checked.json"))
    except (OSError, ValueError):
        return None
    return noted
