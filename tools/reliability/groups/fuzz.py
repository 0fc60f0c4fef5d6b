"""Fuzzing of the readers of six kinds of files."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from chestx_cli.records.variant import BASELINE
from chestx_cli.store.directory import Study
from tools.reliability import studies
from tools.reliability.bad_images import content_of, radiograph
from tools.reliability.children import Children
from tools.reliability.fuzzing import CPU_LIMIT_S, TARGETS
from tools.reliability.registry import Setting
from tools.reliability.results import Figure

AT_ONCE, AT_ONCE_LIMIT_S = 500, 600.0


@dataclass
class Tally:
    """Results for the files of one kind."""

    passed: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    peak_bytes: int = 0
    failures: list[str] = field(default_factory=list)


def measure(setting: Setting) -> list[Figure]:
    """Return one row per kind of file."""
    cases = setting.choose(short=25, full=10_000)
    figures = []
    seeds = _seeds(setting)
    for name in TARGETS:
        started_s = time.perf_counter()
        place = setting.work / "place"
        shutil.copytree(setting.work / "study", place / "study")
        tally = _fuzzed(setting.at, name, cases, seeds, place)
        shutil.rmtree(place)
        figures.append(
            Figure(
                test=f"mutated {name} ({tally.refused:,} refused, {tally.passed - tally.refused:,} harmless)",
                passed=tally.passed,
                total=cases,
                criterion=f"read, or refused with an error of chestx's own, within {CPU_LIMIT_S:g} s of CPU time",
                seconds=time.perf_counter() - started_s,
                slowest_s=tally.slowest_s,
                peak_bytes=tally.peak_bytes,
                failures=tuple(tally.failures),
            )
        )
    return figures


def _fuzzed(at: Children, name: str, cases: int, seeds: Path, place: Path) -> Tally:
    tally, first, report = Tally(), 0, place / "report"
    while first < cases:
        last = min(first + AT_ONCE, cases)
        report.unlink(missing_ok=True)
        words = (name, seeds, place, first, last, report)
        ended = at.run(words, place, call="tools.reliability.fuzzing:fuzz", limit_s=AT_ONCE_LIMIT_S)
        tally.peak_bytes = max(tally.peak_bytes, ended.peak_bytes)
        lines = report.read_text(encoding="utf-8").splitlines()
        for line in lines:
            index, _, document = line.partition(" ")
            if not document:
                tally.failures.append(f"file {index} ended its process with {ended.code}: {ended.output[-200:]}")
                continue
            seconds, refused, wrong = json.loads(document)
            tally.slowest_s = max(tally.slowest_s, seconds)
            if wrong or seconds > CPU_LIMIT_S:
                tally.failures.append(f"file {index}: {wrong or f'{seconds:.2f} s'}")
            else:
                tally.passed += 1
                tally.refused += refused
        # Continue after the file that killed the process.
        first += max(len(lines), 1)
    return tally


def _seeds(setting: Setting) -> Path:
    """Return a folder with intact files to mutate, beside a small study with an INT8 variant."""
    import numpy as np
    from PIL import Image

    folder, study = setting.work / "seeds", setting.work / "study"
    folder.mkdir()
    shutil.copytree(studies.quantized(setting) / studies.STUDY, study)
    baseline = Study(study).variant(BASELINE)
    for name in ("variant.json", "model.safetensors"):
        shutil.copy(baseline / name, folder)
    shutil.copy(study / "split.csv", folder)
    shutil.copy(Study(study).variant("static-int8") / "model.onnx", folder / "int8.onnx")
    studies.require(
        setting.at.run((study, folder / "fp32.onnx"), setting.work, call="tools.reliability.fuzzing:export_baseline")
    )
    grey = radiograph(48)
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    images = {
        "grey.png": content_of(grey),
        "palette.png": content_of(grey.convert("P")),
        "wide.png": content_of(wide),
        "grey.jpeg": content_of(grey, "JPEG"),
        "colour.jpeg": content_of(grey.convert("RGB"), "JPEG"),
        "progressive.jpeg": content_of(grey, "JPEG", progressive=True),
    }
    for name, content in images.items():
        (folder / name).write_bytes(content)
    files = sorted(studies.images(setting).rglob("*.png"), key=lambda path: path.name)
    rows = [
        f"{path.relative_to(setting.shared)},{path.parent.name},{index // 2},\n" for index, path in enumerate(files)
    ]
    (folder / "user.csv").write_text("path,label,group,note\n" + "".join(rows[:20]), encoding="utf-8")
    return folder
