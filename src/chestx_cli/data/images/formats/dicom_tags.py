"""Values of DICOM elements; an empty element is treated as an absent one, whatever its tag."""

from __future__ import annotations

import math
from collections.abc import MutableSequence
from typing import TYPE_CHECKING, Any

from chestx_cli.data.images.formats.refusals import Reason, UnreadableImageError, damaged_where_it_fails

if TYPE_CHECKING:
    from pydicom import Dataset


def values(dataset: Dataset, keyword: str) -> list[Any]:
    """Return the values of an element, None for each empty one; no values if the element is empty.

    Raises UnreadableImageError for an unreadable element.
    """
    with damaged_where_it_fails(f"its {keyword} cannot be read"):
        value = dataset.get(keyword)
        values = list(value) if isinstance(value, MutableSequence) and not isinstance(value, bytearray) else [value]
        cleared = [None if _is_empty(one) else one for one in values]
    return cleared if any(one is not None for one in cleared) else []


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, bytes) and not value)


def is_present(dataset: Dataset, keyword: str) -> bool:
    """Return whether an element is present and not empty."""
    return bool(values(dataset, keyword))


def drop_empty(dataset: Dataset, *keywords: str) -> None:
    """Remove empty elements, for a library that would read them."""
    for keyword in keywords:
        if keyword in dataset and not is_present(dataset, keyword):
            delattr(dataset, keyword)


def require_present(dataset: Dataset, *keywords: str) -> None:
    """Raise UnreadableImageError, which names the first, if required elements are absent or empty."""
    for keyword in keywords:
        if not is_present(dataset, keyword):
            raise UnreadableImageError(Reason.DAMAGED, f"it lacks {keyword}")


def text(dataset: Dataset, keyword: str) -> str | None:
    """Return the first value of an element as text; None without one."""
    first = next((value for value in values(dataset, keyword) if value is not None), None)
    return None if first is None else str(first).strip()


def numbers(dataset: Dataset, keyword: str) -> list[float | None]:
    """Return the numbers of an element; raises UnreadableImageError unless all are finite."""

    def one(value: Any) -> float | None:
        if value is None:
            return None
        with damaged_where_it_fails(f"its {keyword} is not a number"):
            parsed = float(value)
        if not math.isfinite(parsed):
            raise UnreadableImageError(Reason.DAMAGED, f"its {keyword} is not a finite number")
        return parsed

    return [one(value) for value in values(dataset, keyword)]


def number(dataset: Dataset, keyword: str) -> float | None:
    """Return the first number of an element; None without one."""
    return next((value for value in numbers(dataset, keyword) if value is not None), None)


def whole(dataset: Dataset, keyword: str) -> int | None:
    """Return the first number of an element as an integer; None without one."""
    value = number(dataset, keyword)
    if value is not None and not value.is_integer():
        raise UnreadableImageError(Reason.DAMAGED, f"its {keyword} is not a whole number")
    return None if value is None else int(value)
