"""Tables as written by people and spreadsheet programs: encodings, delimiters and spellings of headings."""

from __future__ import annotations

import csv
import io
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chestx_cli.core.errors import DataError
from chestx_cli.core.files import read_regular
from chestx_cli.data.sources.parquet import SUFFIX, read_parquet

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import pandas as pd

MAX_TABLE_BYTES = 2**31
COMMA = ","
_DELIMITERS = {COMMA: "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig", ""),
    (b"\xff\xfe\0\0", "utf-32", "UTF-32"),
    (b"\0\0\xfe\xff", "utf-32", "UTF-32"),
    (b"\xff\xfe", "utf-16", "UTF-16"),
    (b"\xfe\xff", "utf-16", "UTF-16"),
)
_HEAD_BYTES = 4096
# The first line of a file that a spreadsheet wrote with a delimiter other than its default.
_DECLARED = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
_TOO_MANY = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table with every cell as text, empty at the end of short lines; known headings are in lower case.

    Headings are stripped. `how`: the detected encoding and delimiter, empty for UTF-8 with commas. `blank_rows`: number
    of rows left out. `first_line`: the line of the row with the label 0, or its number in a table with rows instead of
    lines.
    """

    table: pd.DataFrame
    how: str
    blank_rows: int
    first_line: int
    unit: str = "line"

    def line_of(self, row: Any) -> str:
        """Return the line of a row as text, by its label in the table."""
        return f"{self.unit} {int(row) + self.first_line}"

    def lines_of(self, one: Any, other: Any) -> str:
        """Return the lines of two rows as text, by their labels in the table."""
        return f"{self.unit}s {int(one) + self.first_line} and {int(other) + self.first_line}"


def read_sheet(path: Path, what: str, remedy: str, known: Collection[str]) -> Sheet:
    """Return a CSV or Parquet file; among several delimiters, the one that gives the most `known` headings is used.

    `what` names the table in errors. Raises DataError for an unreadable file, or a line with more fields than the
    heading.
    """
    import pandas as pd

    if path.suffix.lower() == SUFFIX:
        return _sheet(path, what, read_parquet(path, what, MAX_TABLE_BYTES), known, how="", first_line=1, unit="row")
    try:
        content = read_regular(path, MAX_TABLE_BYTES)
    except OSError as error:
        raise DataError(f"cannot read {what} {path}: {error.strerror or error}", remedy) from error
    encoding, encoding_name = _encoding_of(content)
    try:
        head = content[:_HEAD_BYTES].decode(encoding, "ignore")
        declared = _DECLARED.match(head)
        # Up to the heading.
        skipped = next((i for i, line in enumerate(head.splitlines()) if line.strip() and not (declared and i == 0)), 0)
        delimiter = declared[1] if declared else _delimiter_of(head, known)
        with warnings.catch_warnings():
            # pandas would drop fields without a heading, with only a warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.BytesIO(content),
                dtype=object,
                keep_default_na=False,
                index_col=False,
                skip_blank_lines=False,
                encoding=encoding,
                sep=delimiter,
                skiprows=skipped,
            )
    except (ValueError, OSError, LookupError, pd.errors.ParserWarning) as error:
        raise DataError(f"cannot read {what} {path}: {_in_words(error)}", remedy) from error
    how = [f"columns separated by {_DELIMITERS.get(delimiter, repr(delimiter))}"] if delimiter != COMMA else []
    how += [encoding_name] if encoding_name else []
    return _sheet(path, what, table, known, how=", ".join(how), first_line=skipped + 2, unit="line")


def _sheet(
    path: Path, what: str, table: pd.DataFrame, known: Collection[str], *, how: str, first_line: int, unit: str
) -> Sheet:
    """Return a table with normalised headings and without blank rows; raises DataError for a duplicate heading."""
    import pandas as pd

    names = [str(name).strip() for name in table.columns]
    table.columns = pd.Index([name.casefold() if name.casefold() in known else name for name in names])
    # pandas numbers duplicate column names.
    twice = next((name for name in table.columns if name in known and f"{name}.1" in table.columns), None)
    if twice is not None:
        raise DataError(f"{what} {path} has the column {twice!r} twice", "remove one of them")
    blank = _blank(table)
    return Sheet(
        table=table[~blank] if blank.any() else table,
        how=how,
        blank_rows=int(blank.sum()),
        first_line=first_line,
        unit=unit,
    )


def _blank(table: pd.DataFrame) -> Any:
    """Return which rows have only empty cells [N]."""
    import numpy as np

    blank = np.ones(len(table), dtype=bool)
    for name in table.columns:
        rows = np.flatnonzero(blank)
        if not len(rows):
            break
        cells = table[name].to_numpy(object)
        blank[rows] = [not str(cells[row]).strip() for row in rows.tolist()]
    return blank


def _encoding_of(content: bytes) -> tuple[str, str]:
    """Return the encoding of a file and its description, empty for UTF-8; other files are read as Windows encodings."""
    for mark, encoding, name in _MARKS:
        if content.startswith(mark):
            return encoding, name
    head = content[:_HEAD_BYTES]
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) > len(head) / 4 > 4 * min(even, odd):
        return ("utf-16-be", "UTF-16") if even > odd else ("utf-16-le", "UTF-16")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        try:
            content.decode("cp1252")
        except UnicodeDecodeError:
            return "latin-1", "not UTF-8: Latin-1"
        return "cp1252", "not UTF-8: Windows-1252"
    return "utf-8", ""


def _delimiter_of(head: str, known: Collection[str]) -> str:
    """Return the delimiter that gives the most known headings; a comma if none gives any."""
    heading = next((line for line in head.splitlines() if line.strip()), "")

    def known_cells(delimiter: str) -> tuple[int, int]:
        cells = next(csv.reader([heading], delimiter=delimiter), [])
        return sum(cell.strip().casefold() in known for cell in cells), -list(_DELIMITERS).index(delimiter)

    best = max(_DELIMITERS, key=known_cells)
    return best if known_cells(best)[0] else COMMA


def _in_words(error: Exception) -> str:
    """Return the fault of a table, without the wording of the parsing library."""
    message = str(error)
    if many := _TOO_MANY.search(message):
        return f"line {many[2]} has {many[3]} fields, the heading has {many[1]}"
    if "Length of header" in message:
        return "a line has more fields than the heading"
    if "No columns" in message:
        return "it is empty"
    if isinstance(error, UnicodeError):
        return "its encoding is damaged"
    if "EOF inside string" in message:
        return "a quotation mark is not closed"
    return "it is not a text table"
