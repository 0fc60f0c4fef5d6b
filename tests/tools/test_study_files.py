"""The study files of the results keep their recipes when defaults change."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[2] / "tools" / "benchmarks" / "studies").glob("*.toml"))
# Options of a fine-tuning whose defaults have changed, or may.
RECIPE = {"finetune-epochs", "distill", "lr", "schedule", "keep"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_fine_tuning_after_channels_is_written_out(path: Path) -> None:
    variants = tomllib.loads(path.read_text())["variants"]
    steps = [step for variant in variants for step in variant["steps"] if step.get("prune") in {"structured", "guided"}]
    assert [step for step in steps if not step.keys() >= RECIPE] == []
