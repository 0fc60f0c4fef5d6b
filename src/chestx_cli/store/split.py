"""The manifest of a split as arrays."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.errors import IntegrityError
from chestx_cli.records.split import SPLITS, SplitRecord
from chestx_cli.store.tables import read_csv_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Split:
    """The manifest as arrays over all images [N]; `parts` contains train, val or test."""

    root: Path
    classes: tuple[str, ...]
    positive: int
    ids: npt.NDArray[np.str_]
    paths: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.str_]
    parts: npt.NDArray[np.str_]
    image_sha256: npt.NDArray[np.str_]
    sha256: str
    # Offset and size [N, 2] of images in tar shards, a negative offset for files of their own; None without shards.
    spans: npt.NDArray[np.int64] | None = None
    # Whether the images were not opened when they were split (chestx split --unread).
    unread: bool = False

    @property
    def class_pair(self) -> tuple[str, str]:
        """Return the names of the negative and the positive class."""
        return self.classes[1 - self.positive], self.classes[self.positive]

    def indices(self, part: str) -> npt.NDArray[np.int64]:
        """Return the rows [n] of one part, in manifest order."""
        import numpy as np

        rows: npt.NDArray[np.int64] = np.flatnonzero(self.parts == part).astype(np.int64)
        return rows

    def is_positive(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return 1 for each of `rows` [n] whose image is of the positive class, 0 for the others [n]."""
        import numpy as np

        flags: npt.NDArray[np.int64] = (self.labels[rows] == self.positive).astype(np.int64)
        return flags


# The column of where in its shard an image begins; a split without shards has none.
OFFSET = "shard_offset"


def parse_manifest(content: bytes, *, root: Path, classes: tuple[str, ...], positive: str) -> Split:
    """Return the content of a `split.csv` as arrays; image paths are relative to `root`.

    Raises IntegrityError for an invalid table.
    """
    import numpy as np

    # Object arrays: fixed-width strings would take four times the memory for a million paths.
    columns = ["image_id", "path", "label", "group", "split", "sha256", "width_px"]
    has_shards = OFFSET.encode() in content[: content.find(b"\n")].split(b",")
    if has_shards:
        columns += [OFFSET, "size_bytes"]
    index = {name: i for i, name in enumerate(classes)}
    try:
        table = read_csv_text(content, columns)
        if unknown := set(table["split"]) - set(SPLITS):
            raise ValueError(f"no part of a split is called {min(unknown)!r}")
        return Split(
            root=root,
            classes=classes,
            positive=index[positive],
            ids=table["image_id"].to_numpy(object),
            paths=table["path"].to_numpy(object),
            labels=np.array([index[label] for label in table["label"].tolist()], dtype=np.int64),
            groups=table["group"].to_numpy(object),
            parts=table["split"].to_numpy(object),
            image_sha256=table["sha256"].to_numpy(object),
            sha256=hashlib.sha256(content).hexdigest(),
            spans=_spans(table) if has_shards else None,
            unread=bool((table["width_px"] == "").any()),
        )
    except KeyError as error:
        raise IntegrityError(f"the split has an image of the unknown class {error}", SplitRecord.remedy) from error
    except ValueError as error:
        raise IntegrityError(f"the manifest of the split is damaged: {error}", SplitRecord.remedy) from error


def _spans(table: pd.DataFrame) -> npt.NDArray[np.int64]:
    import numpy as np

    spans = np.full((len(table), 2), -1, dtype=np.int64)
    for column, name in enumerate((OFFSET, "size_bytes")):
        cells = table[name].to_numpy(object)
        known = cells != ""
        spans[known, column] = cells[known].astype(np.int64)
    return spans
