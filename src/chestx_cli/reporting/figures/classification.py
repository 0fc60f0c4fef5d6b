"""Figures of the test results: classification report, confusion matrices, ROC and precision-recall curves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from chestx_cli.core.printable import counted
from chestx_cli.evaluation.predictions import read_predictions
from chestx_cli.evaluation.results import EVALUATIONS, VARIANTS, StudyResults
from chestx_cli.evaluation.statistics.operating_points import counts_by_threshold
from chestx_cli.reporting.figures.registry import figure
from chestx_cli.reporting.figures.style import (
    BLACK,
    FEWEST_OF_A_CLASS,
    GREY,
    LINE_COLOURS,
    LINE_STYLES,
    LONGEST_CLASS,
    NARROWEST_IN,
    SMALL_PT,
    VERMILLION,
    WIDTH_IN,
    add_legend,
    bare,
    new_figure,
    panel_grid,
    share_of_one,
    shown,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from chestx_cli.evaluation.predictions import Predictions
    from chestx_cli.evaluation.results import VariantResults
    from chestx_cli.records.evaluation import EvaluationRecord, EvaluationRow

SCORES = ("precision", "recall", "f1")
SCORE_TITLES = ("Precision", "Recall", "F1")
MATRIX_COLUMNS = 3
# Upper end of the colour scale: black numbers stay readable on every colour below it.
DEEPEST = 0.6


def _evaluation(result: VariantResults) -> tuple[EvaluationRecord, EvaluationRow]:
    """Return a variant's evaluation and its row; raises ValueError if it was not evaluated."""
    evaluation, row = result.evaluation, result.row
    if evaluation is None or row is None:
        raise ValueError(f"{result.name} has no test results")
    return evaluation, row


def has_enough(result: VariantResults) -> bool:
    """Return whether the test set holds enough images of each class for a curve."""
    if result.row is None:
        return False
    row = result.row
    positives, negatives = row.true_positives + row.false_negatives, row.true_negatives + row.false_positives
    return min(positives, negatives) >= FEWEST_OF_A_CLASS


def _test_images(results: tuple[VariantResults, ...]) -> str:
    evaluation, row = _evaluation(results[0])
    positives = row.true_positives + row.false_negatives
    return (
        f"{counted(evaluation.images, 'test image')} of {counted(evaluation.patients, 'patient')}, "
        f"{positives:,} positive ({shown(evaluation.positive, LONGEST_CLASS)})"
    )


@figure(
    "classification-report",
    title="Precision, recall and F1 per class",
    caption="Precision, recall and F1 of each class and their mean over both classes (macro), for every variant on the "
    "test images. The darker, the nearer to 1.",
    shows=(VARIANTS, EVALUATIONS),
)
def classification_report(study: StudyResults) -> Figure | None:
    """Draw a grid of scores, one row per variant; None without test results."""
    results = study.evaluated
    if not results:
        return None
    evaluation, _ = _evaluation(results[0])
    support = {row.label: row.images for row in evaluation.class_rows}
    groups = [*support, None]
    table = [_scores(result, list(support)) for result in results]
    fig = new_figure(
        0.95 + 0.36 * (len(results) + 1.25),
        f"Classification report: {_test_images(results)}",
        note=f"One image is {share_of_one(max(support.values()))} to {share_of_one(min(support.values()))} of a "
        "class's recall. A precision without predictions counts as 0.",
    )
    axes = fig.subplots()
    _score_cells(axes, table, gap_after=len(SCORES))
    axes.set_yticks(range(len(results)), [shown(result.name) for result in results])
    for i, label in enumerate(groups):
        start = i * (len(SCORES) + 0.3)
        head = "Macro mean" if label is None else f"{shown(label, 14)} (n = {support[label]:,})"
        axes.text(start + 1, -1.15, head, ha="center", va="bottom", fontweight="bold")
        for j, score in enumerate(SCORE_TITLES):
            axes.text(start + j, -0.62, score, ha="center", va="bottom", fontsize=SMALL_PT + 0.5)
    axes.set_ylim(len(results) - 0.5, -1.75)
    return fig


def _scores(result: VariantResults, labels: list[str]) -> list[float]:
    """Return precision, recall and F1 of each class, followed by their macro means."""
    evaluation, row = _evaluation(result)
    by_label = {class_row.label: class_row for class_row in evaluation.class_rows}
    per_class = [float(getattr(by_label[label], score)) for label in labels for score in SCORES]
    return [*per_class, row.macro_precision, row.macro_recall, row.macro_f1]


def _score_cells(axes: Axes, table: list[list[float]], *, gap_after: int) -> None:
    """Draw one labelled cell per score, with a gap between groups of scores."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    n_columns = len(table[0])
    for y, values in enumerate(table):
        for column, value in enumerate(values):
            x = column + 0.3 * (column // gap_after)
            # The colour scale spans 0 to 1, not worst to best: a small difference must look small.
            face = colormaps["Blues"](DEEPEST * value)
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=face, edgecolor="white", linewidth=1.5))
            axes.text(x, y, f"{value:.3f}", ha="center", va="center")
    axes.set_xlim(-0.5, n_columns - 0.5 + 0.3 * ((n_columns - 1) // gap_after))
    axes.set_xticks([])
    bare(axes)


@figure(
    "confusion-matrices",
    title="Confusion matrices",
    caption="True against predicted class of every variant on the test images: counts, and the share of the true class "
    "in that row. The framed cell counts the false negatives (FN), the positive images that were missed.",
    shows=(VARIANTS, EVALUATIONS),
)
def confusion_matrices(study: StudyResults) -> Figure | None:
    """Draw one two-by-two matrix per variant; None without test results."""
    results = study.evaluated
    if not results:
        return None
    lines, columns = panel_grid(len(results), MATRIX_COLUMNS)
    fig = new_figure(
        0.9 + 2.75 * lines,
        f"Confusion matrices: {_test_images(results)}",
        note="Percentages and colours: share of the true class (rows sum to 100 %). FN: missed positives.",
        # A single matrix has the same size as one of many.
        width_in=max(NARROWEST_IN, WIDTH_IN * columns / MATRIX_COLUMNS),
    )
    grid = fig.subplots(lines, columns, squeeze=False).ravel()
    for axes, result in zip(grid, results, strict=False):
        _draw_matrix(axes, result)
    for axes in grid[len(results) :]:
        axes.set_visible(False)
    return fig


def _draw_matrix(axes: Axes, result: VariantResults) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    evaluation, row = _evaluation(result)
    negative = next((name for name in result.record.classes if name != evaluation.positive), "other")
    names = [shown(negative, 14), shown(evaluation.positive, 14)]
    counts = ((row.true_negatives, row.false_positives), (row.false_negatives, row.true_positives))
    for y, line in enumerate(counts):
        total = sum(line)
        for x, count in enumerate(line):
            share = count / total if total else 0.0
            face = colormaps["Blues"](DEEPEST * share)
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=face, edgecolor="white", linewidth=1.5))
            axes.text(x, y - 0.08, f"{count:,}", ha="center", va="center", fontsize=14, fontweight="bold")
            percentage = f"{share:.1%}" if total else "no images"
            axes.text(x, y + 0.22, percentage, ha="center", va="center", fontsize=SMALL_PT + 0.5)
            axes.text(
                x - 0.42,
                y - 0.4,
                ("TN", "FP", "FN", "TP")[2 * y + x],
                ha="left",
                va="top",
                fontsize=SMALL_PT,
            )
    axes.add_patch(Rectangle((-0.46, 0.54), 0.92, 0.92, fill=False, edgecolor=VERMILLION, linewidth=2.2))
    axes.set_xlim(-0.5, 1.5)
    axes.set_ylim(1.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks([0, 1], names)
    axes.set_yticks([0, 1], names, rotation=90, va="center")
    axes.set_xlabel("Predicted")
    axes.set_ylabel("True")
    axes.set_title(shown(result.name, 30), fontsize=9)
    bare(axes)


@figure(
    "roc-pr",
    title="ROC and precision-recall curves",
    caption=(
        "ROC curve (left) and precision-recall curve (right) of every variant on the test images; dots mark "
        "the operating points used. Grey dashes: random guessing."
    ),
    shows=(VARIANTS, EVALUATIONS),
)
def roc_pr(study: StudyResults) -> Figure | None:
    """Draw both curves of all variants; None if no variant was tested on enough images of both classes."""
    from matplotlib.lines import Line2D

    curves = [
        (result, read_predictions(study.study.variant(result.name) / "predictions.test.csv"))
        for result in study.evaluated
    ]
    curves = [(result, predictions) for result, predictions in curves if has_enough(result)]
    if not curves:
        return None
    results = tuple(result for result, _ in curves)
    fig = new_figure(
        5.4 + 0.2 * len(curves),
        f"ROC and precision-recall: {_test_images(results)}",
        note="With so few images a curve has few steps; overlapping curves are equal results."
        if len(curves[0][1].is_positive) < 200
        else "",
    )
    specs = fig.add_gridspec(2, 2, height_ratios=(4.3, 0.2 * (len(curves) + 1)))
    roc, pr, legend_axes = (fig.add_subplot(spec) for spec in (specs[0, 0], specs[0, 1], specs[1, :]))
    handles, labels = [], []
    for i, (result, predictions) in enumerate(curves):
        evaluation, row = _evaluation(result)
        line = curve_line(i, len(curves))
        _draw_roc(roc, predictions, row, line)
        _draw_pr(pr, predictions, row, line)
        handles.append(Line2D([], [], marker="o", markersize=5, **line))
        low, high = row.auroc_interval or (math.nan, math.nan)
        labels.append(
            f"{shown(result.name)}: AUROC {row.auroc:.3f} (95 % {low:.3f}–{high:.3f}), "
            f"AP {row.average_precision:.3f}, n = {evaluation.images:,}"
        )
    prevalence = float(curves[0][1].is_positive.mean())
    roc.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, zorder=1)
    pr.axhline(prevalence, color=GREY, linestyle="--", linewidth=1, zorder=1)
    roc.set(xlabel="False positive rate (1 − specificity)", ylabel="True positive rate (sensitivity)", title="ROC")
    pr.set(xlabel="Recall (sensitivity)", ylabel="Precision", title="Precision-recall")
    for axes in (roc, pr):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.grid()
    handles.append(Line2D([], [], color=GREY, linestyle="--", linewidth=1))
    labels.append(f"guessing (precision {prevalence:.2f})")
    # The legend has its own axes, so that it covers no curve.
    legend_axes.set_axis_off()
    add_legend(legend_axes, handles, labels, loc="upper left", handlelength=4, borderaxespad=0)
    return fig


class CurveLine(TypedDict):
    """Keyword arguments for matplotlib's `plot` that style a curve."""

    color: str
    linestyle: Any
    linewidth: float
    alpha: NotRequired[float]


def curve_line(index: int, total: int) -> CurveLine:
    """Return the style of one curve; later curves are thinner, so that coinciding curves stay visible."""
    width = 3.4 - 2.0 * index / max(1, total - 1)
    if index == 0:
        return {"color": BLACK, "linestyle": "-", "linewidth": width, "alpha": 0.55}
    return {
        "color": LINE_COLOURS[(index - 1) % len(LINE_COLOURS)],
        "linestyle": LINE_STYLES[(index - 1 + (index - 1) // len(LINE_COLOURS)) % len(LINE_STYLES)],
        "linewidth": width,
    }


def _draw_roc(axes: Axes, predictions: Predictions, row: EvaluationRow, line: CurveLine) -> None:
    true, false = counts_by_threshold(predictions.is_positive, predictions.probability)
    # Tied probabilities give a sloped segment, not a step: their order is undefined.
    axes.plot(false / false[-1], true / true[-1], zorder=3, **line)
    x = row.false_positives / (row.false_positives + row.true_negatives)
    y = row.true_positives / (row.true_positives + row.false_negatives)
    _dot(axes, x, y, line)


def _draw_pr(axes: Axes, predictions: Predictions, row: EvaluationRow, line: CurveLine) -> None:
    true, false = counts_by_threshold(predictions.is_positive, predictions.probability)
    # Precision is taken as 1 at the threshold above all probabilities, where no image is predicted positive.
    precision = [*(true[1:] / (true[1:] + false[1:]))[::-1], 1.0]
    recall = (true / true[-1])[::-1]
    # Steps, as in the sum of average precision; linear interpolation would be too optimistic.
    axes.plot(recall, precision, drawstyle="steps-post", zorder=3, **line)
    predicted_positive = row.true_positives + row.false_positives
    if predicted_positive:
        x = row.true_positives / (row.true_positives + row.false_negatives)
        _dot(axes, x, row.true_positives / predicted_positive, line)


def _dot(axes: Axes, x: float, y: float, line: CurveLine) -> None:
    axes.plot(
        [x], [y], marker="o", markersize=6, color=line["color"], markeredgecolor="white", zorder=5, linestyle="none"
    )
