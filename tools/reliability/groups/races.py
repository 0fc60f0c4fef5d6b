"""Eight concurrent processes on one study and one cache: each succeeds or is refused, and the study stays intact."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tools.harness.processes import Ended
from tools.reliability import studies
from tools.reliability.children import Children
from tools.reliability.registry import Setting
from tools.reliability.results import MAX_FAILURES, Figure

PROCESSES = 8
LOCKED = "is being written by process"
# Messages of a command whose variant was replaced during its run.
REPLACED = ("in the meantime", "by another command just now")
AMOUNTS = [f"0.{n}" for n in range(1, PROCESSES + 1)]


def measure(setting: Setting) -> Sequence[Figure]:
    """Run the races."""
    rounds = setting.choose(short=2, full=20)
    at = setting.at
    base = studies.trained(setting)
    figures = [
        _one_name(at, base, rounds, setting.work),
        _many_names(at, base, setting.choose(short=1, full=20), setting.work),
        _one_cache(at, studies.copied(base, setting.work / "cached"), setting.choose(short=3, full=100)),
    ]
    if setting.length == "full":
        figures.append(_everything(at, base, 5, setting.work))
    return figures


def _at_once(at: Children, commands: Sequence[tuple[str, ...]], case: Path) -> list[Ended]:
    started = [at.start(words, case) for words in commands]
    return [at.wait(child) for child in started]


def _figure(test: str, criterion: str, failures_by_case: Sequence[str], seconds: float) -> Figure:
    failures = [text for text in failures_by_case if text]
    return Figure(
        test=test,
        passed=len(failures_by_case) - len(failures),
        total=len(failures_by_case),
        criterion=criterion,
        seconds=seconds,
        failures=tuple(failures[:MAX_FAILURES]),
    )


def _one_name(at: Children, base: Path, rounds: int, work: Path) -> Figure:
    """Eight processes make the same variant: one makes it, the others name its process or find it done."""
    started_s = time.perf_counter()
    whole = studies.copied(base, work / "whole")
    studies.require(at.run(studies.ONESHOT, whole))
    expected = studies.content(whole / studies.STUDY)
    failures_by_case = []
    for _ in range(rounds):
        case = studies.copied(base, work / "case")
        ended = _at_once(at, [studies.ONESHOT] * PROCESSES, case)
        successes = [child for child in ended if child.code == 0 and "already done" not in child.err]
        odd = [
            child
            for child in ended
            if child.crashed or not (child.code == 0 or (child.code == 1 and LOCKED in child.err))
        ]
        text = studies.differences(studies.content(case / studies.STUDY), expected)
        if odd:
            text = f"{odd[0].code}: {odd[0].err.strip()[-300:]}"
        elif len(successes) != 1:
            text = f"{len(successes)} processes made it"
        failures_by_case.append(text)
        shutil.rmtree(case)
    return _figure(
        f"{PROCESSES} processes make one variant at once",
        "exactly one makes it, the others name that process or find it done, and the study equals that of one process",
        failures_by_case,
        time.perf_counter() - started_s,
    )


def _many_names(at: Children, base: Path, rounds: int, work: Path) -> Figure:
    """Eight processes make eight variants: all are made."""
    started_s = time.perf_counter()
    commands = [(*studies.ONESHOT, "--amount", amount) for amount in AMOUNTS]
    whole = studies.copied(base, work / "whole-many")
    for words in commands:
        studies.require(at.run(words, whole))
    expected = studies.content(whole / studies.STUDY)
    failures_by_case = []
    for _ in range(rounds):
        case = studies.copied(base, work / "case")
        ended = _at_once(at, commands, case)
        odd = [child for child in ended if child.code != 0 or child.crashed]
        text = studies.differences(studies.content(case / studies.STUDY), expected)
        failures_by_case.append(f"{odd[0].code}: {odd[0].err.strip()[-300:]}" if odd else text)
        shutil.rmtree(case)
    return _figure(
        f"{PROCESSES} processes make {PROCESSES} variants of one study at once",
        "all are made, and the study equals that of one process after the other",
        failures_by_case,
        time.perf_counter() - started_s,
    )


def _everything(at: Children, base: Path, rounds: int, work: Path) -> Figure:
    """Replace, evaluate and report concurrently: each succeeds or names the conflict, and the study stays usable."""
    started_s = time.perf_counter()
    ready = studies.copied(base, work / "ready")
    # The record contains the command line, so it must be made by the same one.
    again = (*studies.ONESHOT, "--force")
    for words in (again, studies.EVALUATE, studies.REPORT):
        studies.require(at.run(words, ready))
    expected = studies.content(ready / studies.STUDY)
    commands = [studies.EVALUATE, again, studies.REPORT, again, studies.EVALUATE, again, studies.REPORT, again]
    failures_by_case = []
    for _ in range(rounds):
        case = studies.copied(ready, work / "case")
        ended = _at_once(at, commands, case)
        odd = [child for child in ended if child.crashed or not (child.code == 0 or _refused(child))]
        for words in (studies.EVALUATE, studies.REPORT):
            odd += [child for child in [at.run(words, case)] if child.code != 0]
        text = studies.differences(studies.content(case / studies.STUDY), expected)
        failures_by_case.append(f"{odd[0].code}: {odd[0].err.strip()[-300:]}" if odd else text)
        shutil.rmtree(case)
    return _figure(
        f"{PROCESSES} processes replace a variant, evaluate and report at once",
        "each succeeds or names the conflict; one more evaluation and report give the study of one process",
        failures_by_case,
        time.perf_counter() - started_s,
    )


def _refused(ended: Ended) -> bool:
    return ended.code == 1 and any(words in ended.err for words in (LOCKED, *REPLACED))


def _one_cache(at: Children, base: Path, rounds: int) -> Figure:
    """Eight processes need a missing cache; in every second round one of them is killed."""
    started_s = time.perf_counter()
    rng = np.random.default_rng(8)
    cache = base / studies.STUDY / "cache"
    call = "tools.reliability.groups.races:open_cache"
    expected = studies.require(at.run([studies.STUDY], base, call=call)).out
    names = {path.name for path in cache.iterdir()}
    failures_by_case = []
    for number in range(rounds):
        shutil.rmtree(cache)
        started = [at.start([studies.STUDY], base, call=call) for _ in range(PROCESSES)]
        killed = started[int(rng.integers(PROCESSES))] if number % 2 else None
        if killed is not None:
            time.sleep(rng.uniform(0, 0.2))
            os.kill(killed.pid, signal.SIGKILL)
        living = [(child, at.wait(child)) for child in started]
        odd = [one for child, one in living if child is not killed and (one.code != 0 or one.out != expected)]
        text = f"{odd[0].code}: {odd[0].out} {odd[0].err.strip()[-300:]}" if odd else ""
        if not text and killed is None and (left := {path.name for path in cache.iterdir()} - names):
            text = f"left {', '.join(sorted(left))}"
        failures_by_case.append(text)
    # The next writer removes the files of killed processes.
    for path in cache.glob("*.npy"):
        path.unlink()
    studies.require(at.run([studies.STUDY], base, call=call))
    if left := {path.name for path in cache.iterdir()} - names:
        failures_by_case[-1] = failures_by_case[-1] or f"left {', '.join(sorted(left))}"
    return _figure(
        f"{PROCESSES} processes make one cache at once, one of them killed in every second round",
        "all others read the same pixels, and the next process that writes removes what the killed one left",
        failures_by_case,
        time.perf_counter() - started_s,
    )


def open_cache(root: str) -> None:
    """Open a study's pixels in a child and print their hash."""
    from chestx_cli.core.progress import SilentReporter
    from chestx_cli.data.images.pixel_cache import open_pixels
    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.store.directory import Study

    study = Study(Path(root))
    pixels = open_pixels(study, study.read_split(), Preprocessing(image_size_px=32), SilentReporter())
    print(hashlib.sha256(pixels.tobytes()).hexdigest())
