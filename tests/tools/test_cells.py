"""A study over folds and seeds: declared before testing, made by real commands, judged from its predictions."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from conftest import TINY
from tools.benchmarks import cells

VARIANTS = ("--variants", "oneshot-50", "oneshot-50-plain", "--primary", "oneshot-50")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Return a folder with a page that has the markers."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "results.md").write_text("<!-- cells: written by the benchmarks -->\n\n<!-- cells: end -->\n")
    return folder


@pytest.mark.slow
def test_cells_are_declared_made_and_judged(data: Path, docs: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    network = f"--train-options={' '.join([*TINY, '--epochs', '1', '--batch-size', '16'])}"
    making = ["--data", str(data), "--weights", "none", "--work", str(work), "--folds", "2", network, *VARIANTS]
    cells.main([*making, "--seeds", "1", "2", "--here", "1"])
    plan = (work / "plan.txt").read_text()
    assert hashlib.sha256(plan.encode()).hexdigest() == (work / "plan.sha256").read_text().split()[0]
    assert "chestx prune --method oneshot --amount 0.5 --no-recalibrate" in plan
    assert str(tmp_path) not in plan
    tested = sorted(work.glob("seed-1/fold-*/variants/*/evaluation.test.json"))
    assert len(tested) == 2 * 3
    assert all((work / "plan.txt").stat().st_mtime <= path.stat().st_mtime for path in tested)
    assert not (work / "seed-2").exists()

    # Stands for the cells of another machine, whose models stay there.
    shutil.copytree(work / "seed-1", work / "seed-2", ignore=shutil.ignore_patterns("model.safetensors", "cache"))
    cells.main(["--work", str(work), "--docs", str(docs), *VARIANTS])
    document = json.loads((docs / "cells.json").read_text())
    assert set(document["seeds"]) == {"1", "2"}
    for seed in document["seeds"].values():
        assert [row["variant"] for row in seed["variants"]] == ["oneshot-50", "oneshot-50-plain"]
        assert {row["images"] for row in seed["variants"]} == {60}
    (noise,) = document["noise"]["baseline"]
    assert noise["auroc_difference"] == 0
    assert (noise["measures"][0]["lost"], noise["measures"][0]["won"]) == (0, 0)
    page = (docs / "results.md").read_text()
    assert "| oneshot-50 |" in page
    assert str(tmp_path) not in page

    with pytest.raises(SystemExit, match="is a different plan"):
        cells.main([*making, "--seeds", "1"])


def test_predictions_that_are_not_there_are_missed(docs: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no seed-"):
        cells.main(["--work", str(tmp_path), "--docs", str(docs)])
