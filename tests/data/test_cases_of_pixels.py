"""Inputs that once failed, if they are present beside the checkout: pixels and files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chestx_cli.data.images.decoding import decode_grey
from conftest import Chestx
from support.beside import SHARED
from support.dicom_files import without_decoders
from tools.reliability.dicom_matrix import JPEG_LOSSLESS_1, JPEG_LS

CASES = SHARED / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not here")


def split(chestx: Chestx, data: Path, study: Path, *words: str) -> dict[str, Any]:
    """Return the record of a split that must be made."""
    outcome = chestx("split", data, "--study", study, "--image-size", 64, "--allow-ungrouped", "--json", *words)
    assert outcome.code == 0, outcome.err
    return outcome.json()


def pixels_of(study: Path) -> np.ndarray:
    """Return what networks see of it."""
    (cache,) = (study / "cache").glob("pixels-*.npy")
    found: np.ndarray = np.load(cache)
    return found


def test_case_02_empty_windows(chestx: Chestx, tmp_path: Path) -> None:
    record = split(chestx, CASES / "02-dicom-empty-window" / "data", tmp_path / "s")
    assert (record["images"], record["patients"]) == (40, 40)
    assert all(grey.std() > 10 for grey in pixels_of(tmp_path / "s"))


def test_case_03_empty_optional_elements() -> None:
    for path in sorted((CASES / "03-dicom-empty-optional-tags" / "data").rglob("*.dcm")):
        assert decode_grey(path)[1].levels > 64, path


def test_case_05_masks() -> None:
    data = CASES / "05-masks-beside-images" / "data"
    found = Counter((path.parent.name, decode_grey(path)[1].is_mask) for path in sorted(data.rglob("*.png")))
    assert found == {("images", False): 40, ("masks", True): 40}


@pytest.mark.parametrize(
    ("name", "syntax"), [("jpeg-lossless", "1.2.840.10008.1.2.4.70"), ("jpeg-ls", "1.2.840.10008.1.2.4.80")]
)
def test_case_08_compressed_without_a_decoder(
    chestx: Chestx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, syntax: str
) -> None:
    without_decoders(monkeypatch, JPEG_LOSSLESS_1, JPEG_LS)
    outcome = chestx("split", CASES / "08-jpeg-lossless-dicom" / name, "--study", tmp_path / "s")
    assert outcome.code == 1
    (line,) = [line for line in outcome.err.splitlines() if "unsupported" in line]
    assert line.startswith("  6 images, NORMAL/000.dcm, ")
    assert f"({syntax}); install python-gdcm" in line


def test_case_08_compressed_with_a_decoder() -> None:
    pytest.importorskip("gdcm")
    for path in sorted((CASES / "08-jpeg-lossless-dicom").rglob("*.dcm")):
        assert decode_grey(path)[1].levels > 64, path


def test_case_09_values_of_12_bits(chestx: Chestx, tmp_path: Path) -> None:
    record = split(chestx, CASES / "09-12-bit-in-16-bit-png" / "data", tmp_path / "s")
    assert record["value_bits"] == 12
    assert record["taken"][0]["taken_as"] == "0 to 4,095 (12 bits)"
    found = pixels_of(tmp_path / "s")
    assert found.max() > 200
    assert len(np.unique(found)) > 200


def test_case_10_white_is_zero() -> None:
    folder = CASES / "10-16-bit-tiff-white-is-zero"
    films = {path.name: np.asarray(decode_grey(path)[0]).ravel() for path in folder.iterdir() if path.suffix != ".sh"}
    upright = films["black_is_zero_16.tif"]
    assert set(films) == {"black_is_zero_16.tif", "white_is_zero_16.tif", "white_is_zero_8.tif", "mono2.dcm"}
    for name, film in films.items():
        assert np.corrcoef(film, upright)[0, 1] > 0.999, name


@pytest.mark.parametrize("name", ["no-extension", "half-no-extension", "jfif", "no-extension.csv"])
def test_case_15_files_known_by_content(chestx: Chestx, tmp_path: Path, name: str) -> None:
    record = split(chestx, CASES / "15-files-left-out-by-name" / name, tmp_path / "s")
    assert (record["images"], record["ignored_files"], record["left_out"]) == (40, 0, [])
    by_content = {"no-extension": 40, "half-no-extension": 10, "jfif": 20, "no-extension.csv": 0}[name]
    taken = {row["matter"]: row["images"] for row in record["taken"]}
    assert taken.get("File", 0) == by_content
    assert json.loads((tmp_path / "s" / "split.json").read_text())["taken"] == record["taken"]
