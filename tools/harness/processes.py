"""Measured child processes, alternating rounds, and medians with their range."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
LAST_LINES = 5
# Output that only a bug produces: Python's traceback, and the message of `chestx` for an unexpected exception.
BUGS = ("Traceback (most recent call last)", "this is a bug in chestx")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A finished process: exit code (negative for a signal), output, times, peak memory.

    `cpu_s` is processor time, which does not depend on other load. The peak is the kernel's (`ru_maxrss`), of the
    largest process: workers of a data loader are not included.
    """

    code: int
    out: str
    err: str
    seconds: float
    cpu_s: float
    peak_bytes: int

    @property
    def output(self) -> str:
        """Return stdout and stderr together."""
        return self.out + self.err

    @property
    def crashed(self) -> bool:
        """Return whether the process ended by an unexpected exception or by a signal."""
        return self.code < 0 or any(bug in text for bug in BUGS for text in (self.out, self.err))

    def json(self) -> dict[str, Any]:
        """Return stdout as one JSON document."""
        document: dict[str, Any] = json.loads(self.out)
        return document


def run(words: Sequence[str], cwd: Path, env: Mapping[str, str], *, limit_s: float | None = None) -> Ended:
    """Run a program to its end; kill it if it takes longer than `limit_s`."""
    # Files, not pipes, which would have to be read while the time is measured.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started_s = time.perf_counter()
        process = subprocess.Popen(words, cwd=cwd, stdout=out, stderr=err, env={**os.environ, **env})
        # The kernel reports a child's peak memory only to the process that waits for it, and that wait has no time
        # limit.
        watchdog = threading.Timer(limit_s, os.kill, (process.pid, signal.SIGKILL)) if limit_s is not None else None
        if watchdog:
            watchdog.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started_s
        if watchdog:
            watchdog.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        outputs = []
        for file in (out, err):
            file.seek(0)
            outputs.append(file.read().decode(errors="replace"))
        return Ended(
            code=process.returncode,
            out=outputs[0],
            err=outputs[1],
            seconds=seconds,
            cpu_s=usage.ru_utime + usage.ru_stime,
            peak_bytes=usage.ru_maxrss * 1024,
        )


def run_process(words: Sequence[object], env: Mapping[str, str] | None = None) -> Ended:
    """Run a command to its end in the repository root; exits if it fails."""
    typed = [str(word) for word in words]
    ended = run(typed, ROOT, env or {})
    if ended.code != 0:
        last = ended.err.strip().splitlines()[-LAST_LINES:]
        raise SystemExit("\n".join([f"{' '.join(typed)} ended with {ended.code}:", *last]))
    return ended


def chestx(*words: object) -> list[object]:
    """Return a command line that runs chestx with this Python."""
    script = shutil.which("chestx", path=str(Path(sys.executable).parent))
    if script is None:
        raise SystemExit(f"there is no chestx beside {sys.executable}: install this project with its bench extra")
    return [script, *words]


def module(name: str, *words: object) -> list[object]:
    """Return the command line of a module of `tools`, such as `harness.machine`."""
    return [sys.executable, "-m", f"tools.{name}", *words]


def in_turn(rounds: int, *sides: Callable[[int], T]) -> list[list[T]]:
    """Return each side's results of all rounds; sides alternate, so that drift of the machine affects all alike."""
    found: list[list[T]] = [[] for _ in sides]
    for index in range(rounds):
        for side, results in zip(sides, found, strict=True):
            results.append(side(index))
    return found


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A median with the smallest and largest value of the rounds."""

    median: float
    low: float
    high: float


def spread_of(values: Sequence[float]) -> Spread:
    """Return the median and range of some values."""
    return Spread(median=statistics.median(values), low=min(values), high=max(values))


def ratio_of(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Return the median and range of the per-round ratios."""
    return spread_of([a / b for a, b in zip(numerators, denominators, strict=True)])


def say(text: str) -> None:
    """Print what is being measured."""
    print(text, file=sys.stderr, flush=True)
