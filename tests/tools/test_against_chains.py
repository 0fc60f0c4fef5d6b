"""The comparison of `compress` with chains typed by hand: both within the limit, and no chain begins too late."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chestx_cli.records.split import VAL
from chestx_cli.store.directory import Study
from conftest import tree
from tools.benchmarks import against_chains
from tools.benchmarks.against_chains import CHAINS, Chain, Terms

# More than an INT8 file of the tiny network has, and less than 40 kB.
LIMIT_MB = 0.04
SHARED = Chain(percent=40, criterion="l2")
FEW = (
    SHARED,
    Chain(percent=40, criterion="l2", int8="qat"),
    Chain(percent=33, criterion="l2", distill=True, schedule="cosine", int8="static-int4"),
)


def words(fresh: Path, tmp_path: Path, limit_mb: float) -> list[str]:
    """Return the command's words."""
    at = ["--study", str(fresh), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.json")]
    return [*at, "--max-size-mb", str(limit_mb), "--round-to", "1", "--search-epochs", "1"]


def test_there_are_twenty_chains_and_no_two_alike() -> None:
    assert len(CHAINS) == 20
    assert len({chain.name for chain in CHAINS}) == 20
    assert {chain.percent for chain in CHAINS} == {50, 60, 70, 75, 80, 85}


def test_both_sides_choose_by_validation_loss_within_the_limit(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(against_chains, "CHAINS", FEW)
    before = tree(fresh)
    against_chains.main([*words(fresh, tmp_path, LIMIT_MB), "--minutes", "10"])
    assert tree(fresh) == before
    shown = capsys.readouterr().out
    searched, typed = json.loads((tmp_path / "out.json").read_text())["sides"]
    assert [model["name"] for model in typed["models"]] == [chain.name for chain in FEW]
    for side in (searched, typed):
        within = [one for one in side["models"] if one["size_mb"] <= LIMIT_MB and one["val"]]
        best = min(within, key=lambda one: float(one["val"]["loss"]))
        assert (side["best"], side["val"]) == (best["name"], best["val"])
        assert side["test"]["loss"] > 0
        assert f"{best['name']}, test: " in shown
    study = Study(tmp_path / "work" / "chains")
    assert {path.name for path in (study.root / "variants").iterdir()} >= {SHARED.fitted, SHARED.name}
    stored = against_chains.scores_of(study, study.read_variant(typed["best"]), VAL)
    assert stored.loss == pytest.approx(typed["val"]["loss"])


def test_no_chain_begins_after_the_time_of_the_search(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(against_chains, "CHAINS", FEW)
    terms = Terms(max_size_mb=1e-6, minutes=1.0, search_epochs=1, chain_epochs=1, lr=1e-3, round_to=1)
    study = against_chains.copy_of(fresh, tmp_path / "copy")
    side = against_chains.by_hand(study, terms, seconds=0.0)
    assert side.models == ()
    assert (side.best, side.test) == (None, None)
    # A file that INT8 leaves too large is not quantized.
    side = against_chains.by_hand(study, terms, seconds=600.0)
    assert [model.val for model in side.models] == [None] * len(FEW)
    assert side.best is None
