"""Reasons for refusing an image: a code for records and tables, and a fact for the user who repairs it."""

from __future__ import annotations

import errno
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from chestx_cli.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Three times what the largest detectors for chests give. Within these limits every file is decoded in about a second
# and in less than one GiB, whatever it is made of.
MAX_PIXELS = 50_000_000
MAX_DECODED_BYTES = 120_000_000
MAX_FILE_BYTES = 256 * 2**20
# Each scan of a progressive JPEG visits every pixel again, and a small file may contain thousands.
MAX_SCANNED_PIXELS = 1_000_000_000
NO_BYTES = "the file has no bytes"
# Smaller images are no radiographs.
MIN_SIDE_PX = 16
# Up to this many distinct details of one code, such as sizes, are listed separately.
MAX_DETAILS = 5


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
    NO_IMAGE = "no-image"
    DAMAGED = "damaged"
    ONE_GREY = "one-grey"
    MASK = "mask"
    LATERAL = "lateral"
    NOT_A_RADIOGRAPH = "not-a-radiograph"
    NO_WINDOW = "no-window"
    VALUE_RANGE = "value-range"
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
    """A refused image file: the code of the reason, and the exact fault."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def require_file_size(size_bytes: int) -> None:
    """Raise UnreadableImageError for a file that is too large to be read."""
    if size_bytes > MAX_FILE_BYTES:
        raise UnreadableImageError(Reason.TOO_LARGE, f"larger than {MAX_FILE_BYTES / 2**20:,.0f} MiB")


def refused_by_system(error: OSError) -> UnreadableImageError:
    """Return the refusal of an image for an error of the operating system."""
    reason = error.strerror or "the system cannot read it"
    return UnreadableImageError(_BY_ERRNO.get(error.errno or 0, Reason.UNREADABLE), reason)


@contextmanager
def damaged_where_it_fails(detail: str) -> Iterator[None]:
    """Turn any exception of a decoder into a refusal for this reason.

    Damaged files can make decoders raise any kind of exception. Its text may contain private data, so the refusal does
    not quote it.
    """
    try:
        yield
    except (UnreadableImageError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableImageError(Reason.DAMAGED, detail) from error


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


@dataclass(frozen=True, kw_only=True)
class Alike:
    """Images refused for one reason: its code, the fault of the first image, and their names."""

    code: str
    detail: str
    names: tuple[str, ...]


def grouped(refused: Iterable[tuple[str, str, str]]) -> tuple[Alike, ...]:
    """Return refusals (name, code, detail) grouped by reason, most frequent first."""
    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, code, detail in refused:
        names[code, detail].append(name)
    details: dict[str, list[str]] = defaultdict(list)
    for code, detail in sorted(names, key=lambda one: -len(names[one])):
        details[code].append(detail)
    groups = []
    for code, own in details.items():
        apart, together = own[: MAX_DETAILS - 1], own[MAX_DETAILS - 1 :]
        groups += [Alike(code=code, detail=detail, names=tuple(names[code, detail])) for detail in apart]
        if together:
            rest = tuple(name for detail in together for name in names[code, detail])
            groups.append(Alike(code=code, detail=together[0], names=rest))
    return tuple(sorted(groups, key=lambda alike: -len(alike.names)))
