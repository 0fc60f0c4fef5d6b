"""Small studies for fault injection, and their comparison."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chestx_cli.data.synthetic.sets import write_synthetic_set
from tools.harness.processes import Ended
from tools.reliability.children import Children
from tools.reliability.faults import Fault
from tools.reliability.processes import TINY
from tools.reliability.registry import Setting

IMAGES, SIDE_PX = 48, 64
STUDY = "study"
AT = ("--study", STUDY)
TRAIN = ("train", *AT, *TINY, "--epochs", "2", "--batch-size", "16", "--checkpoint-every", "2")
ONESHOT = ("prune", *AT, "--method", "oneshot")
ITERATIVE = (
    *("prune", *AT, "--method", "iterative", "--steps", "2", "--finetune-epochs", "1"),
    *("--lr", "0.001", "--batch-size", "16", "--checkpoint-every", "1"),
)
STRUCTURED = (
    *(
        "prune",
        *AT,
        "--method",
        "structured",
        "--amount",
        "0.4",
        "--round-to",
        "1",
        "--finetune-epochs",
        "2",
        "--distill",
    ),
    *("--lr", "0.001", "--batch-size", "16", "--checkpoint-every", "1"),
)
GUIDED = (
    *("prune", *AT, "--method", "guided", "--amount", "0.4", "--round-to", "1", "--finetune-epochs", "2"),
    *("--lr", "0.001", "--batch-size", "16", "--checkpoint-every", "1"),
)
SENSITIVITY = ("sensitivity", *AT, "--structured", "--amounts", "0.5")
DYNAMIC = ("quantize", *AT)
STATIC = ("quantize", *AT, "--method", "static")
QAT = ("quantize", *AT, "--method", "qat", "--epochs", "2", "--batch-size", "16", "--checkpoint-every", "2")
EVALUATE = ("evaluate", *AT)
REPORT = ("report", *AT)
COMPRESS = (
    *("compress", *AT, "--max-size-mb", "0.012", "--max-drop", "1", "--round-to", "1"),
    *("--finetune-epochs", "1", "--batch-size", "16", "--criteria", "l2"),
)
# Fields of records that hold times.
TIMES = {"created", "duration_s"}
# In the report: the time of each result and, in the next cell or followed by `s`, its duration.
_TIMES_IN_REPORT = re.compile(
    rb"\d+(\.\d+)? s\b|\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(\+00:00)?((</td><td[^>]*>| \| )[\d.]+)?"
)
# Files of a study that are not results: lock files, and hashes of the inputs of figures, which include times.
LOCKS = ".locks"
FIGURE_NOTES = "cache/figures.json"


class HarnessError(Exception):
    """A command failed without an injected fault, so nothing can be measured."""


def require(ended: Ended) -> Ended:
    """Return the finished command if it succeeded."""
    if ended.code != 0:
        raise HarnessError(f"code {ended.code}: {ended.err.strip()[-2000:]}")
    return ended


def images(setting: Setting) -> Path:
    """Return a folder of images shared by all groups, made once and never changed."""
    data = setting.shared / "data"
    if not data.exists():
        write_synthetic_set(data, images=IMAGES, seed=1, size_px=SIDE_PX)
    return data


def split_study(setting: Setting) -> Path:
    """Return a folder shared by all groups that contains `study`, with a split of the images."""
    folder = setting.shared / "split"
    if not folder.exists():
        data = images(setting)
        folder.mkdir()
        require(setting.at.run(("split", data, *AT, "--image-size", "32"), folder))
    return folder


def trained(setting: Setting) -> Path:
    """Return a folder shared by all groups that contains `study`, with a baseline."""
    folder = setting.shared / "trained"
    return folder if folder.exists() else after(setting.at, TRAIN, split_study(setting), folder)


def quantized(setting: Setting) -> Path:
    """Return a folder shared by all groups that contains `study`, with a baseline and its static INT8 variant."""
    folder = setting.shared / "quantized"
    return folder if folder.exists() else after(setting.at, STATIC, trained(setting), folder)


def copied(folder: Path, to: Path) -> Path:
    """Return an independent copy of a folder with a study."""
    return Path(shutil.copytree(folder, to))


def content(study: Path) -> dict[str, object]:
    """Return the files of a study by path, without times: hidden ones too, but none that are not results."""
    return {
        name: _timeless(path)
        for path in sorted(study.rglob("*"))
        if path.is_file() and LOCKS not in path.parts and (name := path.relative_to(study).as_posix()) != FIGURE_NOTES
    }


def differences(found: dict[str, object], expected: dict[str, object]) -> str:
    """Return the differences between two studies; empty if there are none."""
    lost, added = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    changed = sorted(name for name in expected.keys() & found.keys() if found[name] != expected[name])
    parts = [
        f"{word} {', '.join(names)}" for word, names in (("lost", lost), ("new", added), ("other", changed)) if names
    ]
    return "; ".join(parts)


def _timeless(path: Path) -> object:
    content = path.read_bytes()
    if path.suffix == ".json":
        return _without_times(json.loads(content))
    if path.name == "training.csv":
        rows = list(csv.DictReader(io.StringIO(content.decode())))
        return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
    if path.name == "report.md" or path.suffix == ".html":
        return _TIMES_IN_REPORT.sub(b"TIME", content)
    return content


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(part) for name, part in value.items() if name not in TIMES}
    if isinstance(value, list):
        return [_without_times(part) for part in value]
    return value


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An undisturbed run of a command: the study before it, the expected study, file accesses and duration."""

    words: tuple[str, ...]
    before: Path
    expected: dict[str, object]
    touches: tuple[str, ...]
    seconds: float


def reference(at: Children, words: tuple[str, ...], before: Path, work: Path) -> Reference:
    """Run a command undisturbed on a copy of a study; its duration excludes imports."""
    name = re.sub(r"[^a-z0-9]+", "-", " ".join(words))
    whole, log = work / f"{name}-whole", work / f"{name}.log"
    while True:
        copied(before, whole)
        ended = require(at.run(words, whole, fault=Fault(folder=str(whole / STUDY), log=str(log))))
        if not at.new_modules:
            break
        shutil.rmtree(whole)
        log.unlink()
    return Reference(
        words=words,
        before=before,
        expected=content(whole / STUDY),
        touches=tuple(log.read_text().splitlines()),
        seconds=ended.seconds,
    )


def after(at: Children, words: tuple[str, ...], before: Path, to: Path) -> Path:
    """Return a copy of a study after one more command."""
    copy = copied(before, to)
    require(at.run(words, copy))
    return copy
