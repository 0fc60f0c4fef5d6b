"""A small study over folds and seeds that runs in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PLAN = """\
data = "DATA"
folds = 2
seeds = [1, 2]
margin = 0.05

[train]
backbone = "tiny"
weights = "none"
image-size = 32
lr = 1e-3
epochs = 2
batch-size = 16

[benchmark]
rounds = 1
duration = 0.02
runtimes = ["onnxruntime"]

[[variants]]
name = "oneshot-50"
steps = [{ prune = "oneshot", amount = "50%" }]

[[variants]]
name = "twice"
steps = [
    { prune = "oneshot", amount = 0.5 },
    { prune = "iterative", steps = 1, amount = 0.2, finetune-epochs = 1 },
]
"""
CELLS = [f"seed-{seed}/fold-{fold}" for seed in (1, 2) for fold in (1, 2)]


def write_plan(folder: Path, data: Path, text: str = PLAN) -> Path:
    """Write a study file; DATA in its text is replaced by the folder of images."""
    path = folder / "study.toml"
    path.write_text(text.replace("DATA", str(data)))
    return path


def results_without_times(study: Path) -> dict[str, Any]:
    """Return a study's results without times and latencies."""
    document: dict[str, Any] = json.loads((study / "study.json").read_text())
    del document["stamp"], document["declared"]
    for row in document["rows"]:
        for name in ("latency_p50_ms", "speedup", "speedup_interval", "front_share"):
            del row[name]
    return document


def weights_of(study: Path) -> dict[str, bytes]:
    """Return the weights of all variants."""
    return {str(path.relative_to(study)): path.read_bytes() for path in study.rglob("model.safetensors")}
