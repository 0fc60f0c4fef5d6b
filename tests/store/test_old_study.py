"""A study directory written by an earlier version is opened, evaluated and reported on."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from chestx_cli.evaluation.reading import read_study
from chestx_cli.store.directory import Study, open_study
from conftest import Chestx, tree

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "old-study.tar.xz"
VARIANTS = {"baseline", "oneshot-50", "structured-30", "dynamic-int8", "static-int8"}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return a folder with the study, its images and others, moved from where the records say."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_all_results_of_an_old_study_are_read(old: Path) -> None:
    before = tree(old)
    results = read_study(open_study(old / "study"))
    assert results.left_out == ()
    assert {found.name for found in results.variants} == VARIANTS
    assert set(results.comparisons) == VARIANTS - {"baseline"}
    for found in results.variants:
        assert found.row is not None
        assert [one.split for one in found.externals] == ["external"]
        assert found.fastest("cpu") is not None
        assert not found.is_stale
    baseline = results.baseline
    assert baseline is not None
    assert None not in (baseline.sensitivity, baseline.group_sensitivity, baseline.int8_sensitivity)
    records = [found.record for found in results.variants]
    assert [one.pruning.target_sparsity for one in records if one.pruning] == [0.5]
    assert [one.structure.target_macs_removed for one in records if one.structure] == [0.3]
    audit = results.split_record.audit
    assert audit is not None
    assert audit.patients_before_merging > 0
    assert tree(old) == before


def test_an_old_study_is_evaluated_and_reported_on(old: Path, chestx: Chestx) -> None:
    at = ("--study", old / "study")
    before = read_study(Study(old / "study"))
    record = chestx("report", *at, "--json").json()
    assert record["variants"] == len(VARIANTS)
    assert len(record["figures"]) == 11
    # The images lie elsewhere now; the pixels are in the study.
    outcome = chestx("evaluate", *at)
    assert outcome.code == 0, outcome.err
    after = read_study(Study(old / "study"))
    for name in VARIANTS:
        then, now = before.variant(name), after.variant(name)
        assert then is not None
        assert now is not None
        assert then.row is not None
        assert now.row is not None
        # The interval's method is another one since.
        same = replace(then.row, auroc_interval=now.row.auroc_interval, auroc_method=now.row.auroc_method)
        assert now.row == same
        assert now.row.auroc_interval == pytest.approx(then.row.auroc_interval, abs=0.05)
        assert now.comparison == then.comparison
    for words in (("compare", "baseline", "structured-30"), ("evaluate", "--data", old / "others"), ("report",)):
        outcome = chestx(*words, *at)
        assert outcome.code == 0, outcome.err


def test_an_old_study_is_gone_on_with(old: Path, chestx: Chestx) -> None:
    at = ("--study", old / "study")
    # The images' new place makes the split again, to the same one, for which the variants stay valid.
    for words in (("split", old / "data", "--force"), ("prune", "--amount", "0.3"), ("evaluate", "oneshot-30")):
        outcome = chestx(*words, *at)
        assert outcome.code == 0, outcome.err
    results = read_study(Study(old / "study"))
    assert results.left_out == ()
    assert {found.name for found in results.variants} == {*VARIANTS, "oneshot-30"}
    assert set(results.comparisons) == {*VARIANTS, "oneshot-30"} - {"baseline"}
