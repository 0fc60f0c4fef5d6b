"""`chestx split` as a gate: sources of patients, DICOM, folds, and manifests whose images are not opened."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chestx_cli.core.errors import DataError
from chestx_cli.data.folds import draw_folds
from chestx_cli.data.images.decoding import decode_grey
from chestx_cli.data.images.formats.dicom import read_dicom
from chestx_cli.data.images.formats.refusals import UnreadableImageError
from chestx_cli.data.overlap import study_keys
from chestx_cli.data.synthetic.sets import write_synthetic_set
from chestx_cli.store.directory import Study
from conftest import TINY, Chestx, tree, write_images
from support.dicom_files import write_dicom

RAMP = np.arange(0, 4000, 10, dtype=np.uint16).reshape(20, 20)


def test_dicom_values_are_shown_as_the_standard_says(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"

    def grey(stored: np.ndarray = RAMP, **elements: Any) -> np.ndarray:
        return np.asarray(decode_grey(write_dicom(path, stored, **elements))[0]).astype(int)

    plain = grey()
    assert (plain.min(), plain.max(), plain[10, 0]) == (0, 255, 128)
    assert (grey(PhotometricInterpretation="MONOCHROME1") == 255 - plain).all()
    windowed = grey(WindowCenter=1000, WindowWidth=201)
    assert (windowed[RAMP < 890] == 0).all()
    assert (windowed[RAMP > 1110] == 255).all()
    assert abs(windowed[RAMP == 1000][0] - 128) <= 1
    # The window is in units of the modality: rescaled values, not stored ones.
    rescaled = grey(WindowCenter=0, WindowWidth=201, RescaleSlope=1, RescaleIntercept=-1000)
    assert abs(rescaled - windowed).max() <= 1
    signed = grey(RAMP.astype(np.int16) - 2000)
    assert (signed == plain).all()
    padded = RAMP.copy()
    padded[0, 0] = 65000
    assert grey(padded, PixelPaddingValue=65000)[10, 0] in (127, 128)
    facts = decode_grey(path)[1]
    assert (facts.file_type, facts.mode) == ("DICOM", "MONOCHROME2 16 bit")


def test_dicom_files_that_hold_no_image_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, said in ((b"no DICOM at all", "not a DICOM file"), (b"\0" * 128 + b"DICM", "has no image")):
        with pytest.raises(UnreadableImageError, match=said):
            read_dicom(content)
    path = write_dicom(tmp_path / "a.dcm", RAMP, NumberOfFrames=2)
    with pytest.raises(UnreadableImageError, match="several-images: 2 frames"):
        read_dicom(path.read_bytes())
    monkeypatch.setattr("chestx_cli.data.images.formats.refusals.MAX_PIXELS", 100)
    with pytest.raises(UnreadableImageError, match="too-large"):
        read_dicom(write_dicom(path, RAMP).read_bytes())


def test_patients_come_from_a_table_then_dicom_then_names(chestx: Chestx, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    for index, label in enumerate(("NORMAL", "PNEUMONIA") * 6):
        path = next(path for path in sorted((data / label).glob("*.png")))
        stored = np.asarray(Image.open(path)).astype(np.uint16)
        path.unlink()
        write_dicom(path.with_suffix(".dcm"), stored, patient=f"P{index // 4}" if index < 8 else "")
    table = tmp_path / "groups.csv"
    first = sorted((data / "NORMAL").glob("*.dcm"))[0]
    pd.DataFrame([(f"NORMAL/{first.name}", "mine"), ("NORMAL/elsewhere.png", "x")], columns=["path", "group"]).to_csv(
        table, index=False
    )
    words = ("split", data, "--study", tmp_path / "s", "--groups", table)
    record = chestx(*words, "--json").json()
    rules = {row["rule"]: row["images"] for row in record["group_rules"]}
    assert rules["--groups"] == 1
    assert rules["DICOM PatientID"] == 7
    made = pd.read_csv(tmp_path / "s" / "split.csv").set_index("path")
    assert made.loc[f"NORMAL/{first.name}", "patient_from"] == "'--groups"
    told = made[made["patient_from"] == "DICOM PatientID"]
    assert (len(told), told["patient"].nunique()) == (7, 2)
    assert "mine" not in (tmp_path / "s" / "split.csv").read_text()
    study = Study(tmp_path / "s")
    # Told again for other images: by names and DICOM files, not by a table that is gone.
    keys = study_keys(study, study.read_split())
    assert keys.count(None) == 1
    assert sorted(key for key in keys if key and key.startswith("dicom-")) == ["dicom-P0"] * 3 + ["dicom-P1"] * 4
    assert {row["label"]: row["file_types"] for row in record["audit"]["formats"]}["NORMAL"].startswith("PNG")
    assert "already done" in chestx(*words).err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("path,patient\na.png,1\n", "lacks the column"),
        ("path,group\nNORMAL/nobody.png,1\n", "none of the images"),
        ("path,group\na.png,\n", "no group in line 2"),
        ("path,group\na.png,1\na.png,2\n", "twice"),
    ],
)
def test_tables_that_tell_no_patients_are_refused(
    chestx: Chestx, data: Path, tmp_path: Path, content: str, said: str
) -> None:
    table = tmp_path / "groups.csv"
    table.write_text(content)
    outcome = chestx("split", data, "--study", tmp_path / "s", "--groups", table)
    assert (outcome.code, said in outcome.err) == (1, True), outcome.err


def test_strict_groups_take_the_number_alone(chestx: Chestx, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    for path in sorted((data / "PNEUMONIA").iterdir())[::2]:
        path.rename(path.with_name(path.name.replace("virus", "bacteria")))
    found = {}
    for study, more in (("loose", ()), ("strict", ("--strict-groups",))):
        outcome = chestx("split", data, "--study", tmp_path / study, "--json", *more)
        found[study] = outcome.json()
    for record in found.values():
        audit = record["audit"]
        assert audit["paediatric_patients"] > audit["paediatric_numbers"]
    assert found["loose"]["patients"] == found["loose"]["audit"]["paediatric_patients"]
    assert found["strict"]["patients"] == found["strict"]["audit"]["paediatric_numbers"]
    shown = chestx("split", data, "--study", tmp_path / "loose", "--force", "--full").out
    assert "Paediatric patients by number alone" in shown


def test_a_class_told_by_its_files_is_a_warning(chestx: Chestx, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    record = chestx("split", data, "--study", tmp_path / "a", "--json").json()
    assert record["audit"]["format_auroc"] == pytest.approx(0.5, abs=0.1)
    for path in (data / "PNEUMONIA").iterdir():
        Image.open(path).convert("RGB").save(path)
    outcome = chestx("split", data, "--study", tmp_path / "b", "--full")
    assert "File properties alone predict the class" in outcome.out
    assert "AUROC 1.000 from image size, aspect, mode and file type" in outcome.out
    assert "RGB" in outcome.out


def test_folds_are_complete_studies_that_test_every_image_once(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    study = tmp_path / "s"
    outcome = chestx("split", data, "--study", study, "--folds", 3, "--json", "--image-size", 32)
    record = outcome.json()
    assert record["schema"] == "chestx.folds/4"
    assert [row["study"] for row in record["rows"]] == ["fold-1", "fold-2", "fold-3"]
    tables = [pd.read_csv(study / f"fold-{number}" / "split.csv") for number in (1, 2, 3)]
    tested = pd.concat([table[table["split"] == "test"] for table in tables])
    assert sorted(tested["path"]) == sorted(tables[0]["path"])
    for table, row in zip(tables, record["rows"], strict=True):
        assert table.groupby("group")["split"].nunique().max() == 1
        assert row["val_images"] == pytest.approx(0.15 * 60, abs=2)
        assert row["test_images"] == pytest.approx(20, abs=2)
        assert row["test_positive"] == pytest.approx(28 / 60, abs=0.06)
    cache = sorted(path.name for path in (study / "cache").glob("pixels-*.npy"))
    assert len(cache) == 1
    assert chestx("train", "--study", study / "fold-2", *TINY, "--epochs", 1).code == 0
    assert chestx("evaluate", "--study", study / "fold-2").code == 0
    assert sorted(path.name for path in (study / "cache").glob("pixels-*.npy")) == cache
    assert not (study / "fold-2" / "cache").exists()
    before = tree(study)
    again = chestx("split", data, "--study", study, "--folds", 3)
    assert (again.code, "already done" in again.err) == (0, True)
    assert tree(study) == before
    assert "was divided into folds" in chestx("split", data, "--study", study).err
    assert "--study" in chestx("train", "--study", study, *TINY).err
    assert "fold-3/ is left of" in chestx("split", data, "--study", study, "--folds", 2, "--force").err
    assert "folds: 3 -> 4" in chestx("split", data, "--study", study, "--folds", 4).err


def test_folds_need_patients_and_something_to_train_on(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    outcome = chestx("split", data, "--study", tmp_path / "s", "--folds", 50)
    assert (outcome.code, "cannot fill 50 folds" in outcome.err) == (1, True)
    assert chestx("split", data, "--study", tmp_path / "s", "--folds", 2, "--ratios", "40/50/10").code == 2
    assert not (tmp_path / "s").exists()


def test_the_best_of_several_draws_of_folds_is_taken() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), rng.integers(1, 12, 60))
    labels = (groups % 2).astype(np.int64)
    folds = draw_folds(labels, groups, 5, rng)
    for label in (0, 1):
        shares = np.bincount(folds[labels == label], minlength=5) / (labels == label).sum()
        assert shares == pytest.approx([0.2] * 5, abs=0.03)
    with pytest.raises(DataError):
        draw_folds(labels, groups, 31, rng)


def manifest_of(data: Path, manifest: Path) -> pd.DataFrame:
    files = sorted(data.rglob("*.png"))
    table = pd.DataFrame(
        {
            "path": [path.as_posix() for path in files],
            "label": [path.parent.name for path in files],
            "group": [f"p{index // 2}" for index in range(len(files))],
            "sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
        }
    )
    table.to_csv(manifest, index=False)
    return table


def test_unread_images_are_checked_when_they_are_decoded(chestx: Chestx, tmp_path: Path) -> None:
    data, manifest, study = write_images(tmp_path / "data"), tmp_path / "m.csv", tmp_path / "s"
    table = manifest_of(data, manifest)
    hidden = tmp_path / "elsewhere"
    data.rename(hidden)
    record = chestx("split", manifest, "--unread", "--study", study, "--json").json()
    assert record["audit"]["stamps"] == ["UNREAD"]
    assert not list((study / "cache").glob("*.npy"))
    hidden.rename(data)
    assert chestx("train", "--study", study, *TINY, "--epochs", 1).code == 0
    assert any("UNREAD" in note for note in chestx("evaluate", "--study", study, "--json").json()["notes"])
    changed = Path(table["path"][3])
    Image.open(table["path"][4]).save(changed)
    outcome = chestx("train", "--study", study, *TINY, "--epochs", 1, "--image-size", "40", "--force")
    assert (outcome.code, "has changed since the split" in outcome.err) == (1, True)
    wrong = chestx("split", manifest, "--study", tmp_path / "t")
    assert (wrong.code, "its sha256 differs from the manifest's" in wrong.err) == (1, True)
    table.drop(columns="sha256").to_csv(manifest, index=False)
    assert chestx("split", manifest, "--unread", "--study", tmp_path / "u").code == 2


def test_unread_manifests_with_two_labels_for_a_file_are_refused(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    table = manifest_of(data, tmp_path / "m.csv")
    table.loc[0, "sha256"] = table["sha256"].iloc[-1]
    table.to_csv(tmp_path / "m.csv", index=False)
    outcome = chestx("split", tmp_path / "m.csv", "--unread", "--study", tmp_path / "s")
    assert (outcome.code, "under two labels" in outcome.err) == (1, True)
    table.loc[0, "sha256"] = "1234"
    table.to_csv(tmp_path / "m.csv", index=False)
    assert "no sha256 in line 2" in chestx("split", tmp_path / "m.csv", "--unread", "--study", tmp_path / "s").err


def test_the_demonstration_passes_the_gate(chestx: Chestx, tmp_path: Path) -> None:
    write_synthetic_set(tmp_path / "data", images=60, seed=1, size_px=64)
    record = chestx("split", tmp_path / "data", "--study", tmp_path / "s", "--json").json()
    assert record["audit"]["stamps"] == []
    assert record["audit"]["matched_share"] == 1
    assert Study(tmp_path / "s").duplicates_csv.exists()
