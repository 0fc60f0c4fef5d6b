"""Patient-grouped, stratified folds: every image is tested once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.core.errors import DataError
from chestx_cli.core.printable import counted
from chestx_cli.data.splitting import TOLERATED_MISS, stratified_group_split
from chestx_cli.records.split import TEST, TRAIN, VAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

MAX_DRAWS = 20


def draw_folds(
    labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], n_folds: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Return the fold (0 .. n_folds - 1) of each image, by scikit-learn's StratifiedGroupKFold.

    labels and groups: [N]. The best of up to 20 draws is used: the one with the smallest deviation of any class from
    equal shares; the first with a deviation of at most 2 % ends the search. Raises DataError for fewer patients than
    folds.
    """
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min(len(np.unique(groups[labels == label])) for label in np.unique(labels))
    if fewest < n_folds:
        fact = f"one class has {counted(fewest, 'patient')}, which cannot fill {n_folds} folds"
        raise DataError(fact, "use fewer --folds, or correct the patients with --groups or --group-regex")
    shares = np.bincount(labels) / n_folds
    best, smallest = np.empty(0, dtype=np.int64), np.inf
    for _ in range(MAX_DRAWS):
        folds = np.empty(len(labels), dtype=np.int64)
        dealer = StratifiedGroupKFold(n_folds, shuffle=True, random_state=int(rng.integers(2**32)))
        for index, (_, tested) in enumerate(dealer.split(labels, labels, groups)):
            folds[tested] = index
        counts = np.stack([np.bincount(folds[labels == label], minlength=n_folds) for label in np.unique(labels)])
        miss = float((np.abs(counts - shares[:, None]) / shares[:, None]).max())
        if miss < smallest:
            best, smallest = folds, miss
        if smallest <= TOLERATED_MISS:
            break
    return best


def parts_of_fold(
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    tested: npt.NDArray[np.bool_],
    ratios: Sequence[float],
    rng: np.random.Generator,
) -> tuple[str, ...]:
    """Return train, val or test for each image [N]: the fold is the test part, a share of the rest is val.

    The validation share of `ratios` (train, val, test in percent) is of all images, as without folds.
    """

    share = ratios[1] / 100 * len(labels) / int((~tested).sum())
    return with_val_drawn(labels, groups, tested, share, rng)


def with_val_drawn(
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    tested: npt.NDArray[np.bool_],
    share: float,
    rng: np.random.Generator,
) -> tuple[str, ...]:
    """Return train, val or test for each image; validation patients are drawn from those that are not tested.

    labels, groups, tested: [N]. `share` is that of the images that are not tested.
    """
    import numpy as np

    rest = np.flatnonzero(~tested)
    _, groups_of_rest = np.unique(groups[rest], return_inverse=True)
    drawn = stratified_group_split(labels[rest], groups_of_rest, (1 - share, share), rng)
    parts = np.full(len(labels), TEST, dtype=object)
    parts[rest] = np.array((TRAIN, VAL), dtype=object)[drawn]
    return tuple(parts.tolist())
