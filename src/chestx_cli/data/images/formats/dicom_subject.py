"""The subject of a DICOM file by its elements: refused if it is no frontal radiograph, doubted if unclear."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from chestx_cli.data.images.formats.dicom_tags import text, values
from chestx_cli.data.images.formats.readings import Reading
from chestx_cli.data.images.formats.refusals import Reason, UnreadableImageError

if TYPE_CHECKING:
    from pydicom import Dataset

# Modality (PS3.3 C.7.3.1.1.1): computed, digital and digitised radiography.
_RADIOGRAPHY = {"CR", "DX", "RG"}
# Standard terms for images that cannot be chest radiographs. Others, such as OT (other) or RF (fluoroscopy), can.
_OTHER_IMAGES = {
    *("BDUS", "BI", "BMD", "CFM", "CT", "DG", "DMS", "ES", "GM", "IO", "IVOCT", "IVUS", "LEN", "LS", "MG", "MR", "NM"),
    *("OAM", "OCT", "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OPV", "PT", "PX", "RTDOSE", "RTIMAGE", "SEG", "SM", "ST"),
    *("TG", "US", "XAPROTOCOL"),
}
# Words of BodyPartExamined (PS3.16 annex L and those of devices) for parts that are or include the chest.
_CHEST = re.compile("CHEST|THORAX|TORAX|LUNG|HEART|RIB|STERN|MEDIASTIN|CLAVIC|WHOLEBODY|TRUNK")
# ViewPosition (C.8.1.1, C.8.11.5) contains LL or RL; some devices write words.
_LATERAL_WORDS = {"LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT"}
_FRONTAL_WORDS = {"PA", "AP"}
_OTHER_VIEW_WORDS = {
    *("RLO", "LLO", "LAO", "RAO", "LPO", "RPO", "OBL", "OBLIQUE"),
    *("RLD", "LLD", "DECUB", "DECUBITUS", "AXIAL", "LORDOTIC", "SWIMMERS", "TANGENTIAL"),
}
# ViewCodeSequence (CID 4010) in SNOMED CT and in the codes used before 2019.
_LATERAL_CODES = {"399067008", "399173006", "399198007", "30730003", "R-102CD", "R-10236", "R-10232", "G-A145"}
_FRONTAL_CODES = {"399348003", "272479007", "399033003", "R-10206", "R-10214", "R-40888", "R-10202"}
# Oblique, axial and tangential.
_OTHER_VIEW_CODES = {
    *("399160007", "399312000", "399059000", "399182000", "399184004", "399236003", "399135007", "399356000"),
    *("399006002", "399038007", "260426006", "260427002", "399004004", "399132005", "399325008", "399061009"),
    *("399110001", "R-10204", "R-10208", "R-10216", "R-102C1", "R-10238", "R-10234", "R-10220", "R-10212", "R-10210"),
    *("R-40782", "R-40783", "R-10246", "R-10252", "R-10254", "R-10241", "R-102C2"),
}


def require_frontal_radiograph(dataset: Dataset, *, lateral: bool | None) -> list[Reading]:
    """Return the doubts about the subject of a file, from the elements present; a missing modality is a doubt as well.

    Raises UnreadableImageError for images of another modality, and for a lateral view unless `lateral` ones are
    accepted. None refuses nothing: the images of a split that was made before views were read.
    """
    modality = (text(dataset, "Modality") or "").upper()
    if modality in _OTHER_IMAGES and lateral is not None:
        raise UnreadableImageError(Reason.NOT_A_RADIOGRAPH, f"its Modality is {modality}")
    element = _lateral_by(dataset)
    if element is not None and lateral is False:
        fact = f"a lateral view, by its {element}; --allow-lateral takes such images"
        raise UnreadableImageError(Reason.LATERAL, fact)
    doubts = []
    # Every image must have one (type 1).
    if not modality:
        doubts.append(Reading.NO_MODALITY)
    elif modality not in _RADIOGRAPHY:
        doubts.append(Reading.OTHER_MODALITY)
    part = re.sub("[^A-Z]", "", (text(dataset, "BodyPartExamined") or "").upper())
    if part and not _CHEST.search(part):
        doubts.append(Reading.OTHER_BODY_PART)
    if element is not None:
        doubts.append(Reading.LATERAL)
    elif (view := _doubtful_view(dataset)) is not None:
        doubts.append(view)
    if (text(dataset, "PresentationIntentType") or "").upper() == "FOR PROCESSING":
        doubts.append(Reading.FOR_PROCESSING)
    return doubts


def _lateral_by(dataset: Dataset) -> str | None:
    """Return the element that marks a view as lateral; one is enough, since another may contain a default."""
    if _view_words(dataset) & _LATERAL_WORDS:
        return "ViewPosition"
    if _view_codes(dataset) & _LATERAL_CODES:
        return "ViewCodeSequence"
    return "PatientOrientation" if _plane(dataset) == ("AP", "HF") else None


def _doubtful_view(dataset: Dataset) -> Reading | None:
    """Return what is doubtful about a view that is not lateral; a code that is not known says nothing against a
    ViewPosition that is.
    """
    words, codes, plane = _view_words(dataset), _view_codes(dataset), _plane(dataset)
    frontal = [bool(words & _FRONTAL_WORDS), bool(codes & _FRONTAL_CODES)]
    # A decubitus film is both: AP by the beam, and on its side.
    others = [bool(words & _OTHER_VIEW_WORDS), bool(codes & _OTHER_VIEW_CODES), plane not in (None, ("HF", "LR"))]
    if any(others):
        is_contradicted = any(frontal) and not (others[0] and not frontal[1])
        return Reading.CONTRADICTING_VIEW if is_contradicted else Reading.OTHER_VIEW
    return Reading.OTHER_VIEW if codes and not any(frontal) else None


def _view_words(dataset: Dataset) -> set[str]:
    return set(re.findall("[A-Z]+", (text(dataset, "ViewPosition") or "").upper()))


def _view_codes(dataset: Dataset) -> set[str]:
    items = (item for item in values(dataset, "ViewCodeSequence") if item is not None)
    return {code for item in items if (code := text(item, "CodeValue")) is not None}


def _plane(dataset: Dataset) -> tuple[str, str] | None:
    """Return the two body axes along which rows and columns run (C.7.6.1.1.1), by their first letters; None if unknown.

    HF is from head to foot, LR from left to right and AP from front to back.
    """
    directions = [str(one).strip().upper() for one in values(dataset, "PatientOrientation") if one is not None]
    axes = sorted(axis for one in directions for axis in ("HF", "LR", "AP") if one[:1] and one[0] in axis)
    return (axes[0], axes[1]) if len(directions) == len(axes) == 2 else None
