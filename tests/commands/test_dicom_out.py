"""`chestx predict --dicom-out`: a report and a picture for an archive, with the patient and study of the image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import EnhancedSRStorage, SecondaryCaptureImageStorage

from chestx_cli.core.command import Run
from chestx_cli.core.progress import SilentReporter
from chestx_cli.inference.pacs.results import archive_results
from chestx_cli.inference.predictor import predictor_of_variant
from chestx_cli.records.prediction import PredictionRow
from chestx_cli.store.directory import Study
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


def texts_of(report: Dataset) -> dict[str, list[str]]:
    """Return the texts of a report by what they are."""
    texts: dict[str, list[str]] = {}
    for item in content_items(report):
        if item.ValueType == "TEXT":
            texts.setdefault(item.ConceptNameCodeSequence[0].CodeMeaning, []).append(item.TextValue)
    return texts


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
    reasons = texts_of(report)["Reason not to trust the prediction"]
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


def test_long_names_and_doubts_are_in_the_report_as_they_are(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    film, out = tmp_path / "film", tmp_path / "out"
    film.write_bytes(dicom(FILM, **PLAIN))
    run = Run(line="", command="", options={}, reporter=SilentReporter())
    predictor = predictor_of_variant(run, Study(study), Study(study).read_variant("baseline"))
    label = "肺炎 " + "with a name of more letters than the meaning of a code may have " * 2
    signs = "colour, shape, size, greys, layout, inverted, and as many more as there may ever be"
    row = PredictionRow(
        image_id="image-000000",
        path="film",
        probability={label: 0.75},
        decision=label,
        distance_to_threshold=0.25,
        unlike_training=signs,
        problem=None,
    )
    results = archive_results(out, replace(predictor, classes=("NORMAL", label), positive=label))
    results.add(row, film, None)
    report, picture = written(out)
    texts = texts_of(report)
    assert texts["Reason not to trust the prediction"] == [f"doubt: unlike the training images ({signs})"]
    assert (texts["Positive class"], texts["Class called"]) == ([label.strip()], [label.strip()])
    meanings = [item.ConceptNameCodeSequence[0].CodeMeaning for item in content_items(report)]
    assert all(len(meaning) <= 64 for meaning in meanings)
    assert any(meaning.startswith("Probability of 肺炎 with") and meaning.endswith("…") for meaning in meanings)
    assert label.strip() in picture.ImageComments


def test_the_picture_shows_the_heatmap_where_both_are_asked_for(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    pytest.importorskip("captum")
    film, out, maps = tmp_path / "film", tmp_path / "out", tmp_path / "maps"
    film.write_bytes(dicom(FILM, **PLAIN))
    words = ("predict", film, "--study", study, "--variant", "baseline", "--dicom-out", out)
    assert chestx(*words).code == 0
    (plain,) = out.glob("SC.*.dcm")
    assert chestx(*words, "--heatmap", maps).code == 0
    # Another picture has another identifier; the report is the same.
    assert len(list(out.glob("SR.*.dcm"))) == 1
    (with_heatmap,) = set(out.glob("SC.*.dcm")) - {plain}
    picture = dcmread(with_heatmap)
    assert (picture.PhotometricInterpretation, picture.Columns) == ("RGB", 2 * FILM.shape[1])
    pixels = picture.pixel_array[-FILM.shape[0] :]
    left, right = pixels[:, : FILM.shape[1]], pixels[:, FILM.shape[1] :]
    assert np.array_equal(left, np.repeat(stretched(FILM, FILM.min(), FILM.max())[:, :, None], 3, axis=2))
    with Image.open(next(maps.iterdir())) as drawn:
        overlay = np.asarray(drawn.convert("RGB"))[:448, 448:]
    assert np.ptp(overlay, axis=2).max() > 0
    assert np.ptp(right, axis=2).max() > 0
    assert "heatmap" in picture.DerivationDescription


def test_results_that_an_earlier_run_was_not_asked_for_are_written(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    for number in range(3):
        one = {**PLAIN, "SOPInstanceUID": f"1.2.3.4.5.{number}"}
        (films / f"{number}").write_bytes(dicom(FILM + number, **one))
    words = ("predict", films, "--study", study, "--variant", "baseline", "--csv", tmp_path / "p.csv", "--json")
    assert chestx(*words).code == 0
    outcome = chestx(*words, "--dicom-out", out)
    assert outcome.code == 0
    assert outcome.json()["resumed"] == 3
    names = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert len(names) == 6
    assert any(note.startswith("out/ contains the DICOM results of 3 images") for note in outcome.json()["notes"])
    # They are those that one run would have written, and are not written again.
    gone = sorted(out.iterdir())[0]
    gone.unlink()
    outcome = chestx(*words, "--dicom-out", out)
    assert any(note.startswith("out/ contains the DICOM results of 3 images") for note in outcome.json()["notes"])
    assert {path.name for path in out.iterdir()} == names.keys()
    assert sum(path.stat().st_mtime_ns == names[path.name] for path in out.iterdir()) == 4


@pytest.mark.parametrize("flag", ["--dicom-out", "--heatmap"])
@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_where_a_folder_is_needed_is_named_with_its_option(
    chestx: Chestx, study: Path, tmp_path: Path, flag: str, below: str
) -> None:
    film, taken = tmp_path / "film", tmp_path / "taken"
    film.write_bytes(dicom(FILM, **PLAIN))
    taken.write_text("precious")
    outcome = chestx("predict", film, "--study", study, "--variant", "baseline", flag, taken / below)
    assert outcome.code == 2
    said = " ".join(outcome.err.split())
    assert "where a folder is needed" in said
    assert f"name a folder with {flag}" in said
    assert "--study" not in said
    assert taken.read_text() == "precious"


def test_no_output_of_the_command_names_the_patient(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    # Names and numbers that libraries warn of, and that are valid: too long, in another form, of other letters.
    odd: list[dict[str, Any]] = [
        {},
        {"PatientName": "Sample Anna"},
        {"PatientName": "SAMPLE^" + "ANNA" * 30, "PatientID": "H-4711" * 20},
        {"PatientBirthDate": "1970.01.02"},
        {"PatientBirthDate": "SAMPLE", "PatientID": "H-4711\\ANNA"},
        {"StudyDate": "SAMPLE", "AccessionNumber": "ANNA" * 10},
        {"PatientSex": "SAMPLE", "ViewPosition": "LL"},
    ]
    for number, elements in enumerate(odd):
        one = {**PLAIN, "SOPInstanceUID": f"1.2.3.4.5.{number}", **elements}
        (films / f"{number}").write_bytes(dicom(FILM, **one))
    # As it is typed: in this process pytest would catch warnings.
    line = [sys.executable, "-m", "chestx_cli", "predict", films, "--study", study, "--variant", "baseline"]
    done = subprocess.run([*map(str, line), "--dicom-out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DICOM results of" in done.stdout + done.stderr
    for secret in ("sample", "anna", "h-4711", "19700102", "1970.01.02"):
        assert secret not in (done.stdout + done.stderr).lower(), secret


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
