"""The image of a prediction as a DICOM object: its identity, so that results are filed in the same study."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import chestx_cli
from chestx_cli.core.record import NOT_A_DEVICE
from chestx_cli.data.images.formats.dicom import HEAD_BYTES, begins_as_dicom
from chestx_cli.data.images.places import read_image, read_start

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydicom import Dataset
    from pydicom.uid import UID

    from chestx_cli.data.images.places import Place

# Shown in every object: in its description and in the picture.
RESEARCH_ONLY = "Research only, not for clinical use"
SERIES_DESCRIPTION = f"chestx: {RESEARCH_ONLY}"
MANUFACTURER, MODEL = "chestx (research software)", "chestx"
SOFTWARE = f"chestx {chestx_cli.__version__}"
# UTF-8, since names of classes and of patients may need different character sets.
CHARACTER_SET = "ISO_IR 192"
# Archives sort series by number: those of results come after those of the study.
REPORT_SERIES, PICTURE_SERIES = 9001, 9002
_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# Patient and study elements by which an archive files an object; each may be empty (type 2 of PS3.3).
_FILED_BY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
_SEXES = ("M", "F", "O", "")


class NoSourceError(Exception):
    """No DICOM result can be written for an image; the reason contains no identifiers."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of a model for an image: the probability of the positive class, and the decision at the threshold."""

    variant: str
    model_sha256: str
    classes: tuple[str, ...]
    positive: str
    probability: float
    threshold: float
    decision: str
    doubts: tuple[str, ...]

    def sentences(self, names: Mapping[str, str]) -> tuple[str, ...]:
        """Return the result as short lines; `names` are the names of the classes to print."""
        called = f"{names[self.positive]}: probability {self.probability:.3f}, threshold {self.threshold:.3f}"
        lines = (RESEARCH_ONLY.upper(), called, f"called {names[self.decision]} by {self.variant}. {NOT_A_DEVICE}")
        return (*lines, *self.doubts)

    def picture_uid(self, source: Dataset, *, with_overlay: bool) -> UID:
        """Return the UID of the picture, which differs if it shows a heatmap."""
        return self.uid(source, "picture with heatmap" if with_overlay else "picture")

    def uid(self, source: Dataset, what: str) -> UID:
        """Return a UID for an object made from this result and an image; repeating the run gives the same UID."""
        from pydicom.uid import generate_uid

        number = f"{self.probability!r} {self.threshold!r} {self.decision}"
        return generate_uid(entropy_srcs=[what, source.SOPInstanceUID, self.model_sha256, number, SOFTWARE])


def series_uid(source: Dataset, model_sha256: str, what: str) -> UID:
    """Return the UID of the series that holds a model's results for the images of one series."""
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=[what, source.SeriesInstanceUID, model_sha256, SOFTWARE])


def read_source(place: Place) -> Dataset:
    """Return the elements of an image without its pixels; elements required for filing are added empty.

    Raises NoSourceError.
    """
    from pydicom import dcmread

    try:
        if not begins_as_dicom(read_start(place, HEAD_BYTES)):
            raise NoSourceError("not DICOM")
        source = dcmread(place if isinstance(place, Path) else io.BytesIO(read_image(place)), stop_before_pixels=True)
        # Decoded here, because pydicom reads elements lazily.
        found = {name: source.get(name) for name in (*_IDENTITY, *_FILED_BY)}
    except NoSourceError:
        raise
    # Damaged files can make pydicom raise any kind of exception.
    except Exception as error:
        raise NoSourceError("its elements cannot be read") from error
    if lacking := [name for name in _IDENTITY if not found[name]]:
        raise NoSourceError(f"it lacks {lacking[0]}")
    for name in _FILED_BY:
        if found[name] is None:
            setattr(source, name, "")
    if source.PatientSex not in _SEXES:
        source.PatientSex = ""
    return source


def instance_number(source: Dataset) -> int:
    """Return the instance number of an image, reused for its results; 1 without one."""
    number = source.get("InstanceNumber")
    return max(1, int(number)) if number else 1


def filed_by(source: Dataset) -> dict[str, object]:
    """Return the patient and study elements by which an archive files an object."""
    return {name: source.get(name) for name in ("StudyInstanceUID", *_FILED_BY)}
