"""File accesses of a block below a folder: opened files, and changes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}


@dataclass(kw_only=True)
class Watched:
    """The files that were opened to be read, by each time that they were, and those that were written or renamed."""

    folder: str
    opened: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Record the access of an interpreter event to a file below the folder."""
        if (event != "open" and event not in CHANGES) or not isinstance(arguments[0], str | bytes | Path):
            return
        path = str(Path(os.fsdecode(arguments[0])).absolute())
        if not path.startswith(self.folder + os.sep):
            return
        name = os.path.relpath(path, self.folder)
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self.opened.append(name)
        else:
            self.changed.append(name)


_WATCHING: list[Watched] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    for watched in _WATCHING:
        watched.note(event, arguments)


@contextmanager
def watching(folder: Path) -> Iterator[Watched]:
    """Watch a folder while the block runs, in this process."""
    # A hook cannot be taken off again: there is one, which hears nothing outside of such blocks.
    if not _HOOKED:
        sys.addaudithook(_hear)
        _HOOKED.append(True)
    watched = Watched(folder=str(folder.resolve()))
    _WATCHING.append(watched)
    try:
        yield watched
    finally:
        _WATCHING.remove(watched)


_HOOKED: list[bool] = []
