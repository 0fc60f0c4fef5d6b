"""Malicious model files as initial weights and as the model file of a variant."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path

from chestx_cli.records.variant import BASELINE
from chestx_cli.store.directory import Study
from tools.harness.processes import Ended
from tools.reliability import studies
from tools.reliability.bad_models import KINDS, Intact
from tools.reliability.children import Children
from tools.reliability.processes import TINY
from tools.reliability.registry import Setting
from tools.reliability.results import Figure

MEMORY_LIMIT_BYTES = 2**30
SHORT = ("command in a .pth", "duplicate key", "NaN", "ONNX data in ../")
ONNX_VARIANT = "static-int8"


def measure(setting: Setting) -> list[Figure]:
    """Return one row: every kind of file, in every place that reads model files."""
    kinds = setting.choose(short=SHORT, full=tuple(KINDS))
    started_s = time.perf_counter()
    at = setting.at
    study = studies.copied(studies.quantized(setting), setting.work / "made") / studies.STUDY
    split = studies.copied(studies.split_study(setting), setting.work / "split")
    intact = _intact(setting.work, study)
    # Intact files must be accepted, so that the others are refused for their manipulation alone.
    whole = Study(study).variant(BASELINE) / "model.safetensors"
    for control in (_as_weights(at, split, whole), _as_variant(at, study, BASELINE, whole)):
        if control.code:
            raise studies.HarnessError(f"an intact file is refused: {control.output}")
    ended = {}
    for name in kinds:
        bad = KINDS[name]
        path = setting.work / f"bad{bad.suffix}"
        path.write_bytes(bad.make(intact))
        if bad.suffix == ".onnx":
            ended[f"variant: {name}"] = _as_variant(at, study, ONNX_VARIANT, path)
            continue
        ended[f"--weights: {name}"] = _as_weights(at, split, path)
        if bad.suffix == ".safetensors":
            ended[f"variant: {name}"] = _as_variant(at, study, BASELINE, path)
    failures = [f"{name}: {wrong}" for name, end in ended.items() if (wrong := _wrong(end))]
    if intact.trace.exists():
        failures.append("a file was executed")
    return [
        Figure(
            test=f"malicious model files: {len(kinds)} kinds, as initial weights and as a variant's file",
            passed=len(ended) - len(failures),
            total=len(ended),
            criterion="never executed; refused with an error of chestx's own; at most 1 GiB of memory",
            seconds=time.perf_counter() - started_s,
            slowest_s=max(end.cpu_s for end in ended.values()),
            peak_bytes=max(end.peak_bytes for end in ended.values()),
            failures=tuple(failures),
        )
    ]


def _wrong(ended: Ended) -> str:
    """Return the fault in how a command ended; empty if it refused the file."""
    last = ended.output.strip().replace("\n", " | ")[-300:]
    if ended.crashed or ended.code != 1 or "error: " not in ended.output:
        return f"ended with {ended.code}: {last}"
    if ended.peak_bytes > MEMORY_LIMIT_BYTES:
        return f"took {ended.peak_bytes / 2**20:,.0f} MiB"
    return ""


def _intact(work: Path, study: Path) -> Intact:
    from safetensors.torch import load_file

    folder = Study(study)
    return Intact(
        tensors=load_file(folder.variant(BASELINE) / "model.safetensors"),
        onnx=(folder.variant(ONNX_VARIANT) / "model.onnx").read_bytes(),
        trace=work / "executed",
    )


def _as_weights(at: Children, split: Path, weights: Path) -> Ended:
    """Start training with this file."""
    words = (word for word in TINY if word not in ("--weights", "none"))
    ended = at.run(("train", *studies.AT, *words, "--weights", weights, "--epochs", 1), split)
    shutil.rmtree(split / studies.STUDY / "variants", ignore_errors=True)
    return ended


def _as_variant(at: Children, study: Path, variant: str, bad: Path) -> Ended:
    """Evaluate a copy of the study in which a variant has this file and a matching record."""
    copy = study.with_name("copy")
    shutil.copytree(study, copy)
    try:
        folder = Study(copy).variant(variant)
        record = json.loads((folder / "variant.json").read_text(encoding="utf-8"))
        content = bad.read_bytes()
        record.update(model_sha256=hashlib.sha256(content).hexdigest(), model_bytes=len(content))
        (folder / record["model_file"]).write_bytes(content)
        (folder / "variant.json").write_text(json.dumps(record), encoding="utf-8")
        return at.run(("evaluate", "--study", copy), copy.parent)
    finally:
        shutil.rmtree(copy)
