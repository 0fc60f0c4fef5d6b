"""Tables of a split: `split.csv`, `duplicates.csv`, and the number of images and patients in each part."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from chestx_cli.data.audit import image_id
from chestx_cli.records.split import SPLITS, SplitRow
from chestx_cli.store.split import OFFSET, Split
from chestx_cli.store.tables import csv_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.data.audit import Looked


def manifest_csv(looked: Looked, parts: Sequence[str], positive: str) -> bytes:
    """Return the content of `split.csv`; columns that require opening the images are empty if none was opened.

    `patient` comes from the source; `group` joins patients who share an image. Both are hashes; `patient_from` is the
    rule that determined the patient.
    """
    listing, facts = looked.listing, looked.facts
    content = csv_text(
        {
            "image_id": [image_id(row) for row in range(len(parts))],
            "path": listing.paths,
            "label": listing.labels,
            "is_positive": (looked.labels == listing.classes.index(positive)).astype(int),
            "group": looked.keys,
            "patient": looked.grouping.keys,
            "patient_from": looked.grouping.rules,
            "split": parts,
            "sha256": looked.sha256,
            **({} if listing.spans is None else _span_columns(listing.spans)),
            **{
                name: [getattr(fact, name) for fact in facts] if facts else ""
                for name in ("size_bytes", "width_px", "height_px", "mode", "file_type")
                if facts or name != "size_bytes" or listing.spans is None
            },
        }
    )
    return content.encode()


def _span_columns(spans: npt.NDArray[np.int64]) -> dict[str, list[object]]:
    """Return the offset and the size in bytes of images in their shards."""
    in_shard = (spans[:, 0] >= 0).tolist()
    return {
        name: [value if inside else "" for inside, value in zip(in_shard, values.tolist(), strict=True)]
        for name, values in ((OFFSET, spans[:, 0]), ("size_bytes", spans[:, 1]))
    }


def split_of(looked: Looked, parts: Sequence[str], positive: str, content: bytes) -> Split:
    """Return the split as if read from `split.csv`, without reading it; texts are shared, not copied."""
    import numpy as np

    # Fixed-width text, as reading returns, would need four times the memory for a million paths.
    def texts(values: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
        return np.array(values, dtype=object)

    return Split(
        root=looked.listing.root,
        classes=looked.listing.classes,
        positive=looked.listing.classes.index(positive),
        ids=texts([]),
        paths=texts(looked.listing.paths),
        labels=looked.labels,
        groups=texts(looked.keys),
        parts=texts(parts),
        image_sha256=texts(looked.sha256),
        spans=looked.listing.spans,
        sha256=hashlib.sha256(content).hexdigest(),
        unread=not looked.facts,
    )


def duplicates_csv(looked: Looked, parts: Sequence[str]) -> bytes:
    """Return the content of `duplicates.csv`: the joined pairs, most certain first."""
    links = sorted(looked.links, key=lambda link: -link.correlation)
    columns: dict[str, list[object]] = {"kind": [link.kind for link in links]}
    ids = [image_id(row) for row in range(len(parts))]
    for name, values in (("image_id", ids), ("label", looked.listing.labels), ("split", parts)):
        columns[f"first_{name}"] = [values[link.first] for link in links]
        columns[f"second_{name}"] = [values[link.second] for link in links]
    columns["hash_distance"] = [link.hash_distance for link in links]
    columns["correlation"] = [round(link.correlation, 4) for link in links]
    return csv_text(columns).encode()


def count_parts(looked: Looked, parts: Sequence[str]) -> tuple[SplitRow, ...]:
    """Return the number of images and patients of each class in each part."""
    import pandas as pd

    table = pd.DataFrame({"label": looked.labels, "group": looked.groups, "part": parts})
    counts = table.groupby(["part", "label"])["group"].agg(["size", "nunique"])
    totals = table["label"].value_counts()
    return tuple(
        SplitRow(
            split=part,
            label=label,
            images=int(counts["size"].get((part, index), 0)),
            patients=int(counts["nunique"].get((part, index), 0)),
            share=int(counts["size"].get((part, index), 0)) / int(totals[index]),
        )
        for part in SPLITS
        for index, label in enumerate(looked.listing.classes)
    )
