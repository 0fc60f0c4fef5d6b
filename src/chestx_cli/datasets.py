"""Finding labelled images: an ImageFolder, a folder that is already split, or a CSV manifest."""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.errors import DataError
from chestx_cli.images import is_image_name, list_files
from chestx_cli.sniffing import BY_CONTENT, sift
from chestx_cli.splitting import SPLITS
from chestx_cli.tables import read_text_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LAYOUT_HELP = "expected two class folders with images in them, train/ val/ test/ with these inside, or a CSV manifest"
COLUMNS_HELP = "it must have path,label[,group][,split][,sha256]"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Labelled image paths (relative to `root`, forward slashes), with patient and part where the source tells them."""

    root: Path
    layout: str
    paths: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    parts: tuple[str, ...] | None = None
    sha256: tuple[str, ...] | None = None
    # Of files that are not named like images: how many of each class are some by content, or left out for a reason.
    sifted: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Return the class names, sorted."""
        return tuple(sorted(set(self.labels)))

    def take(self, rows: Sequence[int]) -> Listing:
        """Return the listing of some rows only."""

        def taken(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if values is None else tuple(values[row] for row in rows)

        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
            groups=taken(self.groups),
            parts=taken(self.parts),
            sha256=taken(self.sha256),
        )


def find_images(data: Path, *, leave_out: Path) -> Listing:
    """Return the labelled images of a folder or manifest, without those below `leave_out` (the study itself).

    Raises DataError where it has not exactly two classes.
    """
    if not data.exists():
        raise DataError(f"{data} does not exist", "give a folder of class folders, or a CSV manifest")
    if data.is_file():
        if data.suffix.lower() != ".csv":
            raise DataError(f"{data} is neither a folder nor a .csv manifest", LAYOUT_HELP)
        listing = _read_manifest(data)
    else:
        folders = {folder.name.lower(): folder for folder in _class_folders(data, leave_out)}
        if {"train", "test"} & folders.keys():
            listing = _list_predefined(data, folders, leave_out)
        else:
            listing = _list_image_folder(data, leave_out)
    if not listing.paths:
        raise DataError(f"no images in {data}", LAYOUT_HELP)
    if len(listing.classes) != 2:
        found = f"{len(listing.classes)} ({', '.join(listing.classes[:8])})"
        raise DataError(f"{data} has {found} classes, chestx needs exactly two", LAYOUT_HELP)
    return listing


def _class_folders(folder: Path, leave_out: Path) -> list[Path]:
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.resolve() != leave_out.resolve()
    )


def _list_classes(root: Path, folder: Path, leave_out: Path) -> tuple[list[str], list[str], Counter[tuple[str, str]]]:
    """Return paths, labels and how many other files there are of each class and kind; no class may be empty."""
    paths: list[str] = []
    labels: list[str] = []
    sifted: Counter[tuple[str, str]] = Counter()
    for class_folder in _class_folders(folder, leave_out):
        files = list_files(class_folder)
        kinds = sift(class_folder, [name for name in files if not is_image_name(name)])
        images = [name for name in files if kinds.get(name, BY_CONTENT) == BY_CONTENT]
        if not images:
            found = ", ".join(f"{n:,} × {kind}" for kind, n in Counter(kinds.values()).most_common())
            raise DataError(
                f"class folder {class_folder} has no images{f', but {found}' if found else ''}",
                "add PNG, JPEG, TIFF, BMP, WebP or DICOM images, or remove the folder",
            )
        sifted.update((class_folder.name, kind) for kind in kinds.values())
        below_root = class_folder.relative_to(root).as_posix()
        paths.extend(f"{below_root}/{name}" for name in images)
        labels.extend([class_folder.name] * len(images))
    return paths, labels, sifted


def _list_image_folder(data: Path, leave_out: Path) -> Listing:
    paths, labels, sifted = _list_classes(data, data, leave_out)
    return Listing(root=data.resolve(), layout="class folders", paths=tuple(paths), labels=tuple(labels), sifted=sifted)


def _list_predefined(data: Path, folders: dict[str, Path], leave_out: Path) -> Listing:
    missing = [part for part in SPLITS if part not in folders]
    if missing:
        raise DataError(
            f"{data} is split already but lacks {', '.join(f'{part}/' for part in missing)}",
            "add the missing part, or give one folder of class folders to be split",
        )
    paths: list[str] = []
    labels: list[str] = []
    parts: list[str] = []
    sifted: Counter[tuple[str, str]] = Counter()
    for part in SPLITS:
        part_paths, part_labels, part_sifted = _list_classes(data, folders[part], leave_out)
        paths += part_paths
        labels += part_labels
        parts += [part] * len(part_paths)
        sifted += part_sifted
    return Listing(
        root=data.resolve(),
        layout="train, val and test folders, kept as they are",
        paths=tuple(paths),
        labels=tuple(labels),
        parts=tuple(parts),
        sifted=sifted,
    )


def _read_manifest(manifest: Path) -> Listing:
    import numpy as np

    table = read_text_table(manifest, "manifest", f"it must be CSV; {COLUMNS_HELP}")
    missing = [name for name in ("path", "label") if name not in table.columns]
    if missing:
        raise DataError(f"manifest {manifest} lacks the column {' and '.join(missing)}", COLUMNS_HELP)
    for name in [name for name in ("path", "label", "group", "split", "sha256") if name in table.columns]:
        table[name] = np.array([text.strip() for text in table[name].tolist()], dtype=object)
        empty = np.flatnonzero(table[name] == "")
        if len(empty):
            raise DataError(f"manifest {manifest} has no {name} in line {empty[0] + 2}", "fill it in")
    twice = table.index[table["path"].duplicated()]
    if len(twice):
        raise DataError(
            f"manifest {manifest} lists {table['path'][twice[0]]} twice (line {twice[0] + 2})",
            "remove one of the lines",
        )
    sha256 = None
    if "sha256" in table.columns:
        sha256 = tuple(text.lower() for text in table["sha256"].tolist())
        is_hash = re.compile("[0-9a-f]{64}").fullmatch
        wrong = next((row for row, text in enumerate(sha256) if not is_hash(text)), None)
        if wrong is not None:
            raise DataError(f"manifest {manifest} has no sha256 in line {wrong + 2}", "it must be 64 hex digits")
    parts = None
    if "split" in table.columns:
        parts = tuple(text.lower() for text in table["split"].tolist())
        unknown = sorted(set(parts) - set(SPLITS))
        if unknown:
            raise DataError(f"manifest {manifest} has the split {unknown[0]!r}", f"use {', '.join(SPLITS)}")
    return Listing(
        root=manifest.parent.resolve(),
        layout="CSV manifest" + (", split kept as it is" if parts else ""),
        paths=tuple(table["path"].tolist()),
        labels=tuple(table["label"].tolist()),
        groups=tuple(table["group"].tolist()) if "group" in table.columns else None,
        parts=parts,
        sha256=sha256,
    )
