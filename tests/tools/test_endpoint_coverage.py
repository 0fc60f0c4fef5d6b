"""The simulation of endpoints over folds and seeds: its true values, and its counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from chestx_cli.evaluation.endpoints import ENDPOINTS
from chestx_cli.evaluation.predictions import sides
from tools.benchmarks.endpoint_coverage import (
    SIMULATED_ENDPOINTS,
    Design,
    Scenario,
    gap_losing,
    main,
    studies,
    true_value,
)


@pytest.mark.parametrize("name", SIMULATED_ENDPOINTS)
def test_the_truth_is_that_of_many_images(name: str) -> None:
    scenario = Scenario(design=Design(images=12_000, folds=2, seeds=1), accuracy=0.85, endpoints=(name,))
    (pairs,) = studies(scenario, 1, np.random.default_rng(0))
    found = ENDPOINTS[name].estimate(sides(pairs)[0])
    low, high = found.interval.bounds
    assert high - low < 0.05
    assert found.value == pytest.approx(true_value(name, scenario.gaps[0]), abs=high - low)


@pytest.mark.parametrize("name", SIMULATED_ENDPOINTS)
def test_a_worse_classifier_loses_what_it_should(name: str) -> None:
    worse = gap_losing(name, 2.0, 0.03)
    loss = true_value(name, 2.0) - true_value(name, worse)
    assert abs(loss) == pytest.approx(0.03)
    assert (loss < 0) == ENDPOINTS[name].is_loss


def test_it_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    main(["--studies", "3", "--endpoints", "brier", "--out", str(out)])
    document = json.loads(out.read_text())
    assert {scenario["at_margin_of"] for scenario in document["scenarios"]} == {"", "brier"}
    assert all(set(scenario["found"]) == {"brier"} for scenario in document["scenarios"])
    assert "3 studies per line" in capsys.readouterr().out
