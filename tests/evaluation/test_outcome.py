"""The log-loss that training, evaluation, calibration and sensitivity share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import precision_recall_curve, roc_curve

from chestx_cli.evaluation.statistics.calibration import calibrate
from chestx_cli.evaluation.statistics.intervals import draw_patients
from chestx_cli.evaluation.statistics.operating_points import counts_by_threshold
from chestx_cli.evaluation.statistics.outcome import log_loss, log_odds_of, log_odds_of_classes, outcome_of
from chestx_cli.networks.losses import cross_entropy

TRUTH = np.array([1, 0, 1, 1, 0, 0, 1, 0])
LOGITS = np.random.default_rng(5).normal(scale=3, size=(len(TRUTH), 2))


def test_the_log_loss_is_that_of_sklearn_and_of_training() -> None:
    log_odds = LOGITS[:, 1] - LOGITS[:, 0]
    probability = 1 / (1 + np.exp(-log_odds))
    found = log_loss(log_odds, TRUTH)
    assert found == pytest.approx(sklearn_log_loss(TRUTH, probability), rel=1e-12)
    assert found == pytest.approx(float(cross_entropy(torch.tensor(LOGITS), torch.tensor(TRUTH), None)), rel=1e-12)
    assert log_loss(log_odds_of(probability), TRUTH) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("positive", [0, 1])
def test_two_columns_of_a_softmax_keep_what_one_rounds_away(positive: int) -> None:
    logits = torch.tensor([[0.0, 50.0], [50.0, 0.0]], dtype=torch.float64)
    log_odds = log_odds_of_classes(logits.softmax(dim=1).numpy(), positive)
    assert log_odds == pytest.approx([50, -50] if positive else [-50, 50])
    assert log_loss(log_odds, np.array([positive, 1 - positive])) == pytest.approx(math.exp(-50))


def test_calibration_clips_probabilities_of_exactly_0_and_1() -> None:
    truth = np.array([1, 0, 1, 0] * 10)
    wrong = np.where(np.arange(40) == 0, 1 - truth, truth).astype(np.float64)
    found = calibrate(truth, wrong, draw_patients(np.arange(40).astype(str), np.random.default_rng(0)))
    assert found.log_loss == pytest.approx(-math.log(1e-7) / 40, rel=1e-4)


def test_an_outcome_needs_both_classes() -> None:
    outcome = outcome_of(np.array([2.0, -1.0, 0.5]), np.array([1, 0, 0]), 0.7)
    assert (outcome.accuracy, outcome.auroc) == (1.0, 1.0)
    with pytest.raises(ValueError, match="one class"):
        outcome_of(np.array([2.0, -1.0]), np.array([1, 1]))


def test_the_points_of_both_curves_are_those_of_sklearn() -> None:
    rng = np.random.default_rng(6)
    truth, probability = rng.integers(2, size=200), rng.random(200).round(2)
    true, false = counts_by_threshold(truth, probability)
    false_rate, true_rate, _ = roc_curve(truth, probability, drop_intermediate=False)
    assert (false / false[-1]).tolist() == false_rate.tolist()
    assert (true / true[-1]).tolist() == true_rate.tolist()
    precision, recall, _ = precision_recall_curve(truth, probability)
    assert [*(true[1:] / (true[1:] + false[1:]))[::-1], 1.0] == precision.tolist()
    assert (true / true[-1])[::-1].tolist() == recall.tolist()
