"""A CSV file of predictions that is appended to during prediction, so that an interrupted run can resume."""

from __future__ import annotations

import csv
import io
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from chestx_cli.core.errors import IntegrityError, OtherOptionsError, StudyError, again
from chestx_cli.core.files import append_lines, open_to_append, write_atomic
from chestx_cli.core.record import changed_options, jsonable
from chestx_cli.records.prediction import PredictionRow, PredictRecord
from chestx_cli.store.documents import read_record, write_record
from chestx_cli.store.tables import quoted, unquoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chestx_cli.inference.predictor import Tally

# Fields of the record next to the CSV file that all predictions in the file must share.
_SAME = ("variant", "model_sha256", "positive", "negative", "threshold", "temperature", "preprocessing")
OTHER_FILE = "choose another file with --csv"
START_OVER = f"{OTHER_FILE}, or {again('--force')} predicts all images again"


@dataclass(kw_only=True)
class PredictionsFile:
    """An open predictions file, with the paths of the images that an earlier run predicted, and their lines' positions.

    Raises IntegrityError for a line that `append` cannot have written.
    """

    file: BinaryIO
    path: Path
    record: PredictRecord
    lines: dict[str, int] = field(default_factory=dict)

    def earlier_rows(self) -> Iterator[PredictionRow]:
        """Yield the rows present when the file is opened, after the heading, and record their positions."""
        place = self.file.tell()
        for number, line in enumerate(self.file, start=2):
            row = self._row_of(line, f"line {number}")
            self.lines[row.path or ""] = place
            place += len(line)
            yield row

    def earlier_row(self, path: str) -> PredictionRow:
        """Return one of these rows, read again from the file, since not all rows may fit into memory."""
        self.file.seek(self.lines[path])
        return self._row_of(self.file.readline(), "a line")

    def _row_of(self, line: bytes, where: str) -> PredictionRow:
        record = self.record
        try:
            (cells,) = csv.reader([line.decode()])
            image_id, name, probability, decision, distance, unlike, problem, doubts = map(unquoted, cells)
            row = PredictionRow(
                image_id=image_id,
                path=name,
                probability={record.positive: float(probability) if probability else None},
                decision=decision or None,
                distance_to_threshold=float(distance) if distance else None,
                unlike_training=unlike or None,
                problem=problem or None,
                doubts=doubts or None,
            )
            if decision not in ("", record.positive, record.negative) or (not decision) != bool(problem):
                raise ValueError(decision)
        except (ValueError, csv.Error) as error:
            raise IntegrityError(f"{self.path} was edited: {where} is no prediction", START_OVER) from error
        return row

    def append(self, rows: Sequence[PredictionRow]) -> None:
        """Append rows, each with its path, and flush them to the file."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        for row in rows:
            (probability,) = row.probability.values()
            texts = (row.decision or "", row.distance_to_threshold, row.unlike_training or "", row.problem or "")
            cells = (row.image_id, row.path, probability, *texts, row.doubts or "")
            writer.writerow([quoted(cell) if isinstance(cell, str) else cell for cell in cells])
        append_lines(self.file, out.getvalue().encode())


def record_file(path: Path) -> Path:
    """Return the path of the record that describes a predictions file and its model."""
    return path.with_name(f"{path.name}.json")


def heading_of(positive: str) -> list[str]:
    """Return the header of a predictions file; it includes the notice "research only"."""
    return [
        "image_id",
        "path",
        f"probability_{positive}",
        "decision_research_only",
        "distance_to_threshold",
        "unlike_training",
        "problem",
        "doubts",
    ]


@contextmanager
def open_predictions(path: Path, record: PredictRecord, tally: Tally, *, force: bool) -> Iterator[PredictionsFile]:
    """Open a predictions file for appending; predictions of an earlier run are added to `tally`.

    `record` describes the model that will predict. Raises OtherOptionsError if the file is of another model, StudyError
    if it is not a predictions file (such a file is never replaced), IntegrityError if it was edited.
    """
    record_path = record_file(path)
    _require_own(path, record_path)
    if not path.exists():
        # The record first: a file without it would not be recognised as this command's.
        write_record(record_path, record)
        write_atomic(path, _line(heading_of(record.positive)))
    with open_to_append(path) as file:
        opened = PredictionsFile(file=file, path=path, record=record)
        if force:
            # The record last: it must never describe rows of another model.
            file.truncate(0)
            append_lines(file, _line(heading_of(record.positive)).encode())
            write_record(record_path, record)
        else:
            written = _read(record_path)
            _require_same_columns(path, file.readline(), heading_of(written.positive))
            _require_same_model(path, written, record)
            for row in opened.earlier_rows():
                tally.add(row)
        tally.resumed = tally.images
        yield opened


def _require_same_columns(path: Path, line: bytes, columns: Sequence[str]) -> None:
    """Raise IntegrityError for a file whose heading is another one, such as that of another version."""
    if line.decode(errors="replace") == _line(columns):
        return
    try:
        (cells,) = csv.reader([line.decode()])
        there = list(map(unquoted, cells))
    except (ValueError, csv.Error):
        there = []
    lacking, more = (
        [name for name in ours if name not in theirs] for ours, theirs in ((columns, there), (there, columns))
    )
    other = [f"lacks {', '.join(lacking)}"] if lacking else []
    other += [f"has {', '.join(more)}"] if more else []
    if not set(there) & set(columns) or not other:
        raise IntegrityError(f"{path} was edited: its heading differs", START_OVER)
    fact = f"{path} does not have the columns that this version of chestx writes: it {' and '.join(other)}"
    raise IntegrityError(fact, START_OVER)


def _require_same_model(path: Path, written: PredictRecord, record: PredictRecord) -> None:
    before, now = (jsonable({name: getattr(described, name) for name in _SAME}) for described in (written, record))
    if changed := changed_options(before, now):
        raise OtherOptionsError(f"{path} has predictions of another model ({'; '.join(changed)})", START_OVER)


def _require_own(path: Path, record_path: Path) -> None:
    """Raise StudyError if a file exists that this command has not written."""
    for file in (path, record_path):
        if file.exists() and not file.is_file():
            raise StudyError(f"{file} exists and is no file", OTHER_FILE)
    if path.exists() and not record_path.exists():
        raise StudyError(
            f"{path} exists and is no file of predictions: {record_path.name} is not beside it", OTHER_FILE
        )
    if record_path.exists():
        _read(record_path)


def _read(record_path: Path) -> PredictRecord:
    try:
        return read_record(PredictRecord, record_path)
    except IntegrityError as error:
        raise IntegrityError(error.fact, OTHER_FILE) from error


def _line(cells: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(map(quoted, cells))
    return out.getvalue()
