"""What a reader must know of a split before believing results on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.grouping import UNMATCHED

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chestx_cli.records import GroupRuleRow
    from chestx_cli.study import Split

NO_LEAK = "No patient and no file is in more than one part."


def caveats(split: Split, rules: tuple[GroupRuleRow, ...]) -> tuple[str, ...]:
    """Return in words which patients or files are in several parts, and how many images' patient is unknown."""
    patients, files = _in_several(split.groups, split.parts), _in_several(split.image_sha256, split.parts)
    said = []
    if patients:
        said.append(
            f"LEAK: {_are(patients, 'patient')} in more than one part of the split. Test results on it "
            "flatter; let chestx split the images by patient."
        )
    if files:
        said.append(
            f"LEAK: {_are(files, 'image file')} in more than one part of the split. Test results on it flatter."
        )
    unknown = sum(rule.images for rule in rules if rule.rule == UNMATCHED)
    if unknown:
        said.append(
            f"The patient of {unknown:,} of {len(split.parts):,} images is unknown: each counts as a patient of its "
            "own. If patients have several images, some may be in two parts, results flatter and intervals are too "
            "narrow. Give --group-regex or a manifest with a group column."
        )
    return tuple(said)


def _in_several(keys: npt.NDArray[np.str_], parts: npt.NDArray[np.str_]) -> int:
    """Return how many keys occur in more than one part."""
    import numpy as np

    pairs = np.unique(np.stack([keys.astype(str), parts.astype(str)]), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


def _are(n: int, thing: str) -> str:
    return f"{n:,} {thing} is" if n == 1 else f"{n:,} {thing}s are"
