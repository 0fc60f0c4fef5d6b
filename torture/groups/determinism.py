"""The same command again: in new studies, under other hash seeds, with other numbers of threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from chestx_cli.synthetic import write_synthetic_set
from torture import studies
from torture.processes import TINY, TINY_ENV
from torture.registry import Setting
from torture.results import Figure

CRITERION = (
    "the file is the same, bit for bit: tables, weights, ONNX files, caches, figures, and of records all but times and "
    "the number of threads; the report's two pages, which tell these, are left out"
)
PAGES = ("report/index.html", "report/report.md")
FIT = ("--batch-size", "16")
FULL = (
    ("split", "{data}", *studies.AT, "--image-size", "32"),
    ("train", *studies.AT, *TINY, *FIT, "--epochs", "2"),
    ("sensitivity", *studies.AT, "--amounts", "0.5"),
    studies.ONESHOT,
    ("prune", *studies.AT, "--method", "structured", "--amount", "0.3", "--finetune-epochs", "1", *FIT),
    studies.DYNAMIC,
    ("quantize", *studies.AT, "--method", "static"),
    studies.QAT,
    # Sums of torch and ONNX Runtime depend in their last bit on the number of their threads, which is asked for here.
    (*studies.EVALUATE, "--threads", "1"),
    studies.REPORT,
)
SHORT = (("train", "{data}", *studies.AT, *TINY, *FIT, "--epochs", "1"),)
# What works with several threads asks the system for their number.
WORKERS = (1, 2, 4)
WITH_WORKERS = (
    "import os, sys; n = int(sys.argv.pop(1)); os.sched_getaffinity = lambda _pid: set(range(n)); "
    "from chestx_cli.cli import main; main()"
)


def measure(setting: Setting) -> Sequence[Figure]:
    """Make the same study several times."""
    data = setting.work / "data"
    write_synthetic_set(data, images=48, seed=2, size_px=64)
    commands = setting.choose(short=SHORT, full=FULL)
    repeats = [{"PYTHONHASHSEED": str(seed)} for seed in setting.choose(short=(1, 2), full=(1, 2, 3))]
    figures = [
        _compared("the same commands again, in new studies", data, commands, [(1, env) for env in repeats], setting)
    ]
    if setting.length == "full":
        counts = [(n, dict[str, str]()) for n in WORKERS]
        figures.append(_compared("1, 2 and 4 threads that decode and write", data, commands, counts, setting))
    return figures


def _compared(
    what: str,
    data: Path,
    commands: Sequence[tuple[str, ...]],
    ways: Sequence[tuple[int, dict[str, str]]],
    setting: Setting,
) -> Figure:
    """Return how many files of the study are the same in each way as in the first."""
    started_s = time.perf_counter()
    first: dict[str, object] = {}
    passed = total = 0
    failures = []
    for number, (workers, env) in enumerate(ways):
        place = setting.work / "place"
        place.mkdir()
        for words in commands:
            _run([word.format(data=data) for word in words], place, workers, env)
        found = {
            name: _without_threads(content)
            for name, content in studies.content(place / studies.STUDY).items()
            if name not in PAGES
        }
        shutil.rmtree(place)
        if not number:
            first = found
            continue
        names = first.keys() | found.keys()
        other = sorted(name for name in names if first.get(name) != found.get(name))
        total += len(names)
        passed += len(names) - len(other)
        failures += [f"{name}, {workers} workers, {env}" for name in other]
    return Figure(
        test=f"{what}: {len(commands)} commands, {len(ways)} times",
        passed=passed,
        total=total,
        criterion=CRITERION,
        seconds=time.perf_counter() - started_s,
        failures=tuple(failures[:20]),
    )


def _without_threads(content: object) -> object:
    """Return a record without the number of threads that it was made with."""
    if not isinstance(content, dict) or "stamp" not in content:
        return content
    stamp = content["stamp"]
    environment = {name: value for name, value in stamp["environment"].items() if name != "threads"}
    return {**content, "stamp": {**stamp, "environment": environment}}


def _run(words: Sequence[str], place: Path, workers: int, env: dict[str, str]) -> None:
    line = [sys.executable, "-c", WITH_WORKERS, str(workers), *words]
    ended = subprocess.run(
        line, cwd=place, env={**os.environ, **TINY_ENV, **env}, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise studies.HarnessError(f"{' '.join(words)}: code {ended.returncode}: {ended.stderr.strip()[-2000:]}")
