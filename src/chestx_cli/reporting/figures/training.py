"""Figure of the training curves: loss and metrics by epoch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chestx_cli.core.printable import counted, paragraph
from chestx_cli.evaluation.results import VARIANTS, StudyResults
from chestx_cli.reporting.figures.registry import figure
from chestx_cli.reporting.figures.style import (
    BLUE,
    GREY,
    VERMILLION,
    add_legend,
    new_figure,
    panel_grid,
    share_of_one,
    shown,
)
from chestx_cli.store.caveats import UNPROVEN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from chestx_cli.records.variant import EpochRow

# Metrics between 0 and 1 with their own panel, and those only in tables; panels of plugin metrics follow.
SHARES = {"accuracy": "Accuracy", "f1": "Macro F1", "auroc": "AUROC"}
TABLES_ONLY = ("precision", "recall", "average_precision")
# With fewer epochs a curve is a single dot.
FEWEST_EPOCHS = 2
TRAIN_LINE = {"color": BLUE, "marker": "o", "markersize": 4, "linewidth": 1.6, "linestyle": (0, (4, 1.5))}
VAL_LINE = {"color": VERMILLION, "marker": "s", "markersize": 4, "linewidth": 1.6, "linestyle": "-"}


@figure(
    "training-curves",
    title="Training curves of the baseline",
    caption="Loss, accuracy, macro F1 and AUROC, and metrics of plugins where there are any, per epoch on the training "
    "and the validation images; the vertical line marks the epoch that was kept. Training values are of augmented "
    "images with dropout on, so they may be worse.",
    model_stamps=(UNPROVEN,),
    shows=(VARIANTS,),
)
def training_curves(study: StudyResults) -> Figure | None:
    """Draw training and validation curves of the baseline; None if none was trained, or for one epoch only."""
    from matplotlib.lines import Line2D

    trained = next(
        (variant.record for variant in study.variants if variant.record.training and variant.record.parent is None),
        None,
    )
    if trained is None or trained.training is None or len(trained.training.epochs) < FEWEST_EPOCHS:
        return None
    epochs = trained.training.epochs
    n_train, n_val = (len(study.split.indices(part)) for part in ("train", "val"))
    plugin_metrics = [name for name in epochs[0].val if name not in (*SHARES, *TABLES_ONLY)]
    # A metric may be undefined in every epoch, like the AUROC with images of one class.
    panels = {
        metric: title
        for metric, title in {**SHARES, **{name: name for name in plugin_metrics}}.items()
        if not all(math.isnan(value) for curve in _curves(epochs, metric) for value in curve)
    }
    lines, columns = panel_grid(1 + len(panels), 3 if len(panels) == 2 else 2)
    fig = new_figure(
        0.8 + 2.4 * lines,
        f"Training of {shown(trained.name)}: {counted(n_train, 'training image')}, "
        f"{counted(n_val, 'validation image')}",
        note=_note(n_val),
    )
    legend_axes, *grid = _axes(fig, lines, columns, 1 + len(panels))
    _draw_panel(grid[0], epochs, "Loss", ([row.train_loss for row in epochs], [row.val_loss for row in epochs]))
    grid[0].set_ylim(0, 1.08 * max(max(row.train_loss, row.val_loss) for row in epochs) or 1)
    lowest = _lowest_share(epochs)
    for axes, (metric, title) in zip(grid[1:], panels.items(), strict=True):
        _draw_panel(axes, epochs, title, _curves(epochs, metric))
        if metric in SHARES:
            # One scale for all three, so that their panels can be compared.
            axes.set_ylim(lowest, 1 + (1 - lowest) * 0.04)
    for axes in grid[-columns:]:
        axes.set_xlabel("Epoch")
    kept_epoch = next((row.epoch for row in epochs if row.kept), None)
    # The stubs do not accept styles that mix texts and numbers.
    handles = [Line2D([], [], **TRAIN_LINE), Line2D([], [], **VAL_LINE)]  # type: ignore[arg-type]  # a style's values
    labels = ["training (augmented, dropout on)", "validation"]
    if kept_epoch is not None:
        handles.append(Line2D([], [], color=GREY, linestyle=":", linewidth=1.4))
        labels.append(f"kept: epoch {kept_epoch}, {trained.training.kept_loss}")
    add_legend(legend_axes, handles, labels, loc="center left", ncols=3, borderaxespad=0, handlelength=3.5)
    return fig


def _axes(fig: Figure, lines: int, columns: int, panels: int) -> list[Axes]:
    """Return the legend's axes, in a separate row, followed by the panels' axes."""
    specs = fig.add_gridspec(1 + lines, columns, height_ratios=(0.3, *[2.4] * lines))
    legend_axes = fig.add_subplot(specs[0, :])
    legend_axes.set_axis_off()
    return [legend_axes, *(fig.add_subplot(specs[1 + number // columns, number % columns]) for number in range(panels))]


def _note(n_val: int) -> str:
    return paragraph(
        "Accuracy, F1 and AUROC share one scale.",
        f"One validation image is {share_of_one(n_val)} of accuracy." if n_val else "",
    )


def _draw_panel(axes: Axes, epochs: Sequence[EpochRow], title: str, curves: tuple[list[float], list[float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    numbers = [row.epoch for row in epochs]
    for values, line in zip(curves, (TRAIN_LINE, VAL_LINE), strict=True):
        axes.plot(numbers, values, clip_on=False, zorder=3, **line)  # type: ignore[arg-type]  # a style's values
    for row in epochs:
        if row.kept:
            axes.axvline(row.epoch, color=GREY, linestyle=":", linewidth=1.4, zorder=1)
    axes.set_title(title)
    axes.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    axes.grid()


def _curves(epochs: Sequence[EpochRow], metric: str) -> tuple[list[float], list[float]]:
    """Return a metric by epoch on the training and the validation images; NaN if undefined."""
    return [_value(row.train, metric) for row in epochs], [_value(row.val, metric) for row in epochs]


def _value(measured: Mapping[str, float | None], metric: str) -> float:
    value = measured.get(metric)
    return math.nan if value is None else value


def _lowest_share(epochs: Sequence[EpochRow]) -> float:
    """Return the lower end of the metrics' axis: 0.5, or the worst value rounded down to a tenth."""
    values = [value for metric in SHARES for curve in _curves(epochs, metric) for value in curve]
    worst = min((value for value in values if not math.isnan(value)), default=0.5)
    return min(0.5, math.floor(worst * 10) / 10)
