"""Figure of accuracy against latency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.printable import counted, paragraph
from chestx_cli.evaluation.results import BENCHMARKS, CPU, EVALUATIONS, VARIANTS, StudyResults, VariantResults
from chestx_cli.reporting.figures.registry import figure
from chestx_cli.reporting.figures.style import (
    BLACK,
    LINE_COLOURS,
    new_figure,
    separate_runs_note,
    shown,
    stale_note,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Points whose latencies differ by less than a share of the (logarithmic) range are drawn this far apart.
APART_PT = 9.0
NEARBY_SHARE = 0.05
# Smallest distance between two names, as a share of the height of the axes.
NAME_GAP = 0.085
# Left edge of the names as a share of the axes' width, and the approximate width of the axes.
NAMES_AT, AXES_WIDTH_PT = 1.07, 230.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """A variant in the figure: its label, its value with the 95 % interval, its latency."""

    label: str
    value: float
    interval: tuple[float, float]
    latency_ms: float
    is_reference: bool


@figure(
    "pareto",
    title="Accuracy against latency",
    caption=(
        "Accuracy on the test images with its 95 % interval against the median latency of one image on the "
        "CPU, each variant under its fastest runtime. Points of equal latency are drawn side by side. "
        "Overlapping intervals are no evidence of a difference."
    ),
    shows=(VARIANTS, EVALUATIONS, BENCHMARKS),
)
def pareto(study: StudyResults) -> Figure | None:
    """Draw the variants that were evaluated and timed; None if there are fewer than two."""
    drawn = [
        (variant, row, fast) for variant in study.variants if (row := variant.row) and (fast := variant.fastest(CPU))
    ]
    if len(drawn) < 2:
        return None
    evaluation = next(variant.evaluation for variant in study.variants if variant.evaluation is not None)
    points = [
        Point(
            label=f"{shown(variant.name, 26)}{' (reference)' if variant is study.reference else ''}"
            f"{', STALE' if variant.is_stale else ''}",
            value=row.accuracy,
            interval=row.accuracy_interval,
            latency_ms=fast.latency_p50_ms,
            is_reference=variant is study.reference,
        )
        for variant, row, fast in drawn
    ]
    return front_figure(
        points,
        title=f"Accuracy against latency: {counted(evaluation.images, 'test image')}",
        value_label="Accuracy, 95 % interval",
        note=_note([variant for variant, _, _ in drawn]),
        is_share=True,
    )


def front_figure(
    points: Sequence[Point], *, title: str, value_label: str, note: str = "", is_share: bool, is_loss: bool = False
) -> Figure:
    """Return a figure of points; values are shares of images, losses (smaller is better), or neither."""
    ordered = sorted(points, key=lambda point: point.latency_ms)
    fig = new_figure(max(3.4, 1.4 + 0.29 * len(points)), title, note=note, width_in=5.6)
    axes = fig.subplots()
    low, high = min(point.interval[0] for point in points), max(point.interval[1] for point in points)
    # From at least 50 % to 100 %: on a shorter axis a single image would look like a difference.
    ends = (0.0, high * 1.1) if is_loss else (max(0.0, low - 0.02) if low < 0.5 else 0.5, 1.02)
    axes.set_ylim(*ends)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if is_share else f"{value:.2f}")
    _draw_points(axes, ordered, ends)
    axes.set_ylabel(value_label)
    return fig


def _note(variants: Sequence[VariantResults]) -> str:
    stale = [variant.name for variant in variants if variant.is_stale]
    return paragraph(stale_note(stale), separate_runs_note(variants))


def _draw_points(axes: Axes, points: Sequence[Point], ends: tuple[float, float]) -> None:
    from matplotlib.transforms import ScaledTranslation

    axes.set_xscale("log")
    times_ms = [point.latency_ms for point in points]
    axes.set_xlim(min(times_ms) / 1.4, max(times_ms) * 1.4)
    shifts_pt = _shifts_pt(times_ms)
    first, last = (math.log(limit) for limit in axes.get_xlim())
    places = [
        (
            (math.log(point.latency_ms) - first) / (last - first) + shift_pt / AXES_WIDTH_PT,
            (point.value - ends[0]) / (ends[1] - ends[0]),
        )
        for point, shift_pt in zip(points, shifts_pt, strict=True)
    ]
    heights = name_heights(places)
    for i, point in enumerate(points):
        x, (low, high) = point.latency_ms, point.interval
        colour = BLACK if point.is_reference else LINE_COLOURS[i % len(LINE_COLOURS)]
        shifted = axes.transData + ScaledTranslation(shifts_pt[i] / 72, 0, axes.figure.dpi_scale_trans)
        axes.plot(
            [x, x], [low, high], color=colour, linewidth=1.4, marker="_", markersize=5, transform=shifted, zorder=3
        )
        axes.plot(
            [x],
            [point.value],
            color=colour,
            marker="o",
            markersize=7,
            markeredgecolor="white",
            transform=shifted,
            zorder=5,
        )
        axes.annotate(
            point.label,
            (x, point.value),
            xycoords=shifted,
            xytext=(NAMES_AT, heights[i]),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            fontweight="bold" if point.is_reference else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )
    _label_times(axes)
    axes.set_xlabel("Latency of one image, ms (logarithmic)")
    axes.grid()


def _shifts_pt(times_ms: list[float]) -> list[float]:
    """Return the horizontal shift of each point that keeps points of similar latency apart."""
    logs = [math.log(time) for time in times_ms]
    apart = NEARBY_SHARE * max(logs[-1] - logs[0], math.log(2))
    groups = [[0]]
    for i in range(1, len(logs)):
        if logs[i] - logs[i - 1] < apart:
            groups[-1].append(i)
        else:
            groups.append([i])
    shifts = [0.0] * len(logs)
    for group in groups:
        for place, i in enumerate(group):
            shifts[i] = (place - (len(group) - 1) / 2) * APART_PT
    return shifts


def name_heights(points: Sequence[tuple[float, float]]) -> list[float]:
    """Return the height of each point's name beside the axes; all values are shares of the axes' width and height.

    Names are near their points and do not overlap. Leader lines do not cross: swapping the ends of two crossing lines
    would shorten their total length, which is minimal.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    at = np.array(points)
    slots = _slots(sorted(at[:, 1], reverse=True))
    lengths = np.hypot(NAMES_AT - at[:, :1], np.array(slots)[None, :] - at[:, 1:])
    _, slot_of = linear_sum_assignment(lengths)
    return [slots[slot] for slot in slot_of]


def _slots(heights: Sequence[float]) -> list[float]:
    """Return heights in decreasing order, spread so that names do not overlap."""
    gap = min(NAME_GAP, 1 / max(1, len(heights) - 1))
    slots, last = [], 1.0 + gap
    for height in heights:
        last = min(height, last - gap)
        slots.append(last)
    # Move names that ended up below the axes back up.
    floor = 0.0
    for i in reversed(range(len(slots))):
        slots[i] = max(slots[i], floor)
        floor = slots[i] + gap
    return slots


def _label_times(axes: Axes) -> None:
    """Label 1, 2 and 5 of each decade only."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
