"""DICOMDIR: the directory of a DICOM medium, which lists its images (PS3.3 annex F, PS3.10)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chestx_cli.core.errors import DataError
from chestx_cli.core.files import read_head
from chestx_cli.data.images.formats.dicom import HEAD_BYTES, begins_as_dicom

_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
_IMAGE = "IMAGE"
_REMEDY = "name the folder that it lies in instead: its images are found by their content"


def is_dicom_directory(path: Path) -> bool:
    """Return whether a file is a DICOMDIR, whatever its name."""
    try:
        if not begins_as_dicom(read_head(path, HEAD_BYTES)):
            return False
        # Only for files with a DICOM signature: the import takes a fifth of a second.
        from pydicom.filereader import read_file_meta_info

        return bool(read_file_meta_info(path).get("MediaStorageSOPClassUID") == _DIRECTORY_CLASS)
    # Damaged files can make pydicom raise any kind of exception; decoding reports them.
    except Exception:
        return False


def listed_images(directory: Path) -> tuple[str, ...]:
    """Return the images listed in a DICOMDIR, as paths relative to its folder, in order; other objects are ignored.

    Paths also match in lower case, as some systems show those of a CD. Raises DataError for a DICOMDIR that is
    unreadable, lists no image or points outside its folder.
    """
    from pydicom import dcmread

    try:
        records = [record for record in dcmread(directory).DirectoryRecordSequence if _lists_an_image(record)]
        names = [_components(record.get("ReferencedFileID")) for record in records]
    except Exception as error:
        raise DataError(f"{directory} is a DICOMDIR that cannot be read", _REMEDY) from error
    if not all(map(_is_inside, names)):
        raise DataError(f"{directory} lists files that lie outside of its folder", _REMEDY)
    if not names:
        raise DataError(f"{directory} lists no images", _REMEDY)
    return tuple("/".join(_as_it_is_there(directory.parent, components)) for components in names)


def _lists_an_image(record: Any) -> bool:
    return bool(record.get("DirectoryRecordType") == _IMAGE and record.get("ReferencedFileID"))


def _components(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(component) for component in value]


def _is_inside(components: list[str]) -> bool:
    return all(name not in ("", ".", "..") and not {"/", "\\", "\0", ":"} & set(name) for name in components)


def _as_it_is_there(folder: Path, components: list[str]) -> list[str]:
    lower = [name.lower() for name in components]
    return lower if not folder.joinpath(*components).exists() and folder.joinpath(*lower).exists() else components
