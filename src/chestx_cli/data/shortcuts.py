"""Shortcuts: whether file sizes and formats alone predict the class."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from chestx_cli.core.progress import ignored
from chestx_cli.records.split import FormatRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.core.progress import Advance
    from chestx_cli.data.images.decoding import FileFacts

FOLDS = 5
# Each fold with and without file sizes.
FITS = 2 * FOLDS
# More images would take longer without a relevant gain in precision.
MAX_IMAGES = 2000
SHORTCUT_AUROC = 0.6


def format_rows(
    labels: npt.NDArray[np.int64], classes: Sequence[str], facts: Sequence[FileFacts]
) -> tuple[FormatRow, ...]:
    """Return the sizes, aspects, modes and file types of each class; labels [N] are indices of `classes`."""
    import numpy as np

    rows = []
    for index, label in enumerate(classes):
        mine = [facts[row] for row in np.flatnonzero(labels == index).tolist()]
        width, height = (np.array([getattr(fact, side) for fact in mine]) for side in ("width_px", "height_px"))
        density = np.array([fact.size_bytes for fact in mine]) / (width * height)
        rows.append(
            FormatRow(
                label=label,
                width_px=_quartiles(width),
                height_px=_quartiles(height),
                aspect=_quartiles(width / height),
                bytes_per_pixel=_quartiles(density),
                modes=_shares([fact.mode for fact in mine]),
                file_types=_shares([fact.file_type for fact in mine]),
            )
        )
    return tuple(rows)


def _quartiles(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    import numpy as np

    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(low), float(middle), float(high)


def _shares(values: list[str]) -> str:
    counts = Counter(values).most_common()
    return ", ".join(name if n == len(values) else f"{name} {n / len(values):.1%}" for name, n in counts)


def format_aurocs(
    is_positive: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    facts: Sequence[FileFacts],
    seed: int,
    advance: Advance = ignored,
) -> tuple[float, float] | tuple[None, None]:
    """Return the AUROC with which the format alone predicts the class, by patient, without and with file sizes.

    A gradient-boosted classifier sees width, height, aspect, mode and file type of up to 2,000 images, and judges
    patients that it was not fitted on (five folds). The size of a file also reflects its format, but a compressed
    file's also of its image. None with too few patients. is_positive and groups: [N]. advance: called after each of
    FITS fits.
    """
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import get_scorer
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_score

    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(facts))[:MAX_IMAGES])
    is_positive, groups = is_positive[rows], groups[rows]
    if min(len(np.unique(groups[is_positive == value])) for value in (0, 1)) < 2 * FOLDS:
        return None, None
    seen = [facts[row] for row in rows]
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    parts = list(folds.split(np.empty((len(rows), 0)), is_positive, groups))

    def scored(classifier: object, features: object, is_positive: object) -> float:
        advance()
        return float(get_scorer("roc_auc")(classifier, features, is_positive))

    def auroc(*, with_bytes: bool) -> float:
        # The mean over folds: pooled scores would also reflect unequal class frequencies across folds.
        classifier = HistGradientBoostingClassifier(max_iter=50, min_samples_leaf=10, random_state=seed)
        features = _features(seen, with_bytes=with_bytes)
        return float(cross_val_score(classifier, features, is_positive, cv=parts, scoring=scored).mean())

    return auroc(with_bytes=False), auroc(with_bytes=True)


def _features(facts: list[FileFacts], *, with_bytes: bool) -> npt.NDArray[np.float64]:
    import numpy as np

    modes, types = (sorted({getattr(fact, name) for fact in facts}) for name in ("mode", "file_type"))
    rows = []
    for fact in facts:
        width, height = fact.width_px, fact.height_px
        row = [width, height, width / height, modes.index(fact.mode), types.index(fact.file_type)]
        rows.append([*row, fact.size_bytes, fact.size_bytes / (width * height)] if with_bytes else row)
    return np.array(rows, dtype=np.float64)


def predicts_class(auroc: float, n_positive: int, n_negative: int) -> bool:
    """Return whether an AUROC is both large and above what chance produces for this number of patients.

    The standard error under the null hypothesis is that of Mann and Whitney (Annals of Mathematical Statistics 18,
    1947).
    """
    chance_error = float(((n_positive + n_negative + 1) / (12 * n_positive * n_negative)) ** 0.5)
    return auroc >= SHORTCUT_AUROC and auroc >= 0.5 + 2 * chance_error
