"""Reading labelled images: from a folder in any layout, a table of the user, or a public label table."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.errors import DataError
from chestx_cli.data.images.places import divided_path
from chestx_cli.data.sources.layouts import LAYOUT_HELP, read_data_folder, read_layout
from chestx_cli.data.sources.manifest_files import Wish, is_table, read_manifest
from chestx_cli.data.sources.names import class_key
from chestx_cli.data.sources.shards import read_shards, shards_in, spans_of
from chestx_cli.records.split import TakenRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

_FOR_FILES = {
    **dict.fromkeys((".zip", ".gz", ".tgz", ".7z", ".rar"), "unpack it, and name the folder"),
    ".tar": "name the folder that it lies in: the tar shards of a folder are read together",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save it as CSV, and name that file"),
}
SEVERAL_CLASSES = "list the images of two of them in a CSV manifest (path,label), or keep two folders"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Labelled image paths (relative to `root`, forward slashes), with patient and part if the source has them.

    A path of an image in a shard includes the member, as `a.tar/b.png`; `spans` are as in `images.places.Located`.
    `taken`: decisions where the source is ambiguous.
    """

    root: Path
    layout: str
    paths: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    parts: tuple[str, ...] | None = None
    sha256: tuple[str, ...] | None = None
    spans: npt.NDArray[np.int64] | None = None
    # Number of files without image names per class: images by content, and those left out with a reason.
    sifted: Mapping[tuple[str, str], int] = field(default_factory=dict)
    taken: tuple[TakenRow, ...] = ()

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Return the class names, sorted."""
        return tuple(sorted(set(self.labels)))

    def take(self, rows: Sequence[int]) -> Listing:
        """Return the listing of the given rows."""

        def taken(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if values is None else tuple(values[row] for row in rows)

        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
            groups=taken(self.groups),
            parts=taken(self.parts),
            sha256=taken(self.sha256),
            spans=None if self.spans is None else self.spans[list(rows)],
        )

    def renamed(self, name_of: Mapping[str, str]) -> Listing:
        """Return the listing with some classes renamed."""
        named = {label: name_of.get(label, label) for label in self.classes}
        return replace(
            self,
            labels=tuple(named[label] for label in self.labels),
            sifted=sum((Counter({(named.get(k, k), kind): n}) for (k, kind), n in self.sifted.items()), Counter()),
        )


def find_images(data: Path, *, leave_out: Path, wish: Wish | None = None) -> Listing:
    """Return the labelled images of a folder or table, without those below `leave_out` (the study itself).

    Raises DataError unless there are exactly two classes.
    """
    wish = wish or Wish()
    if not data.exists():
        raise DataError(f"{data} does not exist", "give a folder of class folders, or a CSV manifest")
    if data.is_dir():
        if wish.labels_from is not None:
            raise DataError(
                f"{data} is a folder, but --labels-from reads a table", "name the table, as DATA/labels.csv"
            )
        listing = _in_folder(data, leave_out, wish)
    elif is_table(data):
        listing = _listed(data, leave_out, wish)
    else:
        raise DataError(f"{data} is neither a folder nor a .csv manifest", _FOR_FILES.get(data.suffix, LAYOUT_HELP))
    if not listing.paths:
        raise DataError(f"no images in {data}", LAYOUT_HELP)
    listing = _spelled_alike(listing)
    if len(listing.classes) != 2:
        found_classes = f"{len(listing.classes)} ({', '.join(listing.classes[:8])})"
        remedy = SEVERAL_CLASSES if len(listing.classes) > 2 else LAYOUT_HELP
        raise DataError(f"{data} has {found_classes} classes, chestx needs exactly two", remedy)
    return listing


def _in_folder(data: Path, leave_out: Path, wish: Wish) -> Listing:
    root, skipped = read_data_folder(data, leave_out=leave_out)
    if shards := shards_in(root):
        in_shards = read_shards(data, shards, resplit=wish.resplit)
        return Listing(
            root=data.resolve(),
            layout=in_shards.layout,
            paths=tuple(in_shards.paths),
            labels=tuple(in_shards.labels),
            groups=in_shards.column("group"),
            parts=in_shards.parts,
            sha256=in_shards.column("sha256"),
            spans=in_shards.spans,
            sifted=in_shards.sifted,
        )
    folder_images = read_layout(data, root, skipped, resplit=wish.resplit)
    return Listing(
        root=data.resolve(),
        layout=folder_images.layout,
        paths=tuple(folder_images.paths),
        labels=tuple(folder_images.labels),
        parts=None if folder_images.parts is None else tuple(folder_images.parts),
        sifted=folder_images.sifted,
        taken=tuple(folder_images.taken),
    )


def _listed(data: Path, leave_out: Path, wish: Wish) -> Listing:
    read = read_manifest(data, wish, leave_out=leave_out)
    listing = Listing(
        root=data.parent.resolve(),
        layout=read.layout,
        paths=read.paths,
        labels=read.labels,
        groups=read.groups,
        parts=read.parts,
        sha256=read.sha256,
        spans=spans_of(data.parent, read.paths),
        sifted=read.sifted,
        taken=read.taken,
    )
    return listing if listing.spans is None else listing.take(_as_they_lie(listing.paths, listing.spans))


def _as_they_lie(paths: Sequence[str], spans: npt.NDArray[np.int64]) -> list[int]:
    """Return the rows of a table in the order of their images in shards, other files first, as listed."""
    shards = [
        (divided_path(path) or ("",))[0] if offset >= 0 else ""
        for path, offset in zip(paths, spans[:, 0].tolist(), strict=True)
    ]
    offsets = spans[:, 0].tolist()
    return sorted(range(len(paths)), key=lambda row: (shards[row], offsets[row]))


def _spelled_alike(listing: Listing) -> Listing:
    """Return a listing with spellings of one class unified to the most frequent one."""
    counts = Counter(listing.labels)
    spellings: dict[str, list[str]] = {}
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        spellings.setdefault(class_key(label), []).append(label)
    name_of = {label: alike[0] for alike in spellings.values() for label in alike[1:]}
    if not name_of:
        return listing
    taken = tuple(
        TakenRow(
            matter="Class",
            taken_as=alike[0],
            because=f"{', '.join(alike[1:])} differs from it in spelling only",
            images=sum(counts[label] for label in alike[1:]),
        )
        for alike in spellings.values()
        if len(alike) > 1
    )
    return replace(listing.renamed(name_of), taken=(*listing.taken, *taken))
