"""Results for an archive: a report and a picture for each DICOM image, written into a folder."""

from __future__ import annotations

import importlib.util
import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.errors import UsageError
from chestx_cli.core.files import write_atomic
from chestx_cli.core.printable import counted
from chestx_cli.data.images.decoding import decode_grey
from chestx_cli.data.images.formats.refusals import UnreadableImageError
from chestx_cli.inference.pacs.pictures import picture_of
from chestx_cli.inference.pacs.reports import report_of
from chestx_cli.inference.pacs.sources import Finding, NoSourceError, read_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image
    from pydicom import Dataset

    from chestx_cli.data.images.places import Place
    from chestx_cli.inference.pictures.heatmaps import Overlay
    from chestx_cli.inference.predictor import Predictor
    from chestx_cli.records.prediction import PredictionRow


@dataclass(kw_only=True)
class ArchiveResults:
    """The folder of results, the number of images with results, and the reasons why others have none."""

    folder: Path
    predictor: Predictor
    films: int = 0
    without: Counter[str] = field(default_factory=Counter)

    def add(self, row: PredictionRow, place: Place, overlay_of: Callable[[], Overlay] | None) -> None:
        """Write the results of one image unless they exist; every run gives them the same names.

        The picture shows the overlay, if there is one. Raises StorageError.
        """
        probability = row.probability[self.predictor.positive]
        if probability is None or row.decision is None:
            self.without["cannot be read"] += 1
            return
        finding = Finding(
            variant=self.predictor.name,
            model_sha256=self.predictor.sha256,
            classes=self.predictor.classes,
            positive=self.predictor.positive,
            probability=probability,
            threshold=self.predictor.threshold,
            decision=row.decision,
            doubts=_doubts(row),
        )
        try:
            source = read_source(place)
            report, picture = (self.folder / name for name in _names(source, finding, with_overlay=bool(overlay_of)))
            if not (report.exists() and picture.exists()):
                grey, _ = decode_grey(place, self.predictor.preprocessing)
                made = _made(source, grey, finding, overlay_of() if overlay_of else None)
                for target, content in zip((report, picture), made, strict=True):
                    write_atomic(target, content)
        except NoSourceError as error:
            self.without[str(error)] += 1
            return
        except UnreadableImageError:
            # It was readable when an earlier run predicted it.
            self.without["cannot be read"] += 1
            return
        self.films += 1

    @property
    def notes(self) -> tuple[str, ...]:
        """Return notes on the contents of the folder and on the images without results."""
        notes = [
            f"{self.folder.name}/ contains the DICOM results of {counted(self.films, 'image')}. They identify the "
            "patient, so that an archive can file them: protect them as you protect the images."
        ]
        if self.without:
            listed = ", ".join(f"{n:,} × {reason}" for reason, n in self.without.most_common())
            notes.append(f"Without DICOM results: {listed}.")
        return tuple(notes)


def archive_results(folder: Path, predictor: Predictor) -> ArchiveResults:
    """Return the folder of results; raises UsageError without highdicom."""
    if importlib.util.find_spec("highdicom") is None:
        raise UsageError("--dicom-out needs highdicom", "pip install 'chestx-cli[dicom-out]'")
    return ArchiveResults(folder=folder, predictor=predictor)


def _doubts(row: PredictionRow) -> tuple[str, ...]:
    unlike = (f"doubt: unlike the training images ({row.unlike_training})",) if row.unlike_training else ()
    return (*(row.doubts.split("; ") if row.doubts else ()), *unlike)


def _names(source: Dataset, finding: Finding, *, with_overlay: bool) -> tuple[str, str]:
    """Return the names of the files of report and picture."""
    picture = finding.picture_uid(source, with_overlay=with_overlay)
    return f"SR.{finding.uid(source, 'report')}.dcm", f"SC.{picture}.dcm"


def _made(source: Dataset, grey: Image, finding: Finding, overlay: Overlay | None) -> tuple[bytes, ...]:
    """Return the content of report and picture; raises NoSourceError."""
    contents = []
    try:
        for made in (report_of(source, finding), picture_of(source, grey, finding, overlay)):
            buffer = io.BytesIO()
            made.save_as(buffer, enforce_file_format=True)
            contents.append(buffer.getvalue())
    # Invalid elements can make the libraries raise any kind of exception.
    except Exception as error:
        raise NoSourceError("its patient or study elements are not valid") from error
    return tuple(contents)
