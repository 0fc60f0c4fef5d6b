"""The figure of what a variant costs against what it is worth: latency, accuracy and size at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chestx_cli.evaluation.pareto import on_front
from chestx_cli.evaluation.results import BENCHMARKS, CPU, EVALUATIONS, VARIANTS, StudyResults, VariantResults
from chestx_cli.reporting.figures.registry import figure
from chestx_cli.reporting.figures.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    PALE,
    SMALL_PT,
    counted,
    new_figure,
    shown,
    stale_note,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from chestx_cli.records.benchmark import BenchmarkRow
    from chestx_cli.records.evaluation import EvaluationRow

# The area of the largest file's mark, in square points; smaller files have less in proportion.
LARGEST_AREA_PT2 = 900.0
NUMBER_OUTSIDE_PT = 5
# Marks nearer than this share of the axis lie on each other and have their numbers together.
TOGETHER = 0.08

# A variant with its test results and the benchmark under its fastest runtime.
Point = tuple[VariantResults, "EvaluationRow", "BenchmarkRow"]


@figure(
    "pareto",
    title="Latency, accuracy and size at once",
    caption="Median latency of one image under each variant's fastest runtime against accuracy on the test images with "
    "its 95 % interval; the area of a mark is the size of the file. Orange: no other variant is at least as good in "
    "all three. Which differences of accuracy the images can tell, the list beside says.",
    shows=(VARIANTS, EVALUATIONS, BENCHMARKS),
)
def pareto(study: StudyResults) -> Figure | None:
    """Draw the variants that were evaluated and timed; None where there are fewer than two."""
    points = [(found, row, fast) for found in study.variants if (row := found.row) and (fast := found.fastest(CPU))]
    if len(points) < 2:
        return None
    points.sort(key=lambda point: point[2].latency_p50_ms)
    evaluation = next(found.evaluation for found in study.variants if found.evaluation is not None)
    fig = new_figure(
        max(4.2, 1.6 + 0.47 * len(points)),
        f"Cost and worth: {counted(evaluation.images, 'test image')} of {counted(evaluation.patients, 'patient')}",
        note=_note(points),
        width_in=10.5,
    )
    plot, words = fig.subplots(1, 2, width_ratios=(1.25, 1))
    front = on_front([(fast.latency_p50_ms, found.record.model_bytes, -row.accuracy) for found, row, fast in points])
    _draw_points(plot, points, front)
    _list_points(words, points, front, study.reference)
    return fig


def _note(points: list[Point]) -> str:
    note = "A mark's place is what was measured on these images; whiskers say how far it may be from the truth."
    note += stale_note([found.name for found, _, _ in points if found.is_stale])
    benchmarks = {(b.stamp.created, b.threads) for found, _, _ in points if (b := found.benchmark_on(CPU))}
    if len(benchmarks) > 1:
        note += " LATENCIES COME FROM SEPARATE BENCHMARK RUNS and can only be compared roughly."
    return note


def _draw_points(axes: Axes, points: list[Point], front: tuple[bool, ...]) -> None:
    largest = max(found.record.model_bytes for found, _, _ in points)
    for (found, row, fast), is_front in zip(points, front, strict=True):
        x, (low, high) = fast.latency_p50_ms, row.accuracy_interval
        area = LARGEST_AREA_PT2 * found.record.model_bytes / largest
        colour = ORANGE if is_front else PALE
        axes.scatter(
            [x],
            [row.accuracy],
            s=area,
            color=colour,
            edgecolor=BLACK,
            linewidth=0.8,
            alpha=0.9,
            zorder=4 if is_front else 3,
            # The mark of a large file near 100 % would else be cut.
            clip_on=False,
        )
        # Above the marks: a large one would hide most of its interval.
        axes.plot([x, x], [low, high], color=GREY, linewidth=1.1, marker="_", markersize=6, zorder=5)
    lowest = min(row.accuracy_interval[0] for _, row, _ in points)
    # From guessing to perfect at least: a shorter axis would make one image look like a difference.
    axes.set_ylim(max(0.0, lowest - 0.02) if lowest < 0.5 else 0.5, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xscale("log")
    _number_points(axes, points, largest)
    times_ms = [fast.latency_p50_ms for _, _, fast in points]
    axes.set_xlim(min(times_ms) / 1.4, max(times_ms) * 1.6)
    _label_times(axes)
    axes.set_title("Accuracy against latency")
    axes.set_xlabel("CPU latency p50 of one image, ms (logarithmic)")
    axes.grid()


def _number_points(axes: Axes, points: list[Point], largest_bytes: int) -> None:
    """Write the numbers of the list beside the marks, once for marks that lie on each other."""
    logs = [math.log(fast.latency_p50_ms) for _, _, fast in points]
    apart = TOGETHER * max(logs[-1] - logs[0], math.log(2))
    groups = [[0]]
    for i in range(1, len(points)):
        if logs[i] - logs[i - 1] < apart:
            groups[-1].append(i)
        else:
            groups.append([i])
    for group in groups:
        found, row, fast = max((points[i] for i in group), key=lambda point: point[0].record.model_bytes)
        radius_pt = math.sqrt(LARGEST_AREA_PT2 * found.record.model_bytes / largest_bytes / math.pi)
        axes.annotate(
            ", ".join(str(i + 1) for i in group),
            (fast.latency_p50_ms, row.accuracy),
            xytext=(radius_pt + NUMBER_OUTSIDE_PT, NUMBER_OUTSIDE_PT),
            textcoords="offset points",
            fontsize=SMALL_PT,
            zorder=6,
        )


def _label_times(axes: Axes) -> None:
    """Name 1, 2 and 5 of each decade, and nothing in between."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _list_points(axes: Axes, points: list[Point], front: tuple[bool, ...], reference: VariantResults | None) -> None:
    """Write what each mark is, and what the paired test says of it."""
    axes.set_axis_off()
    axes.set_title("The marks, fastest first")
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    for y, ((found, _, fast), is_front) in enumerate(zip(points, front, strict=True)):
        axes.text(0, y - 0.18, str(y + 1), color=BLACK, fontsize=SMALL_PT, fontweight="bold", va="center")
        weight = "bold" if is_front else "normal"
        axes.text(0.06, y - 0.18, shown(found.name), fontsize=SMALL_PT, fontweight=weight, va="center")
        cost = f"{fast.latency_p50_ms:.3g} ms {shown(fast.runtime, 14)} · {found.record.model_bytes / 1e6:.3g} MB"
        axes.text(
            0.06,
            y + 0.2,
            f"{cost} · {_compared(found, reference)}",
            fontsize=SMALL_PT - 0.5,
            color=BLUE if found is reference else GREY,
            va="center",
        )


def _compared(found: VariantResults, reference: VariantResults | None) -> str:
    """Return the difference of accuracy from the reference with its interval."""
    if found is reference:
        return "the reference"
    stale = ", STALE" if found.is_stale else ""
    paired = found.compared_with(reference) if reference else None
    if paired is None:
        return f"not compared{stale}"
    low, high = paired.interval
    return f"{paired.difference:+.1%} ({low:+.1%} to {high:+.1%}){stale}"
