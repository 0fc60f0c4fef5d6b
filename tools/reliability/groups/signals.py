"""SIGINT and SIGTERM at random times: a command ends within seconds, and the same command resumes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tools.harness.processes import BUGS, ROOT
from tools.reliability import studies
from tools.reliability.children import Children
from tools.reliability.processes import TINY_ENV
from tools.reliability.registry import Setting
from tools.reliability.results import MAX_FAILURES, Figure
from tools.reliability.studies import Reference

WITHIN_S, AT_ONCE_S = 5.0, 1.0
FIRST = (
    f"exits within {WITHIN_S:g} s with 130 or 143 and without a traceback; running the same command again gives "
    "the study of an uninterrupted run"
)
SECOND = f"exits within {AT_ONCE_S:g} s of the second signal with 130 or 143"
NUMBERS = (signal.SIGINT, signal.SIGTERM)
TRIES = 8
# The start of a process with its imports; a marker file shows when the command line begins.
BEGUN = (
    "import pathlib, sys; from chestx_cli.cli.main import main; marker = sys.argv.pop(1); "
    "pathlib.Path(marker).touch(); main()"
)


def measure(setting: Setting) -> Sequence[Figure]:
    """Interrupt commands, once and twice."""
    rng = np.random.default_rng(7)
    at = setting.at
    bare = studies.split_study(setting)
    train = studies.reference(at, studies.TRAIN, bare, setting.work)
    wholes = [train]
    if setting.length == "full":
        baseline = studies.trained(setting)
        more = (studies.ITERATIVE, studies.QAT, studies.EVALUATE, studies.REPORT)
        wholes += [studies.reference(at, words, baseline, setting.work) for words in more]
    first = _once(at, wholes, setting.choose(short=3, full=20), setting.choose(short=0, full=4), rng, setting.work)
    return [first, _twice(at, train, setting.choose(short=2, full=10), rng, setting.work)]


def _once(
    at: Children, wholes: Sequence[Reference], cases: int, with_start: int, rng: np.random.Generator, work: Path
) -> Figure:
    started_s = time.perf_counter()
    failures, slowest_s = [], 0.0
    for number in range(cases):
        whole, case = wholes[number % len(wholes)], work / "case"
        kind = NUMBERS[(number // len(wholes)) % 2]
        if number < cases - with_start:
            failure, seconds = _signalled(at, whole, kind, rng, case)
        else:
            failure, seconds = _signalled_from_the_start(whole, kind, rng, case)
        slowest_s = max(slowest_s, seconds)
        failure = failure or _resumed(at, whole, case)
        if failure:
            failures.append(f"{whole.words[0]}, {kind.name}: {failure}")
        shutil.rmtree(case)
    return Figure(
        test=f"SIGINT or SIGTERM at a random time, {with_start} of them while the process may still be starting",
        passed=cases - len(failures),
        total=cases,
        criterion=FIRST,
        seconds=time.perf_counter() - started_s,
        slowest_s=slowest_s,
        failures=tuple(failures[:MAX_FAILURES]),
    )


def _signalled(
    at: Children, whole: Reference, kind: signal.Signals, rng: np.random.Generator, case: Path
) -> tuple[str, float]:
    """Return the fault, if any, and the seconds from the signal to the end."""
    for _ in range(TRIES):
        shutil.rmtree(case, ignore_errors=True)
        studies.copied(whole.before, case)
        child = at.start(whole.words, case)
        time.sleep(rng.uniform(0.05, whole.seconds))
        sent_s = time.perf_counter()
        os.kill(child.pid, kind)
        ended = at.wait(child)
        seconds = time.perf_counter() - sent_s
        # Code 0: the command was faster than the reference run.
        if ended.code != 0:
            return _judged(ended.code, ended.out + ended.err, kind, seconds), seconds
    return "it had always ended before the signal", 0.0


def _signalled_from_the_start(
    whole: Reference, kind: signal.Signals, rng: np.random.Generator, case: Path
) -> tuple[str, float]:
    studies.copied(whole.before, case)
    marker = case / "begun"
    process = subprocess.Popen(
        [sys.executable, "-c", BEGUN, str(marker), *whole.words],
        cwd=case,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **TINY_ENV, "PYTHONPATH": f"{TINY_ENV['PYTHONPATH']}{os.pathsep}{ROOT}"},
    )
    while not marker.exists():
        time.sleep(0.01)
    time.sleep(rng.uniform(0.05, whole.seconds))
    sent_s = time.perf_counter()
    process.send_signal(kind)
    failure, _ = process.communicate()
    seconds = time.perf_counter() - sent_s
    return _judged(process.returncode, failure, kind, seconds), seconds


def _judged(code: int, output: str, kind: signal.Signals, seconds: float, within_s: float = WITHIN_S) -> str:
    # The code that a shell reports, also for a process ended by the signal itself.
    status = 128 - code if code < 0 else code
    if status != 128 + kind:
        return f"it ended with {status}: {output.strip()[-300:]}"
    if any(bug in output for bug in BUGS):
        return f"its output was {output.strip()[-300:]}"
    return f"it took {seconds:.1f} s" if seconds > within_s else ""


def _resumed(at: Children, whole: Reference, case: Path) -> str:
    (case / "begun").unlink(missing_ok=True)
    again = at.run(whole.words, case)
    if again.code != 0 or again.crashed:
        return f"the repeated command ended with {again.code}: {again.err.strip()[-300:]}"
    return studies.differences(studies.content(case / studies.STUDY), whole.expected)


def _twice(at: Children, whole: Reference, cases: int, rng: np.random.Generator, work: Path) -> Figure:
    started_s = time.perf_counter()
    failures, slowest_s = [], 0.0
    for number in range(cases):
        case = studies.copied(whole.before, work / "case")
        child = at.start(whole.words, case)
        time.sleep(rng.uniform(0.05, whole.seconds / 2))
        os.kill(child.pid, NUMBERS[number % 2])
        time.sleep(0.02)
        kind = NUMBERS[(number + 1) % 2]
        sent_s = time.perf_counter()
        os.kill(child.pid, kind)
        ended = at.wait(child)
        seconds = time.perf_counter() - sent_s
        slowest_s = max(slowest_s, seconds)
        # The command may have ended by the first signal.
        expected = NUMBERS[number % 2] if ended.code == 128 + NUMBERS[number % 2] else kind
        if failure := _judged(ended.code, ended.out + ended.err, expected, seconds, AT_ONCE_S):
            failures.append(failure)
        shutil.rmtree(case)
    return Figure(
        test="a second signal, 20 ms after the first, in a training",
        passed=cases - len(failures),
        total=cases,
        criterion=SECOND,
        seconds=time.perf_counter() - started_s,
        slowest_s=slowest_s,
        failures=tuple(failures[:MAX_FAILURES]),
    )
