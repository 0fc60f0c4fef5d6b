"""Injects faults into a child process: at the n-th access to a watched folder, a kill or an error of the system.

Only the harness's children install this; the package does not depend on it. Accesses to files are watched: opening,
creating, renaming and removing through Python's audit events; writes, syncs and safetensors' own writing through
wrapped functions.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILL = "kill"
ERRORS = {"ENOSPC": errno.ENOSPC, "EACCES": errno.EACCES}
# Operations that can fail for lack of permission, and for lack of space.
PERMITTED = ("open", "mkdir", "rename", "remove")
SPENT = ("open", "mkdir", "rename", "write", "fsync", "save")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_AUDITED = {"os.rename": "rename", "os.mkdir": "mkdir", "os.remove": "remove", "os.rmdir": "remove"}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The fault at the n-th access to a folder, counted from 1; none at 0. All accesses are written to `log`."""

    folder: str
    at: int = 0
    how: str = KILL
    log: str | None = None


def site_of(kind: str, path: str, folder: str) -> str:
    """Return a description of an access that is the same in every run: without the random part of hidden names."""
    inside = os.path.relpath(path, folder)
    return f"{kind} {re.sub(r'[.][0-9a-f]{8}(?=/|$)', '.*', inside)}"


class _Watch:
    """Counts accesses and injects the fault."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.folder = os.path.realpath(fault.folder)
        self.count = 0
        self.lock = threading.RLock()
        self.log = -1 if fault.log is None else os.open(fault.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def inside(self, path: object) -> str | None:
        if isinstance(path, (str, bytes, os.PathLike)):
            full = os.path.realpath(os.fsdecode(path))
            if full == self.folder or full.startswith(self.folder + os.sep):
                return full
        return None

    def due(self, kind: str, path: object) -> bool:
        """Count an access; return whether the fault happens now."""
        full = self.inside(path)
        if full is None:
            return False
        with self.lock:
            self.count += 1
            if self.log >= 0:
                os.write(self.log, f"{site_of(kind, full, self.folder)}\n".encode())
            return self.count == self.fault.at

    def inject(self, path: object) -> None:
        """Kill this process, or raise the error of the operating system."""
        if self.fault.how == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        number = ERRORS[self.fault.how]
        raise OSError(number, os.strerror(number), None if isinstance(path, int) else os.fsdecode(path))  # type: ignore[arg-type]


class _Written:
    """A file open for writing, whose writes count as accesses; half of the failing write reaches the disk."""

    def __init__(self, file: Any, path: object, watch: _Watch) -> None:
        self._file, self._path, self._watch = file, path, watch

    def write(self, content: Any) -> Any:
        if self._watch.due("write", self._path):
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            # The system does not report the file name for a write to an open file.
            self._watch.inject(0)
        return self._file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Written:
        self._file.__enter__()
        return self

    def __exit__(self, *about: object) -> Any:
        return self._file.__exit__(*about)

    def __iter__(self) -> Any:
        return iter(self._file)


def install(fault: Fault) -> None:
    """Watch this process from now on until it ends."""
    watch = _Watch(fault)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool(flags & _WRITES)
            if writes and watch.due("open", path):
                watch.inject(path)
        elif event in _AUDITED:
            path = arguments[1] if event == "os.rename" else arguments[0]
            if watch.due(_AUDITED[event], path):
                watch.inject(path)

    real_open, real_fsync = io.open, os.fsync

    def opened(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        found = real_open(file, mode, *more, **named)
        if any(letter in mode for letter in "wax+") and watch.inside(file) is not None:
            return _Written(found, file, watch)
        return found

    def synced(handle: int) -> None:
        if watch.due("fsync", Path(f"/proc/self/fd/{handle}").readlink()):
            watch.inject(0)
        real_fsync(handle)

    io.open = builtins.open = opened
    os.fsync = synced  # type: ignore[assignment]
    _watch_safetensors(watch)
    sys.addaudithook(audit)


def _watch_safetensors(watch: _Watch) -> None:
    import safetensors.torch as library
    from safetensors import SafetensorError

    real = library.save_file

    def saved(tensors: Any, path: Any, *more: Any, **named: Any) -> None:
        real(tensors, path, *more, **named)
        if watch.due("save", path):
            os.truncate(path, Path(path).stat().st_size // 2)
            if watch.fault.how == KILL:
                watch.inject(path)
            number = ERRORS[watch.fault.how]
            raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")

    library.save_file = saved  # type: ignore[assignment]
