"""Studies over folds and seeds: their files, and what of two of them must be equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import tree


def write_plan(folder: Path, data: Path, text: str) -> Path:
    """Write a study file in which DATA stands for the images."""
    path = folder / "study.toml"
    path.write_text(text.replace("DATA", str(data)))
    return path


def without_times(study: Path) -> dict[str, Any]:
    """Return a study's results without when and how fast they came about."""
    document: dict[str, Any] = json.loads((study / "study.json").read_text())
    del document["stamp"], document["declared"]
    for row in document["rows"]:
        for name in ("latency_p50_ms", "speedup", "speedup_interval", "front_share"):
            del row[name]
    return document


def weights_of(study: Path) -> dict[str, bytes]:
    """Return the weights of all variants."""
    return {name: content for name, content in tree(study).items() if name.endswith("model.safetensors")}
