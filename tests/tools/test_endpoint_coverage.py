"""The simulation of endpoints over folds and seeds: its true values, and its counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from chestx_cli.evaluation.endpoints import ENDPOINTS
from chestx_cli.evaluation.predictions import sides
from tools.benchmarks.coverage import ACCURACIES
from tools.benchmarks.endpoint_coverage import (
    DESIGNS,
    SIMULATED_ENDPOINTS,
    Design,
    Found,
    Scenario,
    gap_losing,
    loss_of,
    main,
    misses_of,
    studies,
    true_value,
)


@pytest.mark.parametrize("name", SIMULATED_ENDPOINTS)
def test_the_truth_is_that_of_many_images(name: str) -> None:
    scenario = Scenario(design=Design(images=12_000, folds=2, seeds=1), accuracy=0.85, endpoints=(name,))
    ((known, pairs),) = studies(scenario, 1, np.random.default_rng(0))
    found = ENDPOINTS[name].estimate(sides(pairs)[0])
    low, high = found.interval.bounds
    assert high - low < 0.05
    assert found.value == pytest.approx(true_value(name, known.gaps[0]), abs=high - low)


@pytest.mark.parametrize("name", SIMULATED_ENDPOINTS)
def test_a_worse_classifier_loses_what_it_should(name: str) -> None:
    worse = gap_losing(name, 2.0, 0.03)
    loss = true_value(name, 2.0) - true_value(name, worse)
    assert abs(loss) == pytest.approx(0.03)
    assert (loss < 0) == ENDPOINTS[name].is_loss


@pytest.mark.parametrize("name", SIMULATED_ENDPOINTS)
def test_a_fixed_truth_loses_the_margin(name: str) -> None:
    fixed = Scenario(design=DESIGNS[0], accuracy=0.93, at_margin_of=name, endpoints=(name,)).fixed
    assert fixed
    assert loss_of(name, *fixed.gaps) == pytest.approx(ENDPOINTS[name].margin)


def test_each_study_has_its_own_drawn_truth() -> None:
    scenario = Scenario(design=DESIGNS[0], accuracy=None, endpoints=("brier",))
    drawn = [known for known, _ in studies(scenario, 20, np.random.default_rng(0))]
    assert len(set(drawn)) == 20
    assert all(ACCURACIES[0] <= known.accuracy <= ACCURACIES[1] for known in drawn)


def test_coverage_is_judged_by_drawn_truths_and_claims_by_fixed_ones() -> None:
    def misses(accuracy: float | None, at: str, found: Found) -> list[str]:
        scenario = Scenario(design=DESIGNS[0], accuracy=accuracy, at_margin_of=at, endpoints=("brier",))
        return misses_of(scenario, {"brier": found})

    assert misses(None, "", Found(missed_above=0.08, level_covered=0.95)) == ["brier: difference covers 0.920"]
    assert misses(None, "", Found(missed_above=0.05, level_covered=0.98)) == ["brier: one variant covers 0.980"]
    assert not misses(0.93, "", Found(missed_above=0.08, level_covered=0.98))
    assert misses(0.93, "brier", Found(not_inferior=0.03)) == ["false claims 0.0300"]
    assert not misses(0.93, "brier", Found(not_inferior=0.025))


def test_it_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    main(["--studies", "2", "--claim-studies", "3", "--endpoints", "brier", "--out", str(out)])
    rows = json.loads(out.read_text())["scenarios"]
    assert {(row["at_margin_of"], row["studies"]) for row in rows} == {("", 2), ("brier", 3)}
    assert [row["design"]["images"] for row in rows if row["accuracy"] is None] == [60, 378, 624]
    assert all(set(row["found"]) == {"brier"} for row in rows)
    assert "378 images, 183 patients, 5 × 3, truth drawn, 2 studies" in capsys.readouterr().out
