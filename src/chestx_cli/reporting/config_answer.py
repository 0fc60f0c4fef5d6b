"""The answer of `config`: the configured options, and the line or variable that sets each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.record import Answer
from chestx_cli.records.answers import SettingAnswerRow
from chestx_cli.records.configuration import BY_DEFAULT, BY_FILE
from chestx_cli.settings.sources import ALL

if TYPE_CHECKING:
    from chestx_cli.records.configuration import ConfigRecord, SettingRow

# A longer value would make the table wider than 80 columns; the JSON document has it whole.
MAX_VALUE = 20
UNUSED = " (unused)"


def of_config(record: ConfigRecord, command: str | None, warnings: tuple[str, ...]) -> Answer:
    """Return all options of one command, or those of any command that are set by a file or a variable."""
    by_place: dict[str, list[SettingRow]] = {}
    for row in record.configured:
        by_place.setdefault(row.place or "", []).append(row)
    from_file = sum(rows[0].source == BY_FILE for rows in by_place.values())
    counts = [
        f"{from_file} set by {record.file}" if record.file else "no chestx.toml here",
        f"{len(by_place) - from_file} set by variables" if len(by_place) > from_file else "no variable sets any",
    ]
    whose = f"Options of chestx {command}" if command else "Options of all commands"
    rest = "the others have their defaults" if by_place else "all have their defaults"
    if command:
        shown = tuple(_row(row, row.option) for row in record.rows)
    else:
        # Options set for all commands are listed once.
        shown = tuple(
            # Used, if a command uses it.
            _row(
                max(rows, key=lambda row: row.is_used),
                f"{rows[0].command if len(rows) == 1 else ALL} {rows[0].option}",
            )
            for rows in by_place.values()
        )
    if any(not row.is_used for row in record.configured):
        rest += "; what is unused has no effect unless other options are typed"
    return Answer(
        rows=shown,
        sentence=f"{whose}: {', '.join(counts)}; {rest}.",
        warnings=warnings,
        next_command="" if command or by_place else "chestx config train",
    )


def _row(row: SettingRow, option: str) -> SettingAnswerRow:
    value, mark = row.value, "" if row.is_used else UNUSED
    if value is not None and len(value) + len(mark) > MAX_VALUE:
        value = f"{value[: MAX_VALUE - len(mark) - 1]}…"
    return SettingAnswerRow(
        option=option,
        value=None if value is None else f"{value}{mark}",
        # Only the name of a file elsewhere; the sentence has its path.
        place=BY_DEFAULT if row.place is None else Path(row.place).name,
    )
