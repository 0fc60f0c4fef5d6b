"""Progress on a terminal: after two seconds always a bar, or the name of the step that is running."""

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
# Low, so that drawing does not disturb benchmarks.
REFRESHES_PER_S = 4


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


class Waits:
    """Shows the steps that have been running for two seconds.

    Steps with a count have a bar with the time left. A step without a count has a spinner with its name, unless a step
    inside it is shown. The outermost step is the command itself, so something is always shown.
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
        """Show a step once it has run for two seconds; the context's value is called to count finished units."""
        line = self._bars.add_task(printable(label), total=total, visible=False)
        step = _Step(line=line, counted=total is not None)
        with self._lock:
            self._steps.append(step)
        # By a timer, since the first unit of work may itself take long.
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
