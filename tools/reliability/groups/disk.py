"""No space and no permission, injected at every write and real: existing files are kept, the error states why."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tools.harness.processes import Ended
from tools.reliability import studies
from tools.reliability.children import Children
from tools.reliability.faults import ERRORS, PERMITTED, SPENT, Fault
from tools.reliability.processes import TINY
from tools.reliability.registry import Setting
from tools.reliability.results import MAX_FAILURES, Figure
from tools.reliability.studies import Reference

CRITERION = (
    "every file that existed is unchanged, or complete as the uninterrupted command writes it; nothing but "
    "complete checkpoints is left over; one line states the reason and a path that the user knows; the exit code "
    "is 1, or 0 if only a clean-up was refused"
)
TRAIN = ("train", *studies.AT, *TINY, "--epochs", "1", "--batch-size", "16", "--force")
FULL: tuple[tuple[str, ...], ...] = (
    TRAIN,
    (*studies.ONESHOT, "--force"),
    (*studies.DYNAMIC, "--force"),
    ("sensitivity", *studies.AT, "--amounts", "0.5"),
    studies.EVALUATE,
    studies.REPORT,
)
SHORT: tuple[tuple[str, ...], ...] = (TRAIN,)
SMALL_MIB = 16
MANIFEST, NEXT_RECORD = "split.csv", ".split.json.next"
LEFT_KIB = (0, 8, 24, 64, 256)
# Writes of several figures, or of several variants, count as one site.
_ONE_OF_MANY = re.compile(r"figures/[^/ ]*?[.](?=png|svg)|variants/[^/]+/")
_CHECKPOINT = re.compile(r"checkpoints/[^/.]+/[^/.]+[.]safetensors")
_HIDDEN = re.compile(r"/[.][^/ ]+[.][0-9a-f]{8}\b")


def measure(setting: Setting) -> Sequence[Figure]:
    """Refuse each write of the commands, one at a time, then all of them."""
    at = setting.at
    base = studies.trained(setting)
    commands = setting.choose(short=SHORT, full=FULL)
    if setting.length == "full":
        base = studies.copied(base, setting.work / "base")
        for words in (studies.ONESHOT, studies.DYNAMIC, studies.EVALUATE, studies.REPORT):
            studies.require(at.run(words, base))
        commands = (
            ("split", str(studies.images(setting)), *studies.AT, "--image-size", "32", "--seed", "7", "--force"),
            *FULL,
        )
    wholes = [studies.reference(at, words, base, setting.work) for words in commands]
    cases = setting.choose(short=4, full=None)
    figures = [_injected(at, wholes, how, cases, setting.work) for how in ERRORS]
    figures.append(_without_permission(at, wholes, setting.work))
    small = _small(at, wholes, setting.choose(short=LEFT_KIB[:1], full=LEFT_KIB), setting.work)
    return [*figures, *([small] if small else [])]


def _injected(at: Children, wholes: Sequence[Reference], how: str, cases: int | None, work: Path) -> Figure:
    started_s = time.perf_counter()
    failures, total, slowest_s = [], 0, 0.0
    for whole in wholes:
        for point in _sites(whole, PERMITTED if how == "EACCES" else SPENT, cases):
            case = studies.copied(whole.before, work / "case")
            fault = Fault(folder=str(case / studies.STUDY), at=point, how=how)
            ended = at.run(whole.words, case, fault=fault)
            total, slowest_s = total + 1, max(slowest_s, ended.seconds)
            if failure := _judged(ended, whole, case / studies.STUDY, os.strerror(ERRORS[how])):
                failures.append(f"{whole.words[0]}, {whole.touches[point - 1]}: {failure}")
            shutil.rmtree(case)
    return Figure(
        test=f"{how} at every write site of {', '.join(dict.fromkeys(whole.words[0] for whole in wholes))}",
        passed=total - len(failures),
        total=total,
        criterion=CRITERION,
        seconds=time.perf_counter() - started_s,
        slowest_s=slowest_s,
        failures=tuple(failures[:MAX_FAILURES]),
    )


def _sites(whole: Reference, kinds: Sequence[str], cases: int | None) -> list[int]:
    """Return the first access of every site, counted from 1; evenly chosen ones if only some cases are requested."""
    first: dict[str, int] = {}
    for number, touch in enumerate(whole.touches, start=1):
        if touch.split(" ")[0] in kinds:
            first.setdefault(_ONE_OF_MANY.sub("*", touch), number)
    points = list(first.values())
    return points if cases is None else points[:: max(1, len(points) // cases)][:cases]


def _judged(ended: Ended, whole: Reference, study: Path, reason: str) -> str:
    """Return the fault in a study or in a command's output after a refused write; empty if there is none."""
    found, before = studies.content(study), studies.content(whole.before / studies.STUDY)
    for name, content in before.items():
        if found.get(name) not in (content, whole.expected.get(name)):
            return f"{name} has neither its old content nor the expected one"
    # A complete checkpoint is allowed: the same command resumes from it.
    added = {name for name in found.keys() - before.keys() - whole.expected.keys() if not _CHECKPOINT.fullmatch(name)}
    # So is the pending record of a manifest that was already replaced.
    if found.get(MANIFEST) == whole.expected[MANIFEST] != before[MANIFEST]:
        added.discard(NEXT_RECORD)
    if added:
        return f"left {', '.join(sorted(added))}"
    if ended.code == 0:
        return studies.differences(found, whole.expected)
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if ended.crashed or ended.code != 1 or len(errors) != 1:
        return f"it ended with {ended.code}: {ended.err.strip()[-300:]}"
    if reason not in errors[0] or "study" not in errors[0] or _HIDDEN.search(errors[0]):
        return f"its error was {errors[0]}"
    return ""


def _without_permission(at: Children, wholes: Sequence[Reference], work: Path) -> Figure:
    """Run the commands on a study without write permission."""
    started_s = time.perf_counter()
    failures = []
    for whole in wholes:
        case = studies.copied(whole.before, work / "case")
        folders = [case, *(path for path in case.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        ended = at.run(whole.words, case)
        for folder in folders:
            folder.chmod(0o755)
        failure = _judged(ended, whole, case / studies.STUDY, os.strerror(ERRORS["EACCES"]))
        if failure or ended.code != 1:
            failures.append(f"{whole.words[0]}: {failure or 'nothing was refused'}")
        shutil.rmtree(case)
    return Figure(
        test="a study in which nothing may be written",
        passed=len(wholes) - len(failures),
        total=len(wholes),
        criterion=CRITERION,
        seconds=time.perf_counter() - started_s,
        failures=tuple(failures),
    )


def _small(at: Children, wholes: Sequence[Reference], left_kib: Sequence[int], work: Path) -> Figure | None:
    """Run the commands on a real, almost full file system; None if mounting one is not permitted."""
    started_s = time.perf_counter()
    failures, total = [], 0
    for whole in wholes:
        for kib in left_kib:
            with _small_file_system(work / "small") as case:
                if case is None:
                    return None
                shutil.copytree(whole.before / studies.STUDY, case / studies.STUDY)
                _fill(case, kib)
                ended = at.run(whole.words, case)
                total += 1
                failure = _judged(ended, whole, case / studies.STUDY, os.strerror(ERRORS["ENOSPC"]))
                if failure or (kib == 0 and ended.code != 1):
                    failures.append(f"{whole.words[0]}, {kib} KiB left: {failure or 'nothing was refused'}")
    return Figure(
        test=f"a {SMALL_MIB} MB file system with {', '.join(map(str, left_kib))} KiB left",
        passed=total - len(failures),
        total=total,
        criterion=CRITERION,
        seconds=time.perf_counter() - started_s,
        failures=tuple(failures[:MAX_FAILURES]),
    )


def _fill(folder: Path, left_kib: int) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        size = os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize - left_kib * 1024
        os.posix_fallocate(file.fileno(), 0, size)


@contextmanager
def _small_file_system(at: Path) -> Iterator[Path | None]:
    at.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", f"size={SMALL_MIB}m", "tmpfs", str(at)]
    try:
        mounted = Path(mount[0]).exists() and subprocess.run(mount, capture_output=True).returncode == 0
        yield at if mounted else None
    finally:
        if mounted:
            subprocess.run(["/bin/umount", str(at)], check=True)
        at.rmdir()
