"""Pareto fronts."""

from __future__ import annotations

from collections.abc import Sequence


def on_front(points: Sequence[tuple[float, ...]]) -> tuple[bool, ...]:
    """Return for each point whether no other point dominates it; lower is better in every coordinate."""
    return tuple(
        not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
        for point in points
    )
