"""Mutated files of six kinds under the functions that read them."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from chestx_cli.study import BASELINE, Study
from torture.bad_images import content_of, radiograph
from torture.forks import Forker
from torture.fuzzing import CPU_LIMIT_S, TARGETS
from torture.processes import TINY
from torture.registry import Setting
from torture.results import Figure

AT_ONCE, AT_ONCE_LIMIT_S = 500, 600.0


@dataclass
class Tally:
    """What became of the files of one kind."""

    passed: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    peak_bytes: int = 0
    failures: list[str] = field(default_factory=list)


def measure(setting: Setting) -> list[Figure]:
    """Return one row for each kind of file."""
    cases = setting.choose(short=25, full=10_000)
    figures = []
    with Forker() as forker:
        seeds = _seeds(setting.work, forker)
        for name in TARGETS:
            started_s = time.perf_counter()
            place = setting.work / "place"
            shutil.copytree(setting.work / "study", place / "study")
            tally = _fuzzed(forker, name, cases, seeds, place)
            shutil.rmtree(place)
            figures.append(
                Figure(
                    test=f"mutated {name} ({tally.refused:,} refused, {tally.passed - tally.refused:,} harmless)",
                    passed=tally.passed,
                    total=cases,
                    criterion=f"read, or one of the project's own errors, within {CPU_LIMIT_S:g} s of processor time",
                    seconds=time.perf_counter() - started_s,
                    slowest_s=tally.slowest_s,
                    peak_bytes=tally.peak_bytes,
                    failures=tuple(tally.failures),
                )
            )
    return figures


def _fuzzed(forker: Forker, name: str, cases: int, seeds: Path, place: Path) -> Tally:
    tally, first, report = Tally(), 0, place / "report"
    while first < cases:
        last = min(first + AT_ONCE, cases)
        report.unlink(missing_ok=True)
        ended = forker.call("torture.fuzzing:fuzz", name, seeds, place, first, last, report, limit_s=AT_ONCE_LIMIT_S)
        tally.peak_bytes = max(tally.peak_bytes, ended.peak_bytes)
        lines = report.read_text(encoding="utf-8").splitlines()
        for line in lines:
            index, _, told = line.partition(" ")
            if not told:
                tally.failures.append(f"file {index} ended its process with {ended.code}: {ended.said[-200:]}")
                continue
            seconds, refused, wrong = json.loads(told)
            tally.slowest_s = max(tally.slowest_s, seconds)
            if wrong or seconds > CPU_LIMIT_S:
                tally.failures.append(f"file {index}: {wrong or f'{seconds:.2f} s'}")
            else:
                tally.passed += 1
                tally.refused += refused
        # Behind the one that killed the process.
        first += max(len(lines), 1)
    return tally


def _seeds(work: Path, forker: Forker) -> Path:
    """Return a folder with intact files to be mutated; a small study with an INT8 variant lies beside it."""
    import numpy as np
    from PIL import Image

    from chestx_cli.synthetic import write_synthetic_set

    folder, study = work / "seeds", work / "study"
    folder.mkdir()
    write_synthetic_set(work / "data", images=60, seed=3, size_px=64)
    for words in (
        ("train", work / "data", "--study", study, *TINY, "--epochs", 1, "--batch-size", 16),
        ("quantize", "--study", study, "--method", "static"),
        # Leaves the baseline as an FP32 file in the cache.
        ("benchmark", "--study", study, "--rounds", 1, "--duration", 0.01),
    ):
        ended = forker.chestx(*words)
        if ended.code:
            raise SystemExit(ended.said)
    baseline = Study(study).variant(BASELINE)
    for name in ("variant.json", "model.safetensors"):
        shutil.copy(baseline / name, folder)
    shutil.copy(study / "split.csv", folder)
    shutil.copy(Study(study).variant("static-int8") / "model.onnx", folder / "int8.onnx")
    shutil.copy(next((study / "cache").glob("*.onnx")), folder / "fp32.onnx")
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
    rows = [f"{path.relative_to(work)},{path.parent.name},{index // 2},\n" for index, path in enumerate(_images(work))]
    (folder / "user.csv").write_text("path,label,group,note\n" + "".join(rows[:20]), encoding="utf-8")
    return folder


def _images(work: Path) -> list[Path]:
    return sorted((work / "data").rglob("*.png"), key=lambda path: path.name)
