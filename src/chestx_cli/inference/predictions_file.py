"""A CSV file of predictions that grows while they are made, so that a run that was stopped can continue."""

from __future__ import annotations

import csv
import io
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from chestx_cli.core.errors import IntegrityError, OtherOptionsError, StudyError
from chestx_cli.core.files import append_durably, open_to_append, write_atomic
from chestx_cli.core.record import changed_options, jsonable
from chestx_cli.records.prediction import PredictionRow, PredictRecord
from chestx_cli.store.documents import read_record, write_record
from chestx_cli.store.tables import quoted, unquoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chestx_cli.inference.predictor import Tally

# Of the record beside the CSV file: what predictions of one file must have in common.
_SAME = ("variant", "model_sha256", "positive", "negative", "threshold", "temperature", "preprocessing")
OTHER_FILE = "choose another file with --csv"
START_OVER = f"{OTHER_FILE}, or start over with --force"


@dataclass(kw_only=True)
class PredictionsFile:
    """A file of predictions that is open: the paths that it has, by which images are known, and their number."""

    file: BinaryIO
    paths: set[str] = field(default_factory=set)

    def append(self, rows: Sequence[PredictionRow]) -> None:
        """Write rows, whose paths are all given; they last from then on."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        for row in rows:
            (probability,) = row.probability.values()
            texts = (row.decision or "", row.distance_to_threshold, row.problem or "")
            cells = (row.image_id, row.path, probability, *texts)
            writer.writerow([quoted(cell) if isinstance(cell, str) else cell for cell in cells])
        append_durably(self.file, out.getvalue().encode())


def record_file(path: Path) -> Path:
    """Return where the record of a file of predictions lies: which model made them, and what they are."""
    return path.with_name(f"{path.name}.json")


def heading_of(positive: str) -> list[str]:
    """Return the heading of a file of predictions; that it is for research only cannot be separated from it."""
    return [
        "image_id",
        "path",
        f"probability_{positive}",
        "decision_research_only",
        "distance_to_threshold",
        "problem",
    ]


@contextmanager
def open_predictions(path: Path, record: PredictRecord, tally: Tally, *, force: bool) -> Iterator[PredictionsFile]:
    """Yield a file of predictions to append to; `tally` counts those that it has from an earlier run.

    `record` is of the model that is to predict. Raises OtherOptionsError where the file has predictions of another one,
    StudyError where it is no file of predictions, which is never replaced, IntegrityError where it was edited.
    """
    beside = record_file(path)
    _require_own(path, beside)
    if not path.exists():
        # The record first: a file without one would not be known as this command's own.
        write_record(beside, record)
        write_atomic(path, _line(heading_of(record.positive)))
    with open_to_append(path) as file:
        opened = PredictionsFile(file=file)
        if force:
            # The record last: it must never be that of other rows.
            file.truncate(0)
            append_durably(file, _line(heading_of(record.positive)).encode())
            write_record(beside, record)
        else:
            _require_same_model(path, _read(beside), record)
            for row in _rows_of(file, path, record):
                opened.paths.add(row.path or "")
                tally.add(row)
        tally.resumed = tally.images
        yield opened


def _require_same_model(path: Path, written: PredictRecord, record: PredictRecord) -> None:
    before, now = (jsonable({name: getattr(one, name) for name in _SAME}) for one in (written, record))
    if changed := changed_options(before, now):
        raise OtherOptionsError(f"{path} has predictions of another model ({'; '.join(changed)})", START_OVER)


def _require_own(path: Path, beside: Path) -> None:
    """Raise StudyError where a file stands in the way that this command has not written."""
    for file in (path, beside):
        if file.exists() and not file.is_file():
            raise StudyError(f"{file} exists and is no file", OTHER_FILE)
    if path.exists() and not beside.exists():
        raise StudyError(f"{path} exists and is no file of predictions: {beside.name} is not beside it", OTHER_FILE)
    if beside.exists():
        _read(beside)


def _read(beside: Path) -> PredictRecord:
    try:
        return read_record(PredictRecord, beside)
    except IntegrityError as error:
        raise IntegrityError(error.fact, OTHER_FILE) from error


def _line(cells: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(map(quoted, cells))
    return out.getvalue()


def _rows_of(file: BinaryIO, path: Path, record: PredictRecord) -> Iterator[PredictionRow]:
    """Yield the rows that a file has; raises IntegrityError for a line that this command does not write."""
    if file.readline().decode(errors="replace") != _line(heading_of(record.positive)):
        raise IntegrityError(f"{path} was edited: its heading is another", START_OVER)
    for number, line in enumerate(file):
        try:
            (cells,) = csv.reader([line.decode()])
            image_id, name, probability, decision, distance, problem = map(unquoted, cells)
            row = PredictionRow(
                image_id=image_id,
                path=name,
                probability={record.positive: float(probability) if probability else None},
                decision=decision or None,
                distance_to_threshold=float(distance) if distance else None,
                problem=problem or None,
            )
            if decision not in ("", record.positive, record.negative) or (not decision) != bool(problem):
                raise ValueError(decision)
        except (ValueError, csv.Error) as error:
            raise IntegrityError(f"{path} was edited: line {number + 2} is no prediction", START_OVER) from error
        yield row
