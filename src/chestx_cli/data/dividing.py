"""Division of a data set into train, val and test: supplied with the data or drawn; errors if a part lacks a class."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.errors import DataError, again
from chestx_cli.core.printable import counted, paragraph
from chestx_cli.data.folds import draw_folds, parts_of_fold, with_val_drawn
from chestx_cli.data.sources.layouts import DIVIDE_AGAIN
from chestx_cli.data.splitting import stratified_group_split
from chestx_cli.records.split import SPLITS, TEST, VAL, SplitRow, TakenRow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chestx_cli.data.audit import Looked

# Tried in this order if the requested shares leave a part without a class.
_MORE_EVEN_RATIOS = ((70, 15, 15), (60, 20, 20), (50, 25, 25), (40, 30, 30), (34, 33, 33))
# With fewer validation images of a class, one image changes its rate by more than five points.
ENOUGH_VAL_IMAGES = 20
_CORRECT_PATIENTS = "correct the patients with --groups FILE.csv or --group-regex EXPRESSION"


@dataclass(frozen=True, kw_only=True)
class Division:
    """The part of each image [N], and the choices made that the user should know."""

    parts: tuple[str, ...]
    taken: tuple[TakenRow, ...] = ()


def divide(looked: Looked, ratios: Sequence[float], seed: int) -> Division:
    """Return the split supplied with the data, with val drawn from train if it is missing; without one, draw it.

    Raises DataError if a part would lack a class.
    """
    import numpy as np

    supplied = looked.listing.parts
    if supplied is None:
        parts = _drawn(looked, ratios, seed)
        _require_classes(looked, parts, lambda patients: _other_ratios(looked, seed, patients))
        return Division(parts=parts)
    if VAL in supplied:
        _require_classes(looked, supplied, lambda _: DIVIDE_AGAIN)
        return Division(parts=supplied)
    share = ratios[1] / (ratios[0] + ratios[1])
    tested = np.array(supplied, dtype=object) == TEST
    parts = with_val_drawn(looked.labels, looked.groups, tested, share, np.random.default_rng(seed))
    _require_classes(looked, parts, lambda _: DIVIDE_AGAIN)
    requested = "/".join(f"{ratio:g}" for ratio in ratios)
    row = TakenRow(
        matter="Part",
        taken_as="val drawn from train, by patient",
        because=f"the data have train and test only; the share is from --ratios {requested}",
        images=parts.count(VAL),
    )
    return Division(parts=parts, taken=(row,))


def divide_into_folds(looked: Looked, n_folds: int, ratios: Sequence[float], seed: int) -> list[tuple[str, ...]]:
    """Return the parts of each fold; raises DataError if a part of a fold would lack a class."""
    cells = _folds(looked, n_folds, ratios, seed)
    for parts in cells:
        _require_classes(looked, parts, lambda _: _fewer_folds(looked, n_folds, ratios, seed))
    return cells


def _drawn(looked: Looked, ratios: Sequence[float], seed: int) -> tuple[str, ...]:
    import numpy as np

    drawn = stratified_group_split(looked.labels, looked.groups, ratios, np.random.default_rng(seed))
    return tuple(np.array(SPLITS, dtype=object)[drawn].tolist())


def _folds(looked: Looked, n_folds: int, ratios: Sequence[float], seed: int) -> list[tuple[str, ...]]:
    import numpy as np

    rng = np.random.default_rng(seed)
    fold_of = draw_folds(looked.labels, looked.groups, n_folds, rng)
    return [parts_of_fold(looked.labels, looked.groups, fold_of == number, ratios, rng) for number in range(n_folds)]


def _require_classes(looked: Looked, parts: Sequence[str], remedy: Callable[[int], str]) -> None:
    """Raise DataError if a part has no image of a class; `remedy` gets the number of patients of that class."""
    lacking = _lacking(looked, parts)
    if lacking is None:
        return
    part, index = lacking
    mine = looked.labels == index
    patients = len(set(looked.groups[mine].tolist()))
    rules = Counter(rule for rule, own in zip(looked.grouping.rules, mine.tolist(), strict=True) if own)
    raise DataError(
        f"the {part} split has no image of class {looked.listing.classes[index]}, which has "
        f"{counted(patients, 'patient')} ({rules.most_common(1)[0][0]})",
        remedy(patients),
    )


def _lacking(looked: Looked, parts: Sequence[str]) -> tuple[str, int] | None:
    """Return the first part that lacks a class, and that class."""
    there = set(zip(parts, looked.labels.tolist(), strict=True))
    return next(((part, index) for part in SPLITS for index in (0, 1) if (part, index) not in there), None)


def _other_ratios(looked: Looked, seed: int, patients: int) -> str:
    """Return a remedy: shares that give every part both classes; without any, more patients or other groups."""
    if patients >= len(SPLITS):
        for ratios in _MORE_EVEN_RATIOS:
            if _lacking(looked, _drawn(looked, ratios, seed)) is None:
                return f"{again('--ratios ' + '/'.join(map(str, ratios)))} gives every part both classes"
    return f"each part needs a patient of each class: add patients, or {_CORRECT_PATIENTS}"


def _fewer_folds(looked: Looked, n_folds: int, ratios: Sequence[float], seed: int) -> str:
    """Return a remedy: the largest number of folds that gives every part both classes; without any, no folds."""
    for fewer in range(n_folds - 1, 1, -1):
        if all(_lacking(looked, parts) is None for parts in _folds(looked, fewer, ratios, seed)):
            return f"{again(f'--folds {fewer}')} gives every part both classes"
    return f"leave --folds out, or {_CORRECT_PATIENTS}"


def val_notes(rows: Sequence[SplitRow], *, kept: bool) -> tuple[str, ...]:
    """Return a warning if there are too few validation images to choose an epoch and a threshold."""
    fewest = min((row for row in rows if row.split == VAL), key=lambda row: row.images)
    if fewest.images >= ENOUGH_VAL_IMAGES:
        return ()
    return (
        paragraph(
            f"The validation split has {counted(fewest.images, 'image')} of {fewest.label}: one image is "
            f"{1 / fewest.images:.0%} of its rate.",
            "With so few, the chosen epoch and threshold are largely chance.",
            "chestx split --resplit divides all images again, with a larger validation split." if kept else "",
        ),
    )
