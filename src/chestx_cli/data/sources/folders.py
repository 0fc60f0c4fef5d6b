"""A folder of the user as a tree; files that are not the user's images are skipped and counted, link cycles cut."""

from __future__ import annotations

import errno
import functools
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from chestx_cli.core.files import read_head, storage_error
from chestx_cli.data.images.decoding import is_image_name
from chestx_cli.data.images.sniffing import BY_CONTENT, sift
from chestx_cli.data.sources.names import holds_masks, is_of_the_system, masked_film

if TYPE_CHECKING:
    from collections.abc import Iterator

HIDDEN, OF_THE_SYSTEM, A_STUDY = "hidden", "in a system folder", "in a chestx study"
MASK_FOLDER, MASK_FILE = "mask, by the name of its folder", "mask, named after a film beside it"
_LEADS_NOWHERE = {errno.ELOOP, errno.ENOTDIR, errno.ENOENT}
_STUDY_FILES = ("split.json", "folds.json")
_STUDY_HEAD_BYTES = 200


@dataclass(eq=False)
class Folder:
    """A folder with its files and folders, sorted by name; `name` is its path from the root of the tree."""

    path: Path
    name: str
    entries: list[str | Folder] = field(default_factory=list)

    @property
    def own_name(self) -> str:
        """Return the name of the folder itself."""
        return PurePosixPath(self.name).name if self.name else self.path.name

    @functools.cached_property
    def folders(self) -> tuple[Folder, ...]:
        """Return its folders, except those of masks."""
        return tuple(entry for entry in self.entries if isinstance(entry, Folder) and not entry.is_masks)

    @property
    def is_masks(self) -> bool:
        """Return whether its name marks it as a folder without radiographs; the name of the root is ignored."""
        return bool(self.name) and holds_masks(self.own_name)

    @functools.cached_property
    def kinds(self) -> dict[str, str]:
        """Return for each file whether it is an image by content, or why not; files with image names are left out."""
        files = [entry for entry in self.entries if isinstance(entry, str)]
        kinds = sift(self.path, [name for name in files if not is_image_name(name)])
        stems = {PurePosixPath(name).stem.casefold() for name in files}
        masks = (name for name in files if masked_film(name) in stems and kinds.get(name, BY_CONTENT) == BY_CONTENT)
        return {**kinds, **dict.fromkeys(masks, MASK_FILE)}

    @functools.cached_property
    def images(self) -> tuple[str, ...]:
        """Return the images directly in it, by name or content."""
        return tuple(
            entry
            for entry in self.entries
            if isinstance(entry, str) and self.kinds.get(entry, BY_CONTENT) == BY_CONTENT
        )

    @functools.cached_property
    def has_images(self) -> bool:
        """Return whether it contains an image at any depth."""
        return any(folder.images for folder in self.below())

    def below(self) -> Iterator[Folder]:
        """Yield this folder and its subfolders at any depth, except those of masks."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting.extend(reversed(folder.folders))

    def all_images(self) -> Iterator[str]:
        """Yield the images at any depth, as paths from the root of the tree, sorted by name."""
        waiting: list[tuple[Folder, str | Folder]] = [(self, self)]
        while waiting:
            holder, entry = waiting.pop()
            if isinstance(entry, str):
                if holder.kinds.get(entry, BY_CONTENT) == BY_CONTENT:
                    yield f"{holder.name}/{entry}" if holder.name else entry
            elif not entry.is_masks:
                waiting.extend((entry, inner) for inner in reversed(entry.entries))

    def left_out(self) -> Counter[str]:
        """Return the number of files at any depth that are not images, by reason, and of images by content."""
        counts: Counter[str] = Counter()
        for folder in self.below():
            counts.update(folder.kinds.values())
            counts[MASK_FOLDER] += folder.masked_files()
        return +counts

    def masked_files(self) -> int:
        """Return the number of files in its folders of masks."""
        return sum(entry.count_files() for entry in self.entries if isinstance(entry, Folder) and entry.is_masks)

    def count_files(self) -> int:
        """Return the number of files of any kind at any depth."""
        n, waiting = 0, [self]
        while waiting:
            entries = waiting.pop().entries
            n += sum(isinstance(entry, str) for entry in entries)
            waiting += [entry for entry in entries if isinstance(entry, Folder)]
        return n


def read_folder(path: Path, *, leave_out: Path) -> tuple[Folder, Counter[str]]:
    """Return a folder with all its contents, and the number of skipped files by reason; raises StorageError.

    Hidden files and folders, leftovers of operating systems, studies of chestx, and `leave_out` are skipped. A folder
    named like an image counts as a file; a link to an enclosing folder is ignored.
    """
    root = Folder(path=path, name="")
    skipped: Counter[str] = Counter()
    left_out = _identity(leave_out) if leave_out.is_dir() else None
    # Iterative, since deep folders would exhaust recursion. Each with its enclosing folders, outermost first.
    waiting: list[tuple[Folder, tuple[tuple[int, int], ...]]] = [(root, (_identity(path),))]
    while waiting:
        folder, above = waiting.pop()
        try:
            with os.scandir(folder.path) as scanned:
                entries = sorted((entry.name, _is_folder(entry)) for entry in scanned)
        except OSError as error:
            raise storage_error(error, folder.path) from error
        for name, is_folder in entries:
            if name.startswith("."):
                skipped[HIDDEN] += 1
                continue
            if not is_folder:
                folder.entries.append(name)
                continue
            child = Folder(path=folder.path / name, name=f"{folder.name}/{name}" if folder.name else name)
            here = _identity(child.path)
            if is_of_the_system(name):
                skipped[OF_THE_SYSTEM] += _count_files(child.path)
            elif here == left_out or is_study(child.path):
                skipped[A_STUDY] += _count_files(child.path)
            elif here not in above:
                folder.entries.append(child)
                waiting.append((child, (*above, here)))
    return root, skipped


def _identity(folder: Path) -> tuple[int, int]:
    """Return the identity of a folder (device and inode), independent of the path."""
    try:
        status = folder.stat()
    except OSError as error:
        raise storage_error(error, folder) from error
    return status.st_dev, status.st_ino


def is_study(folder: Path) -> bool:
    """Return whether a folder is a study directory, by the beginning of its split or folds record."""
    for name in _STUDY_FILES:
        try:
            if b'"schema": "chestx.' in read_head(folder / name, _STUDY_HEAD_BYTES):
                return True
        except OSError:
            continue
    return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    if is_image_name(entry.name):
        return False
    try:
        return entry.is_dir()
    except OSError as error:
        # A broken link is no folder; other errors are reported when the folder is opened.
        return error.errno not in _LEADS_NOWHERE


def _count_files(folder: Path) -> int:
    """Return the number of files below a skipped folder; links to folders are not followed."""
    return sum(len(files) for _, _, files in os.walk(folder))
