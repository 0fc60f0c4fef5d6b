"""Tables that list images: manifests of the user, and public label tables known to `label_tables`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from chestx_cli.core.errors import DataError, again
from chestx_cli.core.printable import printable
from chestx_cli.data.sources.folders import read_folder
from chestx_cli.data.sources.label_tables import FLAG, LABEL_TABLES, PNEUMONIA, Labelled, label_table_of
from chestx_cli.data.sources.layouts import DIVIDE_AGAIN, OUTSIDE, RESPLIT
from chestx_cli.data.sources.names import may_be_val_or_test, part_of
from chestx_cli.data.sources.parquet import SUFFIX
from chestx_cli.data.sources.spreadsheets import Sheet, read_sheet
from chestx_cli.records.split import TEST, TRAIN, VAL, TakenRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from chestx_cli.records.split import SplitRecord

COLUMNS = ("path", "label", "group", "split", "sha256")
COLUMNS_HELP = "it must have path,label[,group][,split][,sha256]"
_SUFFIXES = (".csv", ".tsv", SUFFIX)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Instructions for reading a listing: whether to ignore its split, and how to read a public label table.

    `labels_from`: the data set of the table. `finding`: the label of interest in it; None for its default.
    """

    resplit: bool = False
    labels_from: str | None = None
    finding: str | None = None


def wish_of(record: SplitRecord) -> Wish:
    """Return the instructions with which the table of a split's images was read."""
    options = record.stamp.options
    labels_from = options.get("labels_from")
    finding = record.positive if labels_from else None
    return Wish(resplit=bool(options.get("resplit")), labels_from=labels_from, finding=finding)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The images of a table as stored in a listing; `table` has one row per image and a column `path`."""

    layout: str
    table: pd.DataFrame
    paths: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    parts: tuple[str, ...] | None = None
    sha256: tuple[str, ...] | None = None
    taken: tuple[TakenRow, ...] = ()
    sifted: Mapping[tuple[str, str], int] = field(default_factory=Counter)


def is_table(path: Path) -> bool:
    """Return whether a file name is that of a table."""
    return path.name.lower().endswith(_SUFFIXES)


def read_manifest(path: Path, wish: Wish, *, leave_out: Path) -> Manifest:
    """Read the images of a manifest or of a public label table; raises DataError."""
    columns = frozenset(COLUMNS).union(*(entry.columns for entry in LABEL_TABLES.values()))
    sheet = read_sheet(path, "manifest", f"it must be CSV or Parquet; {COLUMNS_HELP}", columns)
    if wish.labels_from is not None:
        return _of_public_set(path, sheet, wish, leave_out)
    missing = [name for name in ("path", "label") if name not in sheet.table.columns]
    if missing:
        known = label_table_of(sheet.table.columns)
        if known is not None:
            raise DataError(
                f"{path} is not a manifest: its columns are those of {LABEL_TABLES[known].title}",
                f"{again(f'{FLAG} {known}')} reads it, with {PNEUMONIA} as the label of interest",
            )
        has = ", ".join(printable(str(name)) for name in sheet.table.columns[:8])
        raise DataError(f"manifest {path} lacks the column {' and '.join(missing)}; it has {has}", COLUMNS_HELP)
    return _of_user(path, sheet, wish)


def listed_paths(path: Path) -> tuple[str, ...]:
    """Return the images in the column `path` of a table, ignoring other columns; raises DataError."""
    remedy = "it must have a column path"
    sheet = read_sheet(path, "table", f"it must be CSV or Parquet; {remedy}", frozenset(COLUMNS))
    if "path" not in sheet.table.columns:
        has = ", ".join(printable(str(name)) for name in sheet.table.columns[:8])
        raise DataError(f"table {path} lacks the column path; it has {has}", remedy)
    cells = [str(cell).strip() for cell in sheet.table["path"].tolist()]
    if "" in cells:
        line = sheet.line_of(sheet.table.index[cells.index("")])
        raise DataError(f"table {path} has no path in {line}", "fill it in")
    paths, _ = tidy_paths(cells, path.parent)
    _require_once(path, sheet, paths)
    if not paths:
        raise DataError(f"no images in {path}", "it has no line below its heading")
    return tuple(paths)


def _of_user(path: Path, sheet: Sheet, wish: Wish) -> Manifest:
    table = sheet.table
    columns = {name: [str(cell).strip() for cell in table[name].tolist()] for name in COLUMNS if name in table.columns}
    if wish.resplit:
        columns.pop("split", None)
    for name, cells in columns.items():
        if "" in cells:
            line = sheet.line_of(table.index[cells.index("")])
            raise DataError(f"manifest {path} has no {name} in {line}", "fill it in")
    paths, taken = tidy_paths(columns["path"], path.parent)
    _require_once(path, sheet, paths)
    parts = None
    if "split" in columns:
        parts, more = _parts_of(path, sheet, columns["split"])
        taken = (*taken, *more)
    elif "split" in table.columns:
        redone = TakenRow(matter="Parts", taken_as="not kept: divided again", because=RESPLIT, images=len(paths))
        taken = (*taken, redone)
    return Manifest(
        layout=_layout("Parquet manifest" if path.suffix.lower() == SUFFIX else "CSV manifest", parts),
        table=table.assign(path=paths),
        paths=tuple(paths),
        labels=tuple(columns["label"]),
        groups=tuple(columns["group"]) if "group" in columns else None,
        parts=parts,
        sha256=_hashes_of(path, sheet, columns["sha256"]) if "sha256" in columns else None,
        taken=(*_how_read(sheet, len(paths)), *taken),
    )


def _layout(what: str, parts: Sequence[str] | None) -> str:
    if parts is None:
        return what
    return f"{what}, split kept as it is" + ("" if VAL in parts else "; val drawn from train")


def _how_read(sheet: Sheet, images: int) -> tuple[TakenRow, ...]:
    """Return the detected properties with which a table was read."""
    rows = []
    if sheet.how:
        rows.append(TakenRow(matter="Table", taken_as=sheet.how, because="its first lines and bytes", images=images))
    if sheet.blank_rows:
        taken = f"{sheet.blank_rows:,} blank lines left out"
        rows.append(TakenRow(matter="Table", taken_as=taken, because="nothing is in them", images=images))
    return tuple(rows)


def tidy_paths(paths: Sequence[str], folder: Path) -> tuple[list[str], tuple[TakenRow, ...]]:
    """Return paths with the separators of this system: `a/b.png` for `.\a\b.png`."""
    taken: tuple[TakenRow, ...] = ()
    turned = next((path for path in paths if "\\" in path), None)
    if turned is not None and not _exists(folder / turned):
        images = sum("\\" in path for path in paths)
        because = "written with backslashes, and no file has such a name"
        taken = (TakenRow(matter="Paths", taken_as="folders and files", because=because, images=images),)
        paths = [path.replace("\\", "/") for path in paths]
    return [_tidy(path) if "//" in path or "./" in path else path for path in paths], taken


def _tidy(path: str) -> str:
    kept = "/".join(part for part in path.split("/") if part not in ("", "."))
    return f"/{kept}" if path.startswith("/") else kept


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    # An impossible file name.
    except (OSError, ValueError):
        return False


def _require_once(path: Path, sheet: Sheet, paths: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for row, name in enumerate(paths):
        if (before := first.setdefault(name, row)) != row:
            lines = sheet.lines_of(sheet.table.index[before], sheet.table.index[row])
            raise DataError(
                f"manifest {path} lists {printable(name)} twice ({lines})",
                "remove one of the lines",
            )


def _hashes_of(path: Path, sheet: Sheet, cells: Sequence[str]) -> tuple[str, ...]:
    sha256 = tuple(cell.lower() for cell in cells)
    is_hash = re.compile("[0-9a-f]{64}").fullmatch
    wrong = next((row for row, text in enumerate(sha256) if not is_hash(text)), None)
    if wrong is not None:
        line = sheet.line_of(sheet.table.index[wrong])
        raise DataError(f"manifest {path} has no sha256 in {line}", "it must be 64 hex digits")
    return sha256


def _parts_of(path: Path, sheet: Sheet, cells: Sequence[str]) -> tuple[tuple[str, ...], tuple[TakenRow, ...]]:
    """Return the part of each cell, and the names interpreted as parts."""
    counts = Counter(cells)
    named = {cell: part_of(cell) for cell in counts}
    either = VAL if TEST in named.values() else TEST
    named = {cell: part or (either if may_be_val_or_test(cell) else None) for cell, part in named.items()}
    unknown = next((cell for cell, part in named.items() if part is None), None)
    if unknown is not None:
        line = sheet.line_of(sheet.table.index[list(cells).index(unknown)])
        raise DataError(
            f"manifest {path} has the split {unknown!r} in {line}",
            f"write train, val or test; or {DIVIDE_AGAIN}",
        )
    missing = [part for part in (TRAIN, TEST) if part not in named.values()]
    if missing:
        raise DataError(
            f"manifest {path} has a column split, but no image in {' and none in '.join(missing)}",
            f"add them; or {DIVIDE_AGAIN}",
        )
    parts = {cell: part for cell, part in named.items() if part is not None}
    taken = tuple(
        TakenRow(matter="Part", taken_as=f"{cell} is {part}", because="its name", images=counts[cell])
        for cell, part in parts.items()
        if cell.lower() != part
    )
    return tuple(parts[cell] for cell in cells), taken


def _of_public_set(path: Path, sheet: Sheet, wish: Wish, leave_out: Path) -> Manifest:
    """Return the existing images of a public label table, found by name below its folder."""
    entry = LABEL_TABLES[wish.labels_from or ""]
    missing = sorted(entry.columns - set(sheet.table.columns))
    if missing:
        other = label_table_of(sheet.table.columns)
        remedy = (
            f"{again(f'{FLAG} {other}')} reads it" if other else "leave --labels-from out for a manifest of your own"
        )
        if other and wish.labels_from:
            remedy = f"its columns are those of {LABEL_TABLES[other].title}: give --labels-from {other}"
        raise DataError(f"{path} is not the table of {entry.title}: it lacks the column {missing[0]!r}", remedy)
    labelled: Labelled = entry.read(sheet, wish.finding)
    places = _places(path.parent, leave_out)
    place_of = [_place(places, name) for name in labelled.names]
    here = [row for row, place in enumerate(place_of) if place is not None]
    if not here:
        raise DataError(
            f"none of the {len(labelled.names):,} images that {path} lists is below {path.parent}/",
            "put the table into the folder of its images, or above it",
        )
    paths = [place for place in place_of if place is not None]
    taken = [*_how_read(sheet, len(paths)), *labelled.taken]
    if absent := len(place_of) - len(here):
        because = f"{absent:,} that are listed are not below the table's folder"
        taken.append(TakenRow(matter="Images", taken_as="those that are there", because=because, images=len(here)))
    others = sum(map(len, places.values())) - len(paths)
    return Manifest(
        layout=f"table of {entry.title}",
        table=sheet.table.iloc[[labelled.rows[row] for row in here]].assign(path=paths),
        paths=tuple(paths),
        labels=tuple(labelled.labels[row] for row in here),
        groups=tuple(labelled.groups[row] for row in here),
        taken=tuple(taken),
        sifted=+Counter({(OUTSIDE, "image not listed with one of the two labels"): others}),
    )


def _places(folder: Path, leave_out: Path) -> dict[str, list[str]]:
    """Return the images below a folder, keyed by name without extension."""
    places: dict[str, list[str]] = {}
    for image in read_folder(folder, leave_out=leave_out)[0].all_images():
        places.setdefault(PurePosixPath(image).stem.casefold(), []).append(image)
    return places


def _place(places: Mapping[str, Sequence[str]], name: str) -> str | None:
    """Return the path of an image; the extension matters only if several files share the name."""
    candidates = places.get(PurePosixPath(name).stem.casefold(), ())
    named = [place for place in candidates if PurePosixPath(place).name.casefold() == name.casefold()]
    best = named or list(candidates)
    if len(best) > 1:
        raise DataError(
            f"{printable(best[0])} and {printable(best[1])} may both be the image {printable(name)}",
            "move one of them elsewhere",
        )
    return best[0] if best else None
