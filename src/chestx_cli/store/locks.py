"""Locks: two commands never write the same thing at once, and a command's lock ends with its process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.errors import StudyError
from chestx_cli.core.files import make_folder, read_json, storage_error, write_atomic

if TYPE_CHECKING:
    from chestx_cli.core.command import Run

NAMED_WITHIN_S, POLL_S = 2.0, 0.01


@contextmanager
def locked(root: Path, what: str, command: str, *, wait: bool = False) -> Iterator[str | None]:
    """Hold the lock of one thing in a study, such as `variant baseline`, while the block runs.

    The system releases it if the holder dies; yields a description of such a former holder, or None. Use `wait` only
    for locks held briefly. Raises StorageError, and StudyError with process, host and command of a live holder.
    """
    # Imported here, since commands that write nothing need no lock. It is a dependency of torch.
    from filelock import FileLock, Timeout

    folder = root / ".locks"
    make_folder(folder)
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", what)
    holder_file = folder / f"{name}.json"
    lock = FileLock(folder / f"{name}.lock")
    deadline_s = time.monotonic() + NAMED_WITHIN_S
    while not lock.is_locked:
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            holder = _holder(holder_file)
            # Until a new holder has recorded itself, the file is missing or names a dead one.
            if (holder is None or holder.is_gone) and time.monotonic() < deadline_s:
                time.sleep(POLL_S)
                continue
            raise StudyError(
                f"{what} in {root}/ is being written by {holder.words if holder else 'another process'}",
                "wait until it has finished, or stop it",
            ) from None
        except OSError as error:
            raise storage_error(error, folder) from error
    try:
        former = _holder(holder_file)
        try:
            about = {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
            write_atomic(holder_file, json.dumps(about))
            yield former.words if former else None
        finally:
            # If that fails, the file remains and names a dead holder.
            with contextlib.suppress(OSError):
                holder_file.unlink(missing_ok=True)
    finally:
        lock.release()


def hold(run: Run, root: Path, what: str) -> None:
    """Hold the lock of one thing in a study until the stage ends; raises StudyError if another command holds it."""
    former = run.held.enter_context(locked(root, what, run.command))
    if former is not None:
        run.reporter.note(f"{what} was being written by {former}, which has ended")


@dataclass(frozen=True, kw_only=True)
class _Holder:
    """The process that holds or held a lock."""

    pid: int
    host: str
    command: str

    @property
    def words(self) -> str:
        return f"process {self.pid} on {self.host} ({self.command})"

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to have ended; False for processes on other machines."""
        if self.host != socket.gethostname() or os.name != "posix":
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            # Another user's process, or an invalid process id.
            return False
        return False


def _holder(path: Path) -> _Holder | None:
    """Return the recorded holder of a lock, alive or not; None if none is recorded."""
    try:
        holder = read_json(path)
        return _Holder(pid=int(holder["pid"]), host=str(holder["host"]), command=str(holder["command"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
