"""The choice among the windows and tables of a DICOM file: the first, or the requested one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chestx_cli.data.images.formats.dicom import read_dicom
from chestx_cli.data.images.formats.readings import Reading
from chestx_cli.data.images.formats.refusals import Reason, UnreadableImageError
from tools.reliability.dicom_matrix import IMPLICIT, dicom, table, windowed

FILM = np.random.default_rng(4).integers(0, 4096, (40, 48)).astype(np.uint16)
PLAIN: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "Modality": "DX"}
TWO: dict[str, Any] = {
    "WindowCenter": ("DS", ["1000", "2000"]),
    "WindowWidth": ("DS", ["800", "3000"]),
    "WindowCenterWidthExplanation": ("LO", ["NORMAL", "Harder "]),
}
CURVE = [int(255 * (at / 4095) ** 2) for at in range(4096)]


def shown(window: str | None = None, **elements: Any) -> np.ndarray:
    """Return the greys of a film by one of its windows."""
    return read_dicom(dicom(FILM, **PLAIN, **elements), window=window).pixels.astype(int)


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Return whether greys are those expected; values halfway between two may be rounded either way."""
    return bool(np.abs(found - expected.astype(int)).max() <= 1)


@pytest.mark.parametrize(
    ("window", "centre", "width"),
    [(None, 1000, 800), ("1", 1000, 800), ("2", 2000, 3000), ("NORMAL", 1000, 800), ("harder", 2000, 3000)],
)
def test_a_window_is_chosen_by_number_or_name(window: str | None, centre: int, width: int) -> None:
    assert close(shown(window, **TWO), windowed(FILM, centre, width))


def test_tables_are_counted_before_windows() -> None:
    (item,) = table(CURVE)
    item.LUTExplanation = "SQUARED"
    both = {"VOILUTSequence": ("SQ", [item]), **TWO}
    squared = np.array(CURVE)[FILM]
    for window in (None, "1", "squared"):
        assert close(shown(window, **both), squared)
    assert close(shown("3", **both), windowed(FILM, 2000, 3000))


@pytest.mark.parametrize(
    ("window", "elements", "detail"),
    [
        ("3", TWO, "none of its 2 windows and tables is number 3"),
        ("0", TWO, "none of its 2 windows and tables is number 0"),
        ("SOFT", TWO, 'none of its 2 windows and tables is named "SOFT"'),
        ("1", {}, "none of its 0 windows and tables is number 1"),
        ("1", {"WindowCenter": 5, "WindowWidth": 0}, "its window number 1 has no width"),
    ],
)
def test_a_file_without_the_window_that_is_wanted_is_refused(
    window: str, elements: dict[str, Any], detail: str
) -> None:
    with pytest.raises(UnreadableImageError) as refused:
        shown(window, **elements)
    assert (refused.value.reason, refused.value.detail) == (Reason.NO_WINDOW, detail)


def test_which_window_was_taken_is_a_reading() -> None:
    def readings(window: str | None) -> tuple[Reading, ...]:
        return read_dicom(dicom(FILM, **PLAIN, **TWO), window=window).readings

    assert readings(None) == (Reading.SEVERAL_WINDOWS,)
    assert readings("2") == (Reading.WANTED_WINDOW,)


def test_a_table_after_a_negative_intercept_maps_negative_values() -> None:
    """Without value representations its first value reads as the unsigned number of the same bits."""
    elements: dict[str, Any] = {
        "RescaleSlope": 1,
        "RescaleIntercept": -1000,
        "VOILUTSequence": ("SQ", table(CURVE, first=2**16 - 1000)),
    }
    content = dicom(FILM, syntax=IMPLICIT, **PLAIN, **elements)
    assert close(read_dicom(content).pixels.astype(int), np.array(CURVE)[FILM])


@pytest.mark.parametrize("elements", [{}, {"WindowCenter": 2000, "WindowWidth": 3000}])
def test_a_monochrome1_twin_is_read_as_its_monochrome2(elements: dict[str, Any]) -> None:
    inverse = {**elements, "PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}
    if elements:
        # Centre and half a value: the range of a window is not symmetric about its centre (C.11.2.1.2).
        inverse["WindowCenter"] = 4095 - 2000 + 1
    plain = read_dicom(dicom(FILM, **PLAIN, **elements)).pixels.astype(int)
    twin = read_dicom(dicom(4095 - FILM, **PLAIN, **inverse)).pixels.astype(int)
    assert np.abs(plain - twin).max() <= 1
