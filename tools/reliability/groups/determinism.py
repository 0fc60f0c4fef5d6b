"""Repeats the same commands: in new studies, in new processes, with other hash seeds, with other numbers of threads."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chestx_cli.data.synthetic.sets import write_synthetic_set
from tools.harness.processes import Ended
from tools.reliability import studies
from tools.reliability.children import Children
from tools.reliability.processes import TINY, run
from tools.reliability.registry import Setting
from tools.reliability.results import MAX_FAILURES, Figure

CRITERION = (
    "each file is bit-identical: tables, weights, ONNX files, caches, figures, and records except for times and "
    "the number of threads; the report's two pages, which state these, are not compared"
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
    # Sums in torch and ONNX Runtime depend in their last bit on their number of threads, which is fixed here.
    (*studies.EVALUATE, "--threads", "1"),
    studies.REPORT,
)
SHORT = FULL[:1]
WORKERS = (1, 2, 4)
HERE = "tools.reliability.groups.determinism"
NEW_PROCESS = f"import sys; from {HERE} import with_workers; with_workers(*sys.argv[1:])"


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to run commands: its description, and a function that runs a command line in a working folder."""

    name: str
    run: Callable[[Sequence[str], Path], Ended]


def measure(setting: Setting) -> Sequence[Figure]:
    """Make the same study in each way."""
    data = setting.work / "data"
    write_synthetic_set(data, images=48, seed=2, size_px=64)
    commands = setting.choose(short=SHORT, full=FULL)
    first, *more = (_forked(setting.at, workers) for workers in WORKERS)
    again = [first, *(_new_process(seed) for seed in setting.choose(short=(1,), full=(1, 2)))]
    figures = [_compared("the same commands again, in new studies and processes", data, commands, again, setting)]
    if setting.length == "full":
        figures.append(_compared("1, 2 and 4 threads that decode and write", data, commands, [first, *more], setting))
    return figures


def _compared(
    what: str, data: Path, commands: Sequence[tuple[str, ...]], ways: Sequence[Way], setting: Setting
) -> Figure:
    """Count the files of the study that are the same as in the first way."""
    started_s = time.perf_counter()
    first: dict[str, object] = {}
    passed = total = 0
    failures = []
    for way in ways:
        place = setting.work / "place"
        place.mkdir()
        for words in commands:
            studies.require(way.run([word.format(data=data) for word in words], place))
        hashes = {
            name: _without_threads(content)
            for name, content in studies.content(place / studies.STUDY).items()
            if name not in PAGES
        }
        shutil.rmtree(place)
        if not first:
            first = hashes
            continue
        names = first.keys() | hashes.keys()
        other = sorted(name for name in names if first.get(name) != hashes.get(name))
        total += len(names)
        passed += len(names) - len(other)
        failures += [f"{name}, {way.name}" for name in other]
    return Figure(
        test=f"{what}: {len(commands)} commands, {len(ways)} times",
        passed=passed,
        total=total,
        criterion=CRITERION,
        seconds=time.perf_counter() - started_s,
        failures=tuple(failures[:MAX_FAILURES]),
    )


def _without_threads(content: object) -> object:
    """Return a record without its number of threads."""
    if not isinstance(content, dict) or "stamp" not in content:
        return content
    stamp = content["stamp"]
    environment = {name: value for name, value in stamp["environment"].items() if name != "threads"}
    return {**content, "stamp": {**stamp, "environment": environment}}


def _forked(at: Children, workers: int) -> Way:
    def run_it(words: Sequence[str], place: Path) -> Ended:
        return at.run((workers, *words), place, call=f"{HERE}:with_workers")

    return Way(name=f"{workers} workers", run=run_it)


def _new_process(seed: int) -> Way:
    def run_it(words: Sequence[str], place: Path) -> Ended:
        return run([sys.executable, "-c", NEW_PROCESS, "1", *words], place, {"PYTHONHASHSEED": str(seed)})

    return Way(name=f"hash seed {seed}", run=run_it)


def with_workers(workers: str, *words: str) -> None:
    """Run a command with this number of processors, as reported by the system to code that starts threads."""
    from chestx_cli.cli.main import main

    os.sched_getaffinity = lambda _pid: set(range(int(workers)))
    sys.argv = ["chestx", *words]
    main()
