"""Files without an image name: those that are images by content, and why the others are left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.files import read_head
from chestx_cli.data.images.formats.dicom import HEAD_BYTES, begins_as_dicom, object_without_image
from chestx_cli.data.images.formats.rasters import raster_kind

if TYPE_CHECKING:
    from collections.abc import Iterable

BY_CONTENT = "image by its content"
A_SHARD = "tar shard"
# First bytes of image formats that chestx does not read, with their offset.
_OTHER_IMAGES = (
    (0, b"GIF8", "GIF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphei", "HEIF"),
    (4, b"ftypmif", "HEIF"),
    (344, b"n+1\0", "NIfTI"),
    (0, b"\x93NUMPY", "NumPy"),
)
_HEAD_BYTES = max(HEAD_BYTES, *(at + len(mark) for at, mark, _ in _OTHER_IMAGES))


def sift(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return for each file of a folder whether it is a readable image by content, or why it is left out.

    A DICOM object of another class, such as a report or a directory, holds no image.
    """
    return {name: _kind(folder / name) for name in names}


def _kind(path: Path) -> str:
    # A tar file begins with the name of its first member, which may look like the signature of an image.
    if path.suffix.lower() == ".tar":
        return A_SHARD
    try:
        head = read_head(path, _HEAD_BYTES)
    # An impossible file name raises ValueError.
    except (OSError, ValueError):
        return "cannot be opened"
    if not head:
        return "no bytes"
    if begins_as_dicom(head):
        return BY_CONTENT if object_without_image(path) is None else "DICOM without an image"
    if raster_kind(head) is not None:
        return BY_CONTENT
    other = next((kind for at, mark, kind in _OTHER_IMAGES if head[at : at + len(mark)] == mark), None)
    return "no image" if other is None else f"{other} image, which is not read"
