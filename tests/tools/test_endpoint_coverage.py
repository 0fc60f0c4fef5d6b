"""The simulation of endpoints over folds and seeds knows its truth and counts what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from chestx_cli.evaluation.endpoints import ENDPOINTS
from chestx_cli.evaluation.predictions import sides
from tools.benchmarks.endpoint_coverage import ASKED, Design, Question, gap_losing, main, studies, true_value


@pytest.mark.parametrize("name", ASKED)
def test_the_truth_is_that_of_many_images(name: str) -> None:
    question = Question(design=Design(images=12_000, folds=2, seeds=1), accuracy=0.85, endpoints=(name,))
    (pairs,) = studies(question, 1, np.random.default_rng(0))
    found = ENDPOINTS[name].estimate(sides(pairs)[0])
    low, high = found.interval.bounds
    assert high - low < 0.05
    assert found.value == pytest.approx(true_value(name, question.gaps[0]), abs=high - low)


@pytest.mark.parametrize("name", ASKED)
def test_a_worse_classifier_loses_what_it_should(name: str) -> None:
    worse = gap_losing(name, 2.0, 0.03)
    loss = true_value(name, 2.0) - true_value(name, worse)
    assert abs(loss) == pytest.approx(0.03)
    assert (loss < 0) == ENDPOINTS[name].is_loss


def test_it_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    main(["--studies", "3", "--endpoints", "brier", "--out", str(out)])
    document = json.loads(out.read_text())
    assert {question["at_margin_of"] for question in document["questions"]} == {"", "brier"}
    assert all(set(question["found"]) == {"brier"} for question in document["questions"])
    assert "3 studies per line" in capsys.readouterr().out
