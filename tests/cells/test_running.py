"""Progress of running cells: events shown as lines, and the estimated time left."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from chestx_cli.cells.processes import Event
from chestx_cli.cells.running import RunningCells
from chestx_cli.cells.steps import CellState, CellStep, StudyCell
from chestx_cli.core.progress import SilentLines

TRAIN, TEST = CellStep(command="train", arguments={}, makes="baseline"), CellStep(command="evaluate", arguments={})


class Lines(SilentLines):
    def __init__(self) -> None:
        self.shown: dict[str, tuple[str, int, int, float | None]] = {}
        self.seconds: float | None = None

    def show(self, name: str, doing: str, *, at: int, of: int, share: float | None) -> None:
        self.shown[name] = (doing, at, of, share)

    def left(self, seconds: float | None) -> None:
        self.seconds = seconds


def cell(fold: int) -> StudyCell:
    return StudyCell(root=Path("study"), seed=1, fold=fold)


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def running(lines: Lines, notes: list[str], monkeypatch: pytest.MonkeyPatch) -> RunningCells:
    """Return three cells without a finished step, under a fixed clock."""
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    return RunningCells([CellState(cell=cell(fold), left=(TRAIN, TEST)) for fold in (1, 2, 3)], lines, notes.append)


def take(running: RunningCells, fold: int, *events: Event) -> None:
    for event in events:
        running.take(cell(fold), event)


def test_a_line_has_the_step_and_the_share_of_its_outermost_progress_bar(running: RunningCells, lines: Lines) -> None:
    take(running, 1, {"step": "train baseline", "at": 1, "of": 2})
    assert lines.shown == {"seed-1/fold-1": ("train baseline", 1, 2, None)}
    take(running, 1, {"begin": 0, "total": 4}, {"advance": 0, "steps": 1}, {"begin": 1, "total": 9})
    assert lines.shown["seed-1/fold-1"] == ("train baseline", 1, 2, 0.25)
    take(running, 1, {"advance": 1, "steps": 3}, {"finish": 1}, {"finish": 0})
    assert lines.shown["seed-1/fold-1"][-1] is None


def test_the_time_left_is_known_once_every_step_was_measured(
    running: RunningCells, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(running, 1, {"step": "train baseline", "at": 1, "of": 2}, {"took": "train baseline", "seconds": 60.0})
    take(running, 2, {"step": "train baseline", "at": 1, "of": 2})
    assert lines.seconds is None
    take(running, 1, {"step": "evaluate", "at": 2, "of": 2}, {"took": "evaluate", "seconds": 10.0})
    # 70 s for each of two cells that run at the same time.
    assert running.end(cell(1)) == lines.seconds == 70
    monkeypatch.setattr(time, "monotonic", lambda: 130.0)
    take(running, 3, {"step": "train baseline", "at": 1, "of": 2})
    # The other cell has been training for 30 s.
    assert lines.seconds == 55
    monkeypatch.setattr(time, "monotonic", lambda: 500.0)
    take(running, 3, {"took": "train baseline", "seconds": 60.0})
    # A step that takes longer than usual has no time left.
    assert lines.seconds == 10
    assert running.end(cell(2)) == 10


def test_a_cell_that_restarts_on_another_machine_repeats_its_steps(
    running: RunningCells, lines: Lines, notes: list[str]
) -> None:
    take(
        running,
        1,
        {"machine": "a"},
        {"step": "train baseline", "at": 1, "of": 2},
        {"took": "train baseline", "seconds": 60.0},
        {"step": "evaluate", "at": 2, "of": 2},
    )
    assert notes == []
    take(running, 1, {"machine": "b"}, {"step": "train baseline", "at": 1, "of": 2})
    assert notes == ["seed-1/fold-1 begins again on b: a was lost"]
    assert lines.shown["seed-1/fold-1"] == ("train baseline", 1, 2, None)
    take(running, 1, {"took": "train baseline", "seconds": 60.0}, {"step": "evaluate", "at": 2, "of": 2})
    take(running, 1, {"took": "evaluate", "seconds": 6.0})
    # The first machine was not lost after all.
    take(running, 1, {"advance": 7, "steps": 1}, {"finish": 7}, {"took": "evaluate", "seconds": 6.0})
    assert running.end(cell(1)) == 2 * 66
    take(running, 1, {"step": "evaluate", "at": 2, "of": 2})
    assert lines.shown.keys() == {"seed-1/fold-1"}
