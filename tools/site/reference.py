"""Reference pages generated from the code: the Python functions and the JSON records."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
import typing
from typing import Any

import chestx_cli
from chestx_cli.command_table import SUMMARIES
from chestx_cli.core.record import Answer, Record, Stamp, columns
from chestx_cli.core.signature import parameters_of, returned_by

PYTHON = """# Python

Every command is a function with the options of the shell: `--batch-size` is `batch_size`, and `--from` is `parent`,
since `from` is a keyword of Python. `help(chestx.train)` shows the same text.
[How to use them](../howto/python.md).

```python
import chestx_cli as chestx
```

## progress

`with chestx.progress():` shows bars with the time left, notes and warnings of all commands called within it, in a
terminal and in a notebook (there with `pip install 'chestx-cli[notebook]'`). Without it functions are silent.

## open_study

`chestx.open_study("study").variant("static-int8")` is a variant that stays open, and `.predict(images)` on it returns a
[`PredictRecord`](records.md#predictrecord) of files, folders, tables, or arrays of grey pixels. `.variants` lists the
names. [How to use it](../howto/predict.md#in-python).

"""
RECORDS = """# Records

The result of a command is one record: the JSON document of `--json` and of the study directory, and the value that the
function returns. Its first field is `schema`, the kind and version. A field that is added later has a default, which
holds for older documents; otherwise the version rises. `NaN` and `Infinity` are strings, since JSON has no such
numbers. Shares are 0 to 1, 1 MB is 10^6 bytes.

In Python, `record.to_frame()` is the first table as a pandas frame, and `record.to_frame("NAME")` the table of that
name.

"""


def python_page() -> str:
    """Return the reference of the Python functions as Markdown."""
    parts = [PYTHON]
    for name in SUMMARIES:
        stage = getattr(chestx_cli, name)
        kinds = returned_by(stage.function).split(" | ")
        links = " or ".join(f"[`{kind}`](records.md#{kind.lower()})" for kind in kinds)
        parts += [f"## {name}\n", f"{inspect.cleandoc(stage.function.__doc__)}\n", f"Returns {links}.\n"]
        parts += ["| parameter | type | default | meaning |", "|---|---|---|---|"]
        for parameter in parameters_of(stage.options):
            kind = ", ".join(filter(None, (parameter.kind, parameter.limits)))
            cells = (f"`{parameter.name}`", kind, f"`{parameter.default}`" if parameter.default else "required")
            parts.append(f"| {' | '.join(map(_cell, (*cells, parameter.meaning)))} |")
        parts.append("")
    return "\n".join(parts)


def _dataclasses_in(module: str) -> list[type[Any]]:
    kinds = vars(importlib.import_module(module)).values()
    return [
        kind for kind in kinds if "__dataclass_fields__" in getattr(kind, "__dict__", ()) and kind.__module__ == module
    ]


def records_page() -> str:
    """Return the reference of all records and their table rows as Markdown."""
    names = importlib.import_module("chestx_cli.records").__all__
    of_room = [kind for name in names for kind in _dataclasses_in(f"chestx_cli.records.{name}")]
    # A command may define its record, with its rows, beside itself.
    of_commands = [_dataclasses_in(f"chestx_cli.commands.{name}") for name in SUMMARIES]
    kinds = [*of_room, *(kind for own in of_commands if any(issubclass(one, Record) for one in own) for kind in own)]
    records = [kind for kind in kinds if issubclass(kind, Record)]
    parts = [RECORDS, "## In every record\n", *_fields(Record)]
    for part in (Answer, Stamp):
        parts += [f"\n### {part.__name__}\n", f"{_doc(part)}\n", *_fields(part)]
    # Without those that only others build on.
    for kind in (kind for kind in records if hasattr(kind, "schema")):
        parts += [f"\n## {kind.__name__}\n", f"`{kind.schema}` · {_doc(kind)}\n", *_fields(kind, but=Record)]
    parts.append("\n## Rows and parts\n")
    for row in sorted((kind for kind in kinds if kind not in records), key=lambda kind: kind.__name__):
        parts += [f"\n### {row.__name__}\n", f"{_doc(row)}\n", *_fields(row)]
    return "\n".join(parts) + "\n"


def _fields(kind: type[Any], *, but: type[Any] | None = None) -> list[str]:
    hints = typing.get_type_hints(kind)
    inherited = {field.name for field in dataclasses.fields(but)} if but else set()
    shown = columns(kind)
    lines = ["| field | type | in tables |", "|---|---|---|"]
    for field in dataclasses.fields(kind):
        if field.name not in inherited:
            heading = shown[field.name].heading.replace("\n", " ") if field.name in shown else ""
            lines.append(f"| `{field.name}` | {_type(hints[field.name])} | {_cell(heading)} |")
    return lines


def _type(hint: Any) -> str:
    """Return a type as text, with links to the parts that are on the page."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join("null" if part is types.NoneType else _type(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f'"{value}"' for value in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        parts = [part for part in typing.get_args(hint) if part is not Ellipsis]
        return f"list of {_type(parts[0])}" + (f" ({len(parts)})" if len(parts) > 1 else "")
    if typing.get_origin(hint) is dict or hint is dict:
        return "object"
    name = getattr(hint, "__name__", str(hint))
    return f"[{name}](#{name.lower()})" if dataclasses.is_dataclass(hint) else name


def _doc(kind: type[Any]) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split())


def _cell(text: str) -> str:
    # A bar would end the table cell, and angle brackets would form a tag.
    return re.sub(r"[|<>]", lambda found: f"&#{ord(found[0])};", text)
