"""Stratified splits in which no patient is in two parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

SPLITS = ("train", "val", "test")


def stratified_group_split(
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    ratios: Sequence[float],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Return the part (0 .. len(ratios) - 1) of each image: classes in proportion, no group in two parts.

    labels and groups: [N], small non-negative integers. Groups are dealt in random order, those of several images
    first, each to the part that lacks most of its share; single images then fill the parts to their exact counts.
    scikit-learn's StratifiedGroupKFold makes equal folds and needs as many groups per class as folds, which neither
    70/15/15 nor a small set has.
    """
    import numpy as np

    n_classes, n_groups = int(labels.max()) + 1, int(groups.max()) + 1
    targets = np.stack([_largest_remainder(int(n), ratios) for n in np.bincount(labels)], axis=1).astype(float)
    members = np.zeros((n_groups, n_classes), dtype=np.int64)
    np.add.at(members, (groups, labels), 1)
    order = rng.permutation(n_groups)
    order = order[np.argsort(members[order].sum(axis=1) == 1, kind="stable")]
    lacking = targets.copy()
    share = np.maximum(targets, 1e-9)
    part_of_group = np.empty(n_groups, dtype=np.int64)
    for group in order:
        need = (lacking / share) @ members[group]
        part = int(np.argmax(need))
        part_of_group[group] = part
        lacking[part] -= members[group]
    return part_of_group[groups]


def _largest_remainder(total: int, ratios: Sequence[float]) -> npt.NDArray[np.int64]:
    """Return whole counts in proportion to `ratios` that sum to `total` (Hamilton's method)."""
    import numpy as np

    exact = total * np.asarray(ratios, dtype=float) / sum(ratios)
    counts = np.floor(exact + 1e-9).astype(np.int64)
    for index in np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]:
        counts[index] += 1
    return counts
