"""Making cells in processes of this machine: several at a time, each with processors of its own."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from chestx_cli.cells.plan import Plan, Stages
from chestx_cli.cells.steps import CellFailure, StudyCell, make_cell
from chestx_cli.core.record import Record, jsonable
from chestx_cli.core.signals import handled

if TYPE_CHECKING:
    from chestx_cli.core.progress import Advance, Reporter

# Until a process that is asked to stop has written its checkpoint.
STOP_WITHIN_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Worker:
    """How to start the process that makes a cell: the module that calls `serve`, and the processors it may use."""

    module: str
    processors: tuple[int, ...]


def make_cells(
    cells: Sequence[StudyCell],
    *,
    module: str,
    jobs: int,
    reporter: Reporter,
    on_end: Callable[[StudyCell, CellFailure | None], None],
) -> None:
    """Make cells, `jobs` at a time, each in a process that runs `module`; `on_end` is called after each, in turn.

    A cell that fails does not stop the others. Where this process is interrupted, the cells' processes write a
    checkpoint and end; where it is killed, they notice and do the same.
    """
    shares = _shares(jobs)
    lock = threading.Lock()
    alive: set[subprocess.Popen[bytes]] = set()

    def work(cell: StudyCell) -> CellFailure | None:
        with lock:
            processors = shares.pop()
        try:
            return _made(cell, Worker(module=module, processors=processors), reporter, alive)
        finally:
            with lock:
                shares.append(processors)

    with ThreadPoolExecutor(jobs) as pool:
        left = {pool.submit(work, cell): cell for cell in cells}
        try:
            while left:
                ended, _ = wait(left, return_when=FIRST_COMPLETED)
                for one in ended:
                    on_end(left.pop(one), one.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _stop(alive)
            raise


def _shares(jobs: int) -> list[tuple[int, ...]]:
    """Return the processors of each process; where they do not divide evenly, neighbours have one in common."""
    every = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    ends = [len(every) * job / jobs for job in range(jobs + 1)]
    return [tuple(every[int(start) : math.ceil(end)]) for start, end in itertools.pairwise(ends)]


def _stop(alive: set[subprocess.Popen[bytes]]) -> None:
    for process in tuple(alive):
        with contextlib.suppress(OSError):
            process.terminate()
    for process in tuple(alive):
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _made(
    cell: StudyCell, worker: Worker, reporter: Reporter, alive: set[subprocess.Popen[bytes]]
) -> CellFailure | None:
    job = {"root": str(cell.root), "seed": cell.seed, "fold": cell.fold, "processors": worker.processors}
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", worker.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            # A group of its own: an interrupt of the terminal reaches this process alone, which passes it on.
            process_group=0,
        )
        alive.add(process)
        try:
            return _followed(cell, job, process, stderr, reporter)
        finally:
            process.kill()
            process.wait()
            alive.discard(process)


def _followed(
    cell: StudyCell, job: dict[str, Any], process: subprocess.Popen[bytes], stderr: IO[bytes], reporter: Reporter
) -> CellFailure | None:
    """Pass on what a process reports until it ends; return what failed in it."""
    assert process.stdin is not None  # noqa: S101 - a pipe, see above
    assert process.stdout is not None  # noqa: S101 - a pipe, see above
    with contextlib.suppress(OSError):
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
    command = f"chestx study --study {cell.root}"
    with contextlib.ExitStack() as bars:
        advance: dict[int, tuple[Advance, contextlib.ExitStack]] = {}
        for line in process.stdout:
            event = json.loads(line)
            if "end" in event:
                return CellFailure(**event["end"]) if event["end"] else None
            if "command" in event:
                command = event["command"]
            _pass_on(event, reporter, advance, bars)
    code = process.wait()
    stderr.seek(0)
    last = stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
    how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    memory = "; the system may have run out of memory: use fewer --jobs" if code == -signal.SIGKILL else ""
    return CellFailure(
        cell=cell.name, command=command, fact=f"the process {how}{f': {last}' if last else ''}{memory}", remedy=""
    )


def _pass_on(
    event: dict[str, Any],
    reporter: Reporter,
    advance: dict[int, tuple[Advance, contextlib.ExitStack]],
    bars: contextlib.ExitStack,
) -> None:
    if "begin" in event:
        own = bars.enter_context(contextlib.ExitStack())
        advance[event["begin"]] = (own.enter_context(reporter.progress(event["label"], event["total"])), own)
    elif "advance" in event:
        advance[event["advance"]][0](event["steps"])
    elif "finish" in event:
        advance.pop(event["finish"])[1].close()


class LineReporter:
    """Reports to another process: one JSON document per line, its bars under numbers."""

    def __init__(self, out: IO[bytes], cell: str) -> None:
        self._out, self._cell, self._count = out, cell, itertools.count()

    def send(self, event: dict[str, Any]) -> None:
        """Write one event; where nobody reads them any more, this process is about to be ended."""
        with contextlib.suppress(OSError):
            self._out.write(json.dumps(event).encode() + b"\n")
            self._out.flush()

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Advance]:
        """Report a bar."""
        number = next(self._count)
        name = label if label == self._cell else f"{self._cell}: {label}"
        self.send({"begin": number, "label": name, "total": total})
        try:
            yield lambda steps=1: self.send({"advance": number, "steps": steps})
        finally:
            self.send({"finish": number})

    def note(self, text: str) -> None:
        """Drop a note: it stands in the records."""

    def warn(self, text: str) -> None:
        """Drop a warning: it stands in the records, and those of all cells would hide the answer."""

    def command(self, line: str) -> None:
        """Report the command that runs."""
        self.send({"command": line})

    def result(self, record: Record) -> None:
        """Drop a record: it is stored."""


def serve(stages: Stages, plan_in: Callable[[Path], Plan]) -> None:
    """Make the cell that a line of stdin names, and report on stdout; ends when stdin does, after a checkpoint."""
    job = json.loads(sys.stdin.readline())
    # What a library prints must not stand between the events.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    if job["processors"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["processors"])
    cell = StudyCell(root=Path(job["root"]), seed=job["seed"], fold=job["fold"])
    with handled():
        reporter = LineReporter(out, cell.name)
        failure = make_cell(plan_in(cell.root), cell, stages, reporter)
    reporter.send({"end": jsonable(failure) if failure else None})


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
