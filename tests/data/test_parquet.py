"""Manifests in Parquet: read like the same table in CSV, with the same checks and helpful errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from chestx_cli.core.errors import DataError
from chestx_cli.data.sources.listing import Listing, find_images
from chestx_cli.data.sources.manifest_files import Wish
from conftest import IMAGE_SIZE_PX, Chestx

ROWS = {"path": ["a.png", "b.png", "c.png"], "label": ["NORMAL", "NORMAL", "PNEUMONIA"], "group": ["1", "2", "3"]}


def read(path: Path) -> Listing:
    return find_images(path, leave_out=path.parent / "study", wish=Wish())


def test_without_pyarrow_the_package_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError) as refused:
        read(tmp_path / "m.parquet")
    assert "is not installed" in refused.value.fact
    assert 'pip install "chestx-cli[parquet]"' in refused.value.remedy


def test_parquet_is_read_as_the_same_table_in_csv(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    table = pd.DataFrame(ROWS)
    table.to_csv(tmp_path / "m.csv", index=False)
    # Numbers, some missing in a column that is not known, categories, and lists that no CSV file has.
    columns: dict[str, Any] = {"group": [1, 2, 3], "age": [1.5, None, 3], "more": [[1], [], []]}
    typed = table.assign(label=table["label"].astype("category"), **columns)
    typed.to_parquet(tmp_path / "m.parquet")
    csv, parquet = (read(tmp_path / f"m.{ending}") for ending in ("csv", "parquet"))
    assert parquet.layout == "Parquet manifest"
    for name in ("paths", "labels", "groups", "parts", "sha256", "taken"):
        assert getattr(csv, name) == getattr(parquet, name), name


def test_whole_numbers_with_gaps_stay_whole(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pd.DataFrame({**ROWS, "group": [1.0, 2.0, 3.0]}).to_parquet(tmp_path / "m.parquet")
    assert read(tmp_path / "m.parquet").groups == ("1", "2", "3")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({**ROWS, "label": ["NORMAL", None, "PNEUMONIA"]}, "has no label in row 2"),
        ({**ROWS, "path": ["a.png", "b.png", "a.png"]}, "lists a.png twice (rows 1 and 3)"),
        ({**ROWS, "split": ["train", "test", "other"]}, "has the split 'other' in row 3"),
        ({**ROWS, "sha256": ["0" * 64, "1" * 64, "2"]}, "has no sha256 in row 3"),
        ({"path": ROWS["path"]}, "lacks the column label"),
    ],
)
def test_the_checks_of_manifests_hold_and_name_the_row(table: dict[str, object], says: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pd.DataFrame(table).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(DataError) as refused:
        read(tmp_path / "m.parquet")
    assert says in refused.value.fact


@pytest.mark.parametrize("content", [b"", b"path,label\na.png,X\n", b"PAR1" + bytes(100) + b"PAR1"])
def test_what_is_no_parquet_file_is_refused(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "m.parquet").write_bytes(content)
    with pytest.raises(DataError, match="it is no Parquet file, or damaged"):
        read(tmp_path / "m.parquet")


def test_patients_and_images_come_from_parquet(data: Path, chestx: Chestx, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    files = sorted(data.rglob("*.png"))
    paths = [file.relative_to(data).as_posix() for file in files]
    patients = [number // 2 for number in range(len(files))]
    pd.DataFrame({"path": paths, "group": patients}).to_parquet(tmp_path / "patients.parquet")
    words = ("--image-size", IMAGE_SIZE_PX, "--groups", tmp_path / "patients.parquet")
    assert chestx("split", data, "--study", tmp_path / "study", *words).code == 0
    split = pd.read_csv(tmp_path / "study" / "split.csv")
    assert split.groupby("patient")["path"].agg(set).map(len).eq(2).all()
