"""Client of `tools.reliability.server`: child processes that start at once, with injected faults on request."""

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

from tools.harness.processes import ROOT, Ended
from tools.reliability.faults import Fault
from tools.reliability.processes import TINY_ENV

LIMIT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Child:
    """A running command."""

    pid: int
    outputs: tuple[Path, Path]


class Children:
    """Starts commands as forks of one server process, and waits for them."""

    def __init__(self, work: Path) -> None:
        self._work = work
        # Started with the first command, since not every group needs it.
        self._process: subprocess.Popen[str] | None = None
        self._numbers = iter(range(10**9))
        # Number of modules that the last awaited child imported and the server had not.
        self.new_modules = 0

    def start(
        self,
        words: Sequence[object],
        cwd: Path,
        *,
        fault: Fault | None = None,
        call: str | None = None,
    ) -> Child:
        """Start a chestx command, or `call`, a function named as module:function, with the words as arguments."""
        number = next(self._numbers)
        outputs = (self._work / f"{number}.out", self._work / f"{number}.err")
        for path in outputs:
            # Created here, since the child may be killed at once.
            path.touch()
        answer = self._request(
            action="start",
            words=[str(word) for word in words],
            cwd=str(cwd),
            outputs=[str(path) for path in outputs],
            fault=None if fault is None else dataclasses.asdict(fault),
            call=call,
            imported=str(outputs[0].with_suffix(".modules")),
        )
        return Child(pid=answer["pid"], outputs=outputs)

    def wait(self, child: Child, *, limit_s: float = LIMIT_S) -> Ended:
        """Return how a child ended; kill it if it takes too long."""
        answer = self._request(
            action="wait", pid=child.pid, limit_s=limit_s, imported=str(child.outputs[0].with_suffix(".modules"))
        )
        self.new_modules = answer.pop("new_modules")
        out, err = (path.read_text(errors="backslashreplace") for path in child.outputs)
        for path in child.outputs:
            path.unlink()
        return Ended(out=out, err=err, **answer)

    def run(self, words: Sequence[object], cwd: Path, *, limit_s: float = LIMIT_S, **how: Any) -> Ended:
        """Start a command and wait for its end."""
        return self.wait(self.start(words, cwd, **how), limit_s=limit_s)

    def close(self) -> None:
        """Stop the server, if it runs."""
        if self._process is not None:
            self._process.communicate()

    def _request(self, **request: Any) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tools.reliability.server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={**os.environ, **TINY_ENV, "MPLCONFIGDIR": str(self._work)},
            )
        assert self._process.stdin is not None  # noqa: S101 - a pipe, see above
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def children() -> Iterator[Children]:
    """Yield the object that starts commands; its server ends with the block."""
    with tempfile.TemporaryDirectory(prefix="chestx-torture-") as work:
        server = Children(Path(work))
        try:
            yield server
        finally:
            server.close()
