"""One look at every image: decoded once for its facts, its network-size pixels and its thumbnail."""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from chestx_cli.beside import Beside, answer, beside
from chestx_cli.files import storage_error
from chestx_cli.films import air_of
from chestx_cli.images import FileFacts, as_array, at_network_size, decode_grey, refuse_mask
from chestx_cli.pixels import Places, in_order, sums_of
from chestx_cli.preprocessing import Preprocessing
from chestx_cli.readings import Reading
from chestx_cli.refusals import Reason, UnreadableImageError
from chestx_cli.stage import available_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import IO, Any

    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from chestx_cli.datasets import Listing
    from chestx_cli.pixels import PixelWriter

    # A file's path below the root, and the hash that it should have where one is known.
    Asked = tuple[str, str | None]
    Seen = FileFacts | UnreadableImageError

THUMB_PX = 64
PROCESSES_FROM_IMAGES = 1000
# Each takes 45 MB and what the image needs that it decodes; what more of them would gain was not measured.
MAX_PROCESSES = 16


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What was found: facts of the images that can be read, refusals of the others, by row of the listing.

    `sums` [n] tell the network-size pixels and `thumbs` [n, 64, 64] the content of the n readable ones, in order.
    """

    facts: dict[int, FileFacts]
    refused: dict[int, UnreadableImageError]
    sums: npt.NDArray[np.uint64]
    thumbs: npt.NDArray[np.uint8]


@contextmanager
def scratch_file(folder: Path) -> Iterator[IO[bytes]]:
    """Yield a nameless file in an existing folder for what is too large for the memory; raises StorageError."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            yield file
    except OSError as error:
        raise storage_error(error, folder) from error


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What a look at some images gave: of each its facts or its refusal, and more of the n readable ones, in order.

    That is the sums [n] of their pixels at network size, and thumbnails [n, 64, 64].
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
    """Decode every image, with all processors and in bounded memory.

    Its pixels go to the places of `writer`, its thumbnail to `scratch`. Each file is read once, for its hash and its
    pixels. Values of more than 8 bits are scaled from the bits that each image uses itself, or else from the range of
    `preprocessing`.
    """
    import numpy as np

    def asked(rows: range) -> list[Asked]:
        return [(listing.paths[row], listing.sha256[row] if listing.sha256 else None) for row in rows]

    facts: dict[int, FileFacts] = {}
    refused: dict[int, UnreadableImageError] = {}
    row = 0
    at_size = None if own_range else preprocessing
    with _looking(listing.root, at_size, writer.places, len(listing.paths)) as look:
        for looks in in_order(lambda rows: look(rows.start, asked(rows)), len(listing.paths)):
            writer.took(row, looks.sums)
            scratch.write(looks.thumbs.data)
            for seen in looks.seen:
                if isinstance(seen, UnreadableImageError):
                    refused[row] = seen
                else:
                    facts[row] = seen
                row += 1
            advance(len(looks.seen))
    scratch.flush()
    shape = (len(facts), THUMB_PX, THUMB_PX)
    mapped = np.memmap(scratch, dtype=np.uint8, mode="r", shape=shape) if facts else np.empty(shape, dtype=np.uint8)
    return Scan(facts=facts, refused=refused, sums=writer.sums, thumbs=mapped)


def value_bits_of(facts: Iterable[FileFacts]) -> int | None:
    """Return how many bits the values of a set use, of its images of more than 8; None where there are none."""
    return max((fact.value_bits for fact in facts if fact.value_bits is not None), default=None)


def scan_again(
    scan: Scan,
    listing: Listing,
    preprocessing: Preprocessing,
    writer: PixelWriter,
    scratch: IO[bytes],
    advance: Callable[[int], None],
) -> Scan:
    """Decode every image once more, with the value range of `preprocessing`; a first reason of refusal stays."""
    writer.begin_again()
    scratch.seek(0)
    scratch.truncate()
    again = scan_images(listing, preprocessing, writer, scratch, advance, own_range=False)
    refused = {row: scan.refused.get(row, error) for row, error in again.refused.items()}
    return replace(again, refused=refused)


@contextmanager
def _looking(
    root: Path, preprocessing: Preprocessing | None, places: Places, images: int
) -> Iterator[Callable[[int, list[Asked]], Looks]]:
    """Yield what looks at images from a row on: this process, or for many of them a process per processor.

    Opening and identifying a small file is as much work for Python as decoding it is for the decoder, and threads
    share one interpreter; processes take a fifth of a second to start.
    """
    if images < PROCESSES_FROM_IMAGES:
        yield lambda first, asked: look_at(root, first, asked, preprocessing, places)
        return
    idle: SimpleQueue[Beside] = SimpleQueue()

    def look(first: int, asked: list[Asked]) -> Looks:
        process = idle.get()
        try:
            return _looks_of(*process.ask([first, asked]))
        finally:
            idle.put(process)

    with ExitStack() as held:
        for _ in range(min(available_threads(), MAX_PROCESSES)):
            words = (str(root), json.dumps(asdict(places)), json.dumps(preprocessing and preprocessing.value_bits))
            idle.put(held.enter_context(beside("chestx_cli.scanning", *words, what="decodes images")))
        yield look


def look_at(root: Path, first: int, asked: list[Asked], preprocessing: Preprocessing | None, places: Places) -> Looks:
    """Return what files below `root` are, of each the path and the hash that it should have.

    Values of more than 8 bits are scaled from the range of `preprocessing`, or from the bits that each image uses. The
    pixels of the readable ones are put at the places from row `first` on, one after the other; raises StorageError.
    """
    import numpy as np

    at_size = Preprocessing(image_size_px=places.side_px)
    seen: list[Seen] = []
    pixels, thumbs = [], []
    for path, sha256 in asked:
        try:
            grey, facts = decode_grey(root / path, preprocessing)
            if sha256 not in (None, facts.sha256):
                raise UnreadableImageError(Reason.OTHER_HASH, "its sha256 is not the manifest's")
            refuse_mask(facts)
        except UnreadableImageError as error:
            seen.append(error)
            continue
        pixels.append(at_network_size(grey, at_size))
        thumbs.append(thumbnail(grey))
        seen.append(replace(facts, air=air_of(thumbs[-1])))
    side = places.side_px
    stacked = np.stack(pixels) if pixels else np.empty((0, side, side), dtype=np.uint8)
    places.put(first, stacked)
    return Looks(
        seen=seen,
        sums=sums_of(stacked),
        thumbs=np.stack(thumbs) if thumbs else np.empty((0, THUMB_PX, THUMB_PX), dtype=np.uint8),
    )


def _looks_of(told: list[dict[str, Any]], content: bytes) -> Looks:
    """Return what another process has told by `main`."""
    import numpy as np

    seen = [
        UnreadableImageError(Reason(one["reason"]), one["detail"])
        if "reason" in one
        else FileFacts(**{**one, "readings": tuple(Reading(reading) for reading in one["readings"])})
        for one in told
    ]
    n = sum(not isinstance(one, UnreadableImageError) for one in seen)
    # Copied: they are kept, and would keep all the bytes.
    sums = np.frombuffer(content, dtype=np.uint64, count=n).copy()
    thumbs = np.frombuffer(content, dtype=np.uint8, offset=sums.nbytes).reshape(n, THUMB_PX, THUMB_PX)
    return Looks(seen=seen, sums=sums, thumbs=thumbs)


def main(root: str, places_json: str, value_bits_json: str = "null") -> None:
    """Look at the images that stdin asks for."""
    places = Places(**json.loads(places_json))
    value_bits = json.loads(value_bits_json)
    preprocessing = value_bits and Preprocessing(image_size_px=places.side_px, value_bits=value_bits)

    def look(question: tuple[int, list[Asked]]) -> tuple[object, list[memoryview]]:
        first, asked = question
        looks = look_at(Path(root), first, asked, preprocessing, places)
        told = [
            {"reason": one.reason, "detail": one.detail} if isinstance(one, UnreadableImageError) else vars(one)
            for one in looks.seen
        ]
        return told, [looks.sums.data, looks.thumbs.data]

    answer(look)


def thumbnails(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the thumbnails [n, 64, 64] of images at network size [n, H, W]."""
    import numpy as np
    from PIL import Image

    return np.stack([thumbnail(Image.fromarray(grey)) for grey in pixels])


def thumbnail(grey: Image) -> npt.NDArray[np.uint8]:
    """Return what copies are told by, [64, 64]."""
    from PIL import Image

    # A gap of 1 takes whole blocks first: a fifth of the time on large images, and copies are found as well.
    return as_array(grey.resize((THUMB_PX, THUMB_PX), Image.Resampling.HAMMING, reducing_gap=1.0))


if __name__ == "__main__":
    main(*sys.argv[1:])
