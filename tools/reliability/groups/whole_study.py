"""`kill -9` of a whole `chestx study` with the processes of its cells: repeating it gives the same results."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tools.harness.processes import Ended
from tools.reliability import processes, studies
from tools.reliability.processes import TINY_ENV
from tools.reliability.registry import Setting
from tools.reliability.results import MAX_FAILURES, Figure

CRITERION = (
    "running the same command again exits with 0 and gives the study.json of an uninterrupted run, except for "
    "times and latencies, and byte-identical weights and predictions in every cell"
)
PLAN = """\
data = "DATA"
folds = 2
seeds = [1, 2]

[train]
backbone = "tiny"
weights = "none"
image-size = 32
lr = 1e-3
epochs = 4
batch-size = 16
checkpoint-every = 1

[benchmark]
rounds = 1
duration = 0.02
runtimes = ["onnxruntime"]

[[variants]]
name = "iterative"
steps = [{ prune = "iterative", steps = 1, amount = 0.2, finetune-epochs = 1, checkpoint-every = 1 }]
"""
WORDS = ("-m", "chestx_cli", "study", "study.toml", *studies.AT, "--jobs", "2")
# The time of a benchmark, and values that depend on it.
TIMED = ("latency_p50_ms", "speedup", "speedup_interval", "front_share")
LIMIT_S, TRIES = 600.0, 5


def measure(setting: Setting) -> Sequence[Figure]:
    """Kill studies at random times."""
    points = setting.choose(short=1, full=20)
    rng = np.random.default_rng(19)
    whole = _begun(setting, "whole")
    ended = _run(whole)
    expected, failures, slowest_s = _results(whole), [], 0.0
    started_s = time.perf_counter()
    for _ in range(points):
        began_s = time.perf_counter()
        failure = _case(setting, rng, ended.seconds, expected)
        slowest_s = max(slowest_s, time.perf_counter() - began_s)
        if failure:
            failures.append(failure)
    return [
        Figure(
            test=f"`kill -9` of a whole study and of its cells' processes, at {points} random times",
            passed=points - len(failures),
            total=points,
            criterion=CRITERION,
            seconds=time.perf_counter() - started_s,
            slowest_s=slowest_s,
            failures=tuple(failures[:MAX_FAILURES]),
        )
    ]


def _begun(setting: Setting, name: str) -> Path:
    folder = setting.work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "study.toml").write_text(PLAN.replace("DATA", str(studies.images(setting))))
    return folder


def _run(folder: Path) -> Ended:
    return studies.require(processes.run([sys.executable, *WORDS], folder, {}, limit_s=LIMIT_S))


def _case(setting: Setting, rng: np.random.Generator, whole_s: float, expected: dict[str, object]) -> str:
    """Kill a study once and repeat the command; return the fault, if any."""
    for _ in range(TRIES):
        folder = _begun(setting, "case")
        seconds = rng.uniform(0, whole_s)
        if _killed_after(seconds, folder):
            break
    else:
        return "killed too late"
    try:
        _run(folder)
    except studies.HarnessError as error:
        return f"killed after {seconds:.2f} s: again: {error}"
    found = studies.differences(_results(folder), expected)
    return f"killed after {seconds:.2f} s: {found}" if found else ""


def _killed_after(seconds: float, folder: Path) -> bool:
    """Return whether a study was still running when all of its processes were killed."""
    child = subprocess.Popen(
        [sys.executable, *WORDS],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **TINY_ENV},
        start_new_session=True,
    )
    time.sleep(seconds)
    # The cells' processes are not in its process group, but in its session.
    for pid in (child.pid, *_of_session(child.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return child.wait() == -signal.SIGKILL


def _of_session(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            # proc(5): state, parent, group and session follow the name in brackets.
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and int(path.name) != session:
            found.append(int(path.name))
    return found


def _results(folder: Path) -> dict[str, object]:
    """Return a study's results without times, and the weights and predictions of all cells."""
    study = folder / studies.STUDY
    document = json.loads((study / "study.json").read_text())
    del document["stamp"], document["declared"]
    for row in document["rows"]:
        for name in TIMED:
            del row[name]
    files = [path for path in study.glob("seed-*/fold-*/variants/*/*") if path.suffix in (".safetensors", ".csv")]
    kept = {str(path.relative_to(study)): path.read_bytes() for path in files if path.name != "training.csv"}
    return {"study.json": document, **kept}
