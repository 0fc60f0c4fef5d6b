"""Terminal output of a working command: nothing for two seconds, then always something; with a fake clock."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import chestx_cli
from chestx_cli.cli.console import ConsoleReporter
from chestx_cli.cli.progress import PATIENCE_S, Waits
from chestx_cli.command_table import SUMMARIES
from chestx_cli.core.progress import SilentReporter, reporting
from chestx_cli.data.shortcuts import FITS
from chestx_cli.inference.onnx_export import PERCENT, STAGES_PERCENT, export_onnx
from chestx_cli.store.directory import open_study
from conftest import write_images


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Timers that go off when the test lets time pass."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timers: list[tuple[float, Callable[..., None], list[Any]]] = []

    def timer(self, after_s: float, call: Callable[..., None], args: list[Any]) -> Clock.Timer:
        return self.Timer(self, (self.now_s + after_s, call, args))

    class Timer:
        def __init__(self, clock: Clock, due: tuple[float, Callable[..., None], list[Any]]) -> None:
            self.clock, self.due = clock, due

        def start(self) -> None:
            self.clock.timers.append(self.due)

        def cancel(self) -> None:
            if self.due in self.clock.timers:
                self.clock.timers.remove(self.due)

    def pass_(self, seconds: float) -> None:
        self.now_s += seconds
        for due in [due for due in self.timers if due[0] <= self.now_s]:
            self.timers.remove(due)
            due[1](*due[2])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(threading, "Timer", clock.timer)
    return clock


@pytest.fixture
def waits() -> Waits:
    return Waits(Console(file=Terminal(), force_terminal=True, width=80))


def test_from_two_seconds_on_something_is_always_shown(clock: Clock, waits: Waits) -> None:
    with waits.step("chestx train", None):
        clock.pass_(PATIENCE_S - 0.1)
        assert waits.shown == []
        clock.pass_(0.1)
        assert waits.shown == ["chestx train"]
        with waits.step("Decoding images", 9) as advance:
            clock.pass_(1)
            assert waits.shown == ["chestx train"], "a short step does not flicker"
            advance()
            clock.pass_(1)
            assert waits.shown == ["Decoding images"]
            with waits.step("Loading", None):
                clock.pass_(2)
                assert waits.shown == ["Decoding images", "Loading"]
            assert waits.shown == ["Decoding images"]
        assert waits.shown == ["chestx train"]
        with waits.hidden():
            pass
        assert waits.shown == ["chestx train"]
    assert waits.shown == []
    assert clock.timers == []


def test_a_step_that_fails_leaves_nothing_on_the_screen(clock: Clock, waits: Waits) -> None:
    with pytest.raises(ValueError, match="odd"), waits.step("chestx split", None), waits.step("Decoding images", 2):
        clock.pass_(5)
        raise ValueError("odd")
    assert waits.shown == []


def test_a_bar_has_a_count_and_the_time_left_and_a_wait_its_name(clock: Clock) -> None:
    terminal = Terminal()
    waits = Waits(Console(file=terminal, force_terminal=True, width=80, color_system=None))
    with waits.step("chestx split", None):
        clock.pass_(2)
        assert "chestx split" in terminal.getvalue()
        assert "left" not in terminal.getvalue()
        with waits.step("Decoding images", 60) as advance:
            advance(15)
            clock.pass_(2)
    assert "Decoding images" in terminal.getvalue()
    assert "15/60" in terminal.getvalue()
    assert "left" in terminal.getvalue()


def test_what_goes_on_side_by_side_has_a_line_each_within_80_columns(clock: Clock) -> None:
    terminal, notes = Terminal(), list[str]()
    waits = Waits(Console(file=terminal, force_terminal=True, width=80, color_system=None))
    with (
        waits.step("chestx study", None),
        waits.side_by_side("Cells", 15, 4, notes.append) as lines,
    ):
        lines.show("seed-42/fold-1", "train baseline", at=1, of=9, share=0.5)
        lines.show("seed-42/fold-2", f"prune {'structured-' * 9}", at=10, of=12, share=None)
        lines.left(3900.5)
        assert terminal.getvalue() == ""
        clock.pass_(2)
        lines.end("seed-42/fold-1", "seed-42/fold-1 done", failed=False)
        clock.pass_(1)
        with waits.hidden():
            drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).splitlines()
    assert max(map(len, drawn)) <= 80
    both = drawn.index(next(line for line in drawn if "Cells" in line))
    assert "4/15" in drawn[both]
    assert "left 1:05:00" in drawn[both]
    assert drawn[both + 1].startswith("seed-42/fold-1 train baseline")
    assert drawn[both + 1].rstrip().endswith("step 1 of 9")
    assert drawn[both + 2].rstrip().endswith("step 10 of 12")
    assert "…" in drawn[both + 2]
    assert "chestx study" not in "".join(drawn[both:])
    last = max(at for at, line in enumerate(drawn) if "Cells" in line)
    assert "5/15" in drawn[last]
    assert "seed-42/fold-1" not in "".join(drawn[last:])
    assert notes == []


def test_elsewhere_what_went_on_side_by_side_is_a_note_when_it_has_ended_and_a_failure_is_one_everywhere() -> None:
    for terminal, printed in ((False, ["a done", "b failed"]), (True, ["b failed"])):
        notes: list[str] = []
        waits = Waits(Console(file=Terminal() if terminal else io.StringIO(), force_terminal=terminal, width=80))
        with waits.side_by_side("Cells", 2, 0, notes.append) as lines:
            lines.show("a", "train baseline", at=1, of=2, share=None)
            lines.end("a", "a done", failed=False)
            lines.end("b", "b failed", failed=True)
        assert notes == printed


class Structure(SilentReporter):
    """Records the open steps while a command works."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, int | None]] = []

    def progress(self, label: str, total: int | None) -> Any:
        self.opened.append((label, total))
        return super().progress(label, total)


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_command_is_a_step_itself_so_that_none_of_its_work_is_outside_of_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = getattr(chestx_cli, name)
    heard = Structure()
    during: list[tuple[str, int | None]] = []
    monkeypatch.setattr(stage, "_stage_options", {})
    monkeypatch.setattr(stage, "methods", None)
    monkeypatch.setattr(stage, "check", None)
    monkeypatch.setattr(stage, "_groups", {})

    def work(_: object) -> None:
        during.extend(heard.opened)
        raise InterruptedError

    monkeypatch.setattr(stage, "function", work)
    with pytest.raises(InterruptedError):
        stage.run(heard)
    assert during == [(f"chestx {name}", None)]


def test_known_long_waits_have_a_name_and_counted_ones_a_count(tmp_path: Path) -> None:
    heard = Structure()
    with reporting(heard):
        chestx_cli.train(
            write_images(tmp_path / "data"),
            study=tmp_path / "s",
            backbone="tiny",
            weights="none",
            image_size=32,
            epochs=1,
        )
        chestx_cli.quantize(study=tmp_path / "s", method="static")
        chestx_cli.evaluate(study=tmp_path / "s")
        chestx_cli.report(study=tmp_path / "s")
    totals = dict(heard.opened)
    for label in (
        "Comparing images",
        "Building tiny",
        "Storing baseline",
        "Computing intervals and tests",
        "Reading the results and checking the models",
        "Writing the page",
    ):
        assert totals.get(label, 0) is None, (label, heard.opened)
    assert totals["Decoding images"] == 60
    assert totals["train: epochs"] == 1
    assert totals["Exporting baseline to ONNX"] == PERCENT
    assert totals["Predicting the class from sizes and formats of files"] == FITS
    n_val = len(open_study(tmp_path / "s").read_split().indices("val"))
    assert totals["Predicting the validation images"] == n_val
    assert totals["Predicting the validation images in FP32 and quantized"] == 2 * n_val
    # Nothing that is counted has one unit because it cannot be counted.
    assert all(total != 1 for label, total in heard.opened if label not in {"train: epochs", "Drawing figures"})


def test_what_is_printed_while_steps_are_shown_is_not_between_their_lines(clock: Clock) -> None:
    err, out = Terminal(), Terminal()
    reporter = ConsoleReporter(
        Console(file=out, force_terminal=True), Console(file=err, force_terminal=True), show_results=True
    )
    with reporter.progress("chestx demo", None):
        clock.pass_(2)
        before = err.getvalue()
        reporter.command("chestx split data/")
        assert "chestx split data/" in out.getvalue()
        # The line was taken off, and drawn again below.
        assert err.getvalue().startswith(before)
        assert err.getvalue().count("chestx demo") > before.count("chestx demo")


def test_the_stages_of_an_export_are_counted_by_what_the_exporter_prints() -> None:
    counted: list[float] = []
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    export_onnx(network, np.zeros((2, 3, 8, 8), dtype=np.float32), counted.append)
    assert counted == list(STAGES_PERCENT)
    assert sum(STAGES_PERCENT) <= PERCENT
