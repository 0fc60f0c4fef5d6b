"""Stratified splits grouped by patient: no patient is in two parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

MAX_DRAWS = 100
# Deviation of a class from its share in a part up to which a draw is accepted.
TOLERATED_MISS = 0.02


def joined_groups(groups: npt.NDArray[np.int64], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return groups [N], merged for each pair of rows [n, 2]."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n_groups = int(groups.max()) + 1
    linked = groups[pairs]
    links = coo_array((np.ones(len(pairs), dtype=np.int8), (linked[:, 0], linked[:, 1])), shape=(n_groups, n_groups))
    joined: npt.NDArray[np.int64] = connected_components(links, directed=False)[1][groups].astype(np.int64)
    return joined


def stratified_group_split(
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    ratios: Sequence[float],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Return the part (0 .. len(ratios) - 1) of each image: classes in proportion, no group in two parts.

    labels and groups: [N], small non-negative integers. Groups are assigned in random order, those with several images
    first, each to the part with the largest deficit; single images then fill the parts to their exact counts. If large
    groups leave a part far from its share, the best of several draws is used. scikit-learn's StratifiedGroupKFold makes
    equal folds and requires as many groups per class as folds, which suits neither 70/15/15 nor a small set.
    """
    import numpy as np

    n_classes, n_groups = int(labels.max()) + 1, int(groups.max()) + 1
    targets = np.stack([_largest_remainder(int(n), ratios) for n in np.bincount(labels)], axis=1).astype(float)
    members = np.zeros((n_groups, n_classes), dtype=np.int64)
    np.add.at(members, (groups, labels), 1)
    best, smallest = None, np.inf
    for _ in range(MAX_DRAWS):
        part_of_group, lacking = _deal(members, targets, rng)
        miss = float((np.abs(lacking) / np.maximum(targets, 1)).max())
        if miss < smallest:
            best, smallest = part_of_group, miss
        if smallest <= TOLERATED_MISS:
            break
    assert best is not None  # noqa: S101 - the first draw misses by less than infinity
    parts: npt.NDArray[np.int64] = best[groups]
    return parts


def _deal(
    members: npt.NDArray[np.int64], targets: npt.NDArray[np.float64], rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the part of each group, and the remaining deficit of each part and class."""
    import numpy as np

    order = rng.permutation(len(members))
    order = order[np.argsort(members[order].sum(axis=1) == 1, kind="stable")]
    lacking = targets.copy()
    share = np.maximum(targets, 1e-9)
    part_of_group = np.empty(len(members), dtype=np.int64)
    for group in order:
        part = int(np.argmax((lacking / share) @ members[group]))
        part_of_group[group] = part
        lacking[part] -= members[group]
    return part_of_group, lacking


def _largest_remainder(total: int, ratios: Sequence[float]) -> npt.NDArray[np.int64]:
    """Return integers in proportion to `ratios` with the sum `total` (Hamilton's method)."""
    import numpy as np

    exact = total * np.asarray(ratios, dtype=float) / sum(ratios)
    counts = np.floor(exact + 1e-9).astype(np.int64)
    for index in np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]:
        counts[index] += 1
    return counts
