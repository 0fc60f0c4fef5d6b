"""Subgroups of images: a column of the manifest, or one that is derived from file names."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from chestx_cli.errors import DataError, UsageError
from chestx_cli.tables import read_text_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

PATHOGEN = "pathogen"
UNKNOWN = "unknown"
# Kermany, Zhang and Goldbaum, Mendeley Data 2018: positive files are named by patient and pathogen, the others are not.
_PATHOGEN = re.compile(r"person\d+_(bacteria|virus)_\d+\.\w+", re.IGNORECASE)
_NORMAL = re.compile(r"(NORMAL2-)?IM-\d+-.*\.\w+", re.IGNORECASE)


def subgroups_of(column: str, paths: Sequence[str], manifests: Sequence[Path]) -> npt.NDArray[np.str_]:
    """Return the value of a column for each image [N]; empty cells are `unknown`.

    The first manifest that has the column is used; `pathogen` is told from the names of the public paediatric set
    where none has it. Raises UsageError for a column that nobody knows, DataError where an image is not listed.
    """
    import numpy as np

    known: set[str] = set()
    for manifest in manifests:
        table = read_text_table(manifest, "the manifest", "repair it, or leave --by out")
        known |= set(table.columns)
        if column not in table.columns or "path" not in table.columns:
            continue
        values = dict(zip(table["path"].str.strip(), table[column].str.strip(), strict=True))
        missing = next((path for path in paths if path not in values), None)
        if missing is not None:
            raise DataError(f"{manifest} does not list {missing}", "add it, or leave --by out")
        return np.array([values[path] or UNKNOWN for path in paths], dtype=str)
    if column == PATHOGEN:
        found = [_pathogen(PurePosixPath(path).name) for path in paths]
        if set(found) != {UNKNOWN}:
            return np.array(found, dtype=str)
    choices = sorted(known - {"path", "image_id", "sha256"}) or ["none, the images come from no manifest"]
    raise UsageError(f"no column {column!r} for --by", f"the manifest has {', '.join(choices)}")


def _pathogen(name: str) -> str:
    match = _PATHOGEN.fullmatch(name)
    if match:
        return match[1].lower()
    return "normal" if _NORMAL.fullmatch(name) else UNKNOWN
