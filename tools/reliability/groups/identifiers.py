"""Patient identifiers in paths, tables and metadata of images: all stored and printed output is searched for them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tools.harness.processes import Ended
from tools.reliability import studies
from tools.reliability.children import Children
from tools.reliability.faults import Fault
from tools.reliability.planted_identifiers import (
    PATHS,
    PATIENTS,
    PLANTED,
    REGEX,
    Hospital,
    found_in,
    revealed_in,
    write_hospital,
)
from tools.reliability.processes import TINY
from tools.reliability.registry import Setting
from tools.reliability.results import MAX_FAILURES, Figure

IMAGES, SIDE_PX = 60, 64
FIT = ("--batch-size", "16")
NOWHERE = (
    "occurs in no file of the study, including those that stay with the data, nor in stdout or stderr: neither "
    "literally nor in other case, in UTF-16, in Base64, as a plain hash or in a picture"
)
SHORT, SHORT_STEPS = ("split", "train", "evaluate"), 6
SHARED = (
    "occurs only in split.csv, split.json, folds.json and images.NAME.csv; names of bad files also in the output "
    "of the command that reads them"
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command, its exit code, and whether it may name its input images."""

    words: tuple[str, ...]
    code: int = 0
    names_files: bool = False


@dataclass
class Leaks:
    """The number of searched pairs of command and identifier, and the pairs that leaked."""

    passed: int = 0
    total: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, what: str, planted: dict[str, str], places: dict[str, set[str]]) -> None:
        """Record where each identifier was found after one command."""
        for name in planted:
            where = sorted(place for place, names in places.items() if name in names)
            self.total += 1
            self.passed += not where
            if where:
                self.failures.append(f"{what}: {name} in {', '.join(where[:3])}")


def measure(setting: Setting) -> Sequence[Figure]:
    """Run the commands on a hospital's images, then with images damaged after the split, then with crashes."""
    started_s = time.perf_counter()
    hospital = write_hospital(setting.work, images=IMAGES, side_px=SIDE_PX, seed=5)
    other = write_hospital(setting.work / "other", images=40, side_px=SIDE_PX, seed=6)
    if missed := set(PLANTED) - {name for names in revealed_in(setting.work).values() for name in names}:
        raise studies.HarnessError(f"not found where they were planted: {', '.join(sorted(missed))}")
    nowhere, shared = Leaks(), Leaks()
    work = setting.work / "work"
    work.mkdir()
    at = setting.at
    every = list(_steps(hospital, other))
    steps = setting.choose(short=[step for step in every if step.words[0] in SHORT][:SHORT_STEPS], full=every)
    for step in steps:
        _note(step, at.run(step.words, work), work, nowhere, shared)
    crashes = _crashes(at, hospital, work, setting.choose(short=1, full=60))
    spoilt = _spoilt(hospital) if setting.length == "full" else ()
    for step in _on(spoilt, hospital, work):
        _note(step, at.run(step.words, work), work, nowhere, shared)
    n, seconds = nowhere.total // len(PATIENTS), time.perf_counter() - started_s
    return [
        _figure(f"{len(PATIENTS)} identifiers of patients × {n} commands", NOWHERE, nowhere, seconds),
        _figure(f"{len(PATHS)} identifiers in paths × {n} commands", SHARED, shared, seconds),
        crashes,
    ]


def _note(step: Step, ended: Ended, work: Path, nowhere: Leaks, shared: Leaks) -> None:
    """Search a command's output, and all files below the working folder."""
    words = " ".join(step.words[:3])
    if ended.code != step.code or (ended.crashed and "--debug" not in step.words):
        raise studies.HarnessError(f"{' '.join(step.words)}: code {ended.code}: {ended.err.strip()[-2000:]}")
    places = revealed_in(work)
    output = found_in((ended.out + ended.err).encode(), PLANTED)
    nowhere.add(words, PATIENTS, {**places, "its output": output})
    shared.add(words, PATHS, {**places, "its output": set() if step.names_files else output})


def _figure(test: str, criterion: str, leaks: Leaks, seconds: float) -> Figure:
    return Figure(
        test=test,
        passed=leaks.passed,
        total=leaks.total,
        criterion=criterion,
        seconds=seconds,
        failures=tuple(leaks.failures[:MAX_FAILURES]),
    )


def _crashes(at: Children, hospital: Hospital, work: Path, cases: int) -> Figure:
    """Kill commands, or refuse writes, at random accesses to the study; search the remaining files and the output."""
    started_s = time.perf_counter()
    rng = np.random.default_rng(12)
    leaks = Leaks()
    commands = [
        ("split", str(hospital.manifest), *studies.AT, "--image-size", "32", "--force"),
        ("train", *studies.AT, *TINY, *FIT, "--epochs", "1", "--force", "--checkpoint-every", "1"),
        studies.EVALUATE,
        studies.REPORT,
    ]
    touches = [_touches(at, words, work) for words in commands[:cases]]
    for number in range(cases):
        words = commands[number % len(commands)]
        how = ("kill", "ENOSPC", "EACCES")[number // len(commands) % 3]
        case = studies.copied(work, work.parent / "case")
        point = int(rng.integers(1, touches[number % len(commands)] + 1))
        fault = Fault(folder=str(case / studies.STUDY), at=point, how=how)
        ended = at.run((*words, "--debug"), case, fault=fault)
        output = found_in((ended.out + ended.err).encode(), PLANTED)
        leaks.add(f"{words[0]}, {how} at {fault.at}", PLANTED, {**revealed_in(case), "its output": output})
        shutil.rmtree(case)
    return _figure(
        f"{len(PLANTED)} identifiers × {cases} commands killed or refused a write, with tracebacks",
        "occurs nowhere; those in paths may occur in split.csv, split.json and images.NAME.csv",
        leaks,
        time.perf_counter() - started_s,
    )


def _touches(at: Children, words: tuple[str, ...], work: Path) -> int:
    """Return the number of accesses to the study by an undisturbed command."""
    whole, log = studies.copied(work, work.parent / "whole"), work.parent / "touches.log"
    at.run(words, whole, fault=Fault(folder=str(whole / studies.STUDY), log=str(log)))
    touches = len(log.read_text().splitlines())
    shutil.rmtree(whole)
    log.unlink()
    return touches


def _spoilt(hospital: Hospital) -> tuple[Path, ...]:
    """Damage one image of each kind, but never the first; return the damaged ones."""
    files = sorted(path for path in hospital.data.rglob("*") if path.suffix in {".jpg", ".png", ".dcm"})
    for path in files[::3]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return tuple(files[::3])


def _on(spoilt: tuple[Path, ...], hospital: Hospital, work: Path) -> Iterator[Step]:
    """Yield commands on images damaged after the split, without their cache and with tracebacks."""
    if not spoilt:
        return
    shutil.rmtree(work / studies.STUDY / "cache")
    at = studies.AT
    yield Step(words=("evaluate", *at, "--debug"), code=1)
    yield Step(words=("train", *at, *TINY, "--name", "again", "--debug"), code=1)
    yield Step(words=("export", "baseline", *at, "--out", "again", "--debug"), code=1)
    yield Step(words=(*studies.REPORT, "--debug"))
    data = str(hospital.data)
    grouped = ("--groups", str(hospital.groups), "--group-regex", REGEX)
    yield Step(words=("split", data, "--study", "bad", *grouped, "--debug"), code=1, names_files=True)
    words = ("split", data, "--study", "bad", *grouped, "--skip-bad", "--allow-ungrouped", "--image-size", "32")
    yield Step(words=words, names_files=True)


def _steps(hospital: Hospital, other: Hospital) -> Iterator[Step]:
    """Yield commands that succeed and commands that fail, each after those that it depends on."""
    at, data = studies.AT, str(hospital.data)
    grouped = ("--groups", str(hospital.groups), "--group-regex", REGEX)
    yield Step(words=("split", data, *at), code=1, names_files=True)
    yield Step(words=("split", data, *at, *grouped, "--allow-ungrouped", "--image-size", "32"), names_files=True)
    yield Step(words=("split", data, *at, "--group-regex", REGEX), code=1, names_files=True)
    yield Step(words=("train", data, *at, *TINY, *FIT, "--epochs", "1"))
    yield Step(words=("train", str(other.data), *at, *TINY), code=1, names_files=True)
    yield Step(words=("sensitivity", *at, "--amounts", "0.5"))
    yield Step(words=("sensitivity", *at, "--structured", "--amounts", "0.5"))
    yield Step(words=studies.ONESHOT)
    yield Step(words=("prune", *at, "--method", "structured", "--amount", "0.3", "--finetune-epochs", "0"))
    yield Step(words=studies.DYNAMIC)
    yield Step(words=("quantize", *at, "--method", "static"))
    yield Step(words=(*studies.QAT, "--name", "trained-int8"))
    yield Step(words=("evaluate", *at, "--debug"))
    yield Step(words=("evaluate", *at, "--by", "patient"), code=2)
    yield Step(words=("evaluate", *at, "--by", "mode", "--json"))
    yield Step(words=("evaluate", *at, "--data", str(other.data), "--debug"), names_files=True)
    yield Step(words=("evaluate", *at, "--data", str(other.manifest), "--name", "listed", "--by", "sex"))
    yield Step(words=("evaluate", *at, "--data", str(other.manifest), "--by", "mrn"), code=2)
    yield Step(words=("evaluate", *at, "--data", data), code=1, names_files=True)
    yield Step(words=("compare", "baseline", "oneshot-50", *at, "--json"))
    yield Step(words=("benchmark", *at, "--rounds", "1", "--duration", "0.01"))
    yield Step(words=("export", "baseline", *at, "--out", f"{studies.STUDY}/bundle"))
    yield Step(words=studies.COMPRESS)
    yield Step(words=studies.REPORT)
    for name, words in (("listed", ()), ("folds", ("--folds", "3"))):
        step = ("split", str(hospital.manifest), "--study", name, "--image-size", "32", *words)
        yield Step(words=step, names_files=True)
    yield Step(words=("train", "--study", "folds/fold-1", *TINY, *FIT, "--epochs", "1"))
    yield Step(words=("evaluate", "--study", "folds/fold-1", "--json"))
    yield Step(words=("report", "--study", "folds/fold-1"))
