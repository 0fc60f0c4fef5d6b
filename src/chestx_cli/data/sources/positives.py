"""The choice of the positive class, and its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.errors import DataError, UsageError, again, quoted
from chestx_cli.data.sources.names import class_key, is_health
from chestx_cli.records.split import TakenRow

if TYPE_CHECKING:
    from chestx_cli.data.sources.listing import Listing

PNEUMONIA = "pneumonia"


@dataclass(frozen=True, kw_only=True)
class Positive:
    """The positive class, and the decision if its name alone does not settle it."""

    label: str
    taken: tuple[TakenRow, ...] = ()


def positive_class(listing: Listing, requested: str | None) -> Positive:
    """Return the requested class, or else the one that does not mean health, or else pneumonia.

    A class that means health is never positive by default. Raises UsageError for an unknown class, DataError if the
    names do not settle it.
    """
    classes = listing.classes
    keys = {class_key(label): label for label in classes}
    if requested is not None:
        if class_key(requested) not in keys:
            raise UsageError(f"--positive {requested!r} is not a class", f"choose one of {', '.join(classes)}")
        return Positive(label=keys[class_key(requested)])
    healthy = [label for label in classes if is_health(label)]
    if len(healthy) == 1:
        label = next(label for label in classes if label != healthy[0])
        because = f"{healthy[0]} is a name for healthy"
    elif not healthy and PNEUMONIA in keys:
        label, because = keys[PNEUMONIA], "its name"
    else:
        raise DataError(
            f"the class names do not show which of {' and '.join(classes)} is positive",
            f"use {' or '.join(again(f'--positive {quoted(label)}') for label in reversed(classes))}",
        )
    if class_key(label) == PNEUMONIA and healthy:
        return Positive(label=label)
    row = TakenRow(matter="Positive class", taken_as=label, because=because, images=listing.labels.count(label))
    return Positive(label=label, taken=(row,))
