"""CSV files of a study, with cells quoted so that spreadsheets do not read them as formulas."""

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
# First characters that make a spreadsheet evaluate a cell (OWASP, CSV Injection), including full-width forms; and the
# quote itself, so that reading restores the written text.
_RISKY = frozenset("=+-@\t\r\n＝＋－＠" + QUOTE)


def quoted(cell: str) -> str:
    """Return a string as a cell that a spreadsheet shows without evaluating it; not for numbers."""
    return QUOTE + cell if cell[:1] in _RISKY else cell


def unquoted(cell: str) -> str:
    """Undo `quoted`."""
    return cell[1:] if cell[:1] == QUOTE else cell


def csv_text(columns: Mapping[str, Sequence[object] | np.ndarray[Any, Any]]) -> str:
    """Return columns as CSV; strings are quoted against evaluation by spreadsheets, numbers keep all digits."""
    import pandas as pd

    table = pd.DataFrame(columns)
    has_returns = False
    for name in table.columns:
        # Numeric columns need no quoting.
        if table[name].dtype.kind not in "iufb":
            cells = [quoted(cell) if isinstance(cell, str) else cell for cell in table[name].tolist()]
            table[name] = cells
            has_returns = has_returns or any("\r" in cell for cell in cells if isinstance(cell, str))
    # By default pandas leaves a carriage return unquoted, which readers interpret as the end of the line.
    if has_returns:
        return table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    return table.to_csv(index=False, lineterminator="\n")


def read_csv_text(content: bytes, columns: list[str] | None = None) -> pd.DataFrame:
    """Return a table of a study, or some of its columns, with every cell as the string that was written.

    Raises ValueError for a missing column, or a line whose number of cells differs from the header's.
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
    """Return dataclass rows as CSV with field names as the header; a mapping becomes columns FIELD_KEY."""
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
