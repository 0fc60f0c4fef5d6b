"""Images without labels, the input of predictions: files, folders of any layout, tar shards, DICOMDIRs and tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.errors import DataError
from chestx_cli.data.images.places import place_at
from chestx_cli.data.images.sniffing import BY_CONTENT
from chestx_cli.data.sources.dicom_directories import is_dicom_directory, listed_images
from chestx_cli.data.sources.folders import is_study, read_folder
from chestx_cli.data.sources.manifest_files import is_table, listed_paths
from chestx_cli.data.sources.shards import SHARD_SUFFIX, members_of, shards_in, spans_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.data.images.places import Place

IMAGES_HELP = "give image files, folders of them, tar shards, a DICOMDIR, or a CSV file with a column path"


@dataclass(frozen=True, kw_only=True)
class NewImage:
    """A new image: its path, as printed and stored, and the location of its bytes."""

    path: Path
    place: Place


@dataclass(frozen=True, kw_only=True)
class Named:
    """Images of one folder: their names below it, and their positions in shards (`Located.spans`) if it has any."""

    folder: Path
    names: tuple[str, ...]
    spans: npt.NDArray[np.int64] | None = None

    def __iter__(self) -> Iterator[NewImage]:
        for row, name in enumerate(self.names):
            span = None if self.spans is None else self.spans[row].tolist()
            yield NewImage(path=self.folder / name, place=place_at(self.folder, name, span))


@dataclass(frozen=True, kw_only=True)
class NewImages:
    """Images in the order in which the user named them: single files, and the images of folders, shards and tables.

    Of the latter only names are stored, not paths, since their memory grows with the number of images. `left_out`
    counts the files of folders and shards that are not images, by reason.
    """

    sources: tuple[Path | Named, ...]
    left_out: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return sum(1 if isinstance(source, Path) else len(source.names) for source in self.sources)

    def __iter__(self) -> Iterator[NewImage]:
        for source in self.sources:
            if isinstance(source, Path):
                yield NewImage(path=source, place=source)
            else:
                yield from source


def find_new_images(named: Sequence[Path], *, leave_out: Path) -> NewImages:
    """Return the images of the named files, folders, shards, DICOMDIRs and tables, without those below `leave_out`.

    Folders are read like class folders: hidden files, masks, studies and other files are left out; a folder without
    images may have tar shards. Raises DataError if a place does not exist or holds no image, or if a shard cannot be
    read. leave_out: a study.
    """
    sources: list[Path | Named] = []
    left_out: Counter[str] = Counter()
    for place in named:
        if place.is_dir():
            sources.append(_images_of(place, leave_out, left_out))
        elif not place.exists():
            raise DataError(f"{place} does not exist", IMAGES_HELP)
        elif is_table(place):
            names = listed_paths(place)
            sources.append(Named(folder=place.parent, names=names, spans=spans_of(place.parent, names)))
        elif is_dicom_directory(place):
            sources.append(Named(folder=place.parent, names=listed_images(place)))
        elif place.suffix.lower() == SHARD_SUFFIX:
            sources.append(_images_of_shards(place, place.parent, (place.name,), left_out))
        else:
            sources.append(place)
    return NewImages(sources=tuple(sources), left_out=left_out)


def _images_of(place: Path, leave_out: Path, left_out: Counter[str]) -> Named:
    """Return the images of a folder, and count the files left out."""
    if is_study(place):
        raise DataError(f"{place} is a chestx study", "name the folder of the images")
    root, skipped = read_folder(place, leave_out=leave_out)
    if shards := shards_in(root):
        return _images_of_shards(place, place, shards, left_out)
    names = tuple(root.all_images())
    kinds = root.left_out() + skipped
    kinds.pop(BY_CONTENT, None)
    if not names:
        raise _no_images(place, kinds)
    left_out.update(kinds)
    return Named(folder=place, names=names)


def _images_of_shards(named: Path, folder: Path, shards: Sequence[str], left_out: Counter[str]) -> Named:
    names, spans, kinds = members_of(folder, shards)
    if not names:
        raise _no_images(named, kinds)
    left_out.update(kinds)
    return Named(folder=folder, names=names, spans=spans)


def _no_images(place: Path, kinds: Counter[str]) -> DataError:
    held = ", ".join(f"{n:,} × {kind}" for kind, n in kinds.most_common())
    return DataError(f"no images in {place}, but {held}" if held else f"no images in {place}", IMAGES_HELP)
