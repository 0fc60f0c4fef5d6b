"""CSV files of a study, which a spreadsheet must not take for formulas."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pandas as pd

QUOTE = "'"
# What a spreadsheet may compute, run or send where a cell begins with it (OWASP, CSV Injection), the wide forms
# included; and the quote itself, so that reading gives back what was written.
_RISKY = frozenset("=+-@\t\r\n＝＋－＠" + QUOTE)


def quoted(cell: str) -> str:
    """Return a text as a cell that a spreadsheet shows and does not compute; numbers must not come here."""
    return QUOTE + cell if cell[:1] in _RISKY else cell


def unquoted(cell: str) -> str:
    """Undo `quoted`."""
    return cell[1:] if cell[:1] == QUOTE else cell


def csv_text(columns: Mapping[str, Sequence[object] | np.ndarray[Any, Any]]) -> str:
    """Return columns as CSV; texts are quoted against spreadsheets, numbers keep all their digits."""
    import pandas as pd

    table = pd.DataFrame(columns)
    returns = False
    for name in table.columns:
        # Numbers have a type of their own.
        if table[name].dtype.kind not in "iufb":
            cells = [quoted(cell) if isinstance(cell, str) else cell for cell in table[name].tolist()]
            table[name] = cells
            returns = returns or any("\r" in cell for cell in cells if isinstance(cell, str))
    # Left to itself the writer lets a carriage return stand bare, which a reader takes for the end of a line.
    if returns:
        return table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    return table.to_csv(index=False, lineterminator="\n")


def read_csv_text(content: bytes, columns: list[str] | None = None) -> pd.DataFrame:
    """Return a table of a study, or some of its columns, with every cell as the text that was written.

    Raises ValueError where it lacks a column, or a line has another number of cells than the heading.
    """
    import numpy as np
    import pandas as pd

    table = pd.read_csv(io.BytesIO(content), dtype=object, keep_default_na=False, usecols=columns)
    if table.isna().to_numpy().any():
        raise ValueError("a line has too few fields")
    for name in table.columns:
        table[name] = np.array([unquoted(cell) for cell in table[name].tolist()], dtype=object)
    return table


def _cell(value: Any) -> Any:
    return quoted(value) if isinstance(value, str) else value


def rows_csv(rows: tuple[Any, ...]) -> str:
    """Return dataclass rows as CSV with their field names as heading; values by name are columns FIELD_NAME."""
    columns: dict[str, list[Any]] = {}
    for field in dataclasses.fields(rows[0]):
        values = [getattr(row, field.name) for row in rows]
        if isinstance(values[0], Mapping):
            for key in dict.fromkeys(key for value in values for key in value):
                columns[f"{field.name}_{key}"] = [value.get(key) for value in values]
        else:
            columns[field.name] = values
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_cell, columns))
    writer.writerows(map(_cell, line) for line in zip(*columns.values(), strict=True))
    return out.getvalue()
