"""The process of one cell: starting, monitoring and stopping it, and `serve`, which runs inside it.

Each cell has its own process, so that it can have its own processors and a crash affects no other cell. The process
reports progress as events, one line of JSON each. When its stdin is closed, it writes a checkpoint and ends, so it
never outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypedDict

from chestx_cli.cells.declaring import plan_in
from chestx_cli.cells.plan import Stages
from chestx_cli.cells.steps import CellFailure, StudyCell, make_cell
from chestx_cli.core.errors import ChestxError, command_line
from chestx_cli.core.progress import SilentReporter
from chestx_cli.core.record import Document, jsonable
from chestx_cli.core.signals import handled

if TYPE_CHECKING:
    from chestx_cli.core.progress import Advance

# Time allowed for writing a checkpoint after a request to stop.
STOP_WITHIN_S = 10.0


class Event(TypedDict, total=False):
    """What happens in a cell, as a line of JSON.

    `machine` is where it begins. `step` begins a step, number `at` of `of`, which `took` ends after `seconds`. A
    progress bar of `total` units has the number of `begin`, `advance` (by `steps` units) and `finish`. `end` has the
    fields of the failure, None without one.
    """

    machine: str
    step: str
    at: int
    of: int
    took: str
    seconds: float
    begin: int
    total: int
    advance: int
    steps: int
    finish: int
    end: Document | None


OnEvent = Callable[[StudyCell, Event], None]
OnEnd = Callable[[StudyCell, CellFailure | None], None]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What the process of a cell reads from stdin: the cell and the processors that it keeps to."""

    root: str
    seed: int
    fold: int
    processors: Sequence[int]


class Executor(Protocol):
    """Runs cells in processes that call `serve`, on this machine or on others.

    A failed cell does not stop the others. When the executor is interrupted or killed, the cells' processes write a
    checkpoint and end.
    """

    def __call__(self, cells: Sequence[StudyCell], *, on_event: OnEvent, on_end: OnEnd) -> None:
        """Run the cells; `on_event` receives the events of all cells, from any thread.

        `on_end` receives each ended cell with its failure, if any, in the thread of the caller.
        """


def run_cell(
    cell: StudyCell,
    *,
    module: str,
    processors: Sequence[int],
    on_event: OnEvent,
    alive: set[subprocess.Popen[bytes]],
) -> CellFailure | None:
    """Run a cell in a process that executes `module`, restricted to `processors` unless empty; return its failure.

    `module` calls `serve`. The process is in `alive` while it runs, for `stop`.
    """
    job = _Job(root=str(cell.root), seed=cell.seed, fold=cell.fold, processors=tuple(processors))
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            # Its own process group: an interrupt from the terminal reaches only this process, which forwards it.
            process_group=0,
        )
        alive.add(process)
        try:
            return _followed(cell, job, process, stderr, on_event)
        finally:
            process.kill()
            process.wait()
            alive.discard(process)


def stop(alive: set[subprocess.Popen[bytes]]) -> None:
    """Stop processes after their step, with a checkpoint; kill those that take too long."""
    for process in tuple(alive):
        with contextlib.suppress(OSError):
            process.terminate()
    deadline_s = time.monotonic() + STOP_WITHIN_S
    for process in tuple(alive):
        try:
            process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def _followed(
    cell: StudyCell, job: _Job, process: subprocess.Popen[bytes], stderr: IO[bytes], on_event: OnEvent
) -> CellFailure | None:
    assert process.stdin is not None  # noqa: S101 - a pipe, see above
    assert process.stdout is not None  # noqa: S101 - a pipe, see above
    with contextlib.suppress(OSError):
        process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
        process.stdin.flush()
    for line in process.stdout:
        event: Event = json.loads(line)
        if "end" in event:
            failure = event["end"]
            return CellFailure(**failure) if failure else None
        on_event(cell, event)
    code = process.wait()
    stderr.seek(0)
    last = stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
    return failure_of(cell, _end_of_process(code, last))


def _end_of_process(code: int, last: str) -> str:
    """Return how a process without a result ended; `last` is the last line of its stderr."""
    ended = f"the process was ended by signal {-code}" if code < 0 else f"the process ended with code {code}"
    ended = f"{ended}: {last}" if last else ended
    if code == -signal.SIGKILL:
        return f"{ended}; the system may have run out of memory: use fewer --jobs"
    return ended


def failure_of(cell: StudyCell, fact: str, remedy: str = "") -> CellFailure:
    """Return a failure outside of the cell's commands; running the study again reproduces it."""
    command = command_line(("chestx", "study", "--study", str(cell.root)))
    return CellFailure(cell=cell.name, command=command, fact=fact, remedy=remedy)


class EventReporter(SilentReporter):
    """Reports steps and their progress bars as events.

    Notes, warnings and results are in the records; printing those of all cells would hide the answer.
    """

    def __init__(self, out: IO[bytes]) -> None:
        self._out, self._count = out, itertools.count()

    def send(self, event: Event) -> None:
        """Write one event; if there is no reader any more, this process is about to end."""
        with contextlib.suppress(OSError):
            self._out.write(json.dumps(event).encode() + b"\n")
            self._out.flush()

    def step(self, label: str, *, at: int, of: int) -> None:
        """Report the start of step `at` of `of` in the cell."""
        self.send({"step": label, "at": at, "of": of})

    def took(self, label: str, seconds: float) -> None:
        """Report the end of a step."""
        self.send({"took": label, "seconds": round(seconds, 3)})

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Advance]:
        """Report a progress bar if the units can be counted."""
        if not total:
            with super().progress(label, total) as advance:
                yield advance
            return
        number = next(self._count)
        self.send({"begin": number, "total": total})
        try:
            yield lambda steps=1: self.send({"advance": number, "steps": steps})
        finally:
            self.send({"finish": number})


def serve(stages: Stages) -> None:
    """Run the cell that a line of stdin describes, and report on stdout; when stdin is closed, checkpoint and end."""
    job = _Job(**json.loads(sys.stdin.readline()))
    # Output of libraries must not mix with the events.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    if job.processors and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job.processors)
    cell = StudyCell(root=Path(job.root), seed=job.seed, fold=job.fold)
    with handled():
        reporter = EventReporter(out)
        try:
            failure = make_cell(plan_in(cell.root, stages), cell, stages, reporter)
        except ChestxError as error:
            failure = failure_of(cell, error.fact, error.remedy)
    reporter.send({"end": jsonable(failure) if failure else None})


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
