"""Other images than the study's, to be evaluated on: found, decoded and predicted, and none of them trained on."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.datasets import find_images
from chestx_cli.errors import DataError
from chestx_cli.grouping import UNMATCHED, group_by_name
from chestx_cli.predicting import open_model, predict_files
from chestx_cli.predictions import Images
from chestx_cli.printable import printable
from chestx_cli.pseudonyms import pseudonyms
from chestx_cli.tables import csv_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.records import VariantRecord
    from chestx_cli.stage import Reporter
    from chestx_cli.study import Split, Study


@dataclass(frozen=True, kw_only=True)
class ExternalImages:
    """Readable images of another folder, the hash of them all, and each variant's probabilities [N].

    `paths` are the images' own below that folder, and `listed` is the table that tells all ids and paths.
    """

    images: Images
    paths: tuple[str, ...]
    listed: str
    sha256: str
    probability: dict[str, npt.NDArray[np.float64]]
    refused: tuple[str, ...]
    refused_by_code: dict[str, int]
    unknown_patients: int


def predict_external(
    data: Path,
    name: str,
    study: Study,
    split: Split,
    records: Sequence[VariantRecord],
    reporter: Reporter,
    *,
    threads: int | None,
) -> ExternalImages:
    """Return the images of a folder or manifest with what variants say of them.

    Raises DataError where the classes are others than the study's, no image can be read, or one of them is an image
    that the study trained or chose on.
    """
    import numpy as np

    listing = find_images(data, leave_out=study.root)
    if set(listing.classes) != set(split.classes):
        raise DataError(
            f"{data} has the classes {', '.join(listing.classes)}, the study has {', '.join(split.classes)}",
            "name its class folders as the study's are named",
        )
    files = [listing.root / path for path in listing.paths]
    probability: dict[str, npt.NDArray[np.float64]] = {}
    with reporter.progress(f"Evaluating {len(records)} variants on {name}", len(files) * len(records)) as advance:
        for record in records:
            found = predict_files(open_model(study, record, threads), record.preprocessing, files, advance)
            if not len(found.rows):
                raise DataError(
                    f"no image of {data} can be read", f"the first: {next(iter(found.refused.values())).fact}"
                )
            probability[record.name] = found.probabilities[:, split.positive]
    rows = [int(row) for row in found.rows]
    hashes = [fact.sha256 for fact in found.facts]
    _refuse_seen(data, [listing.paths[row] for row in rows], hashes, split)
    paths = tuple(listing.paths[row] for row in rows)
    grouping = group_by_name(paths)
    keys = [listing.groups[row] for row in rows] if listing.groups else grouping.keys
    ids = [f"{name}-{row:06d}" for row in range(len(listing.paths))]
    return ExternalImages(
        images=Images(
            ids=np.array([ids[row] for row in rows], dtype=str),
            groups=np.array(pseudonyms(keys, hashes), dtype=str),
            is_positive=np.array(
                [int(listing.labels[row] == split.classes[split.positive]) for row in rows], dtype=np.int64
            ),
        ),
        paths=paths,
        listed=csv_text({"image_id": ids, "path": [printable(path) for path in listing.paths]}),
        sha256=hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        probability=probability,
        refused=tuple(f"{ids[row]} ({refused.fact})" for row, refused in sorted(found.refused.items())),
        refused_by_code=dict(Counter(refused.reason.value for refused in found.refused.values())),
        unknown_patients=0 if listing.groups else grouping.rules.count(UNMATCHED),
    )


def _refuse_seen(data: Path, paths: Sequence[str], hashes: Sequence[str], split: Split) -> None:
    """Raise DataError where an image is one that the study trained on or chose an epoch or threshold on."""
    seen = set(split.image_sha256[split.parts != "test"].tolist())
    again = [path for path, sha256 in zip(paths, hashes, strict=True) if sha256 in seen]
    if again:
        raise DataError(
            f"{len(again):,} of {len(paths):,} images of {data} are in the study's training or validation split, "
            f"such as {again[0]}",
            "remove them: results on images seen in training flatter",
        )
