"""`kill -9` at injected points and at random times: repeating the command gives the result of an undisturbed run."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tools.reliability import studies
from tools.reliability.children import Children
from tools.reliability.faults import Fault
from tools.reliability.registry import Setting
from tools.reliability.results import MAX_FAILURES, Figure
from tools.reliability.studies import Reference

CRITERION = (
    "running the same command again exits with 0 and gives the study of an uninterrupted run: the same files, "
    "byte for byte except for times, and no others"
)
# Numbers of kills at file accesses and at random times; highest for commands with many writes and short runs.
FULL = {
    "train": (80, 20),
    "prune iterative": (30, 8),
    "prune structured": (14, 4),
    "prune guided": (6, 2),
    "quantize": (9, 3),
    "quantize qat": (6, 2),
    "report": (12, 4),
}
SHORT = {"train": (2, 1), "prune iterative": (2, 0)}
# A kill after the end of the command, if it ran faster than the reference run, is repeated.
TRIES = 5


def measure(setting: Setting) -> Sequence[Figure]:
    """Kill commands and repeat them."""
    counts_by_command = setting.choose(short=SHORT, full=FULL)
    rng = np.random.default_rng(6)
    at = setting.at
    bare, baseline = studies.split_study(setting), studies.trained(setting)
    measured = baseline
    if "prune guided" in counts_by_command:
        measured = studies.after(at, studies.SENSITIVITY, baseline, setting.work / "measured")
    commands = {
        "train": (studies.TRAIN, bare),
        "prune iterative": (studies.ITERATIVE, baseline),
        "prune structured": (studies.STRUCTURED, baseline),
        "prune guided": (studies.GUIDED, measured),
        "quantize": (studies.DYNAMIC, baseline),
        "quantize qat": (studies.QAT, baseline),
        "report": (studies.REPORT, baseline),
    }
    return [
        _killed(at, name, studies.reference(at, *commands[name], setting.work), counts, rng, setting.work)
        for name, counts in counts_by_command.items()
    ]


def _killed(
    at: Children, name: str, whole: Reference, counts: tuple[int, int], rng: np.random.Generator, work: Path
) -> Figure:
    at_accesses, at_times = counts
    started_s = time.perf_counter()
    step = max(1, len(whole.touches) - 1) / max(1, at_accesses - 1)
    points: list[int | None] = [1 + round(step * i) for i in range(at_accesses)]
    failures = []
    slowest_s = 0.0
    for point in [*points, *[None] * at_times]:
        case = work / "case"
        began_s = time.perf_counter()
        failure = _case(at, whole, point, rng, case)
        slowest_s = max(slowest_s, time.perf_counter() - began_s)
        if failure:
            failures.append(failure)
        shutil.rmtree(case)
    return Figure(
        test=f"`kill -9` in {name}: {at_accesses} between write, fsync and replace, {at_times} at random times",
        passed=at_accesses + at_times - len(failures),
        total=at_accesses + at_times,
        criterion=CRITERION,
        seconds=time.perf_counter() - started_s,
        slowest_s=slowest_s,
        failures=tuple(failures[:MAX_FAILURES]),
    )


def _case(at: Children, whole: Reference, point: int | None, rng: np.random.Generator, case: Path) -> str:
    """Kill a command once and repeat it; return the fault, if any."""
    if point is None:
        place = _kill_at_random(at, whole, rng, case)
    else:
        place = f"killed at access {point}, {whole.touches[point - 1]}"
        studies.copied(whole.before, case)
        ended = at.run(whole.words, case, fault=Fault(folder=str(case / studies.STUDY), at=point))
        if ended.code != -signal.SIGKILL:
            return f"{place}: it ended with {ended.code}"
    again = at.run(whole.words, case)
    if again.code != 0 or again.crashed:
        return f"{place}: the repeated command ended with {again.code}: {again.err.strip()[-300:]}"
    differences = studies.differences(studies.content(case / studies.STUDY), whole.expected)
    return f"{place}: {differences}" if differences else ""


def _kill_at_random(at: Children, whole: Reference, rng: np.random.Generator, case: Path) -> str:
    for _ in range(TRIES):
        shutil.rmtree(case, ignore_errors=True)
        studies.copied(whole.before, case)
        child = at.start(whole.words, case)
        seconds = rng.uniform(0, whole.seconds)
        time.sleep(seconds)
        os.kill(child.pid, signal.SIGKILL)
        if at.wait(child).code == -signal.SIGKILL:
            return f"killed after {seconds:.2f} s"
    return "killed too late"
