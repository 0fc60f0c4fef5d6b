"""The film that a prediction is about, as a DICOM object: its identity, for results in the same study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import chestx_cli
from chestx_cli.core.files import read_head
from chestx_cli.core.record import NOT_A_DEVICE
from chestx_cli.data.images.formats.dicom import HEAD_BYTES, begins_as_dicom

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydicom import Dataset
    from pydicom.uid import UID

# In every object, where an archive shows its description, and in the picture.
RESEARCH_ONLY = "Research only, not for clinical use"
SERIES_DESCRIPTION = f"chestx: {RESEARCH_ONLY}"
MANUFACTURER, MODEL = "chestx (research software)", "chestx"
SOFTWARE = f"chestx {chestx_cli.__version__}"
# UTF-8: names of classes and of patients need not share a smaller one.
CHARACTER_SET = "ISO_IR 192"
# Series of results come after those of the study, by whose numbers archives sort.
REPORT_SERIES, PICTURE_SERIES = 9001, 9002
_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# Of the patient and the study, which an archive files an object by; each may be empty (type 2 of PS3.3).
_FILED_BY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
_SEXES = ("M", "F", "O", "")


class NoSourceError(Exception):
    """A film that no DICOM result can be written for, with the reason, which names nobody."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a model said of a film: the probability of its positive class, and the decision at the threshold."""

    variant: str
    model_sha256: str
    classes: tuple[str, ...]
    positive: str
    probability: float
    threshold: float
    decision: str
    doubts: tuple[str, ...]

    def sentences(self, names: Mapping[str, str]) -> tuple[str, ...]:
        """Return the finding as short lines; `names` are what the classes are called there."""
        called = f"{names[self.positive]}: probability {self.probability:.3f}, threshold {self.threshold:.3f}"
        lines = (RESEARCH_ONLY.upper(), called, f"called {names[self.decision]} by {self.variant}. {NOT_A_DEVICE}")
        return (*lines, *self.doubts)

    def picture_uid(self, source: Dataset, *, with_overlay: bool) -> UID:
        """Return the identifier of the picture: with a heatmap it is another one."""
        return self.uid(source, "picture with heatmap" if with_overlay else "picture")

    def uid(self, source: Dataset, what: str) -> UID:
        """Return an identifier for something made of this finding and a film: the same one when it is made again."""
        from pydicom.uid import generate_uid

        number = f"{self.probability!r} {self.threshold!r} {self.decision}"
        return generate_uid(entropy_srcs=[what, source.SOPInstanceUID, self.model_sha256, number, SOFTWARE])


def series_uid(source: Dataset, model_sha256: str, what: str) -> UID:
    """Return the identifier of the series of a model's results for the films of one series."""
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=[what, source.SeriesInstanceUID, model_sha256, SOFTWARE])


def read_source(path: Path) -> Dataset:
    """Return a film's elements but its pixels, those that results are filed by at least empty; raises NoSourceError."""
    from pydicom import dcmread

    try:
        if not begins_as_dicom(read_head(path, HEAD_BYTES)):
            raise NoSourceError("not DICOM")
        source = dcmread(path, stop_before_pixels=True)
        # Decoded here: elements are read when they are first used.
        found = {name: source.get(name) for name in (*_IDENTITY, *_FILED_BY)}
    except NoSourceError:
        raise
    # Damaged files make pydicom raise whatever its authors did not think of.
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
    """Return the number of a film in its series, as that of its results in theirs; 1 where it has none."""
    number = source.get("InstanceNumber")
    return max(1, int(number)) if number else 1


def filed_by(source: Dataset) -> dict[str, object]:
    """Return the elements of patient and study by which an archive files an object."""
    return {name: source.get(name) for name in ("StudyInstanceUID", *_FILED_BY)}
