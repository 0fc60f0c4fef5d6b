"""Progress on a terminal: after two seconds always a bar, or the name of the step that is running."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from chestx_cli.core.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from rich.console import Console, RenderableType
    from rich.progress import Task

PATIENCE_S = 2.0
# Low, so that drawing does not disturb benchmarks.
REFRESHES_PER_S = 4
LINE_BAR_WIDTH, MIN_DOING_WIDTH = 16, 10


class _OfCounted(ProgressColumn):
    """A column for steps with countable units; empty for others."""

    max_refresh = None

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> RenderableType:
        return Text() if task.total is None else self._column(task)


class _OfOthers(_OfCounted):
    """A column for steps without countable units; empty for others."""

    def render(self, task: Task) -> RenderableType:
        return self._column(task) if task.total is None else Text()


class _Left(TimeRemainingColumn):
    """The time that is left: what was computed for the step, otherwise what its rate comes to."""

    def render(self, task: Task) -> Text:
        if "ends_s" not in task.fields:
            return super().render(task)
        ends_s = task.fields["ends_s"]
        if ends_s is None:
            return Text("-:--:--", style="progress.remaining")
        return Text(str(timedelta(seconds=int(max(0.0, ends_s - time.monotonic())))), style="progress.remaining")


class _Count(ProgressColumn):
    """Whole units of work done, of the total; a part of an epoch moves only the bar."""

    def render(self, task: Task) -> Text:
        # Parts of a unit may add up to slightly less than 1.
        return Text(f"{int(task.completed + 1e-6):,}/{task.total or 0:,.0f}")


@dataclass(kw_only=True)
class _Step:
    """A running step: its line, whether it has a count, and whether it has run for `PATIENCE_S`."""

    line: TaskID
    counted: bool
    due: bool = False


@dataclass(frozen=True, kw_only=True)
class _Line:
    """What one of several that go on side by side does now."""

    doing: str
    step: str
    share: float | None


class _Bars(Progress):
    """Bars, and below them a line for each of what goes on side by side."""

    # A dictionary is replaced and never changed: it is drawn from another thread.
    lines: Mapping[str, _Line] = MappingProxyType({})

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.lines and any(task.visible for task in self.tasks):
            yield _table(self.lines, self.console.width)


def _table(lines: Mapping[str, _Line], width: int) -> Table:
    """Return a line for each: its name, what it does, how much of that is done, and its step."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for _ in range(4):
        table.add_column(no_wrap=True)
    widths = [max(map(len, texts)) for texts in (lines, [line.step for line in lines.values()])]
    room = max(MIN_DOING_WIDTH, width - sum(widths) - LINE_BAR_WIDTH - 3)
    for name, line in sorted(lines.items()):
        doing = Text(printable(line.doing))
        doing.truncate(room, overflow="ellipsis")
        bar = Text() if line.share is None else ProgressBar(total=1, completed=line.share, width=LINE_BAR_WIDTH)
        table.add_row(Text(name), doing, bar, Text(line.step))
    return table


class _SideBySide:
    """Shows what goes on side by side: lines on a terminal, and elsewhere a note when one has ended."""

    def __init__(self, bars: _Bars, task: TaskID, note: Callable[[str], None]) -> None:
        self._bars, self._task, self._note = bars, task, note
        self._lock = threading.Lock()

    def show(self, name: str, doing: str, *, at: int, of: int, share: float | None) -> None:
        """Show what one of them does now."""
        line = _Line(doing=doing, step=f"step {at} of {of}", share=share)
        with self._lock:
            self._bars.lines = {**self._bars.lines, printable(name): line}

    def end(self, name: str, text: str, *, failed: bool) -> None:
        """Take the line of one that has ended away; say so where there are no lines, and where it failed."""
        with self._lock:
            self._bars.lines = {key: line for key, line in self._bars.lines.items() if key != printable(name)}
        self._bars.advance(self._task)
        if failed or self._bars.disable:
            self._note(text)

    def left(self, seconds: float | None) -> None:
        """Show how long the rest takes."""
        self._bars.update(self._task, ends_s=None if seconds is None else time.monotonic() + seconds)


class Waits:
    """Shows the steps that have been running for two seconds.

    Steps with a count have a bar with the time left. A step without a count has a spinner with its name, unless a step
    inside it is shown. The outermost step is the command itself, so something is always shown.
    """

    def __init__(self, console: Console) -> None:
        self._bars = _Bars(
            _OfOthers(SpinnerColumn()),
            TextColumn("{task.description}", markup=False),
            _OfCounted(BarColumn()),
            _OfCounted(_Count()),
            TimeElapsedColumn(),
            _OfCounted(TextColumn("left")),
            _OfCounted(_Left()),
            console=console,
            transient=True,
            # Commands print on stdout through a console of their own.
            redirect_stdout=False,
            refresh_per_second=REFRESHES_PER_S,
            disable=not (console.is_terminal or console.is_jupyter),
        )
        self._steps: list[_Step] = []
        self._lock = threading.RLock()

    @contextmanager
    def step(self, label: str, total: int | None) -> Iterator[Callable[..., None]]:
        """Show a step once it has run for two seconds; the context's value is called to count finished units."""
        with self._shown(label, total) as line:
            yield lambda steps=1: self._bars.advance(line, steps)

    @contextmanager
    def side_by_side(self, label: str, total: int, done: int, note: Callable[[str], None]) -> Iterator[_SideBySide]:
        """Show work that runs side by side, as a step with a line for each; `note` prints what has ended."""
        with self._shown(label, total) as line:
            self._bars.update(line, completed=done, ends_s=None)
            try:
                yield _SideBySide(self._bars, line, note)
            finally:
                self._bars.lines = {}

    @contextmanager
    def _shown(self, label: str, total: int | None) -> Iterator[TaskID]:
        line = self._bars.add_task(printable(label), total=total, visible=False)
        step = _Step(line=line, counted=total is not None)
        with self._lock:
            self._steps.append(step)
        # By a timer, since the first unit of work may itself take long.
        patience = threading.Timer(PATIENCE_S, self._fall_due, [step])
        patience.daemon = True
        patience.start()
        try:
            yield line
        finally:
            patience.cancel()
            with self._lock:
                self._steps.remove(step)
                self._bars.remove_task(line)
                self._show()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Remove the bars from the terminal while something else is printed."""
        with self._lock:
            self._bars.stop()
            try:
                yield
            finally:
                self._show()

    @property
    def shown(self) -> list[str]:
        """Return the labels of the steps that are shown."""
        return [task.description for task in self._bars.tasks if task.visible]

    def _fall_due(self, step: _Step) -> None:
        with self._lock:
            step.due = True
            self._show()

    def _show(self) -> None:
        due = [step for step in self._steps if step.due]
        for step in due:
            self._bars.update(step.line, visible=step.counted or step is due[-1])
        if due:
            self._bars.start()
            self._bars.refresh()
        else:
            self._bars.stop()
