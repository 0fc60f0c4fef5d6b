"""Locks: two commands never write the same thing at once, and a dead command's lock does not outlive it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.errors import StudyError
from chestx_cli.files import make_folder, read_json, storage_error, write_atomic

if TYPE_CHECKING:
    from chestx_cli.stage import Run

# How often, and how long apart, the name of a lock's holder is looked for.
HOLDER_LOOKS, HOLDER_WAIT_S = 40, 0.05


@contextmanager
def locked(root: Path, what: str, command: str, *, wait: bool = False) -> Iterator[str | None]:
    """Hold the lock of one thing in a study, such as `variant baseline`, while the block runs.

    The system gives it back when its holder dies, however that happens; yields who held it then, or None. With `wait`
    for what is held for moments only. Raises StudyError naming process, host and command of a living holder,
    StorageError.
    """
    # A dependency of torch; imported here since commands that write nothing need no lock.
    from filelock import FileLock, Timeout

    folder = root / ".locks"
    make_folder(folder)
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", what)
    holder_file = folder / f"{name}.json"
    lock = FileLock(folder / f"{name}.lock")
    holder = None
    for _ in range(HOLDER_LOOKS):
        try:
            lock.acquire(timeout=-1 if wait else 0)
            break
        except Timeout:
            # It takes a moment from taking a lock to writing down who has it.
            holder = _holder(holder_file)
            if holder is not None:
                break
            time.sleep(HOLDER_WAIT_S)
        except OSError as error:
            raise storage_error(error, folder) from error
    if not lock.is_locked:
        raise StudyError(
            f"{what} in {root}/ is being written by {holder or 'another process'}",
            "wait until it has finished, or stop it",
        )
    try:
        gone = _holder(holder_file)
        try:
            about = {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
            write_atomic(holder_file, json.dumps(about))
            yield gone
        finally:
            # Left where that is refused, it says that its holder is gone.
            with contextlib.suppress(OSError):
                holder_file.unlink(missing_ok=True)
    finally:
        lock.release()


def hold(run: Run, root: Path, what: str) -> None:
    """Hold the lock of one thing in a study until the stage ends; raises StudyError where another command has it."""
    gone = run.held.enter_context(locked(root, what, run.command))
    if gone is not None:
        run.reporter.note(f"{what} was being written by {gone}, which is gone")


def _holder(path: Path) -> str | None:
    """Return who holds or held a lock in words; None where nobody has written it down."""
    try:
        found = read_json(path)
        return f"process {found['pid']} on {found['host']} ({found['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return None
