"""The search for a compressed variant, on made-up landscapes of costs and quality."""

from __future__ import annotations

import pytest

from chestx_cli.compression.search import (
    FP32,
    INT8,
    QAT,
    STATIC,
    Bounds,
    Candidate,
    Cost,
    Quality,
    explore,
    least_percent,
)
from chestx_cli.evaluation.pareto import on_front

CRITERIA = ("bn-scale", "l2")


class Landscape:
    """A machine on which latency falls with the share removed, and a network that loses beyond a knee."""

    def __init__(self, *, knee: int, int8_gain: float = 0.4, builds: int = 100, step: int = 1, most: int = 100) -> None:
        self.knee, self.int8_gain, self.builds = knee, int8_gain, builds
        self.step, self.most = step, most
        self.probed: list[int] = []
        self.built: list[Candidate] = []

    def cost(self, percent: int, criterion: str) -> dict[str, Cost]:
        self.probed.append(percent)
        left = 0.1 + 0.9 * (1 - self.nearest(percent, criterion) / 100)
        gain = self.int8_gain
        return {
            FP32: Cost(latency_ms=20 * left, size_mb=98 * left),
            INT8: Cost(latency_ms=20 * gain * left, size_mb=25 * left),
        }

    def nearest(self, percent: int, criterion: str) -> int:  # noqa: ARG002 - the protocol has it
        return min(round(percent / self.step) * self.step, self.most)

    def may_begin(self, candidate: Candidate) -> bool:  # noqa: ARG002 - the protocol has it
        return len(self.built) < self.builds

    def build(self, candidate: Candidate) -> Quality:
        self.built.append(candidate)
        lost = max(0, candidate.percent - self.knee) / 100 + (0.01 if candidate.int8 == STATIC else 0)
        lost += 0.005 if candidate.criterion == "bn-scale" else 0
        return Quality(accuracy=0.95 - lost, drop=lost, loss=0.1 + lost)


def bounds(latency_ms: float | None = 4.0, size_mb: float | None = None, max_drop: float = 0.02) -> Bounds:
    return Bounds(latency_ms=latency_ms, size_mb=size_mb, max_drop=max_drop)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("limit", [0.9, 0.5, 0.3])
def test_the_least_share_is_found_in_few_measurements(exponent: float, limit: float) -> None:
    asked: list[int] = []

    def load_at(percent: int) -> float:
        asked.append(percent)
        return float(0.02 + 0.98 * (1 - percent / 100) ** exponent) / limit

    found = least_percent(load_at)
    assert load_at(found) <= 0.96
    assert load_at(found) >= 0.88 or load_at(found - 1) > 0.96
    assert len(asked) <= 10


def test_a_share_that_is_never_enough_is_the_most() -> None:
    assert least_percent(lambda percent: 5 - percent / 100) == 95
    assert least_percent(lambda _: 0.5) == 0


@pytest.mark.parametrize(("step", "most"), [(20, 100), (1, 60), (25, 50), (1, 0)])
def test_only_shares_that_can_be_removed_are_built(step: int, most: int) -> None:
    for knee in (10, 40, 90):
        world = Landscape(knee=knee, step=step, most=most)
        found = explore(CRITERIA, bounds(), world)
        assert all(candidate.percent % step == 0 and candidate.percent <= most for candidate in found)
        assert len(world.built) == len(set(world.built))


def test_all_criteria_then_qat_of_the_best_then_the_knee() -> None:
    world = Landscape(knee=70)
    found = explore(CRITERIA, bounds(), world)
    assert found.keys() == set(world.built)
    least = world.built[0].percent
    cost = world.cost(least, "l2")[INT8]
    assert 0.88 <= cost.latency_ms / 4 <= 0.96
    both = [Candidate(percent=least, criterion=c, int8=m) for c in CRITERIA for m in (None, STATIC)]
    assert world.built[:4] == both
    assert world.built[4] == Candidate(percent=least, criterion="l2", int8=QAT)
    assert {c.criterion for c in world.built[5:]} == {"l2"}
    # The largest share that is within the drop is known to five points.
    fitting = [c.percent for c, quality in found.items() if quality.drop <= 0.02]
    failing = [c.percent for c, quality in found.items() if quality.drop > 0.02]
    assert 0 < min(failing) - max(fitting) <= 5


def test_where_the_drop_is_too_large_smaller_shares_are_tried() -> None:
    world = Landscape(knee=20)
    found = explore(CRITERIA, bounds(), world)
    least = world.built[0].percent
    assert all(c.percent < least for c in world.built[5:])
    assert any(quality.drop <= 0.02 for quality in found.values())
    assert all(bounds().missed(world.cost(c.percent, "l2")[INT8], q) for c, q in found.items() if c.int8)


def test_int8_that_is_slower_is_not_tried() -> None:
    world = Landscape(knee=90, int8_gain=1.3)
    explore(CRITERIA, bounds(latency_ms=15), world)
    assert {c.int8 for c in world.built} == {None}


def test_quantization_alone_where_it_is_enough() -> None:
    world = Landscape(knee=70)
    explore(CRITERIA, bounds(latency_ms=9), world)
    assert world.built[:2] == [Candidate(percent=0, criterion=None, int8=m) for m in (STATIC, QAT)]


@pytest.mark.parametrize("builds", [0, 1, 3])
def test_time_ends_the_search_and_something_is_always_built(builds: int) -> None:
    world = Landscape(knee=70, builds=builds)
    found = explore(CRITERIA, bounds(), world)
    assert len(found) == max(builds, 1)


def test_distance_is_that_of_the_limit_that_is_missed_most() -> None:
    limits = bounds(latency_ms=4, size_mb=8, max_drop=0.02)
    fine, slow = Cost(latency_ms=3, size_mb=7), Cost(latency_ms=6, size_mb=7)
    assert limits.distance(fine, Quality(accuracy=0.94, drop=0.01, loss=0.1)) == 0
    assert limits.distance(slow, Quality(accuracy=0.94, drop=0.01, loss=0.1)) == pytest.approx(0.5)
    assert limits.distance(fine, Quality(accuracy=0.80, drop=0.10, loss=0.1)) == pytest.approx(0.1)
    assert limits.missed(slow, Quality(accuracy=0.8, drop=0.1, loss=0.1)) == ("latency", "drop of accuracy")


def test_the_front_has_what_nothing_beats() -> None:
    assert on_front([(1, 5), (2, 2), (3, 3), (2, 2)]) == (True, True, False, True)
