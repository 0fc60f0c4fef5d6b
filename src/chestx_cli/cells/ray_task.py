"""The task of a Ray cluster that makes one cell on one machine.

A task starts the same process as `cells/local` does, with the same number of processors, on its machine. If that
machine can reach the study's folder, the cell is made there. Otherwise the cell's files are sent to a temporary folder
and sent back as bytes.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chestx_cli import __version__
from chestx_cli.cells.processes import Event, failure_of, run_cell, stop
from chestx_cli.cells.steps import CellFailure, StudyCell, seed_folder
from chestx_cli.core.errors import ChestxError, StudyError
from chestx_cli.core.files import folder_appears_whole, write_atomic
from chestx_cli.store.directory import Study
from chestx_cli.store.locks import locked

INSTALL = "pip install 'chestx-cli[ray]'"
POLL_S = 0.2
# Locks and caches are not sent.
NOT_SENT = (".locks", "cache")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Input of a task: the cell, the module that runs it, its processors, and its requirements."""

    cell: StudyCell
    module: str
    processors: int
    version: str
    files: tuple[Path, ...]
    # A file in the study's folder: a machine that has it shares the folder.
    marker: Path


@dataclass(frozen=True, kw_only=True)
class Made:
    """Result of a task: a failure if any, and the cell's files if they were made outside the study's folder."""

    failure: CellFailure | None
    files: Mapping[str, bytes] | None = None


def look(job: Job) -> tuple[tuple[str, str] | None, bool]:
    """Return why this machine cannot run cells, or None, and whether it shares the study's folder."""
    here = socket.gethostname()
    if job.version != __version__:
        fault = (
            f"machine {here} of the Ray cluster has chestx {__version__}, and this one has {job.version}",
            f'install the same version there: "{INSTALL}"',
        )
        return fault, False
    for path in job.files:
        if not path.exists():
            fault = (
                f"machine {here} of the Ray cluster has no {path}",
                "put it there under the same path, as on storage that all share",
            )
            return fault, False
    return None, job.marker.exists()


def make(job: Job, sent: list[Any] | None, mailbox: Any) -> Made:
    """Run a cell on this machine."""
    fault, shares = look(job)
    if fault:
        return Made(failure=failure_of(job.cell, *fault))
    if shares:
        return Made(failure=_run(job, job.cell, mailbox))
    if sent is None:
        return Made(
            failure=failure_of(
                job.cell,
                f"{socket.gethostname()} joined the Ray cluster later and does not see {job.cell.root}",
                "start the command again, or mount the folder there under the same path",
            )
        )
    import ray

    with tempfile.TemporaryDirectory(prefix="chestx-cell-") as folder:
        cell = replace(job.cell, root=Path(folder))
        for name, content in ray.get(sent[0]).items():
            write_atomic(cell.root / name, content)
        failure = _run(job, cell, mailbox)
        files = {name: path.read_bytes() for name, path in _files_of(cell.study.root)}
    if failure is not None:
        failure = replace(failure, command=failure.command.replace(folder, str(job.cell.root)))
    return Made(failure=failure, files=files)


def _run(job: Job, cell: StudyCell, mailbox: Any) -> CellFailure | None:
    """Run the cell's process, passing on its events, until it ends or the task is cancelled."""
    events: queue.SimpleQueue[tuple[str, Event]] = queue.SimpleQueue()
    events.put((cell.name, {"machine": socket.gethostname()}))
    alive: set[subprocess.Popen[bytes]] = set()
    with ThreadPoolExecutor(1) as pool, own_processors(job.processors) as processors:
        end = pool.submit(
            run_cell,
            cell,
            module=job.module,
            processors=processors,
            on_event=lambda cell, event: events.put((cell.name, event)),
            alive=alive,
        )
        try:
            # Short waits, because Ray's request to stop is handled between them.
            while wait([end], timeout=POLL_S).not_done:
                _send(events, mailbox)
        except BaseException:
            stop(alive)
            raise
        _send(events, mailbox)
        return end.result()


def _send(events: queue.SimpleQueue[tuple[str, Event]], mailbox: Any) -> None:
    batch = [events.get() for _ in range(events.qsize())]
    if batch:
        mailbox.put_nowait_batch(batch)


@contextmanager
def own_processors(n: int) -> Iterator[tuple[int, ...]]:
    """Yield `n` processors of this machine, preferably ones that no other cell uses."""
    every = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    shares = [tuple(every[start : start + n]) for start in range(0, len(every) - n + 1, n)]
    folder = Path(tempfile.gettempdir()) / f"chestx-processors-{os.getuid() if hasattr(os, 'getuid') else ''}"
    with contextlib.ExitStack() as held:
        for share in shares:
            with contextlib.suppress(StudyError):
                held.enter_context(locked(folder, f"processors {share[0]} of {n}", "chestx study --ray"))
                yield share
                return
        # The cluster was started with more processors than the machine has.
        yield tuple(every[:n])


def _files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not path.is_symlink() and not set(NOT_SENT) & set(name.parts):
            yield name.as_posix(), path


def files_to_send(cell: StudyCell) -> dict[str, bytes]:
    """Return the input files of a cell by path within the study: the plan, the folds and the cell as it is."""
    above = (Study(cell.root).plan_json, seed_folder(cell.root, cell.seed).folds_json)
    own = {f"{cell.name}/{name}": path for name, path in _files_of(cell.study.root)}
    return {
        **{path.relative_to(cell.root).as_posix(): path.read_bytes() for path in above},
        **{name: path.read_bytes() for name, path in own.items()},
    }


def put_files(cell: StudyCell, files: Mapping[str, bytes]) -> None:
    """Replace a cell's folder in one step by the files that another machine sent."""
    with folder_appears_whole(cell.study.root) as folder:
        for name, content in files.items():
            path = folder / name
            if ".." in Path(name).parts or Path(name).is_absolute():
                raise ChestxError(f"a machine of the cluster sent the file {name!r}, which lies outside of its cell")
            write_atomic(path, content)
