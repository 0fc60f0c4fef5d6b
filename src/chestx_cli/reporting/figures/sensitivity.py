"""Figure of the pruning sensitivity of each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chestx_cli.core.printable import counted
from chestx_cli.evaluation.results import SENSITIVITIES, VARIANTS, StudyResults
from chestx_cli.records.sensitivity import COMPUTED
from chestx_cli.reporting.figures.registry import figure
from chestx_cli.reporting.figures.style import (
    BLUE,
    GREY,
    VERMILLION,
    bare,
    ink_on,
    new_figure,
    share_of_one,
    shown,
)
from chestx_cli.store.caveats import UNPROVEN

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from chestx_cli.records.sensitivity import GroupSensitivityRecord, SensitivityRecord

MARKED_LAYERS = 5
ROW_IN = 0.185
DARK_FROM = 0.05


@figure(
    "sensitivity",
    title="Pruning sensitivity of each layer",
    caption="Increase of the loss on the validation images when one layer alone is pruned, by layer (in network order) "
    "and by the share of its weights set to zero. The layers of largest mean increase are marked with their rank.",
    model_stamps=(UNPROVEN,),
    shows=(VARIANTS, SENSITIVITIES),
)
def sensitivity(study: StudyResults) -> Figure | None:
    """Draw the loss increase by layer and amount, and its mean; None if no sensitivity was measured."""
    records = (variant.sensitivity for variant in study.variants)
    first = next((record for record in records if record and record.measurements), None)
    if first is None:
        return None
    return _draw(first, "one layer", "weights set to zero", computed=COMPUTED.get(first.precision))


@figure(
    "structured-sensitivity",
    title="Structured pruning sensitivity of each group of coupled layers",
    caption="Increase of the loss on the validation images when channels of one group of coupled layers alone are "
    "removed, by group (named by its first layer, in network order) and by the share of its channels. The groups of "
    "largest mean increase are marked with their rank.",
    model_stamps=(UNPROVEN,),
    shows=(VARIANTS, SENSITIVITIES),
)
def structured_sensitivity(study: StudyResults) -> Figure | None:
    """Draw the loss increase by group and amount, and its mean; None if no structured sensitivity was measured."""
    records = (variant.group_sensitivity for variant in study.variants)
    first = next((record for record in records if record and record.measurements), None)
    return _draw(first, "one group of coupled layers", "channels removed") if first else None


def _draw(
    record: SensitivityRecord | GroupSensitivityRecord, unit: str, removed: str, *, computed: str | None = None
) -> Figure:
    layers = list(dict.fromkeys(row.layer for row in record.measurements))
    increase = _increases(record, layers)
    fig = new_figure(
        1.9 + ROW_IN * max(len(layers), 5),
        f"Pruning {unit} of {shown(record.variant)} at a time: {counted(record.images, f'{_part(record)} image')}",
        note=(
            f"Unpruned: loss {record.loss:.4f}, accuracy {record.accuracy:.1%}. One image is "
            f"{share_of_one(record.images)} of accuracy, so layers are ranked by loss, averaged over the amounts. "
            "The colour scale is compressed so that small increases are visible; the bars are linear."
            f"{f' {computed}' if computed else ''}"
        ),
    )
    left, right = fig.subplots(1, 2, sharey=True, width_ratios=(1, 0.8))
    _draw_cells(left, record, increase, removed)
    ranks = {row.layer: row.rank for row in record.rows}
    marked = [
        layer for layer in layers if ranks.get(layer, len(layers)) <= min(MARKED_LAYERS, max(1, len(layers) // 3))
    ]
    left.set_yticks(range(len(layers)), [shown(layer, 40) for layer in layers], fontsize=7.5)
    for label, layer in zip(left.get_yticklabels(), layers, strict=True):
        if layer in marked:
            label.set(fontweight="bold", color=VERMILLION)
    _draw_means(right, {row.layer: row.mean_loss_increase for row in record.rows}, layers, marked, ranks)
    for axes in (left, right):
        _separate_stages(axes, layers)
    left.set_ylim(len(layers) - 0.5, -0.5)
    return fig


def _part(record: SensitivityRecord | GroupSensitivityRecord) -> str:
    return {"val": "validation", "train": "training"}.get(record.split, record.split)


def _increases(record: SensitivityRecord | GroupSensitivityRecord, layers: list[str]) -> npt.NDArray[np.float64]:
    """Return the loss increase [layers, amounts]; NaN for combinations that were not measured."""
    import numpy as np

    increase = np.full((len(layers), len(record.amounts)), np.nan)
    for row in record.measurements:
        increase[layers.index(row.layer), record.amounts.index(row.amount)] = row.loss - record.loss
    return increase


def _draw_cells(
    axes: Axes, record: SensitivityRecord | GroupSensitivityRecord, increase: npt.NDArray[np.float64], removed: str
) -> None:
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import AsinhNorm

    # A lower bound of the scale: if no layer matters, none is dark.
    largest = max(float(np.nanmax(np.abs(increase))), DARK_FROM)
    # White: no change; red: worse; blue: better. The scale is symmetric, so that equal changes look equal.
    norm = AsinhNorm(linear_width=largest / 20, vmin=-largest, vmax=largest)
    mappable = ScalarMappable(norm, "RdBu_r")
    faces: Any = mappable.to_rgba(increase)
    axes.imshow(
        faces, aspect="auto", interpolation="nearest", extent=(-0.5, increase.shape[1] - 0.5, len(increase) - 0.5, -0.5)
    )
    digits = 3 if largest < 10 else 2
    for (y, x), value in np.ndenumerate(increase):
        text = "–" if np.isnan(value) else _signed(float(value), digits)
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color=ink_on(faces[y, x]))
    axes.set_xticks(range(len(record.amounts)), [f"{amount:.0%}" for amount in record.amounts])
    axes.set_title(f"Loss increase, by share of {removed}", fontsize=8.5)
    axes.xaxis.tick_top()
    bare(axes)


def _signed(value: float, digits: int) -> str:
    """Return a change with its sign, or without one if it rounds to zero."""
    return f"{value:+.{digits}f}".replace("-", "−") if round(value, digits) else f"{0:.{digits}f}"


def _draw_means(
    axes: Axes, means: dict[str, float], layers: list[str], marked: list[str], ranks: dict[str, int]
) -> None:
    from matplotlib.ticker import MaxNLocator

    values = [means.get(layer, 0.0) for layer in layers]
    colours = [VERMILLION if layer in marked else BLUE for layer in layers]
    axes.barh(range(len(layers)), values, height=0.7, color=colours)
    for y, (layer, value) in enumerate(zip(layers, values, strict=True)):
        if layer in marked:
            axes.annotate(
                f"#{ranks[layer]}: {_signed(value, 3)}",
                (max(value, 0.0), y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=VERMILLION,
                fontweight="bold",
            )
    low, high = min(0.0, *values), max(0.0, *values)
    span = (high - low) or 1.0
    axes.set_xlim(low - 0.04 * span, high + 0.3 * span)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_title("Mean over the amounts", fontsize=8.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(axis="x")


def _separate_stages(axes: Axes, layers: list[str]) -> None:
    """Draw a thin line wherever the first component of the layer name changes."""
    for y in range(1, len(layers)):
        if layers[y].partition(".")[0] != layers[y - 1].partition(".")[0]:
            axes.axhline(y - 0.5, color="#808080", linewidth=0.8)
