"""The share of bootstrap draws in which a variant is on the Pareto front."""

from __future__ import annotations

import numpy as np
import pytest

from chestx_cli.evaluation.pareto import DRAWS, front_shares
from chestx_cli.evaluation.statistics.influence import Total, mean_of, total_of

N = 80
GROUPS = np.array([f"patient {index // 2}" for index in range(N)])


def total(right: np.ndarray) -> Total:
    return total_of([[mean_of(right.astype(np.float64))]], [GROUPS])


def with_errors(*wrong: int) -> np.ndarray:
    right = np.ones(N, dtype=bool)
    right[list(wrong)] = False
    return right


def test_what_others_dominate_in_every_draw_is_never_on_the_front() -> None:
    good, bad = total(with_errors(3)), total(with_errors(3, 10, 20, 30))
    assert front_shares([good, bad], [(1, 1), (2, 1)]) == (1.0, 0.0)
    # Whoever is cheaper in one cost is on the front, however bad.
    assert front_shares([good, bad], [(1, 2), (2, 1)]) == (1.0, 1.0)
    # Where none of the three patients is drawn, whom only the worse one gets wrong, it is as good, and cheaper.
    few, all_costs = front_shares([good, bad], [(2, 1), (1, 1)])
    assert all_costs == 1.0
    assert few == pytest.approx(1 - (1 - 3 / 40) ** 40, abs=0.02)
    # Of equal models neither dominates the other.
    assert front_shares([good, good], [(1, 1), (1, 1)]) == (1.0, 1.0)
    assert front_shares([good, good], [(1, 1), (1, 2)]) == (1.0, 0.0)


def test_the_share_is_that_of_a_bootstrap_of_patients() -> None:
    first, second = with_errors(0, 1, 2, 3), with_errors(10, 20, 30, 40, 50)
    (_, share) = front_shares([total(first), total(second)], [(1,), (2,)])
    rng = np.random.default_rng(7)
    ahead = 0
    for _ in range(DRAWS):
        drawn = np.bincount(rng.integers(N // 2, size=N // 2), minlength=N // 2)[np.arange(N) // 2]
        ahead += (drawn * second).sum() > (drawn * first).sum()
    assert 0.05 < share < 0.95
    assert share == pytest.approx(ahead / DRAWS, abs=0.05)


def test_of_a_loss_less_is_better() -> None:
    low, high = total(~with_errors(1)), total(~with_errors(1, 2, 3, 4))
    assert front_shares([high, low], [(2,), (1,)], is_loss=True) == (0.0, 1.0)
