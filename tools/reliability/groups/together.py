"""`kill -9` of one of two processes of a distributed training, and of the command that started them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.reliability import studies
from tools.reliability.processes import TINY_ENV
from tools.reliability.registry import Setting
from tools.reliability.results import MAX_FAILURES, Figure

EVERY_STEPS = 5
WORDS = (*studies.TRAIN[: studies.TRAIN.index("--epochs")], "--epochs", "40", "--batch-size", "16")
TOGETHER = (*WORDS, "--checkpoint-every", str(EVERY_STEPS), "--processes", "2")
CHECKPOINT = Path(studies.STUDY) / "checkpoints" / "baseline" / "train.safetensors"
RESUMING = "train: resuming after"
LIMIT_S, NOTICED_WITHIN_S = 300.0, 2.0
KILLED = (
    "the command reports it, restarts all processes and exits with 0; it resumes from the last checkpoint before "
    f"the kill (one every {EVERY_STEPS} steps) or a later one; the study is that of an uninterrupted run, byte for "
    "byte except for times; no process is left"
)
PARENT = (
    f"no process is left after {NOTICED_WITHIN_S:g} s; running the same command again gives the study of an "
    "uninterrupted run"
)


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A running training with two processes: the started command, and both processes."""

    process: subprocess.Popen[str]
    case: Path

    def ranks(self) -> list[int]:
        """Return the processes that work in this case's folder, other than the started command."""
        processes = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if (path / "cwd").resolve() == self.case.resolve() and int(path.name) != self.process.pid:
                    processes.append(int(path.name))
            except OSError:
                continue
        return sorted(processes)


def measure(setting: Setting) -> Sequence[Figure]:
    """Kill processes of distributed training."""
    rng = np.random.default_rng(11)
    base = studies.split_study(setting)
    whole = studies.copied(base, setting.work / "whole")
    code, err = _end(_begin(whole))
    if code != 0:
        raise studies.HarnessError(err)
    expected = studies.content(whole / studies.STUDY)
    return [
        _figure("one of two", setting.choose(short=1, full=10), KILLED, base, expected, rng, setting.work),
        _figure("the command", setting.choose(short=1, full=5), PARENT, base, expected, rng, setting.work),
    ]


def _figure(
    killed: str,
    cases: int,
    criterion: str,
    base: Path,
    expected: dict[str, object],
    rng: np.random.Generator,
    work: Path,
) -> Figure:
    started_s = time.perf_counter()
    failures, slowest_s = [], 0.0
    for number in range(cases):
        case = studies.copied(base, work / "case")
        began_s = time.perf_counter()
        failure = _one_of_two(case, number % 2, rng) if killed == "one of two" else _command(case, rng)
        failure = failure or studies.differences(studies.content(case / studies.STUDY), expected)
        slowest_s = max(slowest_s, time.perf_counter() - began_s)
        if failure:
            failures.append(failure)
        shutil.rmtree(case)
    return Figure(
        test=f"`kill -9` of {killed} in a training of two processes, at a random time after its first checkpoint",
        passed=cases - len(failures),
        total=cases,
        criterion=criterion,
        seconds=time.perf_counter() - started_s,
        slowest_s=slowest_s,
        failures=tuple(failures[:MAX_FAILURES]),
    )


def _begin(case: Path) -> Begun:
    process = subprocess.Popen(
        [sys.executable, "-m", "chestx_cli", *TOGETHER],
        cwd=case,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **TINY_ENV},
    )
    return Begun(process=process, case=case)


def _end(begun: Begun) -> tuple[int, str]:
    _, err = begun.process.communicate(timeout=LIMIT_S)
    return begun.process.returncode, err


def _wait_for_a_moment(begun: Begun, rng: np.random.Generator) -> None:
    while _position(begun.case) is None:
        if begun.process.poll() is not None:
            raise studies.HarnessError(_end(begun)[1])
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.5))


def _position(case: Path) -> tuple[int, int] | None:
    """Return the epochs and steps recorded in the existing checkpoint."""
    from safetensors import safe_open

    try:
        with safe_open(case / CHECKPOINT, framework="numpy") as file:
            values = json.loads(file.metadata()["chestx"])["values"]
    except OSError:
        return None
    return int(values["epoch"]), int(values["step"])


def _one_of_two(case: Path, which: int, rng: np.random.Generator) -> str:
    begun = _begin(case)
    _wait_for_a_moment(begun, rng)
    there = _position(case)
    os.kill(begun.ranks()[which], signal.SIGKILL)
    code, err = _end(begun)
    if code != 0 or "was ended by SIGKILL" not in err:
        return f"it ended with {code}: {err.strip()[-300:]}"
    words = err.partition(RESUMING)[2].split()
    # "epoch 3 of 40", or "epoch 3 and 2 steps of 40".
    resumed_at = (int(words[1]), int(words[3]) if words[2] == "and" else 0)
    if there is not None and resumed_at < there:
        return f"the checkpoint of epoch {there[0]}, step {there[1]} existed; training resumed at {resumed_at}"
    return f"processes {begun.ranks()} are left" if begun.ranks() else ""


def _command(case: Path, rng: np.random.Generator) -> str:
    begun = _begin(case)
    _wait_for_a_moment(begun, rng)
    begun.process.kill()
    begun.process.wait()
    time.sleep(NOTICED_WITHIN_S)
    if left := begun.ranks():
        return f"processes {left} are left"
    code, err = _end(_begin(case))
    return f"the repeated command ended with {code}: {err.strip()[-300:]}" if code != 0 else ""
