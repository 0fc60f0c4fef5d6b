"""What a terminal shows while a command works: after two seconds always a bar, or the name of what is waited for."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
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
from rich.text import Text

from chestx_cli.core.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console, RenderableType
    from rich.progress import Task

PATIENCE_S = 2.0
# Drawing must not take from what is being timed.
REFRESHES_PER_S = 4


class _OfCounted(ProgressColumn):
    """A column of the steps whose units are counted; nothing for others."""

    max_refresh = None

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> RenderableType:
        return Text() if task.total is None else self._column(task)


class _OfOthers(_OfCounted):
    """A column of the steps that have no units to count."""

    def render(self, task: Task) -> RenderableType:
        return self._column(task) if task.total is None else Text()


class _Count(ProgressColumn):
    """How many whole units of work are done, of how many; a part of an epoch moves the bar alone."""

    def render(self, task: Task) -> Text:
        # Parts of one that add up to just less than it are one.
        return Text(f"{int(task.completed + 1e-6):,}/{task.total or 0:,.0f}")


@dataclass(kw_only=True)
class _Step:
    """A step that is going on: its line, whether it is counted, and whether it has taken longer than the patience."""

    line: TaskID
    counted: bool
    due: bool = False


class Waits:
    """Shows the steps that are going on and have taken two seconds.

    Counted steps have a bar with the time left. One without a count has a spinner with its name, unless a step inside
    it is shown: the outermost is the command itself, so that there is nothing that takes long and shows nothing.
    """

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            _OfOthers(SpinnerColumn()),
            TextColumn("{task.description}", markup=False),
            _OfCounted(BarColumn()),
            _OfCounted(_Count()),
            TimeElapsedColumn(),
            _OfCounted(TextColumn("left")),
            _OfCounted(TimeRemainingColumn()),
            console=console,
            transient=True,
            refresh_per_second=REFRESHES_PER_S,
            disable=not (console.is_terminal or console.is_jupyter),
        )
        self._steps: list[_Step] = []
        self._lock = threading.RLock()

    @contextmanager
    def step(self, label: str, total: int | None) -> Iterator[Callable[..., None]]:
        """Show a step once it has taken two seconds; its value counts finished units."""
        line = self._bars.add_task(printable(label), total=total, visible=False)
        step = _Step(line=line, counted=total is not None)
        with self._lock:
            self._steps.append(step)
        # By a clock and not by the first unit of work, which may itself take long.
        patience = threading.Timer(PATIENCE_S, self._fall_due, [step])
        patience.daemon = True
        patience.start()
        try:
            yield lambda steps=1: self._bars.advance(line, steps)
        finally:
            patience.cancel()
            with self._lock:
                self._steps.remove(step)
                self._bars.remove_task(line)
                self._show()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bars off the terminal while something else is printed there."""
        with self._lock:
            self._bars.stop()
            try:
                yield
            finally:
                self._show()

    @property
    def shown(self) -> list[str]:
        """Return the names of the steps that are shown."""
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
