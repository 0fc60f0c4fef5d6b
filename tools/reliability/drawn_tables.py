"""Random but realistic manifests, as from editors and spreadsheets, each with the expected result of reading it."""

from __future__ import annotations

import codecs
import csv
import io
import random
from dataclasses import dataclass

from tools.reliability.drawn_layouts import CLASSES, PART_NAMES, TEST, TRAIN, VAL

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252")
# Byte-order marks that Python writes only with the plain names of these encodings.
_MARKED = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
DELIMITERS = ",;\t|"
HEADINGS = {
    "path": ("path", "Path", " path ", "PATH"),
    "label": ("label", "Label", " label", "LABEL"),
    "group": ("group", "Group", "group "),
    "split": ("split", "Split", " split"),
}
Row = tuple[str, str, str | None, str | None]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A file's content, and the expected rows: path, class, patient and part; or the expected error."""

    content: bytes
    rows: tuple[Row, ...]
    error: str
    description: str


def draw_table(rng: random.Random) -> Table:
    """Return a manifest with a random encoding, delimiter and typical faults."""
    classes = rng.choice(CLASSES)
    encoding = rng.choice(ENCODINGS)
    delimiter = rng.choice(DELIMITERS)
    columns = ["path", "label"]
    columns += [name for name in ("group", "split") if rng.random() < 0.5]
    rows: list[Row] = []
    for number in range(rng.randint(6, 20)):
        part = (TRAIN, TEST, VAL)[number % 3] if "split" in columns else None
        group = f"p{number // 2}" if "group" in columns else None
        rows.append((f"ordner ü/{number}.png", classes[number // 2 % 2], group, part))
    lines, error = _lines(rng, columns, rows)
    text = io.StringIO()
    if rng.random() < 0.1:
        text.write(f"sep={delimiter}\r\n")
    writer = csv.writer(
        text,
        delimiter=delimiter,
        lineterminator=rng.choice(("\n", "\r\n")),
        quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
    )
    writer.writerows(lines)
    mark = _MARKED.get(encoding, b"") if rng.random() < 0.5 else b""
    content = mark + text.getvalue().encode(encoding)
    return Table(content=content, rows=tuple(rows), error=error, description=f"{encoding}, {delimiter!r}")


def _lines(rng: random.Random, columns: list[str], rows: list[Row]) -> tuple[list[list[str]], str]:
    """Return the cells of a table in a random style, and the expected error, if any."""
    names = {part: rng.choice(PART_NAMES[part]) for part in (TRAIN, VAL, TEST)}
    spellings = (str, str, str.lower, str.upper)
    before, turned = rng.choice(("", "", "./", "././")), rng.random() < 0.2
    cells = []
    for path, label, group, part in rows:
        written = f"{before}{path}".replace("/", "\\" if turned else "/")
        every = {"path": written, "label": rng.choice(spellings)(label), "group": group, "split": names.get(part or "")}
        cells.append([f"{rng.choice(('', '', ' '))}{every[name]}" for name in columns])
    error = ""
    fault = rng.random()
    if fault < 0.08:
        cells.append(cells[0])
        error = f"lists {rows[0][0]} twice (lines "
    elif fault < 0.16:
        cells[rng.randrange(len(cells))][1] = " "
        error = "has no label in line "
    elif fault < 0.24 and "split" in columns:
        cells[rng.randrange(len(cells))][columns.index("split")] = "fold3"
        error = "has the split 'fold3' in line "
    elif fault < 0.32:
        columns = ["file", *columns[1:]]
        error = "lacks the column path; it has file, label"
    extra = ["note"] if rng.random() < 0.3 else []
    order = [*range(len(columns))]
    if not error:
        rng.shuffle(order)
    heading = [rng.choice(HEADINGS.get(name, (name,))) for name in columns]
    lines = [[*(line[index] for index in order), *("seen, twice" for _ in extra)] for line in [heading, *cells]]
    lines[0] = [*(heading[index] for index in order), *extra]
    for _ in range(rng.choice((0, 0, 1, 3))):
        blank = rng.choice(([""] * len(lines[0]), [" "] * len(lines[0])))
        lines.insert(rng.randint(1, len(lines)), blank)
    return lines, error
