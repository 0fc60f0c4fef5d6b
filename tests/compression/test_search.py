"""The search for a compressed variant, on made-up landscapes of costs and quality."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chestx_cli.compression.search import (
    ENERGY,
    FINALISTS,
    FP32,
    GUIDED,
    INT4,
    INT8,
    LATENCY,
    OBJECTIVES,
    PACKED,
    QAT,
    SIZE,
    STATIC,
    STRUCTURED,
    Bounds,
    Candidate,
    ChannelChoice,
    Cost,
    Network,
    Quality,
    Space,
    explore,
    least_percent,
    rungs_of,
)
from chestx_cli.evaluation.pareto import on_front

CRITERIA = ("bn-scale", "l2")
FULL_EPOCHS = 8
# How much worse a criterion's networks are, and a student without any pruning.
WORSE = {"bn-scale": 0.005, "l2": 0.0, "taylor": 0.004, "big": 0.001, "small": 0.003, "poor": 0.2}
# Share of the parent's costs.
STUDENTS = {"big": 0.9, "small": 0.2, "poor": 0.1, "least": 0.0, "last": 0.0}


class Landscape:
    """A machine on which latency falls with the share removed, and a network that loses beyond a knee."""

    def __init__(
        self,
        *,
        knee: int,
        int8_gain: float = 0.4,
        builds: int = 100,
        fits: int = 1000,
        step: int = 1,
        most: int = 100,
        worse: dict[str, float] | None = None,
        guided_gain: float = 0.0,
        guided_most: int = 100,
        packed_loss: float = 0.005,
        student_loss: float = 0.0,
    ) -> None:
        self.knee, self.int8_gain, self.builds, self.fits = knee, int8_gain, builds, fits
        self.step, self.most = step, most
        self.worse = worse or WORSE
        self.guided_gain, self.guided_most = guided_gain, guided_most
        # Of weights in 4 bits, and of students that are fitted completely.
        self.packed_loss, self.student_loss = packed_loss, student_loss
        self.built: list[Candidate] = []
        self.fitted: list[tuple[Network, int]] = []

    def cost(self, network: Network) -> dict[str, Cost]:
        kept = 1 - self.nearest(network.percent, network.choice) / 100
        left = 0.1 + 0.9 * kept * STUDENTS.get(network.student or "", 1)
        gain = self.int8_gain
        return {
            FP32: Cost(latency_ms=20 * left, size_mb=98 * left, energy_mj=300 * left),
            INT8: Cost(latency_ms=20 * gain * left, size_mb=25 * left, energy_mj=300 * gain * left),
            INT4: Cost(latency_ms=20 * gain * left, size_mb=14 * left, energy_mj=300 * gain * left),
        }

    def nearest(self, percent: int, choice: ChannelChoice | None) -> int:
        most = min(self.most, self.guided_most) if choice is not None and choice.method == GUIDED else self.most
        return min(round(percent / self.step) * self.step, most)

    def lost(self, network: Network) -> float:
        """Return what a network loses after a full fit."""
        worse = self.worse.get(criterion_of(network) or network.student or "", 0.0)
        guided = network.choice is not None and network.choice.method == GUIDED
        return max(0, network.percent - self.knee) / 100 + worse - (self.guided_gain if guided else 0.0)

    def may_fit(self, network: Network, epochs: int) -> bool:  # noqa: ARG002 - the protocol has it
        return len(self.fitted) < self.fits

    def fit(self, network: Network, epochs: int) -> Quality:
        self.fitted.append((network, epochs))
        lost = self.lost(network) + 0.1 / epochs
        return Quality(accuracy=0.95 - lost, drop=lost, loss=0.1 + lost)

    def may_begin(self, candidate: Candidate) -> bool:  # noqa: ARG002 - the protocol has it
        return len(self.built) < self.builds

    def build(self, candidate: Candidate) -> Quality:
        self.built.append(candidate)
        lost = self.lost(candidate.network) + {STATIC: 0.01, PACKED: self.packed_loss}.get(candidate.int8 or "", 0)
        lost += self.student_loss if candidate.network.student else 0
        return Quality(accuracy=0.95 - lost, drop=lost, loss=0.1 + lost)

    @property
    def epochs(self) -> int:
        """The epochs that the short fits took, each continuing the one before."""
        longest: dict[Network, int] = {}
        for network, epochs in self.fitted:
            longest[network] = max(longest.get(network, 0), epochs)
        return sum(longest.values())


def criterion_of(network: Network) -> str | None:
    return network.choice.criterion if network.choice else None


def space(
    criteria: tuple[str, ...] = CRITERIA,
    students: tuple[str, ...] = (),
    short_epochs: int = 2,
    methods: tuple[str, ...] = (STRUCTURED,),
) -> Space:
    choices = [ChannelChoice(criterion=criterion, method=method) for criterion in criteria for method in methods]
    return Space(choices=choices, students=students, short_epochs=short_epochs, full_epochs=FULL_EPOCHS)


def bounds(
    latency_ms: float | None = 4.0,
    size_mb: float | None = None,
    max_drop: float = 0.02,
    objective: str | None = None,
) -> Bounds:
    return Bounds(latency_ms=latency_ms, size_mb=size_mb, max_drop=max_drop, objective=objective)


def epochs_of(rungs: tuple[tuple[int, int], ...]) -> int:
    """Return how many epochs the rungs take, since each continues the fits of the one before."""
    before = [0, *(epochs for _, epochs in rungs)]
    return sum(n * (epochs - done) for (n, epochs), done in zip(rungs, before, strict=False))


def within(world: Landscape, found: dict[Candidate, Quality], limits: Bounds) -> list[Candidate]:
    return [one for one, quality in found.items() if not limits.missed(cost_of(world, one), quality)]


def cost_of(world: Landscape, candidate: Candidate) -> Cost:
    return world.cost(candidate.network)[candidate.kind]


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
@pytest.mark.parametrize("objective", [None, LATENCY])
def test_only_shares_that_can_be_removed_are_built(step: int, most: int, objective: str | None) -> None:
    for knee in (10, 40, 90):
        world = Landscape(knee=knee, step=step, most=most)
        found = explore(space(), bounds(objective=objective), world)
        shares = [candidate.network.percent for candidate in found]
        assert all(percent % step == 0 and percent <= most for percent in shares)
        assert len(world.built) == len(set(world.built))


def test_few_networks_are_built_without_short_fits_then_qat_of_the_best() -> None:
    world = Landscape(knee=70)
    found = explore(space(), bounds(), world)
    assert found.keys() == set(world.built)
    assert world.fitted == []
    least = world.built[0].network.percent
    networks = [Network(percent=least, choice=ChannelChoice(criterion=criterion)) for criterion in CRITERIA]
    assert 0.88 <= world.cost(networks[0])[INT8].latency_ms / 4 <= 0.96
    assert world.built == [
        *(Candidate(network=network, int8=method) for network in networks for method in (None, STATIC)),
        Candidate(network=networks[1], int8=QAT),
    ]


def test_where_the_drop_is_too_large_smaller_shares_are_tried() -> None:
    world = Landscape(knee=20)
    found = explore(space(), bounds(), world)
    least = world.built[0].network.percent
    assert len(world.built) > 5
    assert all(candidate.network.percent < least for candidate in world.built[5:])
    assert any(quality.drop <= 0.02 for quality in found.values())
    assert not [one for one in within(world, found, bounds()) if one.int8]


def test_int8_that_is_slower_is_not_tried() -> None:
    world = Landscape(knee=90, int8_gain=1.3)
    explore(space(), bounds(latency_ms=15), world)
    assert {candidate.int8 for candidate in world.built} == {None}


def test_quantization_alone_where_it_is_enough() -> None:
    world = Landscape(knee=70)
    explore(space(), bounds(latency_ms=9), world)
    assert world.built == [Candidate(network=Network(), int8=method) for method in (STATIC, QAT)]


@pytest.mark.parametrize("builds", [0, 1, 3])
def test_time_ends_the_search_and_something_is_always_built(builds: int) -> None:
    world = Landscape(knee=70, builds=builds)
    found = explore(space(), bounds(), world)
    assert len(found) == max(builds, 1)


def test_students_compete_where_they_meet_the_limits() -> None:
    world = Landscape(knee=70, worse={**WORSE, "small": -0.001})
    found = explore(space(students=("big", "small", "poor")), bounds(), world)
    # Of the larger student even the INT8 file is too slow.
    assert {network.student for network, _ in world.fitted} == {None, "small", "poor"}
    best = min(within(world, found, bounds()), key=lambda one: found[one].loss)
    assert best == Candidate(network=Network(student="small"), int8=QAT)
    assert not any(candidate.network.student == "poor" for candidate in world.built)


@pytest.mark.parametrize("students", [("small",), ("small", "poor")], ids=["one", "both finalists"])
@pytest.mark.parametrize("objective", [None, SIZE])
def test_where_the_best_is_a_student_that_loses_too_much_the_shares_of_the_pruned_are_tried(
    students: tuple[str, ...], objective: str | None
) -> None:
    # The students' losses are the lowest, but above the limit; a pruned network is within it up to a share of 32 %.
    world = Landscape(knee=30, worse={"l2": 0.0, "bn-scale": 0.005, "small": 0.05, "poor": 0.06})
    limits = bounds(objective=objective)
    found = explore(space(students=students), limits, world)
    assert world.built[0].network.student == "small"
    assert {one.network.student for one, quality in found.items() if limits.is_kept(quality)} == {None}
    kept = [one.network.percent for one, quality in found.items() if limits.is_kept(quality) and one.int8]
    assert max(kept) >= 32 - 5


def test_a_student_within_the_limits_ends_the_search() -> None:
    world = Landscape(knee=30, worse={**WORSE, "small": 0.01, "poor": 0.011})
    explore(space(students=("small", "poor")), bounds(), world)
    assert {candidate.network.student for candidate in world.built} == {"small", "poor"}


BOTH = (STRUCTURED, GUIDED)


@pytest.mark.parametrize(("gain", "wins"), [(0.004, GUIDED), (-0.004, STRUCTURED)])
@pytest.mark.parametrize("objective", [None, LATENCY])
def test_guided_pruning_competes_with_structured(gain: float, wins: str, objective: str | None) -> None:
    world = Landscape(knee=60, guided_gain=gain)
    limits = bounds(latency_ms=6.0, objective=objective)
    found = explore(space(criteria=("bn-scale",), methods=BOTH), limits, world)
    best = min(within(world, found, limits), key=lambda one: limits.order(cost_of(world, one), found[one]))
    assert best.network.choice == ChannelChoice(criterion="bn-scale", method=wins)
    compared = {*found, *(Candidate(network=network, int8=None) for network, _ in world.fitted)}
    assert {one.network.choice.method for one in compared if one.network.choice} == {*BOTH}


def test_a_choice_that_can_not_meet_the_limit_competes_only_if_none_can() -> None:
    # Of lower loss, since it removes less.
    world = Landscape(knee=20, guided_most=50)
    found = explore(space(criteria=("l2",), methods=BOTH), bounds(latency_ms=3.0, max_drop=1), world)
    assert {one.network.choice.method for one in found if one.network.choice} == {STRUCTURED}
    neither = Landscape(knee=20, guided_most=50, most=50)
    found = explore(space(criteria=("l2",), methods=BOTH), bounds(latency_ms=3.0, max_drop=1), neither)
    assert {one.network.choice.method for one in found if one.network.choice} == {*BOTH}


def test_a_network_that_fell_is_promoted_last() -> None:
    class Fallen(Landscape):
        def fit(self, network: Network, epochs: int) -> Quality:
            quality = super().fit(network, epochs)
            fell = ("sensitivity",) if criterion_of(network) == "l2" else ()
            return Quality(accuracy=quality.accuracy, drop=quality.drop, loss=quality.loss, fell=fell)

    world = Fallen(knee=70)
    explore(space(criteria=(*CRITERIA, "taylor")), bounds(), world)
    # It has the lowest loss.
    assert {criterion_of(candidate.network) for candidate in world.built} == {"bn-scale", "taylor"}


@settings(deadline=None)
@given(
    losses=st.lists(st.integers(0, 1000), min_size=1, max_size=24, unique=True),
    short_epochs=st.integers(1, 10),
)
def test_halving_is_bounded_monotone_and_keeps_the_best(losses: list[int], short_epochs: int) -> None:
    names = [f"c{index}" for index in range(len(losses))]
    worse = {name: loss / 1e5 for name, loss in zip(names, losses, strict=True)}
    world = Landscape(knee=100, worse=worse)
    explore(space(criteria=tuple(names), short_epochs=short_epochs), bounds(max_drop=1), world)
    n = len(names)
    rungs = rungs_of(n, short_epochs, FULL_EPOCHS)
    # Every network gets as many epochs as all others of its rung, and budgets never fall from rung to rung.
    assert list(Counter(epochs for _, epochs in world.fitted).items()) == [
        (epochs, sum(networks for networks, others in rungs if others == epochs))
        for epochs in dict.fromkeys(epochs for _, epochs in rungs)
    ]
    assert [epochs for _, epochs in world.fitted] == sorted(epochs for _, epochs in world.fitted)
    # Only where the short fits are no shorter, a fit takes as long as a full one.
    assert all(epochs < FULL_EPOCHS or epochs <= short_epochs for _, epochs in world.fitted)
    # What all take together is known before, and far below full fits of all.
    assert world.epochs == epochs_of(rungs)
    short = min(short_epochs, FULL_EPOCHS)
    assert epochs_of(rungs) <= short * (n + (n / 2 + 1) * math.log2(max(n, 2)))
    # With ranks that agree, the best two are built, the best one first.
    best = sorted(names, key=worse.__getitem__)[:FINALISTS]
    built = list(dict.fromkeys(criterion_of(candidate.network) for candidate in world.built))
    assert sorted(map(str, built)) == sorted(best)


@pytest.mark.parametrize("fits", range(14))
def test_halving_that_runs_out_of_time_compares_only_equal_fits(fits: int) -> None:
    names = tuple(f"c{index}" for index in range(8))
    # The later, the better: without the fits, the first two are built.
    world = Landscape(knee=100, fits=fits, worse={name: (8 - index) / 1e3 for index, name in enumerate(names)})
    explore(space(criteria=names), bounds(max_drop=1), world)
    built = list(dict.fromkeys(criterion_of(candidate.network) for candidate in world.built))
    first_rung = ["c1", "c0"] if fits >= 2 else ["c0", "c1"]
    expected = first_rung if fits < 3 else [f"c{fits - 1}", f"c{fits - 2}"] if fits < 8 else ["c7", "c6"]
    assert built == expected


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("knee", [0, 30, 60, 90])
def test_an_objective_is_minimised_within_the_drop(objective: str, knee: int) -> None:
    world = Landscape(knee=knee)
    limits = bounds(latency_ms=None, objective=objective)
    found = explore(space(), limits, world)
    best = min(within(world, found, limits), key=lambda one: cost_of(world, one).of(objective))
    # QAT loses nothing: with the better criterion, two points beyond the knee are within the drop of 0.02.
    assert best.network.percent >= min(knee + 2, 95) - 5
    assert best.int8 is not None


@pytest.mark.parametrize(
    ("size_mb", "expected"), [(2.5, {None, PACKED}), (5, {None, STATIC, QAT}), (28, {STATIC, QAT})]
)
def test_weights_are_in_4_bits_only_if_8_are_always_too_large(size_mb: float, expected: set[str | None]) -> None:
    world = Landscape(knee=95)
    limits = bounds(latency_ms=None, size_mb=size_mb)
    found = explore(space(), limits, world)
    assert {one.int8 for one in found} == expected
    assert within(world, found, limits)


def test_8_bits_are_not_given_up_at_the_very_limit_of_the_size() -> None:
    # Nothing of a file's size is noise, so 2.5 of 2.6 MB are within the limit.
    world = Landscape(knee=0)
    limits = bounds(latency_ms=None, size_mb=2.6)
    found = explore(space(students=("least",)), limits, world)
    assert {one.int8 for one in within(world, found, limits)} == {STATIC, QAT}


def test_what_a_single_choice_can_remove_does_not_decide_for_all() -> None:
    # The first choice, guided or not, ends at half of the MACs: 13.75 MB in 8 bits.
    world = Landscape(knee=95, guided_most=50)
    limits = bounds(latency_ms=None, size_mb=7)
    found = explore(space(criteria=("l2",), methods=(GUIDED, STRUCTURED)), limits, world)
    assert {one.int8 for one in found} == {None, STATIC, QAT}
    assert within(world, found, limits)


def test_8_bits_before_4_where_fp32_is_faster_but_too_large() -> None:
    world = Landscape(knee=95, int8_gain=1.3)
    limits = bounds(latency_ms=6, size_mb=8)
    found = explore(space(), limits, world)
    assert PACKED not in {one.int8 for one in found}
    assert within(world, found, limits)


def test_a_student_within_the_limits_is_not_left_out_for_pruned_networks_above_them() -> None:
    world = Landscape(knee=60, most=60, packed_loss=0.1)
    limits = bounds(latency_ms=3, size_mb=8, max_drop=0.1, objective=SIZE)
    found = explore(space(students=("small",)), limits, world)
    assert {one.network.student for one in within(world, found, limits)} == {"small"}


def test_the_model_within_all_limits_is_the_one_that_is_packed() -> None:
    world = Landscape(knee=90, most=60)
    limits = bounds(latency_ms=3, objective=SIZE, max_drop=0.1)
    found = explore(space(students=("small", "poor")), limits, world)
    packed = [one for one in found if one.int8 == PACKED]
    assert packed
    assert all(not limits.missed(cost_of(world, one), found[one]) for one in packed)


def test_nothing_pruned_is_measured_where_8_bits_are_enough() -> None:
    asked: list[Network] = []

    class Counting(Landscape):
        def cost(self, network: Network) -> dict[str, Cost]:
            asked.append(network)
            return super().cost(network)

    explore(space(), bounds(latency_ms=None, size_mb=30), Counting(knee=60))
    assert asked == [Network()]


@pytest.mark.parametrize("packed_loss", [0.005, 0.1])
@pytest.mark.parametrize("knee", [0, 60, 90])
def test_the_least_size_is_in_4_bits_unless_they_lose_too_much(packed_loss: float, knee: int) -> None:
    world = Landscape(knee=knee, packed_loss=packed_loss)
    limits = bounds(latency_ms=None, objective=SIZE)
    found = explore(space(), limits, world)
    kept = within(world, found, limits)
    best = min(kept, key=lambda one: cost_of(world, one).size_mb)
    assert (best.int8 == PACKED) is (packed_loss < 0.02)
    # What was found in 8 bits is not given up.
    in_8_bits = [cost_of(world, one).size_mb for one in kept if one.int8 != PACKED]
    assert cost_of(world, best).size_mb <= min(in_8_bits)
    # A file in 4 bits that would not be smaller than the smallest in 8 bits is not built.
    assert all(cost_of(world, one).size_mb < min(in_8_bits) for one in found if one.int8 == PACKED)


def test_a_pruned_network_is_in_4_bits_if_it_needs_them_whatever_the_student_was_in() -> None:
    # The students win the short fits, in 8 bits, and lose too much.
    world = Landscape(knee=95, worse={"l2": 0.02, "bn-scale": 0.03, "least": 0.0, "last": 0.0}, student_loss=0.2)
    limits = bounds(latency_ms=None, size_mb=2.7, max_drop=0.045)
    found = explore(space(students=("least", "last")), limits, world)
    assert {one.int8 for one in found if one.network.student} == {None, STATIC, QAT}
    assert {one.int8 for one in within(world, found, limits)} == {PACKED}


def test_limits_hold_beside_an_objective() -> None:
    world = Landscape(knee=95)
    limits = bounds(latency_ms=4, size_mb=8, objective=ENERGY)
    found = explore(space(), limits, world)
    assert within(world, found, limits)
    assert all(candidate.network.percent for candidate in found)
    assert min(candidate.network.percent for candidate in found) >= 50


def test_the_kind_of_model_is_chosen_by_the_objective_where_both_meet_the_limits() -> None:
    costs = {
        FP32: Cost(latency_ms=3, size_mb=8),
        INT8: Cost(latency_ms=3.5, size_mb=2),
        INT4: Cost(latency_ms=3.5, size_mb=1.2),
    }
    assert bounds(objective=LATENCY).faster_kind(costs) == FP32
    assert bounds(objective=SIZE).faster_kind(costs) == INT8
    assert bounds(latency_ms=4, size_mb=5, objective=LATENCY).faster_kind(costs) == INT8
    assert bounds(latency_ms=4, size_mb=20).faster_kind(costs) == FP32
    with pytest.raises(ValueError, match="not measured"):
        bounds(objective=ENERGY).faster_kind(costs)


def test_distance_is_that_of_the_limit_that_is_missed_most() -> None:
    limits = bounds(latency_ms=4, size_mb=8, max_drop=0.02)
    fine, slow = Cost(latency_ms=3, size_mb=7), Cost(latency_ms=6, size_mb=7)
    assert limits.distance(fine, Quality(accuracy=0.94, drop=0.01, loss=0.1)) == 0
    assert limits.distance(slow, Quality(accuracy=0.94, drop=0.01, loss=0.1)) == pytest.approx(0.5)
    assert limits.distance(fine, Quality(accuracy=0.80, drop=0.10, loss=0.1)) == pytest.approx(0.1)
    assert limits.missed(slow, Quality(accuracy=0.8, drop=0.1, loss=0.1)) == ("latency", "drop of accuracy")


def test_the_front_has_what_nothing_beats() -> None:
    assert on_front([(1, 5), (2, 2), (3, 3), (2, 2)]) == (True, True, False, True)
