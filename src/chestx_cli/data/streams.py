"""Images of sets too large for a pixel cache or for random access: read in order, and read ahead.

Rows are read in manifest order, which is that of the shards, so that disk or network storage is read sequentially.
Threads decode in parallel, since Pillow releases the GIL; tools/benchmarks/shards.py compares them with webdataset.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from chestx_cli.core.machine import available_threads
from chestx_cli.data.images.decoding import load_pixels
from chestx_cli.data.images.pixel_cache import CHUNK, cache_path, open_pixels
from chestx_cli.data.images.places import place_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.core.progress import Reporter
    from chestx_cli.data.images.pixel_cache import Pixels
    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.store.directory import Study
    from chestx_cli.store.split import Split

    Rows = npt.NDArray[np.int64]


# Rows decoded per call if they are in order: a few chunks per thread.
DECODED_AT_ONCE = 512
# Images whose files are smaller on average are decoded by one thread: most of that work is Python code, of which one
# thread runs at a time, and a second thread only waits for the first.
SMALL_FILE_BYTES = 8192


class DecodedImages:
    """The images of a split, [N, H, W], decoded at every access; nothing is kept."""

    def __init__(self, split: Split, preprocessing: Preprocessing) -> None:
        self._split, self._preprocessing = split, preprocessing

    @property
    def threads(self) -> int:
        """Return the number of threads that decode these images fastest."""
        spans = self._split.spans
        if spans is None or float(spans[:, 1].mean()) >= SMALL_FILE_BYTES:
            return available_threads()
        return 1

    def __getitem__(self, rows: Any) -> Pixels:
        """Return the images of an array of rows, [n, H, W], or of one row, [H, W]; raises as `load_pixels` does."""
        import numpy as np

        if np.ndim(rows) == 0:
            return self._load(int(rows))
        side = self._preprocessing.image_size_px
        images = np.empty((len(rows), side, side), dtype=np.uint8)
        for at, row in enumerate(rows.tolist()):
            images[at] = self._load(row)
        return images

    def _load(self, row: int) -> Pixels:
        split = self._split
        return load_pixels(
            place_of(split, row),
            self._preprocessing,
            sha256=str(split.image_sha256[row]),
            image_id=str(split.ids[row]),
        )


def open_images(study: Study, split: Split, preprocessing: Preprocessing, reporter: Reporter) -> Pixels | DecodedImages:
    """Return the images of a split, [N, H, W], by rows: from its pixel cache, or decoded from shards at each access.

    For shards that the split has not opened (`split --unread`) no cache is made: it would be too large. Raises as
    `open_pixels` does.
    """
    unopened = split.unread and split.spans is not None
    if unopened and not cache_path(study, split.image_sha256.tolist(), preprocessing).is_file():
        return DecodedImages(split, preprocessing)
    return open_pixels(study, split, preprocessing, reporter)


@contextmanager
def reading(
    images: Pixels | DecodedImages, rows: Rows, *, at_once: int | None = None
) -> Iterator[Callable[[int], Pixels]]:
    """Yield a function that returns the next n images of `rows`, [n, H, W], while later ones are read ahead.

    Windows of `at_once` rows are read in the order of the manifest, each image once, and about as many images are read
    ahead, so twice that many are in memory. None means that `rows` are already in that order; images of a cache are
    then read when they are taken.
    """
    if at_once is None and not isinstance(images, DecodedImages):
        left = rows

        def take(n: int) -> Pixels:
            nonlocal left
            now, left = left[:n], left[n:]
            return images[now]

        yield take
        return
    reader = _Reader(images, rows, at_once or DECODED_AT_ONCE)
    try:
        yield reader.take
    finally:
        reader.close()


class _Reader:
    """Reads windows of rows, each in manifest order, with threads a few chunks ahead."""

    def __init__(self, images: Pixels | DecodedImages, rows: Rows, at_once: int) -> None:
        self._images, self._rows, self._at_once = images, rows, at_once
        threads = images.threads if isinstance(images, DecodedImages) else available_threads()
        self._pool = ThreadPoolExecutor(threads)
        self._ahead = max(2 * threads, at_once // CHUNK)
        self._chunks = self._planned()
        self._waiting: deque[Future[Pixels]] = deque()
        # The current window: its images, and the indices still to be taken.
        self._start = 0
        self._window: Pixels | None = None
        self._left: Rows | None = None

    def _planned(self) -> Iterator[Rows]:
        """Yield the rows of all windows in reading order, a chunk at a time."""
        import numpy as np

        for start in range(0, len(self._rows), self._at_once):
            wanted = np.unique(self._rows[start : start + self._at_once])
            yield from (wanted[at : at + CHUNK] for at in range(0, len(wanted), CHUNK))

    def _order_more(self) -> None:
        while len(self._waiting) < self._ahead and (rows := next(self._chunks, None)) is not None:
            self._waiting.append(self._pool.submit(self._images.__getitem__, rows))

    def take(self, n: int) -> Pixels:
        """Return the next n images."""
        import numpy as np

        if not n:
            return self._images[self._rows[:0]]
        taken: list[Pixels] = []
        while n:
            if self._left is None or not len(self._left):
                self._next_window()
            assert self._left is not None  # noqa: S101 - set above
            assert self._window is not None  # noqa: S101 - set above
            now, self._left = self._left[:n], self._left[n:]
            taken.append(self._window[now])
            n -= len(now)
        return taken[0] if len(taken) == 1 else np.concatenate(taken)

    def _next_window(self) -> None:
        import numpy as np

        rows = self._rows[self._start : self._start + self._at_once]
        self._start += len(rows)
        wanted, self._left = np.unique(rows, return_inverse=True)
        filled = 0
        # The memory of a window is reused if it is large enough, and released first otherwise.
        if self._window is None or len(self._window) < len(wanted):
            self._window = None
        while filled < len(wanted):
            self._order_more()
            part = self._waiting.popleft().result()
            if self._window is None:
                self._window = np.empty((min(self._at_once, len(self._rows)), *part.shape[1:]), dtype=np.uint8)
            self._window[filled : filled + len(part)] = part
            filled += len(part)
        self._order_more()

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(cancel_futures=True)
