"""Images without labels, the input of predictions: files, folders of any layout, DICOMDIRs and tables of paths."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.errors import DataError
from chestx_cli.data.images.sniffing import BY_CONTENT
from chestx_cli.data.sources.dicom_directories import is_dicom_directory, listed_images
from chestx_cli.data.sources.folders import is_study, read_folder
from chestx_cli.data.sources.manifest_files import is_table, listed_paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

IMAGES_HELP = "give image files, folders of them, a DICOMDIR, or a CSV file with a column path"


@dataclass(frozen=True, kw_only=True)
class NewImage:
    """An image file: its path, and whether the user named it directly, not through a folder or table."""

    path: Path
    typed: bool


@dataclass(frozen=True, kw_only=True)
class NewImages:
    """Images in the order in which the user named them: each place with the names below it, or None for a single file.

    Only names are stored, not paths, since their memory grows with the number of images. `left_out` counts the files of
    folders that are not images, by reason.
    """

    places: tuple[tuple[Path, tuple[str, ...] | None], ...]
    left_out: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return sum(1 if names is None else len(names) for _, names in self.places)

    def __iter__(self) -> Iterator[NewImage]:
        for place, names in self.places:
            if names is None:
                yield NewImage(path=place, typed=True)
            else:
                yield from (NewImage(path=place / name, typed=False) for name in names)


def find_new_images(named: Sequence[Path], *, leave_out: Path) -> NewImages:
    """Return the images of the named files, folders, DICOMDIRs and tables, without those below `leave_out` (a study).

    Folders are read like class folders: hidden files, masks, studies and other files are left out. Raises
    DataError if a place does not exist or holds no image.
    """
    places: list[tuple[Path, tuple[str, ...] | None]] = []
    left_out: Counter[str] = Counter()
    for place in named:
        if place.is_dir():
            names = _images_of(place, leave_out, left_out)
            places.append((place, names))
        elif not place.exists():
            raise DataError(f"{place} does not exist", IMAGES_HELP)
        elif is_table(place):
            places.append((place.parent, listed_paths(place)))
        elif is_dicom_directory(place):
            places.append((place.parent, listed_images(place)))
        else:
            places.append((place, None))
    return NewImages(places=tuple(places), left_out=left_out)


def _images_of(place: Path, leave_out: Path, left_out: Counter[str]) -> tuple[str, ...]:
    """Return the names of a folder's images, and count the files left out."""
    if is_study(place):
        raise DataError(f"{place} is a chestx study", "name the folder of the images")
    root, skipped = read_folder(place, leave_out=leave_out)
    names = tuple(root.all_images())
    kinds = root.left_out() + skipped
    kinds.pop(BY_CONTENT, None)
    if not names:
        held = ", ".join(f"{n:,} × {kind}" for kind, n in kinds.most_common())
        raise DataError(f"no images in {place}, but {held}" if held else f"no images in {place}", IMAGES_HELP)
    left_out.update(kinds)
    return names
