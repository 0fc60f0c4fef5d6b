"""Locations of images, as files or as members of a tar shard, and reading their bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from chestx_cli.core.files import read_head, read_regular, read_span
from chestx_cli.data.images.formats.refusals import (
    MAX_FILE_BYTES,
    Reason,
    UnreadableImageError,
    refused_by_system,
    require_file_size,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

# The part of a path into a shard before the member name.
_SHARD = re.compile(r"(.*?\.tar)/(.+)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """An image in a tar shard: the name of the member, and the position of its bytes in the shard."""

    shard: Path
    name: str
    offset: int
    size_bytes: int


# The location of an image.
Place = Path | Member


class Located(Protocol):
    """Locations of the images of a set by row: paths below its root and, for images in shards, byte positions.

    `spans` [N, 2] are offset and size in the shard, with a negative offset for ordinary files; None without shards.
    """

    @property
    def root(self) -> Path: ...

    @property
    def paths(self) -> Sequence[str] | npt.NDArray[np.str_]: ...

    @property
    def spans(self) -> npt.NDArray[np.int64] | None: ...


def place_of(images: Located, row: int) -> Place:
    """Return the location of the image of a row."""
    return place_at(images.root, str(images.paths[row]), None if images.spans is None else images.spans[row].tolist())


def place_at(root: Path, path: str, span: Sequence[int] | None) -> Place:
    """Return the location of an image, by its path below `root` and, in a shard, its offset and size."""
    inside = None if span is None or span[0] < 0 else divided_path(path)
    if span is None or inside is None:
        return root / path
    return Member(shard=root / inside[0], name=inside[1], offset=span[0], size_bytes=span[1])


def divided_path(path: str) -> tuple[str, str] | None:
    """Return a path into a shard as the shard's path and the member's name; None for any other path."""
    match = _SHARD.fullmatch(path)
    return (match[1], match[2]) if match else None


def read_image(place: Place) -> bytes:
    """Return the bytes of an image; raises UnreadableImageError."""
    try:
        if isinstance(place, Path):
            # Such a name can be neither printed nor stored.
            str(place).encode()
            return read_regular(place, MAX_FILE_BYTES)
        require_file_size(place.size_bytes)
        content = read_span(place.shard, place.offset, place.size_bytes)
    except OSError as error:
        raise refused_by_system(error) from error
    except UnicodeEncodeError as error:
        raise UnreadableImageError(Reason.BAD_NAME, "its name is not UTF-8") from error
    except ValueError as error:
        raise UnreadableImageError(Reason.BAD_NAME, "no file can have this name") from error
    if len(content) < place.size_bytes:
        raise UnreadableImageError(Reason.DAMAGED, f"its shard {place.shard.name} is shorter than it was")
    return content


def read_start(place: Place, n_bytes: int) -> bytes:
    """Return the first bytes of an image; raises OSError, ValueError."""
    if isinstance(place, Path):
        return read_head(place, n_bytes)
    return read_span(place.shard, place.offset, min(n_bytes, place.size_bytes))


def suffix_of(place: Place) -> str:
    """Return the file name extension of an image in lower case."""
    name = place.name if isinstance(place, Member) else str(place)
    return PurePosixPath(name).suffix.lower()
