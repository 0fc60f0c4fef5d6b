"""The report's tables as CSV files, and removal of repeated sentences from a page's sections."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from typing import TYPE_CHECKING

from chestx_cli.core.printable import printable
from chestx_cli.reporting.page.blocks import Bullets, Section, Table, Text
from chestx_cli.store.tables import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chestx_cli.reporting.page.blocks import Block

FOLDER = "tables"
LONGEST_NAME = 48
# Any other text that begins with a sign may be computed by a spreadsheet.
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def with_files(sections: Sequence[Section], first: int = 1) -> tuple[Section, ...]:
    """Return sections whose tables are given file names, numbered from `first`."""
    number = first
    sections_with_files = []
    for section in sections:
        blocks: list[Block] = []
        for block in section.blocks:
            if isinstance(block, Table):
                blocks.append(named(block, number))
                number += 1
            else:
                blocks.append(block)
        sections_with_files.append(dataclasses.replace(section, blocks=tuple(blocks)))
    return tuple(sections_with_files)


def named(table: Table, number: int) -> Table:
    """Return a table with the path of its CSV file, relative to the page."""
    slug = re.sub(r"[^a-z0-9]+", "-", table.caption.lower())[:LONGEST_NAME].strip("-")
    return dataclasses.replace(table, file=f"{FOLDER}/{number:02d}-{slug or 'table'}.csv")


def tables_of(sections: Sequence[Section]) -> Iterator[Table]:
    """Yield the tables of sections in order."""
    for section in sections:
        yield from (block for block in section.blocks if isinstance(block, Table))


def csv_of(table: Table) -> str:
    """Return a table as CSV; cells that a spreadsheet would compute are prefixed with an apostrophe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([_cell(text) for text in row] for row in (table.headings, *table.rows))
    return buffer.getvalue()


def _cell(text: str) -> str:
    clean = printable(" ".join(text.split("\n")))
    return clean if _NUMBER.fullmatch(clean) else quoted(clean)


def without_repeats(sections: Sequence[Section], already_shown: Sequence[str]) -> tuple[Section, ...]:
    """Return sections without paragraphs and items that repeat an earlier one or one of `already_shown`."""
    seen = set(already_shown)

    def is_new(text: str) -> bool:
        was_seen = text in seen
        seen.add(text)
        return not was_seen

    shortened = []
    for section in sections:
        blocks: list[Block] = []
        for block in section.blocks:
            if isinstance(block, Text):
                blocks += [block] if is_new(block.text) else []
            elif isinstance(block, Bullets):
                items = tuple(item for item in block.items if is_new(item))
                blocks += [dataclasses.replace(block, items=items)] if items else []
            else:
                blocks.append(block)
        shortened.append(dataclasses.replace(section, blocks=tuple(blocks)))
    return tuple(section for section in shortened if section.blocks)
