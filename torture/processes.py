"""Child processes of the harness: what they said, how they ended, how long they took and what they held in memory."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY_FOLDER = ROOT / "tests" / "support" / "tiny"
# What only a bug says: Python of an exception nobody caught, and the command line of one nobody expected.
BUGS = ("Traceback (most recent call last)", "this is a bug in chestx")
# Registers the tests' tiny backbone in every Python below; on networks this small, threads cost more than they give.
TINY_ENV = {
    "CHESTX_TINY_BACKBONE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(TINY_FOLDER), str(ROOT / "src"), str(ROOT)]),
}
TINY = ("--backbone", "tiny", "--weights", "none", "--image-size", "32", "--lr", "0.001")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that has ended: exit code (negative for a signal), what it said, its times, its peak memory.

    `cpu_s` is what it computed, which does not depend on who else uses the machine.
    """

    code: int
    out: str
    err: str
    seconds: float
    cpu_s: float
    peak_bytes: int

    @property
    def said(self) -> str:
        """Return all that it said."""
        return self.out + self.err

    @property
    def crashed(self) -> bool:
        """Return whether it ended by an exception that nobody expected, or by a signal."""
        return self.code < 0 or any(bug in said for bug in BUGS for said in (self.out, self.err))


def run(words: Sequence[str], cwd: Path, env: Mapping[str, str], *, limit_s: float = 300.0) -> Ended:
    """Run a program with the tiny backbone to its end, and kill it where it takes longer than `limit_s`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started_s = time.perf_counter()
        process = subprocess.Popen(words, cwd=cwd, stdout=out, stderr=err, env={**os.environ, **TINY_ENV, **env})
        # The kernel tells a child's peak memory only to the one that waits for it, and that wait has no time limit.
        watchdog = threading.Timer(limit_s, os.kill, (process.pid, signal.SIGKILL))
        watchdog.start()
        _, status, usage = os.wait4(process.pid, 0)
        watchdog.cancel()
        seconds = time.perf_counter() - started_s
        process.returncode = os.waitstatus_to_exitcode(status)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
        return Ended(
            code=process.returncode,
            out=said[0],
            err=said[1],
            seconds=seconds,
            cpu_s=usage.ru_utime + usage.ru_stime,
            peak_bytes=usage.ru_maxrss * 1024,
        )
