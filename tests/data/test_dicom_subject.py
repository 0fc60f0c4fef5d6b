"""The declared subject of DICOM files: lateral views and other modalities are refused, doubts reported."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from chestx_cli.core.errors import DataError
from chestx_cli.data.images.decoding import load_pixels
from chestx_cli.data.images.formats.dicom import read_dicom
from chestx_cli.data.images.formats.readings import MEANINGS, SUBJECT, Reading
from chestx_cli.data.images.formats.refusals import Reason, UnreadableImageError
from chestx_cli.records.preprocessing import Preprocessing
from tools.reliability.dicom_matrix import dicom

FILM = np.random.default_rng(4).integers(0, 4096, (40, 48)).astype(np.uint16)
PLAIN: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}


def view_code(value: str) -> tuple[str, list[Dataset]]:
    """Return a sequence with one code of a view."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = value, "SCT"
    return "SQ", [item]


def doubts(*, lateral: bool | None = False, **elements: Any) -> list[Reading]:
    """Return what is doubted about a film with these elements more."""
    found = read_dicom(dicom(FILM, **{**PLAIN, "Modality": "DX", **elements}), lateral=lateral).readings
    return [reading for reading in found if MEANINGS[reading].matter == SUBJECT]


LATERAL: dict[str, dict[str, Any]] = {
    "ViewPosition LL": {"ViewPosition": "LL"},
    "ViewPosition RL": {"ViewPosition": "RL"},
    "ViewPosition in words": {"ViewPosition": "XTABLE LATERAL"},
    "ViewCodeSequence left lateral": {"ViewCodeSequence": view_code("399173006")},
    "ViewCodeSequence of older files": {"ViewCodeSequence": view_code("R-10232")},
    "PatientOrientation A F": {"PatientOrientation": ("CS", ["A", "F"])},
    "PatientOrientation PR FA": {"PatientOrientation": ("CS", ["PR", "FA"])},
    # A default of the device may stand in one of them.
    "ViewPosition PA, PatientOrientation P F": {"ViewPosition": "PA", "PatientOrientation": ("CS", ["P", "F"])},
}


@pytest.mark.parametrize("elements", LATERAL.values(), ids=LATERAL)
def test_lateral_views_are_refused_by_name_unless_they_are_allowed(elements: dict[str, Any]) -> None:
    with pytest.raises(UnreadableImageError) as refused:
        doubts(**elements)
    assert refused.value.reason == Reason.LATERAL
    assert list(elements)[-1] in refused.value.detail
    assert "--allow-lateral" in refused.value.detail
    assert doubts(lateral=True, **elements) == [Reading.LATERAL]


@pytest.mark.parametrize(
    ("elements", "found"),
    [
        ({}, []),
        ({"ViewPosition": "AP", "PatientOrientation": ("CS", ["L", "F"]), "BodyPartExamined": "CHEST"}, []),
        ({"ViewPosition": "PA", "ViewCodeSequence": view_code("272479007")}, []),
        ({"ViewPosition": "PA", "ViewCodeSequence": view_code("R-10214")}, []),
        # Lateral in a description only: it is no statement of the standard's.
        ({"SeriesDescription": "Chest LATERAL"}, []),
        # A film that lies on its side.
        ({"PatientOrientation": ("CS", ["F", "R"])}, []),
        ({"PatientOrientation": ("CS", ["L", ""])}, []),
        ({"ViewPosition": "LLO"}, [Reading.OTHER_VIEW]),
        ({"ViewPosition": "AP RLD"}, [Reading.OTHER_VIEW]),
        ({"ViewCodeSequence": view_code("399135007")}, [Reading.OTHER_VIEW]),
        ({"ViewCodeSequence": view_code("R-10220")}, [Reading.OTHER_VIEW]),
        # A code that is not known says nothing against a ViewPosition that is, but is not a frontal view on its own.
        ({"ViewCodeSequence": view_code("LOCAL-7")}, [Reading.OTHER_VIEW]),
        ({"ViewPosition": "PA", "ViewCodeSequence": view_code("LOCAL-7")}, []),
        ({"ViewPosition": "AP", "ViewCodeSequence": view_code("LOCAL-7")}, []),
        ({"ViewPosition": "LLO", "ViewCodeSequence": view_code("LOCAL-7")}, [Reading.OTHER_VIEW]),
        ({"ViewPosition": "PA", "ViewCodeSequence": view_code("399135007")}, [Reading.CONTRADICTING_VIEW]),
        ({"ViewPosition": "LLO", "ViewCodeSequence": view_code("272479007")}, [Reading.CONTRADICTING_VIEW]),
        ({"ViewPosition": "PA", "PatientOrientation": ("CS", ["L", "P"])}, [Reading.CONTRADICTING_VIEW]),
        ({"ViewPosition": "PA", "ViewCodeSequence": view_code("399348003")}, []),
        ({"PatientOrientation": ("CS", ["L", "P"])}, [Reading.OTHER_VIEW]),
        ({"BodyPartExamined": "PORT CHEST"}, []),
        ({"BodyPartExamined": "HAND"}, [Reading.OTHER_BODY_PART]),
        ({"Modality": None}, [Reading.NO_MODALITY]),
        *(({"Modality": modality}, []) for modality in ("CR", "DX", "RG")),
        *(({"Modality": modality}, [Reading.OTHER_MODALITY]) for modality in ("OT", "RF", "XC", "DR")),
        ({"PresentationIntentType": "FOR PRESENTATION"}, []),
        ({"PresentationIntentType": "FOR PROCESSING"}, [Reading.FOR_PROCESSING]),
    ],
)
def test_what_is_unclear_is_a_stated_doubt(elements: dict[str, Any], found: list[Reading]) -> None:
    assert doubts(**elements) == found


@pytest.mark.parametrize("elements", LATERAL.values(), ids=LATERAL)
def test_films_of_a_split_from_before_views_were_read_are_doubted_and_not_refused(elements: dict[str, Any]) -> None:
    assert doubts(lateral=None, **elements) == [Reading.LATERAL]
    for modality in ("CT", "MG"):
        assert doubts(lateral=None, Modality=modality) == [Reading.OTHER_MODALITY]


def test_a_lateral_view_of_a_split_that_opened_no_image_has_a_remedy_that_takes_it(tmp_path: Path) -> None:
    film = tmp_path / "film"
    film.write_bytes(dicom(FILM, **PLAIN, Modality="DX", ViewPosition="LL"))
    sha256 = hashlib.sha256(film.read_bytes()).hexdigest()
    with pytest.raises(DataError) as refused:
        load_pixels(film, Preprocessing(lateral=False), sha256=sha256, image_id="img-000000")
    assert '"chestx split DATA --force --allow-lateral" takes lateral views' in refused.value.remedy
    for lateral in (True, None):
        pixels = load_pixels(film, Preprocessing(lateral=lateral), sha256=sha256, image_id="img-000000")
        assert pixels.shape == (224, 224)


@pytest.mark.parametrize("modality", ["CT", "MR", "MG", "PT", "US", "NM"])
def test_images_of_other_modalities_are_refused(modality: str) -> None:
    with pytest.raises(UnreadableImageError) as refused:
        doubts(Modality=modality)
    assert str(refused.value) == f"not-a-radiograph: its Modality is {modality}"
