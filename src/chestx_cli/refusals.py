"""Why an image is refused: a code for records and tables, and the fact for whoever has to repair it."""

from __future__ import annotations

import errno
from enum import StrEnum

from chestx_cli.errors import DataError

# Three times what the largest detectors for chests give. Within these limits every file is decoded in about a second
# and in less than one GiB, whatever it is made of.
MAX_PIXELS = 50_000_000
MAX_DECODED_BYTES = 120_000_000
MAX_FILE_BYTES = 256 * 2**20
# Each scan of a progressive JPEG visits every pixel again, and a small file may hold thousands.
MAX_SCANNED_PIXELS = 1_000_000_000
# Less is no radiograph.
MIN_SIDE_PX = 16


class Reason(StrEnum):
    """The codes of refused images."""

    MISSING = "missing"
    LINK_LOOP = "link-loop"
    NO_PERMISSION = "no-permission"
    NOT_A_FILE = "not-a-file"
    UNREADABLE = "unreadable"
    BAD_NAME = "bad-name"
    EMPTY = "empty"
    TOO_LARGE = "too-large"
    TOO_SMALL = "too-small"
    WRONG_FORMAT = "wrong-format"
    UNSUPPORTED = "unsupported"
    SEVERAL_IMAGES = "several-images"
    DAMAGED = "damaged"
    OTHER_HASH = "other-hash"


_BY_ERRNO = {
    errno.ENOENT: Reason.MISSING,
    errno.ENOTDIR: Reason.MISSING,
    errno.ELOOP: Reason.LINK_LOOP,
    errno.EACCES: Reason.NO_PERMISSION,
    errno.EPERM: Reason.NO_PERMISSION,
    errno.EISDIR: Reason.NOT_A_FILE,
    errno.EINVAL: Reason.NOT_A_FILE,
    errno.EFBIG: Reason.TOO_LARGE,
    errno.ENAMETOOLONG: Reason.BAD_NAME,
}


class UnreadableImageError(DataError):
    """An image file that is refused: the code of the reason, and what exactly is wrong."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def refused_by_system(error: OSError) -> UnreadableImageError:
    """Return what the operating system says of a file as the refusal of an image."""
    return UnreadableImageError(_BY_ERRNO.get(error.errno or 0, Reason.UNREADABLE), error.strerror or str(error))


def require_size(width: int, height: int, bytes_per_pixel: int) -> None:
    """Raise UnreadableImageError for an image that is too large to be decoded, or too small to be an image."""
    pixels = width * height
    if pixels > MAX_PIXELS:
        raise UnreadableImageError(Reason.TOO_LARGE, f"{width}×{height} pixels, more than {MAX_PIXELS:,}")
    if pixels * bytes_per_pixel > MAX_DECODED_BYTES:
        fact = f"{width}×{height} pixels of {bytes_per_pixel} bytes, more than {MAX_DECODED_BYTES:,}"
        raise UnreadableImageError(Reason.TOO_LARGE, fact)
    if min(width, height) < MIN_SIDE_PX:
        raise UnreadableImageError(Reason.TOO_SMALL, f"{width}×{height} pixels, less than {MIN_SIDE_PX} on a side")
