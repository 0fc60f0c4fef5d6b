"""The choice among the VOI tables and windows of a DICOM file (PS3.3 C.11.2), which are alternatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.data.images.formats.dicom_tags import is_present, numbers, text, values
from chestx_cli.data.images.formats.readings import Reading
from chestx_cli.data.images.formats.refusals import Reason, UnreadableImageError

if TYPE_CHECKING:
    from pydicom import Dataset

VOI_TABLES = "VOILUTSequence"
LINEAR, LINEAR_EXACT, SIGMOID = "LINEAR", "LINEAR_EXACT", "SIGMOID"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A VOI table or window, and its name in the file."""

    name: str | None
    table: Dataset | None = None
    centre: float = 0.0
    width: float = 0.0


def tables_of(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence that contain a table."""
    return [
        item
        for item in values(dataset, keyword)
        if item is not None and is_present(item, "LUTDescriptor") and is_present(item, "LUTData")
    ]


def window_function(dataset: Dataset) -> str:
    """Return the VOI LUT function of a file; raises UnreadableImageError for an unknown one."""
    function = (text(dataset, "VOILUTFunction") or LINEAR).upper()
    if function not in (LINEAR, LINEAR_EXACT, SIGMOID):
        raise UnreadableImageError(Reason.UNSUPPORTED, f"VOILUTFunction {function[:16]}")
    return function


def chosen(dataset: Dataset, wanted: str | None) -> tuple[Shown | None, list[Reading]]:
    """Return the table or window to use (None if there is no usable one), and the reading.

    Tables precede windows, each in file order. The first usable one is chosen, or the `wanted` one, by its number from
    1 or its name; raises UnreadableImageError if the file lacks it.
    """
    tables = [Shown(name=text(item, "LUTExplanation"), table=item) for item in tables_of(dataset, VOI_TABLES)]
    windows = _windows(dataset)
    if wanted is not None:
        return _wanted([*tables, *windows], wanted, dataset), [Reading.WANTED_WINDOW]
    usable = tables or [window for window in windows if _shows_something(window, dataset)]
    how = []
    if not usable:
        how.append(Reading.UNUSABLE_WINDOW if windows else Reading.NO_WINDOW)
    if len(tables) > 1 or (not tables and len(windows) > 1):
        how.append(Reading.SEVERAL_WINDOWS)
    return (usable[0] if usable else None), how


def _windows(dataset: Dataset) -> list[Shown]:
    """Return the windows with both centre and width."""
    centres, widths = numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth")
    named = values(dataset, "WindowCenterWidthExplanation")
    names = [None if name is None else str(name).strip() for name in named]
    names += [None] * (len(centres) - len(names))
    return [
        Shown(name=name, centre=centre, width=width)
        for centre, width, name in zip(centres, widths, names, strict=False)
        if centre is not None and width is not None
    ]


def _shows_something(shown: Shown, dataset: Dataset) -> bool:
    if shown.table is not None:
        return True
    return shown.width >= (1.0 if window_function(dataset) == LINEAR else 1e-9)


def _wanted(there: list[Shown], wanted: str, dataset: Dataset) -> Shown:
    if wanted.isdecimal():
        found = there[int(wanted) - 1] if 0 < int(wanted) <= len(there) else None
        which = f"number {wanted}"
    else:
        found = next((one for one in there if (one.name or "").casefold() == wanted.casefold()), None)
        which = f'named "{wanted}"'
    if found is None:
        # Names in a file are free text, which may contain private data, so they are not quoted.
        fact = f"none of its {len(there)} windows and tables is {which}"
        raise UnreadableImageError(Reason.NO_WINDOW, fact)
    if not _shows_something(found, dataset):
        raise UnreadableImageError(Reason.NO_WINDOW, f"its window {which} has no width")
    return found
