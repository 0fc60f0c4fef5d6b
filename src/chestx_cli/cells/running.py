"""State of running cells, and the remaining time estimated from finished steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.cells.steps import CellState, StudyCell, cells_of, state_of
from chestx_cli.records.cells import CellRow

if TYPE_CHECKING:
    from chestx_cli.cells.plan import Plan, Stages
    from chestx_cli.cells.processes import Event
    from chestx_cli.core.progress import Lines


def usual_s(durations_s: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the mean duration of each step."""
    return {label: sum(taken) / len(taken) for label, taken in durations_s.items()}


def taken_s(states: Iterable[CellState]) -> dict[str, list[float]]:
    """Return the durations of each finished step over all cells, by its label."""
    taken: dict[str, list[float]] = {}
    for state in states:
        for label, duration_s in state.durations_s.items():
            taken.setdefault(label, []).append(duration_s)
    return taken


def cells_left(plan: Plan, root: Path, stages: Stages) -> tuple[tuple[CellRow, ...], float | None]:
    """Return every cell with its unfinished steps, and the estimated seconds for all; None if one was never timed."""
    states = [state_of(plan, cell, stages) for cell in cells_of(plan, root.resolve())]
    usual = usual_s(taken_s(states))
    rows = tuple(_cell_row(state, usual) for state in states)
    known = [row.seconds_left for row in rows if row.seconds_left is not None]
    return rows, sum(known) if len(known) == len(rows) else None


def _cell_row(state: CellState, usual: Mapping[str, float]) -> CellRow:
    labels = tuple(step.label for step in state.left)
    known = all(label in usual for label in labels)
    return CellRow(
        cell=state.cell.name,
        done=len(state.durations_s),
        steps=len(state.durations_s) + len(labels),
        left=labels,
        seconds_left=sum(usual[label] for label in labels) if known else None,
    )


@dataclass(kw_only=True)
class _Cell:
    """An unfinished cell: the labels of its remaining steps; the first may be running."""

    left: list[str]
    at: int = 0
    of: int = 0
    began_s: float | None = None
    machine: str = ""
    # Progress bars within the step: finished and total units, by number, the outermost first.
    bars: dict[int, list[float]] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """Return the finished share of the step's outermost progress bar; None without one."""
        done, total = next(iter(self.bars.values()), (0.0, 0.0))
        return min(1.0, done / total) if total else None


class RunningCells:
    """Receives the events of cells, shows each cell on a line, and estimates the remaining time."""

    def __init__(self, states: Sequence[CellState], lines: Lines, note: Callable[[str], None]) -> None:
        self._taken_s = taken_s(states)
        self._cells = {state.cell: _Cell(left=[step.label for step in state.left]) for state in states if state.left}
        self._lines, self._note = lines, note
        self._most_at_once = 1
        self._lock = threading.Lock()

    def take(self, cell: StudyCell, event: Event) -> None:
        """Process an event of a cell; called from any thread."""
        with self._lock:
            one = self._cells.get(cell)
            # A machine considered lost may still report a cell that was restarted elsewhere.
            if one is None:
                return
            if "machine" in event:
                if one.machine:
                    self._note(f"{cell.name} begins again on {event['machine']}: {one.machine} was lost")
                one.machine = event["machine"]
            elif "step" in event:
                self._begin(one, event)
            elif "took" in event:
                self._taken_s.setdefault(event["took"], []).append(event["seconds"])
                if event["took"] in one.left:
                    one.left.remove(event["took"])
                one.began_s = None
                self._lines.left(self._seconds_left())
            elif "begin" in event:
                one.bars[event["begin"]] = [0.0, event["total"]]
            elif event.get("advance") in one.bars:
                one.bars[event["advance"]][0] += event["steps"]
            elif "finish" in event:
                one.bars.pop(event["finish"], None)
            if one.began_s is not None:
                self._lines.show(cell.name, one.left[0], at=one.at, of=one.of, share=one.share)

    def end(self, cell: StudyCell) -> float | None:
        """Remove an ended cell; return the estimated seconds for the others, None if not known."""
        with self._lock:
            del self._cells[cell]
            seconds = self._seconds_left()
            self._lines.left(seconds)
        return seconds

    def _begin(self, one: _Cell, event: Event) -> None:
        label = event["step"]
        # A cell that was restarted elsewhere may repeat lost steps.
        if label in one.left:
            one.left.remove(label)
        one.left.insert(0, label)
        one.at, one.of = event["at"], event["of"]
        one.began_s = time.monotonic()
        one.bars.clear()
        self._most_at_once = max(self._most_at_once, sum(cell.began_s is not None for cell in self._cells.values()))
        self._lines.left(self._seconds_left())

    def _seconds_left(self) -> float | None:
        usual = usual_s(self._taken_s)
        seconds = 0.0
        for one in self._cells.values():
            for label in one.left:
                if label not in usual:
                    return None
                seconds += usual[label]
            if one.began_s is not None:
                seconds -= min(usual[one.left[0]], time.monotonic() - one.began_s)
        return seconds / max(1, min(self._most_at_once, len(self._cells)))
