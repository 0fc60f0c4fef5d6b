"""Console output: records as rich tables, progress as bars, messages on stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from types import NoneType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from chestx_cli.cli.progress import Waits
from chestx_cli.core.errors import OutputError, in_study
from chestx_cli.core.printable import counted, printable
from chestx_cli.core.record import NOT_A_DEVICE, Answer, Record, columns, table_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from chestx_cli.core.progress import Lines

MAX_ROWS = 100
# An answer fits one screen; of the warnings that do not fit, only the first is shown without --full.
MAX_LINES = 24
# An empty line and the title before the table, the next command and the notice after it.
LINES_AROUND = 4
MIN_NAME_WIDTH = 10
# Colour only repeats the words, so nothing is lost without it.
_GOOD, _BAD, _OPEN = "green", "red", "yellow"
_TONES = {
    "better": _GOOD,
    "not inferior": _GOOD,
    "✓ yes": _GOOD,
    "faster": _GOOD,
    "inferior": _BAD,
    "slower": _BAD,
    "inconclusive": _OPEN,
    "NOISY": _OPEN,
}
_NAME_PARTS = re.compile(r"[^-_+./]*[-_+./]?")


def plain(text: str, style: str = "") -> Text:
    """Return text that is safe to print: no markup, no terminal control characters. Use it for all output."""
    return Text(printable(text, keep="\n"), style=style)


def _cell(text: str, style: str = "") -> Text:
    return Text(printable(text, keep="\n"), style=style)


def show_record(record: Record, console: Console, *, full: bool = False, study: str = "") -> None:
    """Print a record's answer; print the whole record with `full`, or if it has no answer.

    `study` is the --study value as typed, which is added to the commands named in the output.
    """
    if record.answer is not None:
        _show_answer(record, record.answer, console, full=full, study=study)
    if full or record.answer is None:
        _show_everything(record, console, study=study)
    console.print(plain(NOT_A_DEVICE, style="dim"))


def _show_answer(record: Record, answer: Answer, console: Console, *, full: bool, study: str) -> None:
    console.print()
    console.print(plain(record.title, style="bold"))
    _show_stamps(record.stamp.data_stamps, console)
    table = None
    if answer.rows:
        table = _answer_table(*_texts(answer.rows), console)
        _print_whole(table, console)
    sentence = plain(in_study(answer.sentence, study), style="bold")
    # With `full` the notes follow, so warnings that are among them are not repeated.
    listed = [text for text in answer.warnings if not (full and text in record.notes)]
    warnings = [plain(in_study(text, study), style=_OPEN) for text in listed]
    fixed = LINES_AROUND + bool(record.stamp.data_stamps) + _height(sentence, console)
    room = MAX_LINES - fixed - (_height(table, console) if table else 0)
    _print_sentence(sentence, console)
    for index, warning in enumerate(warnings):
        room -= _height(warning, console)
        if index and room < (index + 1 < len(warnings)) and not full:
            left = len(warnings) - index
            console.print(plain(f"{counted(left, 'more warning')}: --full", style=_OPEN))
            break
        _print_sentence(warning, console)
    if next_command := answer.next_command:
        if study and next_command.startswith("chestx ") and "--study" not in next_command:
            next_command += f" --study {study}"
        console.print(plain(f"Next: {next_command}"), soft_wrap=True)


def _print_sentence(text: Text, console: Console) -> None:
    """Print a sentence, wrapped on a terminal and on one line elsewhere."""
    console.print(text, soft_wrap=not console.is_terminal)


def _height(shown: Text | Table, console: Console) -> int:
    if isinstance(shown, Text):
        return len(shown.wrap(console, console.width)) if console.is_terminal else 1
    needed = _width(shown, console)
    return len(console.render_lines(shown, console.options.update(width=needed, max_width=needed)))


def _answer_table(headings: list[str], cells: list[list[str]], numeric: list[bool], console: Console) -> Table:
    """Return a table that fits the console: with narrower gaps, then with names (never numbers) broken at hyphens."""
    for gap in (2, 1):
        table = _table(headings, cells, numeric, gap=gap)
        over = _width(table, console) - console.width
        if over <= 0:
            return table
    room = max(max(len(row[0]) for row in cells) - over, MIN_NAME_WIDTH)
    return _table(headings, [[_fold_name(row[0], room), *row[1:]] for row in cells], numeric, gap=1)


def _fold_name(name: str, room: int) -> str:
    lines = [""]
    for part in _NAME_PARTS.findall(name):
        if lines[-1] and len(lines[-1] + part) > room:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _show_everything(record: Record, console: Console, *, study: str) -> None:
    """Print a record's values, a table for every list of rows, and its notes."""
    console.print()
    console.print(plain(record.title, style="bold"))
    stamps = record.stamp.data_stamps
    _show_parts(record, console, stamps, study=study)
    if record.notes:
        console.print()
    for note in record.notes:
        _say(in_study(note, study), console)


def _show_parts(part: Any, console: Console, stamps: tuple[str, ...], *, study: str) -> None:
    """Print the values of a record or of a part of it, then its parts and tables."""
    _show_values(part, console, stamps)
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if "report_only" in field.metadata:
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type) and columns(type(value)):
            console.print()
            _show_parts(value, console, stamps, study=study)
        else:
            _show_rows(value, console, stamps, study=study)


def _say(text: str, console: Console) -> None:
    """Print an indented sentence, wrapped on a terminal and on one line elsewhere."""
    if console.is_terminal:
        console.print(Padding(plain(text), (0, 0, 0, 2), expand=False))
    else:
        console.print(plain(f"  {text}"), soft_wrap=True)


def _show_stamps(stamps: tuple[str, ...], console: Console) -> None:
    """Print data warnings directly above a table, so that they are copied with it."""
    if stamps:
        console.print(plain(", ".join(stamps), style="bold yellow"))


def _show_values(record: Any, console: Console, stamps: tuple[str, ...]) -> None:
    shown = columns(type(record))
    if not shown:
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, column in shown.items():
        table.add_row(plain(column.heading), _cell(column.text(getattr(record, name))))
    _show_stamps(stamps, console)
    console.print(table)


def _show_rows(rows: object, console: Console, stamps: tuple[str, ...], *, study: str) -> None:
    if not isinstance(rows, tuple) or not rows or not dataclasses.is_dataclass(rows[0]):
        return
    total, rows = len(rows), rows[:MAX_ROWS]
    if not columns(type(rows[0])):
        return
    headings, cells, numeric = _texts(rows)
    if len(headings) == 1:
        console.print()
        _show_stamps(stamps, console)
        console.print(plain(headings[0], style="bold"))
        for (cell,) in cells:
            _say(in_study(f"- {cell}", study), console)
        return
    # A command in a cell has no quotation marks.
    commands = [
        [in_study(f'"{cell}"', study)[1:-1] if cell.startswith("chestx ") else cell for cell in row] for row in cells
    ]
    table = _table(headings, commands, numeric)
    # A table that is too wide is transposed, with as many rows side by side as fit; a table of many rows is left to
    # wrap.
    too_wide = _width(table, console) > console.width and len(rows) < len(headings)
    for part in _turned(headings, commands, console) if too_wide else [table]:
        console.print()
        _show_stamps(stamps, console)
        _print_whole(part, console)
    if total > len(rows):
        console.print(plain(f"… and {total - len(rows):,} more; --json has them all", style="dim"))


def _texts(rows: tuple[Any, ...]) -> tuple[list[str], list[list[str]], list[bool]]:
    """Return the headings of a table, its cells row by row, and which columns are numeric."""
    shown = table_columns(rows)
    cells = [list(line) for line in zip(*(map(column.text, values) for _, column, values in shown), strict=True)]
    numeric = [
        column.is_number or all(isinstance(value, (int, float, tuple, NoneType)) for value in values)
        for _, column, values in shown
    ]
    return [column.heading for _, column, _ in shown], cells, numeric


def _print_whole(table: Table, console: Console) -> None:
    """Print a table at its full width: cut to the console's width, it would show truncated numbers."""
    needed = _width(table, console)
    whole = console.render(table, console.options.update(width=needed, max_width=needed))
    console.print(Segments(whole), soft_wrap=True)


def _table(headings: list[str], cells: list[list[str]], numeric: list[bool], *, gap: int = 2) -> Table:
    table = Table(header_style="bold", show_edge=False, pad_edge=False, box=None, padding=(0, gap, 0, 0))
    for heading, is_number in zip(headings, numeric, strict=True):
        table.add_column(plain(heading), justify="right" if is_number else "left", no_wrap=True)
    for row in cells:
        table.add_row(*(_cell(cell, _TONES.get(cell, "")) for cell in row))
    return table


def _turned(headings: list[str], cells: list[list[str]], console: Console) -> Iterator[Table]:
    """Yield the table transposed, in as few parts as the console's width allows."""
    while cells:
        for count in range(len(cells), 0, -1):
            names, *lines = zip(headings, *cells[:count], strict=True)
            table = _table(list(names), [list(line) for line in lines], [False] + [True] * count)
            if count == 1 or _width(table, console) <= console.width:
                yield table
                cells = cells[count:]
                break


def _width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(max_width=100_000), table).maximum


class ConsoleReporter:
    """Shows progress on a terminal, messages on stderr, and the commands run by another command."""

    def __init__(self, out: Console, err: Console, *, show_results: bool, full: bool = False) -> None:
        self.out = out
        self.err = err
        self.show_results = show_results
        self.full = full
        self.warned: set[str] = set()
        self._waits = Waits(err)

    def progress(self, label: str, total: int | None) -> AbstractContextManager[Callable[..., None]]:
        """Show a bar with the time left or, without a total, the label, once the step has run for two seconds."""
        return self._waits.step(label, total)

    def side_by_side(self, label: str, total: int, *, done: int) -> AbstractContextManager[Lines]:
        """Show a bar for all tasks and a line per running task; without a terminal, a note when a task ends."""
        return self._waits.side_by_side(label, total, done, self.note)

    def note(self, text: str) -> None:
        """Print a fact."""
        self.err.print(plain(text))

    def warn(self, text: str) -> None:
        """Print a warning once, since several commands run by one command may give the same warning."""
        if text not in self.warned:
            self.warned.add(text)
            self.err.print(plain(f"warning: {text}", style="yellow"))

    def command(self, line: str) -> None:
        """Print a command line."""
        console = self.out if self.show_results else self.err
        with self._waits.hidden(), _work_goes_on():
            console.print()
            console.print(plain(f"$ {line}", style="bold cyan"), soft_wrap=True)

    def result(self, record: Record) -> None:
        """Print the sentence of the command's answer; with `full`, or without an answer, the whole record."""
        if self.show_results:
            with self._waits.hidden(), _work_goes_on():
                if self.full or record.answer is None:
                    show_record(record, self.out, full=self.full)
                else:
                    _show_stamps(record.stamp.data_stamps, self.out)
                    _print_sentence(plain(record.answer.sentence), self.out)


def _work_goes_on() -> contextlib.suppress:
    """Return a context that ignores a failed stdout, so that the work continues; the final record reports it."""
    return contextlib.suppress(OutputError)
