"""pydicom's test files, of many vendors and syntaxes: decoded correctly, or refused with a reason."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, dcmread
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array

from chestx_cli.data.images.formats.dicom import begins_as_dicom, read_dicom
from chestx_cli.data.images.formats.readings import doubts_of
from chestx_cli.data.images.formats.refusals import Reason, UnreadableImageError

FOLDER = Path(pydicom.__file__).parent / "data"
FILES = {
    path.relative_to(FOLDER).as_posix(): path
    for path in sorted(FOLDER.rglob("*"))
    if path.is_file() and begins_as_dicom(path.read_bytes()[:200])
}
LATERAL = "test_files/dicomdirtests/77654033/CR1/6154"
NO_DECODER = [name for name in ("gdcm", "jpeg_ls") if importlib.util.find_spec(name) is None]


def outcome_of(path: Path) -> str:
    """Return the code by which a file is refused, or that it is read."""
    try:
        read_dicom(path.read_bytes())
    except UnreadableImageError as error:
        return error.reason.value
    return "read"


def test_every_file_is_read_or_refused_by_a_code() -> None:
    found = {name: outcome_of(path) for name, path in FILES.items()}
    for name, outcome in found.items():
        modality = dcmread(FILES[name], stop_before_pixels=True, force=True).get("Modality")
        if outcome == "read":
            assert modality not in ("CT", "MR", "US", "NM"), name
            # None of them is a frontal film of a chest.
            assert doubts_of(read_dicom(FILES[name].read_bytes()).readings), name
        elif outcome == Reason.NOT_A_RADIOGRAPH:
            assert modality in ("CT", "MR", "US", "NM"), name
    assert found[LATERAL] == Reason.LATERAL
    counts = Counter(found.values())
    assert sum(counts.values()) == 188
    if not NO_DECODER:
        # As docs/data.md has it.
        assert counts == {
            "read": 34,
            Reason.NO_IMAGE: 90,
            Reason.NOT_A_RADIOGRAPH: 49,
            Reason.TOO_SMALL: 5,
            Reason.SEVERAL_IMAGES: 4,
            Reason.UNSUPPORTED: 3,
            Reason.DAMAGED: 2,
            Reason.LATERAL: 1,
        }


def expected_greys(dataset: Dataset) -> np.ndarray:
    """Return the greys of a file by pydicom's own functions and arithmetic apart from chestx's."""
    stored = pixel_array(dataset)
    if stored.ndim == 3:
        return (stored.astype(float) @ (0.299, 0.587, 0.114)).round()
    values = apply_modality_lut(stored, dataset).astype(float)
    padding, padded = dataset.get("PixelPaddingValue"), np.zeros(stored.shape, dtype=bool)
    if padding is not None:
        limit = dataset.get("PixelPaddingRangeLimit", padding)
        padded = (stored >= min(padding, limit)) & (stored <= max(padding, limit))
    if dataset.get("WindowWidth") and dataset.get("WindowCenter"):
        first = Dataset()
        for name in ("WindowCenter", "WindowWidth"):
            value: Any = dataset[name].value
            setattr(first, name, value if np.isscalar(value) or isinstance(value, float) else value[0])
        centre, width = float(first.WindowCenter), float(first.WindowWidth)
        share = np.clip((values - centre + 0.5) / (width - 1) + 0.5, 0, 1)
    elif "VOILUTSequence" in dataset:
        share = apply_voi_lut(values, dataset) / (2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1)
    else:
        low, high = values[~padded].min(), values[~padded].max()
        share = np.clip((values - low) / (high - low), 0, 1)
    grey = 255 * (1 - share if dataset.PhotometricInterpretation == "MONOCHROME1" else share)
    return np.where(padded, 0, grey)


def test_what_is_decoded_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other modalities, too: they are of other vendors and syntaxes than the few radiographs."""
    monkeypatch.setattr(
        "chestx_cli.data.images.formats.dicom.require_frontal_radiograph", lambda _dataset, *, lateral: [lateral][:0]
    )
    read = 0
    for name, path in FILES.items():
        try:
            found = read_dicom(path.read_bytes()).pixels
        except UnreadableImageError:
            continue
        dataset = dcmread(path)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            continue
        difference = np.abs(found - expected_greys(dataset)).max()
        # Colours are rounded at each step.
        assert difference <= (2 if dataset.SamplesPerPixel == 3 else 1), (name, difference)
        read += 1
    # As docs/data.md has it; without the optional decoders fewer.
    assert read == 77 or (NO_DECODER and read >= 70)
