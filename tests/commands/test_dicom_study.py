"""A study of DICOM images: window and lateral views are chosen once and apply everywhere; no output names a patient."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chestx_cli.store.directory import Study
from conftest import Chestx, tree, write_images
from support.bundle_script import run_script
from tools.reliability.dicom_matrix import dicom

TINY = ("--backbone", "tiny", "--weights", "none", "--epochs", 1, "--image-size", 32)
MARKER = "Zyzzyva"
# Elements that identify a patient, or hold free text, which may.
IDENTIFYING: dict[str, Any] = {
    **dict.fromkeys(("PatientName", "ReferringPhysicianName", "OperatorsName"), f"{MARKER}^Anna"),
    **dict.fromkeys(("AccessionNumber", "StudyID"), MARKER),
    **dict.fromkeys(
        ("InstitutionName", "StudyDescription", "SeriesDescription", "ImageComments"), f"{MARKER} hospital"
    ),
    **dict.fromkeys(("PatientAddress", "PatientComments", "StationName", "DeviceSerialNumber"), MARKER),
    "BodyPartExamined": MARKER.upper(),
    "WindowCenterWidthExplanation": ("LO", ["NORMAL", MARKER]),
    "LUTExplanation": f"{MARKER} table",
}
WINDOWS: dict[str, Any] = {"WindowCenter": ("DS", ["900", "2047.5"]), "WindowWidth": ("DS", ["300", "4096"])}


def write_films(folder: Path, *, first: int = 0) -> Path:
    """Write DICOM images of two classes without suffix; one image of each class is marked as lateral."""
    for index, path in enumerate(sorted(write_images(folder, first=first).rglob("*.png"))):
        values = np.asarray(Image.open(path)).astype(np.uint16) * 16
        lateral = {"ViewPosition": "LL"} if index % 30 == 7 else {"ViewPosition": "PA"}
        identity = {**IDENTIFYING, **WINDOWS, **lateral, "PatientID": f"{MARKER}{first + index:04d}"}
        content = dicom(values, BitsStored=12, HighBit=11, Modality="DX", **identity)
        path.with_name(f"film{first + index}").write_bytes(content)
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def said_and_made(chestx: Chestx, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run a study of DICOM films; return what each command wrote to the terminal, and where the files are."""
    place = tmp_path_factory.mktemp("dicom-study")
    data, other, study = write_films(place / "data"), write_films(place / "other", first=5000), place / "study"
    said: dict[str, str] = {}

    def run(name: str, *words: object, code: int = 0) -> None:
        outcome = chestx(*words, "--study", study)
        assert outcome.code == code, (name, outcome.err)
        said[name] = outcome.out + outcome.err

    run("refused", "split", data, code=1)
    run("other window", "split", data, "--window", "HARDER", "--allow-lateral", code=1)
    run("split", "split", data, "--window", 2, "--allow-lateral", "--image-size", 48, "--json")
    run("train", "train", data, *TINY)
    run("predict a class", "predict", other / "NORMAL", "--variant", "baseline", "--json")
    run("evaluate", "evaluate", "--data", other, "--name", "external", "--json")
    run("evaluate test", "evaluate")
    run("predict", "predict", other, "--json")
    run("predict csv", "predict", other, "--csv", place / "p.csv", "--full")
    run("report", "report", "--json")
    run("export", "export", "baseline", "--out", place / "bundle")
    run("status", "status", "--full")
    done = run_script(place / "bundle", "predict", other)
    assert done.returncode == 0
    said["bundle predict"] = done.stdout + done.stderr
    said["p.csv"] = (place / "p.csv").read_text()
    said["place"] = str(place)
    return said


def test_window_and_views_are_stored_and_obeyed(said_and_made: dict[str, str]) -> None:
    said, place = said_and_made, Path(said_and_made["place"])
    assert "2 images cannot be read" in said["refused"]
    assert "a lateral view, by its ViewPosition; --allow-lateral takes such images" in said["refused"]
    assert 'no-window: none of its 2 windows and tables is named "HARDER"' in said["other window"]
    taken = {row["because"]: row["images"] for row in json.loads(said["split"])["taken"]}
    assert (taken["DICOM with it"], taken["doubt: DICOM of a lateral view, by --allow-lateral"]) == (60, 2)
    study = Study(place / "study")
    page = (place / "study" / "report" / "report.md").read_text()
    assert "DICOM shown by window or table 2" in page
    record, preprocessing = study.read_split_record(), study.read_variant("baseline").preprocessing
    assert (record.window, record.lateral) == (preprocessing.window, preprocessing.lateral) == ("2", True)
    # The second window shows all values; the first would leave black and white.
    for cache in (place / "study" / "cache").glob("pixels-*.npy"):
        assert float(np.mean((np.load(cache) > 60) & (np.load(cache) < 200))) > 0.05
    assert json.loads((place / "bundle" / "model.json").read_text())["preprocessing"]["window"] == "2"
    by_chestx = {row["image_id"]: row["probability"]["PNEUMONIA"] for row in json.loads(said["predict"])["rows"]}
    by_script = [row["probability"] for row in json.loads(said["bundle predict"].partition("\nwarning")[0])["images"]]
    assert list(by_chestx.values()) == pytest.approx(by_script, abs=1e-5)


def test_a_study_from_before_views_were_read_takes_its_own_lateral_views(
    chestx: Chestx, said_and_made: dict[str, str], tmp_path: Path
) -> None:
    place, study = Path(said_and_made["place"]), tmp_path / "study"
    shutil.copytree(place / "study", study, ignore=shutil.ignore_patterns("cache", "report", "training-images*"))
    for path, below in ((study / "split.json", ()), (study / "variants/baseline/variant.json", ("preprocessing",))):
        document = json.loads(path.read_text())
        within = functools.reduce(lambda one, name: one[name], below, document)
        assert within.pop("lateral") is True
        path.write_text(json.dumps(document))
    for words in (("prune", "--amount", "0.3"), ("evaluate", "baseline"), ("train", "--name", "second", *TINY)):
        outcome = chestx(*words, "--study", study)
        assert outcome.code == 0, outcome.err
    # New images are another matter: whether they are lateral views is a question that can be answered.
    at = ("predict", place / "other" / "NORMAL", "--variant", "baseline", "--study", study)
    outcome = chestx(*at, "--json")
    assert outcome.code == 1
    assert [row["problem"] for row in outcome.json()["rows"] if row["problem"]] == [
        "lateral: a lateral view, by its ViewPosition; --allow-lateral takes such images"
    ]
    assert chestx(*at, "--allow-lateral").code == 0


def test_no_output_holds_what_identifies_a_patient(said_and_made: dict[str, str]) -> None:
    for name, text in said_and_made.items():
        assert MARKER.lower() not in text.lower(), name
    place = Path(said_and_made["place"])
    for folder in (place / "study", place / "bundle"):
        for name, content in tree(folder).items():
            assert MARKER.lower().encode() not in content.lower(), name
