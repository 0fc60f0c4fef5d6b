"""Figures of calibration and clinical usefulness: reliability diagrams and the decision curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.core.printable import counted
from chestx_cli.evaluation.predictions import read_predictions
from chestx_cli.evaluation.results import EVALUATIONS, VARIANTS, StudyResults
from chestx_cli.evaluation.statistics.operating_points import net_benefit
from chestx_cli.reporting.figures.classification import curve_line, has_enough
from chestx_cli.reporting.figures.registry import figure
from chestx_cli.reporting.figures.style import (
    BLACK,
    BLUE,
    GREY,
    NARROWEST_IN,
    SMALL_PT,
    WIDTH_IN,
    add_legend,
    new_figure,
    panel_grid,
    shown,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from chestx_cli.records.evaluation import CalibrationRow

COLUMNS = 3
LOWEST, HIGHEST = 0.01, 0.8


@figure(
    "reliability",
    title="Reliability of the probabilities",
    caption=(
        "Share of positive test images against the mean probability, in equal-count bins with 95 % intervals, for "
        "every variant; the dashed line is perfect calibration. With few images the bins are few and wide."
    ),
    shows=(VARIANTS, EVALUATIONS),
)
def reliability(study: StudyResults) -> Figure | None:
    """Draw one reliability diagram per variant; None if no variant was tested on enough images."""
    results = tuple(result for result in study.evaluated if has_enough(result))
    if not results:
        return None
    lines, columns = panel_grid(len(results), COLUMNS)
    images = max(result.evaluation.images for result in results if result.evaluation)
    fig = new_figure(
        0.9 + 3.2 * lines,
        f"Reliability on {counted(images, 'test image')}",
        note="ECE: mean gap over the bins; slope 1 and intercept 0 are best. Point size: number of images.",
        # A single diagram has the same size as one of many.
        width_in=max(NARROWEST_IN, WIDTH_IN * columns / COLUMNS),
    )
    grid = fig.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, result in zip(grid, results, strict=False):
        if result.evaluation:
            _draw_reliability(axes, result.evaluation.calibration[0])
    for axes in grid[len(results) :]:
        axes.set_visible(False)
    return fig


def _draw_reliability(axes: Axes, row: CalibrationRow) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, zorder=1)
    most = max(part.images for part in row.bins)
    for part in row.bins:
        low, high = part.positive_interval
        axes.vlines(part.mean_probability, low, high, color=BLUE, linewidth=1.2, alpha=0.6, zorder=2)
        axes.plot(
            [part.mean_probability],
            [part.positive_share],
            marker="o",
            markersize=3 + 4 * part.images / most,
            color=BLUE,
            markeredgecolor="white",
            linestyle="none",
            zorder=3,
        )
    slope = "no slope" if row.slope is None else f"slope {row.slope:.2f}"
    error = f"ECE {row.ece:.3f}"
    if row.ece_interval:
        error = f"{error} ({row.ece_interval[0]:.3f}–{row.ece_interval[1]:.3f})"
    # In the title, since a point may lie anywhere within the axes.
    axes.set_title(f"{shown(row.variant, 30)}\n{error}, {slope}", fontsize=SMALL_PT)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xlabel="Mean probability", ylabel="Positive")
    axes.grid()


@figure(
    "decision-curve",
    title="Decision curve",
    caption=(
        "Net benefit per 100 test images of acting on each variant at each threshold probability, against "
        "acting on every image (grey dashes) and on none (0). It holds for the prevalence in these images."
    ),
    shows=(VARIANTS, EVALUATIONS),
)
def decision_curve(study: StudyResults) -> Figure | None:
    """Draw the net benefit of all variants; None if no variant was tested on enough images."""
    import numpy as np
    from matplotlib.lines import Line2D

    results = tuple(result for result in study.evaluated if has_enough(result))
    if not results:
        return None
    thresholds = np.linspace(LOWEST, HIGHEST, 160)
    fig = new_figure(
        4.2 + 0.2 * len(results),
        "Decision curve: net benefit per 100 images",
        note="A threshold of 10 % means accepting 9 false alarms per true case.",
    )
    specs = fig.add_gridspec(2, 1, height_ratios=(3.2, 0.2 * (len(results) + 1)))
    axes, legend_axes = fig.add_subplot(specs[0]), fig.add_subplot(specs[1])
    handles, labels, highest = [], [], 0.0
    for i, result in enumerate(results):
        predictions = read_predictions(study.study.variant(result.name) / "predictions.test.csv")
        line = curve_line(i, len(results))
        benefit = 100 * net_benefit(predictions.is_positive, predictions.probability, thresholds)
        highest = max(highest, float(benefit.max()))
        axes.plot(thresholds, benefit, zorder=3, **line)
        if i == 0:
            of_all = 100 * net_benefit(predictions.is_positive, np.ones(len(predictions.probability)), thresholds)
            axes.plot(thresholds, of_all, color=GREY, linestyle="--", linewidth=1, zorder=2)
        handles.append(Line2D([], [], **line))
        labels.append(shown(result.name))
    handles.append(Line2D([], [], color=GREY, linestyle="--", linewidth=1))
    labels.append("acting on every image")
    axes.axhline(0, color=BLACK, linewidth=0.8, zorder=1)
    # Net benefit far below 0 carries no information.
    axes.set(xlim=(0, HIGHEST), ylim=(-0.15 * highest, 1.1 * highest), xlabel="Threshold probability")
    axes.set_ylabel("Net benefit per 100 images")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid()
    legend_axes.set_axis_off()
    add_legend(legend_axes, handles, labels, loc="upper left", handlelength=4, borderaxespad=0)
    return fig
