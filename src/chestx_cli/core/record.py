"""Records: a command's result as one frozen value, from which its JSON document and tables are generated."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

# Characters that JSON leaves unescaped: terminal controls, marks of text direction, and lone surrogates, which cannot
# be encoded.
_STEERING = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# A JSON or TOML object before it is validated, or as it is written: its keys are data.
Document: TypeAlias = Mapping[str, Any]
# Values of a command's options by the names of their parameters, which the command declares with their types.
Options: TypeAlias = Mapping[str, Any]

NOT_A_DEVICE = "Research software. Not a medical device."

# Options that older documents lack, with the value that was in effect then.
FORMER_VALUES: Options = {
    "recalibrate": False,
    "schedule": "constant",
    "keep": "lowest",
    "batchnorm_parts": 1,
    "shuffled_parts": 1,
    "resize": "squash",
    "width": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """Heading and format of a field in tables.

    With `by_name` the field is a mapping with one column per key except the `hidden` ones; `names` maps keys to
    headings.
    """

    heading: str
    spec: str = ""
    separator: str = "–"
    # Whether the strings are numbers, to be right-aligned.
    is_number: bool = False
    by_name: bool = False
    hidden: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    def text(self, value: object) -> str:
        """Return `value` as tables show it: None as a dash, tuples joined, NaN as n/a."""
        if value is None:
            return "–"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float) and math.isnan(value):
            return "n/a"
        if isinstance(value, tuple):
            return self.separator.join(self.text(part) for part in value) if value else "–"
        text = format(value, self.spec)
        # 5,855 of 5,856 must not be shown as 100 %.
        if self.spec.endswith("%") and isinstance(value, float) and value < 1 and text == format(1.0, self.spec):
            return f"below {text}"
        return text


def col(
    heading: str, spec: str = "", *, separator: str = "–", is_number: bool = False, default: Any = dataclasses.MISSING
) -> Any:
    """Declare a dataclass field that tables show under `heading`, formatted with `spec`; tuples are joined.

    `default` is the value for documents written before the field existed.
    """
    column = Column(heading=heading, spec=spec, separator=separator, is_number=is_number)
    return field(default=default, metadata={"column": column})


def named_cols(heading: str, spec: str = "", *, hidden: tuple[str, ...] = (), names: Mapping[str, str]) -> Any:
    """Declare a dataclass field that is a mapping, shown as one column per key; see `Column`."""
    column = Column(heading=heading, spec=spec, by_name=True, hidden=hidden, names=names)
    return field(metadata={"column": column})


def report_only(default: Any = dataclasses.MISSING) -> Any:
    """Declare a record's field of rows that only the report shows, not the terminal."""
    return field(default=default, metadata={"report_only": True})


def columns(kind: type[Any]) -> dict[str, Column]:
    """Return the shown fields of a dataclass, by field name, in order."""
    return {f.name: f.metadata["column"] for f in dataclasses.fields(kind) if "column" in f.metadata}


def table_columns(rows: Sequence[Any]) -> list[tuple[str, Column, list[Any]]]:
    """Return the columns of a table of rows of one class: field name, `Column`, and one value per row."""
    shown_columns: list[tuple[str, Column, list[Any]]] = []
    for name, column in columns(type(rows[0])).items():
        values = [getattr(row, name) for row in rows]
        if not column.by_name:
            shown_columns.append((name, column, values))
            continue
        for key in dict.fromkeys(key for value in values for key in value if key not in column.hidden):
            shown = Column(heading=f"{column.heading} {column.names.get(key, key)}", spec=column.spec)
            shown_columns.append((f"{name}_{key}", shown, [value.get(key) for value in values]))
    return shown_columns


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The conclusion of a record, shown first: a table of at most 80 columns, a sentence, and the next command.

    `rows` are instances of one dataclass with columns. `warnings` are sentences always shown with the table.
    """

    sentence: str
    rows: tuple[Any, ...] = ()
    warnings: tuple[str, ...] = ()
    next_command: str = ""


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """Provenance of a record: command, options, sha256 of the inputs, environment, time."""

    command: str
    options: Options
    inputs: dict[str, str]
    environment: dict[str, str]
    created: str
    duration_s: float
    # Data warnings shown above every table, such as UNGROUPED.
    data_stamps: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base class of all records; `schema` is the document type with its version, `title` the heading of its table."""

    schema: ClassVar[str]
    title: ClassVar[str]
    # Older schemas that can be read: missing fields have defaults, other differences are handled by `upgraded`.
    reads: ClassVar[tuple[str, ...]] = ()
    # What to do about a damaged document; `{variant}` is the variant whose folder holds it.
    remedy: ClassVar[str] = "restore the file"

    stamp: Stamp
    notes: tuple[str, ...] = ()
    # Set on the record that a command returns, not in stored documents: it may combine several of them. A stored record
    # therefore equals the one that a command returned.
    answer: Answer | None = dataclasses.field(default=None, compare=False)

    @property
    def exit_code(self) -> int:
        """Return the command's exit code after showing the record."""
        return 0

    @classmethod
    def upgraded(cls, document: Document) -> Document:
        """Convert a not yet validated document of an older schema in `reads` to the current schema."""
        return document

    def to_dict(self) -> Document:
        """Return the record as JSON types: schema, answer if it has one, then all fields."""
        body = {f.name: jsonable(getattr(self, f.name)) for f in dataclasses.fields(self)}
        answer = body.pop("answer")
        return {"schema": self.schema, **({} if answer is None else {"answer": answer}), **body}

    def to_json(self, *, ascii_only: bool = False) -> str:
        """Return the record as one JSON document; `ascii_only` escapes non-ASCII characters."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=ascii_only, allow_nan=False) + "\n"
        # These characters occur only inside strings, where the escape is equivalent.
        return _STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with `changes`."""
        return dataclasses.replace(self, **changes)


def jsonable(value: Any) -> Any:
    """Return `value` as JSON types: dataclasses as objects, paths and the numbers `NaN` and `Infinity` as strings.

    JSON has no such numbers; `store.documents.read_record` reads the strings back as numbers.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Path):
        return str(value)
    return value


def renamed(part: Any, old: str, new: str) -> Any:
    """Return a part of a not yet validated document with a field renamed; a part that is no object is unchanged."""
    return {new if key == old else key: value for key, value in part.items()} if isinstance(part, dict) else part


def changed_options(before: Options, now: Options) -> list[str]:
    """Return the differences between two sets of options as `name: old -> new` texts."""
    former = {name: value for name, value in FORMER_VALUES.items() if name in before or name in now}
    before, now = jsonable({**former, **before}), jsonable({**former, **now})
    # An option that did not exist then and is not set now is no change.
    names = [*(name for name in now if name in before or now[name]), *(name for name in before if name not in now)]
    return [f"{name}: {before.get(name)} -> {now.get(name)}" for name in names if before.get(name) != now.get(name)]
