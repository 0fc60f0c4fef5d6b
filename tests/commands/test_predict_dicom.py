"""`chestx predict` of clinical DICOM: media with a DICOMDIR, nested studies, lateral views, duplicates."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.fileset import FileSet

import chestx_cli
from conftest import Chestx
from tools.reliability.dicom_matrix import dicom

PLAIN: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "Modality": "DX"}


@pytest.fixture(scope="module")
def study(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study with variants; tests must not change it."""
    copied = tmp_path_factory.mktemp("predicting-dicom") / "study"
    shutil.copytree(finished, copied, copy_function=os.link)
    return copied


def film(seed: int) -> np.ndarray:
    """Return a picture of 12 bits."""
    return np.random.default_rng(seed).integers(0, 4096, (64, 48)).astype(np.uint16)


def write_film(path: Path, seed: int = 0, **elements: Any) -> Path:
    """Write a film of a patient, with the elements that a directory of a medium needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    identity = {
        "PatientID": f"P{seed}",
        "PatientName": f"Sample^{seed}",
        "StudyInstanceUID": f"1.2.3.{seed}",
        "SeriesInstanceUID": f"1.2.3.{seed}.1",
        "SOPInstanceUID": f"1.2.3.{seed}.1.1",
        "StudyDate": "20200101",
        "StudyTime": "120000",
        "StudyID": "1",
        "SeriesNumber": 1,
        "InstanceNumber": 1,
    }
    path.write_bytes(dicom(film(seed), **{**PLAIN, **identity, **elements}))
    return path


def probabilities(record: dict[str, Any]) -> list[float | None]:
    """Return the probability of each row."""
    return [next(iter(row["probability"].values())) for row in record["rows"]]


@pytest.fixture
def medium(tmp_path: Path) -> Path:
    """Return the folder of a medium: a DICOMDIR and three films in folders of patients, studies and series."""
    files = FileSet()
    for seed in range(3):
        files.add(dcmread(write_film(tmp_path / "from" / f"{seed}", seed)))
    files.write(tmp_path / "medium")
    return tmp_path / "medium"


def test_a_dicomdir_names_its_images(chestx: Chestx, study: Path, medium: Path) -> None:
    words = ("--study", study, "--variant", "baseline", "--show-paths", "--json")
    by_directory = chestx("predict", medium / "DICOMDIR", *words)
    assert by_directory.code == 0, by_directory.err
    by_folder = chestx("predict", medium, *words).json()
    assert probabilities(by_directory.json()) == probabilities(by_folder)
    assert [row["path"] for row in by_directory.json()["rows"]] == [row["path"] for row in by_folder["rows"]]
    assert by_folder["images"] == 3
    assert "Left out of folders: 1 × DICOM without an image." in by_folder["notes"]


def test_a_dicomdir_in_upper_case_finds_files_in_lower_case(chestx: Chestx, study: Path, medium: Path) -> None:
    for path in sorted(medium.rglob("*"), reverse=True):
        if path.name != "DICOMDIR":
            path.rename(path.with_name(path.name.lower()))
    outcome = chestx("predict", medium / "DICOMDIR", "--study", study, "--variant", "baseline", "--json")
    assert (outcome.code, outcome.json()["images"]) == (0, 3)


def test_an_image_that_a_dicomdir_lists_and_that_is_gone_is_a_row(chestx: Chestx, study: Path, medium: Path) -> None:
    gone = next(path for path in sorted(medium.rglob("*")) if path.is_file() and path.name != "DICOMDIR")
    gone.unlink()
    outcome = chestx("predict", medium / "DICOMDIR", "--study", study, "--variant", "baseline", "--json")
    assert outcome.code == 1
    problems = [row["problem"] and row["problem"].partition(":")[0] for row in outcome.json()["rows"]]
    assert sorted(problems, key=str) == [None, None, "missing"]


def test_a_dicomdir_leads_nowhere_else(chestx: Chestx, study: Path, medium: Path) -> None:
    directory = dcmread(medium / "DICOMDIR")
    for record in directory.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            record.ReferencedFileID = ["..", "from", "0"]
    directory.save_as(medium / "OTHER")
    outcome = chestx("predict", medium / "OTHER", "--study", study, "--variant", "baseline")
    assert outcome.code == 1
    assert "lists files that lie outside of its folder" in outcome.err
    for record in directory.DirectoryRecordSequence:
        record.DirectoryRecordType = "RT DOSE"
    directory.save_as(medium / "OTHER")
    assert "lists no images" in chestx("predict", medium / "OTHER", "--study", study, "--variant", "baseline").err


def test_lateral_views_are_rows_with_their_reason_unless_allowed(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    write_film(tmp_path / "films" / "st1" / "se1" / "a", 1)
    write_film(tmp_path / "films" / "st1" / "se2" / "b", 1, ViewPosition="LL")
    words = ("predict", tmp_path / "films", "--study", study, "--variant", "baseline", "--json")
    outcome = chestx(*words)
    assert outcome.code == 1
    problems = [row["problem"] for row in outcome.json()["rows"]]
    assert problems == [None, "lateral: a lateral view, by its ViewPosition; --allow-lateral takes such images"]
    allowed = chestx(*words, "--allow-lateral")
    assert allowed.code == 0
    doubt = "doubt: DICOM of a lateral view, by --allow-lateral"
    assert [row["doubts"] for row in allowed.json()["rows"]] == [None, doubt]


def test_python_takes_lateral_views_where_the_command_does(study: Path, tmp_path: Path) -> None:
    lateral = write_film(tmp_path / "film", ViewPosition="LL")
    model = chestx_cli.open_study(study).variant("baseline")
    (refused,) = model.predict(lateral).rows
    assert (refused.problem or "").startswith("lateral: ")
    record = model.predict(lateral, allow_lateral=True)
    (taken,) = record.rows
    assert taken.decision is not None
    assert "lateral view" in (taken.doubts or "")
    assert record.preprocessing.lateral is True
    # For this call alone.
    assert model.predict(lateral).rows[0].problem == refused.problem


def test_doubts_are_in_the_notes_in_json_and_in_csv(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    films = tmp_path / "films"
    write_film(films / "a", 1, BodyPartExamined="HAND", Modality="OT")
    write_film(films / "b", 2, BodyPartExamined="CHEST")
    words = ("predict", films, "--study", study, "--variant", "baseline", "--csv", tmp_path / "p.csv")
    doubts = "doubt: DICOM whose Modality is not CR, DX or RG; doubt: DICOM whose BodyPartExamined is not the chest"
    for _ in range(2):
        record = chestx(*words, "--json").json()
        assert [row["doubts"] for row in record["rows"]] == [doubts, None]
        assert f"1 × {doubts}." in record["notes"]
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["doubts"] for row in rows] == [doubts, ""]


def test_a_monochrome1_twin_predicts_as_its_monochrome2(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    # Steps of one grey, so that no rounding differs between the two.
    values = np.random.default_rng(3).integers(0, 256, (64, 48)).astype(np.uint16)
    values[0, :2] = 0, 255
    inverse: dict[str, Any] = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}
    (tmp_path / "plain").write_bytes(dicom(values, **PLAIN))
    (tmp_path / "twin").write_bytes(dicom(255 - values, **PLAIN, **inverse))
    words = ("--study", study, "--variant", "baseline", "--json")
    record = chestx("predict", tmp_path / "plain", tmp_path / "twin", *words).json()
    plain, twin = probabilities(record)
    assert plain is not None
    assert twin == plain
