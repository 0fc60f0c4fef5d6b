"""Search for a compressed variant within limits: chooses what to measure and build, but does neither itself.

Networks compete by successive halving (Jamieson and Talwalkar, AISTATS 2016): all get short fits of equal length, the
better half is fitted further, and the finalists are built completely and quantized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

# How a network runs: in FP32, in INT8, or in INT8 with weights that are stored in 4 bits.
FP32, INT8, INT4 = "FP32", "INT8", "INT4"
STATIC, QAT, PACKED = "static", "qat", "static-int4"
# The quantization that makes a file of each kind first.
FIRST_OF_KIND: Mapping[str, str | None] = {FP32: None, INT8: STATIC, INT4: PACKED}
# Pruning methods whose networks may compete.
STRUCTURED, GUIDED = "structured", "guided"
LATENCY, SIZE, ENERGY = "latency", "size", "energy"
OBJECTIVES = (LATENCY, SIZE, ENERGY)
# Largest share of the MACs to remove, in per cent; the floors of the channel groups allow no more.
MOST_PERCENT = 95
# The search for a share ends at a cost between NEAR_ENOUGH and HEADROOM of its limit. A latency just below its limit
# would exceed it in every other measurement.
HEADROOM = 0.96
NEAR_ENOUGH = 0.88
# Resolution of the search in percentage points; the validation set cannot resolve finer.
KNEE_PERCENT = 5
# Assumed cost without any MACs, relative to the full network; affects only the first guess of the search.
LEAST_LOAD = 0.1
# Number of networks that are built completely; a single one could have won by the noise of its short fit.
FINALISTS = 2
# Number of shares of removed MACs that compete under an objective: the smallest sufficient one, and larger ones.
SHARES = 3


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of running a model: median latency of one image, file size, and energy of one image if it is measured.

    is_rough: whether the machine was busy when the latency was measured.
    """

    latency_ms: float
    size_mb: float
    energy_mj: float | None = None
    is_rough: bool = False

    def of(self, objective: str) -> float:
        """Return the cost that an objective minimises; raises ValueError for energy that was not measured."""
        value = {LATENCY: self.latency_ms, SIZE: self.size_mb, ENERGY: self.energy_mj}[objective]
        if value is None:
            raise ValueError("the energy was not measured")
        return value


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A model's quality on the validation images; `drop` is that of the endpoint, by default of accuracy or AUROC.

    loss: the mean log-loss. fell: measures, such as sensitivity, with a statistically significant decrease, which no
    limit allows. dropped: the measure to which `drop` refers. drop_interval: the drop's 95 % confidence interval.
    """

    accuracy: float
    drop: float
    loss: float
    fell: tuple[str, ...] = ()
    dropped: str = "accuracy"
    drop_interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Limits on cost and quality loss, None for no limit; `objective`: the cost that is minimised within them."""

    latency_ms: float | None
    size_mb: float | None
    max_drop: float
    objective: str | None = None

    def load(self, cost: Cost) -> float:
        """Return the largest ratio of a cost to its limit; 0 without limits."""
        pairs = ((cost.latency_ms, self.latency_ms), (cost.size_mb, self.size_mb))
        return max((value / limit for value, limit in pairs if limit is not None), default=0.0)

    def is_kept(self, quality: Quality) -> bool:
        """Return whether a model's quality is within the limits."""
        # Tolerance for rounding in shares of images.
        return not quality.fell and quality.drop <= self.max_drop + 1e-9

    def missed(self, cost: Cost, quality: Quality) -> tuple[str, ...]:
        """Return the names of the limits that a model exceeds."""
        checks = (
            (LATENCY, self.latency_ms is not None and cost.latency_ms > self.latency_ms),
            (SIZE, self.size_mb is not None and cost.size_mb > self.size_mb),
            (f"drop of {quality.dropped}", quality.drop > self.max_drop + 1e-9),
        )
        return (*(name for name, is_missed in checks if is_missed), *quality.fell)

    def distance(self, cost: Cost, quality: Quality) -> float:
        """Return the largest relative excess over a limit; for the drop, relative to the accuracy.

        A measure in `fell` counts as an excess of 100 %.
        """
        drop = (quality.drop - self.max_drop) / max(quality.accuracy, 1e-9)
        return max(self.load(cost) - 1, drop, 0.0) + bool(quality.fell)

    def order(self, cost: Cost, quality: Quality) -> tuple[bool, float, float]:
        """Return the sort key of a model, the best first.

        Models within the quality limits come first, ordered by the objective if there is one, then by loss; the others
        follow, ordered by loss (the rule of Deb, Computer Methods in Applied Mechanics and Engineering 186, 2000).
        """
        is_kept = self.is_kept(quality)
        by = cost.of(self.objective) if is_kept and self.objective is not None else quality.loss
        return not is_kept, by, quality.loss

    def faster_kind(self, costs: Mapping[str, Cost]) -> str:
        """Return FP32 or INT8: the kind of lower load or, with an objective, the cheaper of those within the limits."""

        def key(kind: str) -> tuple[float, float]:
            load = self.load(costs[kind])
            return (load, 0.0) if self.objective is None else (max(load, HEADROOM), costs[kind].of(self.objective))

        return min((FP32, INT8), key=key)


@dataclass(frozen=True, kw_only=True)
class ChannelChoice:
    """How channels are chosen: by a criterion, and over the groups by a pruning method, structured or guided."""

    criterion: str
    method: str = STRUCTURED


@dataclass(frozen=True, kw_only=True)
class Network:
    """An FP32 network to fit: the parent with a percentage of its MACs removed, or a student.

    Without a percentage and a student, it is the parent itself.
    """

    percent: int = 0
    choice: ChannelChoice | None = None
    student: str | None = None

    @property
    def is_parent(self) -> bool:
        """Return whether this is the parent, which needs no fit."""
        return not self.percent and self.student is None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to build: a network, and the quantization: STATIC, QAT or PACKED (None for FP32)."""

    network: Network
    int8: str | None

    @property
    def kind(self) -> str:
        """How the model runs: FP32, INT8 or INT4."""
        return FP32 if self.int8 is None else INT4 if self.int8 == PACKED else INT8


@dataclass(frozen=True, kw_only=True)
class Space:
    """The search space: channel choices in order of preference, names of students, epochs of short and full fits."""

    choices: Sequence[ChannelChoice]
    students: Sequence[str] = ()
    short_epochs: int
    full_epochs: int


class Measures(Protocol):
    """The measurements that the search needs."""

    def nearest(self, percent: int, choice: ChannelChoice) -> int:
        """Return the removable percentage of the MACs nearest to `percent`: widths have steps and a floor."""

    def cost(self, network: Network) -> Mapping[str, Cost]:
        """Return a network's cost of each kind, untrained; for its percentage, the nearest removable one is used."""

    def may_fit(self, network: Network, epochs: int) -> bool:
        """Return whether there is time for a short fit, and for building a model after it."""

    def fit(self, network: Network, epochs: int) -> Quality:
        """Fit a network for this many epochs in all, continuing from an earlier call, and return its quality."""

    def may_begin(self, candidate: Candidate) -> bool:
        """Return whether there is time to build a candidate."""

    def build(self, candidate: Candidate) -> Quality:
        """Build a candidate and return its quality."""


def least_percent(load_at: Callable[[int], float], first: int | None = None) -> int:
    """Return the smallest percentage of MACs to remove for a load just below 1; MOST_PERCENT if none suffices.

    Interpolates between measured shares to save measurements; assumes that the load decreases with the share.
    """
    low, load_low = 0, load_at(0)
    if load_low <= HEADROOM:
        return 0
    high, load_high = 100, LEAST_LOAD * load_low
    target = (HEADROOM + NEAR_ENOUGH) / 2
    guess = first or low + round((high - low) * (load_low - target) / (load_low - load_high))
    while high - low > 1 and low < MOST_PERCENT:
        guess = min(max(guess, low + 1), high - 1, MOST_PERCENT)
        load = load_at(guess)
        if NEAR_ENOUGH <= load <= HEADROOM:
            return guess
        if load > HEADROOM:
            low, load_low = guess, load
        else:
            high, load_high = guess, load
        # Bisect if noise has reversed the order.
        slope = load_low - load_high
        guess = low + round((high - low) * (load_low - target) / slope) if slope > 0 else (low + high) // 2
    return min(high, MOST_PERCENT)


def rungs_of(networks: int, short_epochs: int, full_epochs: int) -> tuple[tuple[int, int], ...]:
    """Return the rungs of the halving: the number of networks that are fitted, and their epochs in all.

    The epochs double from rung to rung; rungs after the first have fewer epochs than the full fit of the finalists.
    Empty if there are no more networks than finalists.
    """
    rungs: list[tuple[int, int]] = []
    epochs = min(short_epochs, full_epochs)
    while networks > FINALISTS and (not rungs or epochs < full_epochs):
        rungs.append((networks, epochs))
        networks, epochs = _half(networks), 2 * epochs
    return tuple(rungs)


def _half(networks: int) -> int:
    return max(FINALISTS, math.ceil(networks / 2))


def explore(space: Space, bounds: Bounds, measures: Measures) -> dict[Candidate, Quality]:
    """Build candidates and return them, in the order of building, with their quality.

    Costs decide which networks compete: for each channel choice, the network with the smallest share of MACs removed
    that meets the cost limits (with an objective, also with larger shares), and the students that meet the limits.
    Successive halving leaves the finalists, which are built and quantized. If the best of them is in INT8, it is also
    built by quantization-aware training. If its drop is too large, bisection looks for a smaller share; with an
    objective, for the largest share within the drop limit. A student has no share: where the best is a student whose
    drop is too large, those of the best pruned network are tried. For the least size, weights are in 4 bits at last,
    and for a limit on the size if the smallest file would be too large in 8. Ends early when time runs out.
    """
    return _Search(space=space, bounds=bounds, measures=measures).run()


class _Search:
    """The state of a search: the costs measured so far, and the candidates built."""

    def __init__(self, *, space: Space, bounds: Bounds, measures: Measures) -> None:
        self.space, self.bounds, self.measures = space, bounds, measures
        self.costs: dict[Network, Mapping[str, Cost]] = {}
        self.built: dict[Candidate, Quality] = {}

    def run(self) -> dict[Candidate, Quality]:
        """Search, and return the candidates."""
        self._search()
        if self.bounds.objective == SIZE:
            self._pack()
        return self.built

    def _search(self) -> None:
        networks = self._networks()
        parent = [network for network in networks if network.is_parent]
        ranked = self._ranked([network for network in networks if not network.is_parent])
        reached = []
        for network in (*parent, *ranked[:FINALISTS]):
            candidate = self._attempt(network, FIRST_OF_KIND[self._kind(network)])
            if candidate is None and not network.is_parent:
                return
            reached += [] if candidate is None else [candidate]
        if not reached:
            return
        best = min(reached, key=self._order)
        if best.int8 == STATIC:
            trained = self._attempt(best.network, QAT)
            if trained is None:
                return
            best = min(best, trained, key=self._order)
        if best.network.student is not None:
            if self.bounds.is_kept(self.built[best]):
                return
            pruned = self._best_pruned(reached, ranked, best.int8)
            if pruned is None:
                return
            best = pruned
        chosen = next((network.choice for network in ranked if network.choice), self.space.choices[0])
        self._vary_share(best, best.network.choice or chosen)

    def _pack(self) -> None:
        """Store the weights of the smallest models within the limits in 4 bits, until one stays within the drop's."""
        kept = [
            one
            for one, quality in self.built.items()
            if one.kind == INT8 and not self.bounds.missed(self._cost(one.network)[INT8], quality)
        ]
        kept.sort(key=self._size_mb)
        for network in dict.fromkeys(one.network for one in kept):
            packed = Candidate(network=network, int8=PACKED)
            if self._size_mb(packed) >= self._size_mb(kept[0]):
                return
            if self._attempt(network, PACKED) is None or self.bounds.is_kept(self.built[packed]):
                return

    def _size_mb(self, candidate: Candidate) -> float:
        return self._cost(candidate.network)[candidate.kind].size_mb

    def _best_pruned(
        self, reached: Sequence[Candidate], ranked: Sequence[Network], int8: str | None
    ) -> Candidate | None:
        """Return the best pruned network that was built, or else the first that lost to the students, built now.

        It is quantized by the method that was the best student's. None if there is none, or no time.
        """
        built = [candidate for candidate in reached if candidate.network.student is None]
        network = (
            min(built, key=self._order).network
            if built
            else next((network for network in ranked if network.student is None), None)
        )
        if network is None:
            return None
        kind = self._kind(network)
        is_same = Candidate(network=network, int8=int8).kind == kind
        return self._attempt(network, int8 if is_same else FIRST_OF_KIND[kind])

    def _cost(self, network: Network) -> Mapping[str, Cost]:
        if network not in self.costs:
            self.costs[network] = self.measures.cost(network)
        return self.costs[network]

    def _load(self, network: Network) -> float:
        return self.bounds.load(self._cost(network)[self._kind(network)])

    def _kind(self, network: Network) -> str:
        """Return the kind in which a network is built; that of pruned networks is one for all.

        Weights are in 4 bits only if else not even the smallest network would meet the limit of the size.
        """
        whole = network if network.student else Network()
        computed = self.bounds.faster_kind(self._cost(whole))
        return next((kind for kind in dict.fromkeys((computed, INT8, INT4)) if self._can_fit(whole, kind)), computed)

    def _can_fit(self, whole: Network, kind: str) -> bool:
        """Return whether a network, or one that is pruned from it, is within the limit of the size."""
        limit_mb = self.bounds.size_mb
        if limit_mb is None:
            return True
        # Asked one after the other, since each is measured first.
        smallest = [] if whole.student else [_pruned(MOST_PERCENT, choice) for choice in self.space.choices]
        return any(self._cost(network)[kind].size_mb <= limit_mb for network in (whole, *smallest))

    def _order(self, candidate: Candidate) -> tuple[bool, float, float]:
        return self.bounds.order(self._cost(candidate.network)[candidate.kind], self.built[candidate])

    def _networks(self) -> list[Network]:
        """Return the networks that meet the cost limits, in order of preference."""
        least = None
        # Without an objective, removing more than necessary would only cost quality.
        shares = SHARES if self.bounds.objective is not None else 1
        # Ordered by share before choice: if time is short, the networks that are fitted compare the choices.
        tiers: list[list[Network]] = [[] for _ in range(shares)]
        for choice in self.space.choices:

            def load_at(percent: int, choice: ChannelChoice = choice) -> float:
                return self._load(_pruned(percent, choice))

            least_here = least_percent(load_at, least)
            least = least_here if least is None else least
            step = (MOST_PERCENT - least_here) / shares
            for number, tier in enumerate(tiers):
                percent = least_here + round(step * number)
                tier.append(_pruned(percent and self.measures.nearest(percent, choice), choice))
            if not least_here and shares == 1:
                # Without pruning, all choices are equivalent.
                break
        for student in (Network(student=name) for name in self.space.students):
            if self._load(student) <= 1:
                tiers[0].append(student)
        networks = list(dict.fromkeys(network for tier in tiers for network in tier))
        if self.bounds.latency_ms is None and self.bounds.size_mb is None:
            return networks
        # Widths have steps and a floor, so a choice may end above the limit: it competes only if nothing meets it.
        missing = {one.choice for one in tiers[0] if one.choice is not None and self._load(one) > 1}
        is_met = any(one.choice not in missing for one in tiers[0])
        return [network for network in networks if not is_met or network.choice not in missing]

    def _ranked(self, networks: list[Network]) -> list[Network]:
        """Return the networks in the order of successive halving: those that it leaves first, the best of them first.

        If time runs out within a rung, the order of the rung before it stays, since fits of unequal length are not
        compared; in the first rung, networks that were not fitted come last.
        """
        left, out = networks, list[Network]()
        for number, (_, epochs) in enumerate(rungs_of(len(networks), self.space.short_epochs, self.space.full_epochs)):
            fitted: dict[Network, Quality] = {}
            for network in left:
                if not self.measures.may_fit(network, epochs):
                    break
                fitted[network] = self.measures.fit(network, epochs)
            is_complete = len(fitted) == len(left)
            if is_complete or not number:
                ranked = sorted(fitted, key=lambda network: self._promise(network, fitted[network]))
                left = [*ranked, *(network for network in left if network not in fitted)]
            if not is_complete:
                break
            kept = _half(len(left))
            left, out = left[:kept], [*left[kept:], *out]
        return [*left, *out]

    def _promise(self, network: Network, quality: Quality) -> tuple[bool, float, float]:
        """Return the sort key of a short fit; without an objective, by loss, since more epochs will lower the drop."""
        if self.bounds.objective is None:
            return bool(quality.fell), quality.loss, 0.0
        return self.bounds.order(self._cost(network)[self._kind(network)], quality)

    def _attempt(self, network: Network, int8: str | None) -> Candidate | None:
        """Build a candidate, its FP32 network first; None if there is no time, or nothing to build."""
        last = None
        for candidate in _chain(network, int8):
            if candidate not in self.built:
                if self.built and not self.measures.may_begin(candidate):
                    return None
                self.built[candidate] = self.measures.build(candidate)
            last = candidate
        return last

    def _vary_share(self, best: Candidate, choice: ChannelChoice) -> None:
        """Search by bisection for the largest share within the drop limit.

        If the best candidate is within it, larger shares are built only for an objective.
        """
        percent = best.network.percent
        fits = self.bounds.is_kept(self.built[best])
        if fits and self.bounds.objective is None:
            return
        too_large = [
            candidate.network.percent
            for candidate, quality in self.built.items()
            if candidate.int8 == best.int8
            and candidate.network.choice == choice
            and candidate.network.percent > percent
            and not self.bounds.is_kept(quality)
        ]
        low, high = (percent, min([MOST_PERCENT, *too_large])) if fits else (0, percent)
        while high - low > KNEE_PERCENT:
            middle = self.measures.nearest((low + high) // 2, choice)
            if not low < middle < high:
                return
            candidate = self._attempt(_pruned(middle, choice), best.int8)
            if candidate is None:
                return
            low, high = (middle, high) if self.bounds.is_kept(self.built[candidate]) else (low, middle)


def _pruned(percent: int, choice: ChannelChoice) -> Network:
    return Network(percent=percent, choice=choice) if percent else Network()


def _chain(network: Network, int8: str | None) -> tuple[Candidate, ...]:
    """Return the candidates to build in order, ending with the one described: a network is fitted, then quantized."""
    fitted = () if network.is_parent else (Candidate(network=network, int8=None),)
    return (*fitted, Candidate(network=network, int8=int8)) if int8 else fitted
