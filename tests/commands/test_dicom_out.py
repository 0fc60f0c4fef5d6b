"""`chestx predict --dicom-out`: a report and a picture for an archive, of the film's patient and study."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import EnhancedSRStorage, SecondaryCaptureImageStorage

from conftest import Chestx
from tools.reliability.dicom_matrix import dicom, stretched

FILM = np.random.default_rng(4).integers(0, 4096, (300, 260)).astype(np.uint16)
PATIENT: dict[str, Any] = {
    "PatientName": "Sample^Anna",
    "PatientID": "H-4711",
    "PatientBirthDate": "19700102",
    "PatientSex": "F",
    "StudyInstanceUID": "1.2.3.4",
    "SeriesInstanceUID": "1.2.3.4.5",
    "SOPInstanceUID": "1.2.3.4.5.6",
    "AccessionNumber": "A1",
    "InstanceNumber": 3,
}
PLAIN: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "Modality": "DX", **PATIENT}


@pytest.fixture(scope="module")
def study(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study with variants; tests must not change it."""
    copied = tmp_path_factory.mktemp("archiving") / "study"
    shutil.copytree(finished, copied, copy_function=os.link)
    return copied


def content_items(dataset: Dataset) -> list[Dataset]:
    """Return all content items of a report, each before those below it."""
    items = []
    for item in dataset.get("ContentSequence", []):
        items += [item, *content_items(item)]
    return items


def written(folder: Path) -> tuple[Dataset, Dataset]:
    """Return the one report and the one picture in a folder."""
    (report,), (picture,) = (list(folder.glob(f"{kind}.*.dcm")) for kind in ("SR", "SC"))
    return dcmread(report), dcmread(picture)


def test_a_report_and_a_picture_are_filed_with_the_film(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    film, out = tmp_path / "film", tmp_path / "out"
    film.write_bytes(dicom(FILM, **PLAIN, BodyPartExamined="HAND"))
    words = ("predict", film, "--study", study, "--variant", "baseline", "--dicom-out", out, "--json")
    outcome = chestx(*words)
    assert outcome.code == 0, outcome.err
    (row,) = outcome.json()["rows"]
    report, picture = written(out)
    assert (report.SOPClassUID, picture.SOPClassUID) == (EnhancedSRStorage, SecondaryCaptureImageStorage)
    for made in (report, picture):
        for name in PATIENT.keys() - {"SeriesInstanceUID", "SOPInstanceUID"}:
            assert made[name].value == PATIENT[name], name
        assert made.SeriesInstanceUID != PATIENT["SeriesInstanceUID"]
        assert made.SeriesDescription == "chestx: Research only, not for clinical use"
    items = content_items(report)
    named = {one.ConceptNameCodeSequence[0].CodeMeaning: one for one in items if "ConceptNameCodeSequence" in one}
    assert report.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurement Report"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    states = (report.CompletionFlag, report.PreliminaryFlag, report.VerificationFlag)
    assert states == ("COMPLETE", "PRELIMINARY", "UNVERIFIED")
    number = named["Probability of PNEUMONIA"].MeasuredValueSequence[0].NumericValue
    assert float(number) == pytest.approx(row["probability"]["PNEUMONIA"], abs=1e-6)
    stated = {name: one.ConceptCodeSequence[0].CodeMeaning for name, one in named.items() if one.ValueType == "CODE"}
    assert stated["Decision at the threshold"] == row["decision"]
    assert stated["Intended use"] == "Research only, not for clinical use"
    reasons = [
        one.ConceptCodeSequence[0].CodeMeaning
        for one in items
        if one.ValueType == "CODE" and one.ConceptNameCodeSequence[0].CodeMeaning.startswith("Reason not to trust")
    ]
    assert "doubt: DICOM whose BodyPartExamined is not the chest" in reasons
    # The models of tests know no film like this one.
    assert any(reason.startswith("doubt: unlike the training images (") for reason in reasons)
    referenced = next(one for one in items if one.ValueType == "IMAGE")
    for reference in (referenced.ReferencedSOPSequence[0], picture.SourceImageSequence[0]):
        assert reference.ReferencedSOPInstanceUID == PATIENT["SOPInstanceUID"]
    # Nothing of the film is covered, and above it stands something.
    assert np.array_equal(picture.pixel_array[-300:], stretched(FILM, FILM.min(), FILM.max()))
    assert (picture.pixel_array[:-300] > 200).any()
    assert row["decision"] in picture.ImageComments
    (note,) = [note for note in outcome.json()["notes"] if "DICOM results" in note]
    assert "identify the patient" in note
    before = sorted(path.name for path in out.iterdir())
    assert chestx(*words).code == 0
    assert sorted(path.name for path in out.iterdir()) == before


def test_images_without_results_are_counted_by_reason(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    Image.fromarray((FILM // 16).astype(np.uint8)).save(films / "a.png")
    anonymous = {name: value for name, value in PLAIN.items() if name != "StudyInstanceUID"}
    (films / "b").write_bytes(dicom(FILM, **anonymous))
    odd = {"PatientID": None, "PatientSex": "X", "SpecificCharacterSet": "ISO_IR 100", "PatientName": "Ä^B"}
    (films / "c").write_bytes(dicom(FILM, **{**PLAIN, **odd}))
    (films / "d").write_bytes(dicom(FILM, **PLAIN, ViewPosition="LL"))
    words = ("--study", study, "--variant", "baseline", "--json")
    outcome = chestx("predict", films, *words, "--dicom-out", out, "--csv", tmp_path / "p.csv")
    assert outcome.code == 1
    notes = outcome.json()["notes"]
    assert "Without DICOM results: 1 × not DICOM, 1 × it lacks StudyInstanceUID, 1 × cannot be read." in notes
    for made in written(out):
        assert (made.PatientID or "", made.PatientSex or "", str(made.PatientName)) == ("", "", "Ä^B")
    inside = chestx("predict", films, *words, "--dicom-out", films / "out")
    assert inside.code == 2
    assert "lies among the images" in " ".join(inside.err.split())


def test_what_must_be_installed_is_named(
    chestx: Chestx, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    outcome = chestx("predict", "film", "--study", study, "--variant", "baseline", "--dicom-out", tmp_path / "out")
    assert outcome.code == 2
    assert "pip install 'chestx-cli[dicom-out]'" in outcome.err
