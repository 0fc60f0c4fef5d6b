"""One look at every image: decoded once for its facts, its network-size pixels and its thumbnail."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.files import storage_error
from chestx_cli.images import as_array, at_network_size, decode_grey
from chestx_cli.pixels import in_order, sums_of
from chestx_cli.refusals import Reason, UnreadableImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import IO

    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from chestx_cli.datasets import Listing
    from chestx_cli.images import FileFacts, Preprocessing
    from chestx_cli.pixels import PixelWriter

    Seen = FileFacts | UnreadableImageError

THUMB_PX = 64


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


def scan_images(
    listing: Listing,
    preprocessing: Preprocessing,
    writer: PixelWriter,
    scratch: IO[bytes],
    advance: Callable[[int], None],
) -> Scan:
    """Decode every image, with all processors and in bounded memory.

    Its pixels go to `writer`, its thumbnail to `scratch`. Each file is read once, for its hash and its pixels.
    """
    import numpy as np

    def look(rows: range) -> tuple[list[Seen], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        found: list[Seen] = []
        pixels, thumbs = [], []
        for row in rows:
            seen = _look(listing, row, preprocessing)
            if isinstance(seen, UnreadableImageError):
                found.append(seen)
            else:
                found.append(seen[0])
                pixels.append(seen[1])
                thumbs.append(seen[2])
        side = preprocessing.image_size_px
        return (
            found,
            np.stack(pixels) if pixels else np.empty((0, side, side), dtype=np.uint8),
            np.stack(thumbs) if thumbs else np.empty((0, THUMB_PX, THUMB_PX), dtype=np.uint8),
        )

    facts: dict[int, FileFacts] = {}
    refused: dict[int, UnreadableImageError] = {}
    all_sums = []
    row = 0
    for found, pixels, thumbs in in_order(look, len(listing.paths)):
        sums = sums_of(pixels)
        writer.append(pixels, sums)
        scratch.write(thumbs.data)
        all_sums.append(sums)
        for seen in found:
            if isinstance(seen, UnreadableImageError):
                refused[row] = seen
            else:
                facts[row] = seen
            row += 1
        advance(len(found))
    scratch.flush()
    shape = (len(facts), THUMB_PX, THUMB_PX)
    mapped = np.memmap(scratch, dtype=np.uint8, mode="r", shape=shape) if facts else np.empty(shape, dtype=np.uint8)
    return Scan(facts=facts, refused=refused, sums=np.concatenate(all_sums), thumbs=mapped)


def _look(
    listing: Listing, row: int, preprocessing: Preprocessing
) -> UnreadableImageError | tuple[FileFacts, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    try:
        grey, facts = decode_grey(listing.root / listing.paths[row])
    except UnreadableImageError as error:
        return error
    if listing.sha256 is not None and listing.sha256[row] != facts.sha256:
        return UnreadableImageError(Reason.OTHER_HASH, "its sha256 is not the manifest's")
    return facts, at_network_size(grey, preprocessing), thumbnail(grey)


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
