"""Records in Python: a one-line repr, an HTML table for notebooks, pandas frames; ranges of their numbers."""

from __future__ import annotations

import dataclasses
import math
import typing
from html import escape
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from annotated_types import Ge, Gt, Le, Lt

from chestx_cli.core.errors import UsageError
from chestx_cli.core.printable import printable
from chestx_cli.core.record import NOT_A_DEVICE, Record, columns, table_columns
from chestx_cli.core.signature import nearest_first

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

MAX_ROWS = 100
# Items listed in an answer, which should fit on one line.
MAX_ITEMS = 4
INTERVAL = "interval"
# Sums of shares, such as an average precision, may exceed 1 by rounding.
_ROUNDING = 1e-9
# Ranges of fields, which are checked when a document is read.
Positive: TypeAlias = Annotated[float, Gt(0), Lt(math.inf)]
Share: TypeAlias = Annotated[float, Ge(0), Le(1 + _ROUNDING)]
Count: TypeAlias = Annotated[int, Ge(0)]
Size: TypeAlias = Annotated[int, Gt(0)]


class TabularRecord(Record):
    """A record with interactive display; a notebook shows its answer or, without one, its first table."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep this class's repr: the dataclass decorator would generate one that shows all fields."""
        super().__init_subclass__(**kwargs)
        cls.__repr__ = TabularRecord.__repr__  # type: ignore[method-assign]  # as inherited

    def __repr__(self) -> str:
        return printable(
            f"<{type(self).__name__}: {', '.join(filter(None, (self.headline, *self.stamp.data_stamps)))}>"
        )

    @property
    def headline(self) -> str:
        """Return the result in a few words, shorter than the sentence of an answer."""
        return self.title

    @property
    def tables(self) -> dict[str, tuple[Any, ...]]:
        """Return the rows of every table by name, the main table first: `rows`, `calibration`, `training.epochs`."""
        return {".".join(path): _rows_at(self, path) for path in _table_paths(type(self))}

    def to_frame(self, table: str | None = None) -> pd.DataFrame:
        """Return a table as a data frame with a column per field; by default the first, or the record's own fields.

        An interval becomes two columns, such as `accuracy_low` and `accuracy_high`. Tables nested in rows are left out.
        Raises UsageError, listing the tables, for an unknown name.
        """
        import pandas as pd

        paths = {".".join(path): kind for path, kind in _table_paths(type(self)).items()}
        if table is not None and table not in paths:
            remedy = f"choose one of {', '.join(nearest_first(table, paths))}" if paths else "leave the name out"
            raise UsageError(f"{type(self).__name__} has no table {table!r}", remedy)
        name = table or _first_table(type(self))
        rows = self.tables[name] if name else (self,)
        fields = _frame_columns(paths[name] if name else type(self))
        cells = [[_cell(row, field, end) for field, end in fields.values()] for row in rows]
        return pd.DataFrame(cells, columns=list(fields))

    def _repr_html_(self) -> str:
        """Return the answer's table or, without one, the first table as HTML for a notebook, with all text escaped."""
        name = _first_table(type(self))
        rows = self.answer.rows if self.answer else self.tables[name] if name else ()
        if rows:
            shown = table_columns(rows[:MAX_ROWS])
            head = [column.heading.replace("\n", " ") for _, column, _ in shown]
            body = list(zip(*(map(column.text, values) for _, column, values in shown), strict=True))
        else:
            own = columns(type(self))
            head, body = [], [(column.heading, column.text(getattr(self, field))) for field, column in own.items()]
        stamps = f"<p><strong>{_safe(', '.join(self.stamp.data_stamps))}</strong></p>" if self.stamp.data_stamps else ""
        more = len(rows) - MAX_ROWS
        rest = f"<p>… and {more:,} more; .to_frame() has them all</p>" if more > 0 else ""
        sentence = self.answer.sentence if self.answer else self.headline
        return (
            f"<p><strong>{_safe(self.title)}</strong>: {_safe(sentence)}</p>{stamps}<table>"
            + (f"<thead>{_row('th', head)}</thead>" if head else "")
            + f"<tbody>{''.join(_row('td', cells) for cells in body)}</tbody></table>{rest}<p>{NOT_A_DEVICE}</p>"
        )


def listed(items: Iterable[str]) -> str:
    """Return the first few items, comma-separated, and the number of the others."""
    all_items = list(items)
    more = len(all_items) - MAX_ITEMS
    return ", ".join([*all_items[:MAX_ITEMS], *([f"{more} more"] if more > 0 else [])])


def _safe(text: str) -> str:
    return escape(printable(text))


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_safe(cell)}</{tag}>' for cell in cells)}</tr>"


def _table_paths(kind: type[Any]) -> dict[tuple[str, ...], type[Any]]:
    """Return the tables of a record: the path of field names to each, and the class of its rows."""
    direct: dict[tuple[str, ...], type[Any]] = {}
    nested: dict[tuple[str, ...], type[Any]] = {}
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if (row := _row_kind(hints[field.name])) is not None:
            direct[(field.name,)] = row
        for part in (hints[field.name], *typing.get_args(hints[field.name])):
            if dataclasses.is_dataclass(part) and isinstance(part, type) and (field.name,) not in direct:
                nested |= {(field.name, *path): row for path, row in _table_paths(part).items()}
    return direct | nested


def _row_kind(hint: Any) -> type[Any] | None:
    """Return the class of the rows in a field of this type; None if it has no rows."""
    if typing.get_origin(hint) is not tuple:
        return None
    part = typing.get_args(hint)[0]
    return part if isinstance(part, type) and dataclasses.is_dataclass(part) else None


def _first_table(kind: type[Any]) -> str | None:
    """Return the name of a record's first table; None for a record without tables."""
    return next((path[0] for path in _table_paths(kind) if len(path) == 1), None)


def _rows_at(value: Any, path: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the rows of a table; empty if a part of the path is None."""
    for name in path:
        value = getattr(value, name, None)
    return value or ()


def _frame_columns(kind: type[Any]) -> dict[str, tuple[str, int | None]]:
    """Return the columns of a data frame: the field of each and, for an interval, the index of its bound."""
    hints = typing.get_type_hints(kind)
    columns: dict[str, tuple[str, int | None]] = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if _row_kind(hint) is not None or any(map(dataclasses.is_dataclass, (hint, *typing.get_args(hint)))):
            continue
        if field.name.endswith(INTERVAL):
            stem = field.name.removesuffix(INTERVAL)
            columns |= {f"{stem}low": (field.name, 0), f"{stem}high": (field.name, 1)}
        else:
            columns[field.name] = (field.name, None)
    return columns


def _cell(row: Any, field: str, end: int | None) -> Any:
    value = getattr(row, field)
    return value if end is None or value is None else value[end]
