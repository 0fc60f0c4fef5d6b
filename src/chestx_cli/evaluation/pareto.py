"""Pareto fronts."""

from __future__ import annotations

from collections.abc import Sequence


def on_front(points: Sequence[tuple[float, ...]]) -> tuple[bool, ...]:
    """Return which points are not dominated; lower is better in every coordinate."""
    return tuple(
        not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in points)
        for own in points
    )
