"""Subgroups of images: from a manifest column, or derived from file names."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from chestx_cli.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from chestx_cli.evaluation.predictions import Images

UNKNOWN = "unknown"
# Columns that identify an image or a patient, not a subgroup.
IDENTIFYING = frozenset({"path", "image_id", "sha256", "group", "patient"})


def subgroups_of(
    column: str,
    images: Images,
    paths: Sequence[str],
    manifests: Sequence[pd.DataFrame],
    by_name: Mapping[str, Callable[[str], str | None]],
) -> npt.NDArray[np.str_]:
    """Return the value of a column for each image [N]; empty cells become `unknown`.

    The first manifest with the column is used; otherwise the function `by_name[column]` derives the value from the file
    name, or returns None. Raises UsageError for an unknown column or one that identifies patients, DataError if the
    manifest does not list an image.
    """
    known = {name for table in manifests for name in table.columns} - IDENTIFYING
    if column in IDENTIFYING:
        raise UsageError(f"--by {column} identifies patients or images, not subgroups", _choices(known))
    values = _values(column, images, paths, manifests, by_name)
    if values is None:
        raise UsageError(f"no column {column!r} for --by", _choices(known))
    _refuse_identifiers(column, values, images, known)
    return values


def _choices(known: set[str]) -> str:
    return f"the manifest has {', '.join(sorted(known) or ['none, the images come from no manifest'])}"


def _values(
    column: str,
    images: Images,
    paths: Sequence[str],
    manifests: Sequence[pd.DataFrame],
    by_name: Mapping[str, Callable[[str], str | None]],
) -> npt.NDArray[np.str_] | None:
    import numpy as np

    for table in manifests:
        if column not in table.columns or "path" not in table.columns:
            continue
        values = dict(zip(table["path"].str.strip(), table[column].str.strip(), strict=True))
        missing = next((row for row, path in enumerate(paths) if path not in values), None)
        if missing is not None:
            raise DataError(
                f"the manifest with the column {column!r} does not list {images.ids[missing]}",
                "add it, or leave --by out",
            )
        return np.array([values[path] or UNKNOWN for path in paths], dtype=str)
    if column in by_name:
        derived = [by_name[column](PurePosixPath(path).name) for path in paths]
        if any(derived):
            return np.array([value or UNKNOWN for value in derived], dtype=str)
    return None


def _refuse_identifiers(column: str, values: npt.NDArray[np.str_], images: Images, known: set[str]) -> None:
    """Raise UsageError if most values belong to a single patient each, as hospital numbers do."""
    patients: dict[str, set[str]] = {}
    for value, patient in zip(values.tolist(), images.groups.tolist(), strict=True):
        patients.setdefault(value, set()).add(patient)
    single = sum(len(keys) == 1 for keys in patients.values())
    if len(patients) > 1 and single > len(patients) / 2:
        raise UsageError(
            f"--by {column} has {len(patients):,} values, {single:,} of them of one patient alone: it identifies "
            "patients, not subgroups",
            _choices(known - {column}),
        )
