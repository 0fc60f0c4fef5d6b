"""Figure of the INT8 quantization sensitivity of each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.core.printable import counted
from chestx_cli.evaluation.results import SENSITIVITIES, VARIANTS, StudyResults
from chestx_cli.reporting.figures.registry import figure
from chestx_cli.reporting.figures.style import BLUE, GREY, VERMILLION, new_figure, share_of_one, shown
from chestx_cli.store.caveats import UNPROVEN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_LAYERS = 30
ROW_IN = 0.185


@figure(
    "int8-sensitivity",
    title="Quantization sensitivity of each layer",
    caption="Increase of the loss on the validation images when one layer alone computes in 8 bits, for the layers of "
    "largest increase. Layers whose loss falls are drawn to the left of zero.",
    model_stamps=(UNPROVEN,),
    shows=(VARIANTS, SENSITIVITIES),
)
def int8_sensitivity(study: StudyResults) -> Figure | None:
    """Draw the loss increase of each layer quantized alone; None if no variant has a current measurement."""
    record = next((variant.int8_sensitivity for variant in study.variants if variant.int8_sensitivity), None)
    if record is None:
        return None
    rows = record.rows[:SHOWN_LAYERS]
    fig = new_figure(
        1.9 + ROW_IN * max(len(rows), 5),
        f"One layer of {shown(record.variant)} at a time in 8 bits: {counted(record.images, 'validation image')}",
        note=f"In FP32: loss {record.loss:.4f}, accuracy {record.accuracy:.1%}. One image is "
        f"{share_of_one(record.images)} of accuracy, so layers are ranked by loss. All layers in 8 bits together: "
        f"{record.loss_increase_of_all:+.4f}. {len(rows)} of {len(record.rows)} layers are shown.",
    )
    axes = fig.subplots()
    places = range(len(rows))
    axes.barh(
        places, [row.loss_increase for row in rows], height=0.7, color=[_colour(row.accuracy_drop) for row in rows]
    )
    axes.set_yticks(places, [f"{row.rank}  {shown(row.layer, 40)}" for row in rows], fontsize=7.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_title("Loss increase; layers that lose accuracy in red", fontsize=8.5)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(axis="x")
    return fig


def _colour(accuracy_drop: float) -> str:
    return VERMILLION if accuracy_drop > 0 else BLUE
