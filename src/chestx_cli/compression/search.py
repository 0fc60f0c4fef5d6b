"""Search for a compressed variant within limits: choice of the next candidate, without training or timing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

FP32, INT8 = "FP32", "INT8"
STATIC, QAT = "static", "qat"
# Shares of the MACs are searched in whole per cent up to this; the groups' floors allow no more.
MOST_PERCENT = 95
# A latency just below its limit would exceed it in every other measurement.
HEADROOM = 0.96
NEAR_ENOUGH = 0.88
# Resolution of the search in percentage points; the validation set cannot resolve finer.
KNEE_PERCENT = 5
# Assumed cost without any MACs, relative to the full network; affects only the first guess of the search.
LEAST_LOAD = 0.1


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of running a model: median latency of one image, and file size."""

    latency_ms: float
    size_mb: float


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A model's quality on the validation images; `drop` is the larger of the drops in accuracy and AUROC.

    fell: measures, such as sensitivity, with a statistically significant decrease, which no limit allows.
    """

    accuracy: float
    drop: float
    loss: float
    fell: tuple[str, ...] = ()
    # The measure with the larger drop, to which `drop` refers.
    dropped: str = "accuracy"


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Limits on cost and quality loss; None for no limit."""

    latency_ms: float | None
    size_mb: float | None
    max_drop: float

    def load(self, cost: Cost) -> float:
        """Return the largest ratio of a cost to its limit."""
        pairs = ((cost.latency_ms, self.latency_ms), (cost.size_mb, self.size_mb))
        return max(value / limit for value, limit in pairs if limit is not None)

    def missed(self, cost: Cost, quality: Quality) -> tuple[str, ...]:
        """Return the names of the limits that a model exceeds."""
        checks = (
            ("latency", self.latency_ms is not None and cost.latency_ms > self.latency_ms),
            ("size", self.size_mb is not None and cost.size_mb > self.size_mb),
            # Tolerance for rounding in shares of images.
            (f"drop of {quality.dropped}", quality.drop > self.max_drop + 1e-9),
        )
        return (*(name for name, is_missed in checks if is_missed), *quality.fell)

    def distance(self, cost: Cost, quality: Quality) -> float:
        """Return the largest relative excess over a limit; for the drop, relative to the accuracy.

        A measure in `fell` counts as an excess of 100 %.
        """
        wanted = quality.accuracy + quality.drop - self.max_drop
        return max(self.load(cost) - 1, wanted / max(quality.accuracy, 1e-9) - 1, 0.0) + bool(quality.fell)


@dataclass(frozen=True, kw_only=True, order=True)
class Candidate:
    """A model to try: the percentage of MACs to remove, the criterion, and the INT8 method (None for FP32)."""

    percent: int
    criterion: str | None
    int8: str | None


class Measures(Protocol):
    """The measurements that the search needs."""

    def nearest(self, percent: int, criterion: str) -> int:
        """Return the removable percentage of the MACs nearest to `percent`: widths have steps and a floor."""

    def cost(self, percent: int, criterion: str) -> Mapping[str, Cost]:
        """Return the FP32 and INT8 cost of a network without this share of MACs, or the nearest removable one."""

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


def explore(criteria: Sequence[str], bounds: Bounds, measures: Measures) -> dict[Candidate, Quality]:
    """Build candidates and return them in order with their quality.

    First the smallest share of MACs that meets the cost limits, for each criterion in turn; then quantization-aware
    training of the best of these; then a search for the largest share within the drop limit (if the drop is too large,
    for a smaller share). Ends early when time runs out.
    """
    built: dict[Candidate, Quality] = {}
    whole = measures.cost(0, criteria[0])
    kind = INT8 if bounds.load(whole[INT8]) < bounds.load(whole[FP32]) else FP32

    def attempt(percent: int, criterion: str, int8: str | None) -> Candidate | None:
        """Build a candidate and its parents at the nearest removable share; None if there is no time."""
        last = None
        for candidate in _chain(measures.nearest(percent, criterion) if percent else 0, criterion, int8):
            if candidate not in built:
                if built and not measures.may_begin(candidate):
                    return None
                built[candidate] = measures.build(candidate)
            last = candidate
        return last

    def order(candidate: Candidate) -> tuple[bool, float]:
        quality = built[candidate]
        return bool(quality.fell) or quality.drop > bounds.max_drop + 1e-9, quality.loss

    method = STATIC if kind == INT8 else None
    least, reached = None, []
    for criterion in criteria:

        def load_at(percent: int, criterion: str = criterion) -> float:
            return bounds.load(measures.cost(percent, criterion)[kind])

        least_here = least_percent(load_at, least)
        least = least_here if least is None else least
        candidate = attempt(least_here, criterion, method)
        if candidate is None:
            return built
        reached.append(candidate)
        if least_here == 0:
            # Without pruning, all criteria are equivalent.
            break
    best = min(reached, key=order)
    chosen = best.criterion or criteria[0]
    if kind == INT8:
        trained = attempt(best.percent, chosen, QAT)
        if trained is None:
            return built
        best = min(best, trained, key=order)
    fits = not order(best)[0]
    low, high = (best.percent, MOST_PERCENT) if fits else (0, best.percent)
    while high - low > KNEE_PERCENT:
        candidate = attempt((low + high) // 2, chosen, best.int8)
        if candidate is None or not low < candidate.percent < high:
            break
        low, high = (low, candidate.percent) if order(candidate)[0] else (candidate.percent, high)
    return built


def _chain(percent: int, criterion: str, int8: str | None) -> tuple[Candidate, ...]:
    """Return the candidates to build in order, ending with the one described: a network is pruned, then quantized."""
    by = criterion if percent else None
    pruned = (Candidate(percent=percent, criterion=by, int8=None),) if percent else ()
    return (*pruned, Candidate(percent=percent, criterion=by, int8=int8)) if int8 else pruned
