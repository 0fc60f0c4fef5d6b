"""A plan of a study over folds and seeds that is made in seconds."""

from __future__ import annotations

from pathlib import Path

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
    path = folder / "study.toml"
    path.write_text(text.replace("DATA", str(data)))
    return path
