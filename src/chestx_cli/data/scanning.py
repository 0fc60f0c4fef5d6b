"""One pass over all images: each is decoded once for its facts, its network-size pixels and its thumbnail."""

from __future__ import annotations

import json
import sys
import tempfile
from array import array
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from chestx_cli.core.files import storage_error
from chestx_cli.core.machine import available_threads
from chestx_cli.core.worker import Beside, answer, beside
from chestx_cli.data.facts import FactsTable
from chestx_cli.data.images.decoding import FileFacts, as_array, at_network_size, decode_grey, refuse_mask
from chestx_cli.data.images.films import air_of, without_frame
from chestx_cli.data.images.formats.readings import Reading
from chestx_cli.data.images.formats.refusals import Reason, UnreadableImageError
from chestx_cli.data.images.pixel_cache import Places, in_order, sums_of
from chestx_cli.data.images.places import place_at
from chestx_cli.records.preprocessing import LETTERBOX, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import IO

    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from chestx_cli.core.record import Document
    from chestx_cli.data.images.pixel_cache import PixelWriter
    from chestx_cli.data.sources.listing import Listing

    # Path below the root, expected SHA-256 if known, and offset and size in a shard.
    Request = tuple[str, str | None, list[int] | None]
    Seen = FileFacts | UnreadableImageError

THUMB_PX = 64
PROCESSES_FROM_IMAGES = 1000
# Each needs 45 MB plus the image being decoded; the gain of more processes was not measured.
MAX_PROCESSES = 16


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Result of scanning a listing: rows and facts of the n readable images, and refusals of the others by row.

    `sums` [n] are checksums of the network-size pixels and `thumbs` [n, 64, 64] thumbnails of the n readable images.
    """

    rows: Sequence[int]
    facts: FactsTable
    refused: dict[int, UnreadableImageError]
    sums: npt.NDArray[np.uint64]
    thumbs: npt.NDArray[np.uint8]


@contextmanager
def scratch_file(folder: Path) -> Iterator[IO[bytes]]:
    """Yield an unnamed temporary file in an existing folder for data too large for memory; raises StorageError."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            yield file
    except OSError as error:
        raise storage_error(error, folder) from error


@dataclass(frozen=True, kw_only=True)
class Scanned:
    """Result of scanning some images: facts or refusal of each, in order.

    `sums` [n] are checksums of the pixels at network size and `thumbs` [n, 64, 64] thumbnails of the n readable ones.
    """

    seen: list[Seen]
    sums: npt.NDArray[np.uint64]
    thumbs: npt.NDArray[np.uint8]


def scan_images(
    listing: Listing,
    preprocessing: Preprocessing,
    writer: PixelWriter,
    scratch: IO[bytes],
    advance: Callable[[int], None],
    *,
    own_range: bool = True,
) -> Scan:
    """Decode every image, on all processors and in bounded memory.

    Pixels are written to `writer`, thumbnails to `scratch`. Each file is read once, for its hash and its pixels. Values
    of more than 8 bits are scaled from the bits that each image uses, or from the range of `preprocessing`.
    """
    import numpy as np

    def requests(rows: range) -> list[Request]:
        spans = None if listing.spans is None else listing.spans[rows.start : rows.stop].tolist()
        return [
            (listing.paths[row], listing.sha256[row] if listing.sha256 else None, spans[at] if spans else None)
            for at, row in enumerate(rows)
        ]

    rows, facts = array("q"), FactsTable()
    refused: dict[int, UnreadableImageError] = {}
    row = 0
    with _scanner(listing.root, preprocessing, writer.places, len(listing.paths), own_range=own_range) as scan_part:
        for scanned in in_order(lambda rows: scan_part(rows.start, requests(rows)), len(listing.paths)):
            writer.took(row, scanned.sums)
            scratch.write(scanned.thumbs.data)
            for seen in scanned.seen:
                if isinstance(seen, UnreadableImageError):
                    refused[row] = seen
                else:
                    rows.append(row)
                    facts.append(seen)
                row += 1
            advance(len(scanned.seen))
    scratch.flush()
    shape = (len(facts), THUMB_PX, THUMB_PX)
    mapped = np.memmap(scratch, dtype=np.uint8, mode="r", shape=shape) if facts else np.empty(shape, dtype=np.uint8)
    return Scan(rows=rows, facts=facts, refused=refused, sums=writer.sums, thumbs=mapped)


def value_bits_of(facts: Iterable[FileFacts]) -> int | None:
    """Return the bits used by the images of more than 8 bits; None without such images."""
    return max((fact.value_bits for fact in facts if fact.value_bits is not None), default=None)


def scan_again(
    scan: Scan,
    listing: Listing,
    preprocessing: Preprocessing,
    writer: PixelWriter,
    scratch: IO[bytes],
    advance: Callable[[int], None],
) -> Scan:
    """Decode every image again with the value range of `preprocessing`; the first reason for a refusal is kept."""
    writer.begin_again()
    scratch.seek(0)
    scratch.truncate()
    again = scan_images(listing, preprocessing, writer, scratch, advance, own_range=False)
    refused = {row: scan.refused.get(row, error) for row, error in again.refused.items()}
    return replace(again, refused=refused)


@contextmanager
def _scanner(
    root: Path, preprocessing: Preprocessing, places: Places, images: int, *, own_range: bool
) -> Iterator[Callable[[int, list[Request]], Scanned]]:
    """Yield a function that scans images from a row on: in this process, or one process per processor for many images.

    In Python, opening and identifying a small file takes as long as decoding it, and threads share the interpreter;
    processes take a fifth of a second to start.
    """
    if images < PROCESSES_FROM_IMAGES:
        yield lambda first, requests: scan_files(root, first, requests, preprocessing, places, own_range=own_range)
        return
    idle: SimpleQueue[Beside] = SimpleQueue()

    def scan_part(first: int, requests: list[Request]) -> Scanned:
        process = idle.get()
        try:
            return _scanned_of(*process.ask([first, requests]))
        finally:
            idle.put(process)

    words = (str(root), *(json.dumps(value) for value in (asdict(places), asdict(preprocessing), own_range)))
    with ExitStack() as held:
        for _ in range(min(available_threads(), MAX_PROCESSES)):
            idle.put(held.enter_context(beside("chestx_cli.data.scanning", *words, what="decodes images")))
        yield scan_part


def scan_files(
    root: Path,
    first: int,
    requests: list[Request],
    preprocessing: Preprocessing,
    places: Places,
    *,
    own_range: bool = True,
) -> Scanned:
    """Scan files below `root`, given as paths, expected hashes, and offsets and sizes in shards.

    Values of more than 8 bits are scaled from the bits that each image uses, or from the range of `preprocessing`. The
    pixels of readable images are written consecutively from row `first`; raises StorageError.
    """
    import numpy as np

    seen: list[Seen] = []
    pixels, thumbs = [], []
    for path, sha256, span in requests:
        try:
            grey, facts = decode_grey(place_at(root, path, span), preprocessing, own_range=own_range)
            if sha256 not in (None, facts.sha256):
                raise UnreadableImageError(Reason.OTHER_HASH, "its sha256 differs from the manifest's")
            refuse_mask(facts)
        except UnreadableImageError as error:
            seen.append(error)
            continue
        pixels.append(at_network_size(grey, preprocessing))
        thumbs.append(thumbnail(grey))
        seen.append(replace(facts, air=air_of(thumbs[-1])))
    side = places.side_px
    stacked = np.stack(pixels) if pixels else np.empty((0, side, side), dtype=np.uint8)
    places.put(first, stacked)
    return Scanned(
        seen=seen,
        sums=sums_of(stacked),
        thumbs=np.stack(thumbs) if thumbs else np.empty((0, THUMB_PX, THUMB_PX), dtype=np.uint8),
    )


def _line_of(seen: Seen) -> Document:
    """Return facts or a refusal as a worker process writes them."""
    return {"reason": seen.reason, "detail": seen.detail} if isinstance(seen, UnreadableImageError) else vars(seen)


def _seen_in(line: Document) -> Seen:
    """Return what `_line_of` wrote."""
    if "reason" in line:
        return UnreadableImageError(Reason(line["reason"]), line["detail"])
    return FileFacts(**{**line, "readings": tuple(Reading(reading) for reading in line["readings"])})


def _scanned_of(lines: list[Document], content: bytes) -> Scanned:
    """Parse the answer of a worker process (`main`)."""
    import numpy as np

    seen = [_seen_in(line) for line in lines]
    n = sum(not isinstance(one, UnreadableImageError) for one in seen)
    # Copied, since a view would keep all bytes in memory.
    sums = np.frombuffer(content, dtype=np.uint64, count=n).copy()
    thumbs = np.frombuffer(content, dtype=np.uint8, offset=sums.nbytes).reshape(n, THUMB_PX, THUMB_PX)
    return Scanned(seen=seen, sums=sums, thumbs=thumbs)


def main(root: str, places_json: str, preprocessing_json: str, own_range_json: str) -> None:
    """Scan the images requested on stdin."""
    places, preprocessing = Places(**json.loads(places_json)), Preprocessing(**json.loads(preprocessing_json))
    own_range = json.loads(own_range_json)

    def scan_part(question: tuple[int, list[Request]]) -> tuple[object, list[memoryview]]:
        first, requests = question
        scanned = scan_files(Path(root), first, requests, preprocessing, places, own_range=own_range)
        return list(map(_line_of, scanned.seen)), [scanned.sums.data, scanned.thumbs.data]

    answer(scan_part)


def thumbnails(pixels: npt.NDArray[np.uint8], resize: str) -> npt.NDArray[np.uint8]:
    """Return the thumbnails [n, 64, 64] of images at network size [n, H, W].

    The bars of a letterbox are cropped: their edges are details that all images of one shape would share.
    """
    import numpy as np
    from PIL import Image

    insides = (without_frame(grey) if resize == LETTERBOX else grey for grey in pixels)
    return np.stack(
        [
            thumbnail(Image.fromarray(inside if inside.size else grey))
            for inside, grey in zip(insides, pixels, strict=True)
        ]
    )


def thumbnail(grey: Image) -> npt.NDArray[np.uint8]:
    """Return the thumbnail [64, 64] used to detect copies."""
    from PIL import Image

    # reducing_gap 1 averages whole blocks first: a fifth of the time for large images, with equal detection of copies.
    return as_array(grey.resize((THUMB_PX, THUMB_PX), Image.Resampling.HAMMING, reducing_gap=1.0))


if __name__ == "__main__":
    main(*sys.argv[1:])
