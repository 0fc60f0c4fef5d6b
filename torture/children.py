"""The harness's side of `torture.server`: children that start at once, with faults in them where asked."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torture.faults import Fault
from torture.processes import TINY_ENV, Ended

MODULES = ("torch", "torchvision", "pandas", "chestx_cli.cli", "chestx_cli._command", "chestx_cli._render")
LIMIT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Child:
    """A command that was started."""

    pid: int
    said: tuple[Path, Path]


class Children:
    """Starts commands as forks of one process, and waits for them."""

    def __init__(self, process: subprocess.Popen[str], work: Path) -> None:
        self._process, self._work = process, work
        self._numbers = iter(range(10**9))

    def start(
        self,
        words: Sequence[object],
        cwd: Path,
        *,
        fault: Fault | None = None,
        uid: int | None = None,
        call: str | None = None,
        modules_to: Path | None = None,
    ) -> Child:
        """Begin a chestx command, or `call`, a function named as module:function, with the words as arguments."""
        number = next(self._numbers)
        said = (self._work / f"{number}.out", self._work / f"{number}.err")
        for path in said:
            # Here and not in the child, which may be killed at once.
            path.touch()
        answer = self._ask(
            ask="start",
            words=[str(word) for word in words],
            cwd=str(cwd),
            said=[str(path) for path in said],
            fault=None if fault is None else dataclasses.asdict(fault),
            uid=uid,
            call=call,
            modules_to=None if modules_to is None else str(modules_to),
        )
        return Child(pid=answer["pid"], said=said)

    def wait(self, child: Child, *, limit_s: float = LIMIT_S) -> Ended:
        """Return how a child ended; one that takes longer is killed."""
        answer = self._ask(ask="wait", pid=child.pid, limit_s=limit_s)
        out, err = (path.read_text(errors="replace") for path in child.said)
        for path in child.said:
            path.unlink()
        return Ended(out=out, err=err, **answer)

    def run(self, words: Sequence[object], cwd: Path, **how: Any) -> Ended:
        """Begin a command and wait for its end."""
        return self.wait(self.start(words, cwd, **how))

    def learn(self, words: Sequence[object], cwd: Path) -> Ended:
        """Run a command whole, and import what it imported, so that later children need not."""
        modules = self._work / "modules.json"
        ended = self.run(words, cwd, modules_to=modules)
        self._ask(ask="preload", modules=json.loads(modules.read_text()))
        return ended

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None  # noqa: S101 - asked for below
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def preload(self) -> None:
        """Import what every command imports."""
        self._ask(ask="preload", modules=MODULES)


@contextmanager
def children() -> Iterator[Children]:
    """Yield a server of children, which ends with the block."""
    with tempfile.TemporaryDirectory(prefix="chestx-torture-") as work:
        process = subprocess.Popen(
            [sys.executable, "-m", "torture.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **TINY_ENV, "MPLCONFIGDIR": work},
        )
        try:
            found = Children(process, Path(work))
            found.preload()
            yield found
        finally:
            process.communicate()
