"""Measured child processes, rounds in turn, and medians with their spread."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
LAST_LINES = 5


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A process that has ended well: its wall time, what its largest process had in memory at most, its stdout."""

    seconds: float
    peak_bytes: int
    out: str

    def json(self) -> dict[str, Any]:
        """Return stdout as one JSON document."""
        document: dict[str, Any] = json.loads(self.out)
        return document


def run_process(words: Sequence[object], env: Mapping[str, str] | None = None) -> Finished:
    """Run a command to its end in the repository root; exits where it fails.

    The peak is the kernel's own (`ru_maxrss`), of the largest of the processes: workers of a loader come on top.
    """
    typed = [str(word) for word in words]
    # Files, not pipes: nobody has to read them while the clock runs.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started_s = time.perf_counter()
        process = subprocess.Popen(typed, stdout=out, stderr=err, cwd=ROOT, env={**os.environ, **(env or {})})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started_s
        process.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        if process.returncode != 0:
            said = err.read().decode(errors="replace").strip().splitlines()[-LAST_LINES:]
            raise SystemExit("\n".join([f"{' '.join(typed)} ended with {process.returncode}:", *said]))
        out.seek(0)
        return Finished(seconds=seconds, peak_bytes=usage.ru_maxrss * 1024, out=out.read().decode(errors="replace"))


def chestx(*words: object) -> list[object]:
    """Return a chestx command line that runs the command beside this Python."""
    found = shutil.which("chestx", path=str(Path(sys.executable).parent))
    if found is None:
        raise SystemExit(f"there is no chestx beside {sys.executable}: install this project with its bench extra")
    return [found, *words]


def module(name: str, *words: object) -> list[object]:
    """Return the command line of a module of this package."""
    return [sys.executable, "-m", f"benchmarks.{name}", *words]


def in_turn(rounds: int, *sides: Callable[[int], T]) -> list[list[T]]:
    """Return each side's results of all rounds; the sides take turns, so that drift of the machine hits all alike."""
    found: list[list[T]] = [[] for _ in sides]
    for index in range(rounds):
        for side, results in zip(sides, found, strict=True):
            results.append(side(index))
    return found


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A median with the least and the greatest value of the rounds."""

    median: float
    low: float
    high: float


def spread_of(values: Sequence[float]) -> Spread:
    """Return the median and range of some values."""
    return Spread(median=statistics.median(values), low=min(values), high=max(values))


def ratio_of(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Return the median and range of the ratios of the rounds."""
    return spread_of([a / b for a, b in zip(numerators, denominators, strict=True)])


def say(text: str) -> None:
    """Tell the user what is measured now."""
    print(text, file=sys.stderr, flush=True)
