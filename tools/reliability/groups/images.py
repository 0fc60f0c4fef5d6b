"""Bad images as input of every command that opens images."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chestx_cli.store.directory import Study
from tools.harness.processes import Ended, say
from tools.reliability.bad_images import KINDS, Kind
from tools.reliability.processes import TINY
from tools.reliability.registry import Setting
from tools.reliability.results import Figure

CPU_LIMIT_S = 1.0
MEMORY_LIMIT_BYTES = 2**30
N_IMAGES, IMAGE_PX = 60, 64
SHORT = ("empty", "cut at 50 %", "EXIF-rotated", "FIFO", "unreadable", "non-UTF-8 name")
FIT = ("--epochs", "1", "--batch-size", "16")
# Commands that first scan a folder of images, and whether they exit with 0 if one image is bad.
SCANNING: dict[str, tuple[tuple[str, ...], bool]] = {
    "split": (("split", "{data}", "--study", "{study}"), False),
    "split --skip-bad": (("split", "{data}", "--study", "{study}", "--skip-bad"), True),
    "train": (("train", "{data}", "--study", "{study}", *TINY, *FIT), False),
    "evaluate --data": (("evaluate", "--study", "{trained}", "--data", "{data}"), True),
}
# Commands on a study whose images were decoded before one of them became bad.
AGAIN: dict[str, tuple[str, ...]] = {
    "train (again)": ("train", "{data}", "--study", "{study}", *TINY, *FIT, "--force"),
    "sensitivity": ("sensitivity", "--study", "{study}", "--amounts", "0.5"),
    "prune": ("prune", "--study", "{study}", "--method", "iterative", "--steps", "1", "--finetune-epochs", "1"),
    "quantize": ("quantize", "--study", "{study}", "--method", "static"),
    "evaluate": ("evaluate", "--study", "{study}"),
    "benchmark": ("benchmark", "--study", "{study}", "--rounds", "1", "--duration", "0.01"),
    "report": ("report", "--study", "{study}"),
}
# The report leaves out the pictures that it cannot show, with a note.
SUCCEEDS = ("report",)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One command on one kind of image: expected message and exit code, and how it ended."""

    name: str
    ended: Ended
    code: int
    expected: str
    extra_cpu_s: float

    @property
    def failure(self) -> str:
        """Return the fault; empty if there is none."""
        last = self.ended.output.strip().replace("\n", " | ")[-300:]
        if self.ended.crashed:
            return f"{self.name} crashed: {last}"
        if self.ended.code != self.code or self.expected not in self.ended.output:
            return f"{self.name} ended with {self.ended.code}, not {self.code} with {self.expected!r}: {last}"
        if self.extra_cpu_s > CPU_LIMIT_S:
            return f"{self.name} took {self.extra_cpu_s:.2f} s"
        if self.ended.peak_bytes > MEMORY_LIMIT_BYTES:
            return f"{self.name} took {self.ended.peak_bytes / 2**20:,.0f} MiB"
        return ""


def measure(setting: Setting) -> list[Figure]:
    """Return a row per kind of image in a folder, and one for images that become bad after the split."""
    kinds = {name: KINDS[name] for name in setting.choose(short=SHORT, full=tuple(KINDS))}
    scanning = setting.choose(short=("split", "evaluate --data"), full=tuple(SCANNING))
    again = setting.choose(short=("evaluate",), full=tuple(AGAIN))
    place = _Place(setting)
    anywhere = {name: kind for name, kind in kinds.items() if not kind.by_name}
    return [_row(place.scan, "new", kinds, scanning), _row(place.use_again, "since the split", anywhere, again)]


Measurement = Callable[[dict[str, Kind], tuple[str, ...]], Iterator[Case]]


def _row(cases_of: Measurement, when: str, kinds: dict[str, Kind], commands: tuple[str, ...]) -> Figure:
    started_s = time.perf_counter()
    cases = []
    for case in cases_of(kinds, commands):
        cases.append(case)
        if case.failure:
            say(case.failure)
    failures = tuple(case.failure for case in cases if case.failure)
    return Figure(
        test=f"bad images, {when}: {len(kinds)} kinds × {', '.join(commands)}",
        passed=len(cases) - len(failures),
        total=len(cases),
        criterion="no traceback; its reason code, or the image is read; at most 1 s of CPU time more than with a good "
        "image; at most 1 GiB of memory",
        seconds=time.perf_counter() - started_s,
        slowest_s=max(case.extra_cpu_s for case in cases),
        peak_bytes=max(case.ended.peak_bytes for case in cases),
        failures=failures,
    )


class _Place:
    """A folder of good images, a study trained on it, and the processor time of commands without bad images."""

    def __init__(self, setting: Setting) -> None:
        from chestx_cli.data.synthetic.sets import write_synthetic_set

        self.work, self.at = setting.work, setting.at
        self.data, self.others, self.trained = (self.work / name for name in ("data", "others", "trained"))
        for data, seed in ((self.data, 3), (self.others, 4)):
            write_synthetic_set(data, images=N_IMAGES, seed=seed, size_px=IMAGE_PX)
        self.run(("train", "{data}", "--study", "{trained}", *TINY, *FIT), data=self.data)

    def run(self, words: tuple[str, ...], *, data: Path, study: Path | None = None) -> Ended:
        """Run a command with the folders inserted."""
        places = {"data": str(data), "trained": str(self.trained), "study": str(study or self.work / "none")}
        return self.at.run([word.format(**places) if word.startswith("{") else word for word in words], self.work)

    def scan(self, kinds: dict[str, Kind], commands: tuple[str, ...]) -> Iterator[Case]:
        """Yield each command on the images plus one bad image."""
        for command in commands:
            words, skips = SCANNING[command]
            source = self.others if "{trained}" in words else self.data
            usual_s = self._with_image(words, source, KINDS["palette"]).cpu_s
            for name, kind in kinds.items():
                ended = self._with_image(words, source, kind)
                yield Case(
                    name=f"{command} on {name}",
                    ended=ended,
                    code=0 if skips or kind.reason is None else 1,
                    expected=kind.reason or "",
                    extra_cpu_s=ended.cpu_s - usual_s,
                )

    def _with_image(self, words: tuple[str, ...], source: Path, kind: Kind) -> Ended:
        data, study = self.work / "scanned", self.work / "study"
        shutil.copytree(source, data, copy_function=os.link)
        try:
            kind.put(data / "NORMAL")
            return self.run(words, data=data, study=study)
        finally:
            shutil.rmtree(data)
            shutil.rmtree(study, ignore_errors=True)

    def use_again(self, kinds: dict[str, Kind], commands: tuple[str, ...]) -> Iterator[Case]:
        """Yield each command on a study without its cache, one of whose images has become bad."""
        split = Study(self.trained).read_split()
        victim = self.data / str(split.paths[split.indices("train")[0]])
        content = victim.read_bytes()
        for command in commands:
            usual_s = self._again(command).cpu_s
            for name, kind in kinds.items():
                victim.unlink()
                kind.put(victim.parent).rename(victim)
                try:
                    ended = self._again(command)
                finally:
                    _remove(victim)
                    victim.write_bytes(content)
                succeeds = command in SUCCEEDS
                yield Case(
                    name=f"{command} on {name}",
                    ended=ended,
                    code=0 if succeeds else 1,
                    expected="" if succeeds else kind.reason or "has changed since",
                    extra_cpu_s=ended.cpu_s - usual_s,
                )

    def _again(self, command: str) -> Ended:
        study = self.work / "again"
        shutil.copytree(self.trained, study, copy_function=os.link, ignore=shutil.ignore_patterns("cache"))
        try:
            return self.run(AGAIN[command], data=self.data, study=study)
        finally:
            shutil.rmtree(study)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
