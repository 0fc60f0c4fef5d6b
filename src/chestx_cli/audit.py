"""What a reader must know of a split before believing results on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.split_records import UNMATCHED

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.records import GroupRuleRow
    from chestx_cli.stage import Run
    from chestx_cli.study import Split, Study

NO_LEAK = "No patient and no file is in more than one part."
# What stands before a caveat, so that no table loses it.
UNGROUPED, LEAKED, UNREAD = "UNGROUPED", "LEAKED", "UNREAD"
# Of models: a training that is not shown to have learned, and a variant whose parent is another one by now.
UNPROVEN, STALE = "UNPROVEN", "STALE"
MODEL_STAMPS = (UNPROVEN, STALE)
# Those of images hold for a stored result as long as it lasts; those of models are looked up anew.
IMAGE_STAMPS = (UNGROUPED, LEAKED, UNREAD)


def caveats(split: Split, rules: tuple[GroupRuleRow, ...]) -> tuple[str, ...]:
    """Return in words, each with its stamp, what leaks, whose patient is unknown and what nobody has looked at."""
    patients, files = _in_several(split.groups, split.parts), _in_several(split.image_sha256, split.parts)
    said = []
    if patients:
        said.append(
            f"{LEAKED}: {_are(patients, 'patient')} in more than one part of the split. Test results on it "
            "flatter; let chestx split the images by patient."
        )
    if files:
        said.append(
            f"{LEAKED}: {_are(files, 'image file')} in more than one part of the split. Test results on it flatter."
        )
    unknown = sum(rule.images for rule in rules if rule.rule == UNMATCHED)
    if unknown:
        said.append(
            f"{UNGROUPED}: The patient of {unknown:,} of {len(split.parts):,} images is unknown: each counts as a "
            "patient of its own. If patients have several images, some may be in two parts, results flatter and "
            "intervals are too narrow. Give --groups, --group-regex or a manifest with a group column."
        )
    if split.unread:
        said.append(
            f"{UNREAD}: The images were not opened when they were split: equal pixels and near-duplicates may be in "
            "two parts. Split without --unread to look for them."
        )
    return tuple(said)


def stamps_of(said: Sequence[str]) -> tuple[str, ...]:
    """Return the stamps of some caveats, each once."""
    return tuple(dict.fromkeys(text.partition(":")[0] for text in said))


def stamped(notes: Sequence[str]) -> tuple[str, ...]:
    """Return those notes of a record that begin with a stamp of its images."""
    return tuple(note for note in notes if note.partition(":")[0] in IMAGE_STAMPS)


def uses_split(run: Run, study: Study, split: Split, *, fold: str = "") -> tuple[str, ...]:
    """Note that a result depends on a split, with the stamps of its tables; return what must be said of it."""
    said = caveats(split, study.read_split_record().group_rules)
    run.uses(f"{fold}/split.csv" if fold else "split.csv", split.sha256)
    run.stamped(stamps_of(said))
    return said


def _in_several(keys: npt.NDArray[np.str_], parts: npt.NDArray[np.str_]) -> int:
    """Return how many keys occur in more than one part."""
    import numpy as np
    import pandas as pd

    key, part = (pd.factorize(values.astype(object))[0].astype(np.int64) for values in (keys, parts))
    seen = np.unique(key * len(parts) + part) // max(len(parts), 1)
    return int((np.bincount(seen) > 1).sum())


def _are(n: int, thing: str) -> str:
    return f"{n:,} {thing} is" if n == 1 else f"{n:,} {thing}s are"
