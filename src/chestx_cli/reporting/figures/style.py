"""Style of all figures: colours, fonts, headings, and literal display of text from files."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from chestx_cli.core.printable import printable
from chestx_cli.evaluation.results import CPU, timed_in_separate_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

    from chestx_cli.evaluation.results import VariantResults

# The Okabe-Ito palette, safe for most colour-blind readers, without its yellow, too pale for lines on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY, PALE = "#595959", "#D9D9D9"
LINE_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
LINE_STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 3)))

# With fewer images of either class a curve shows single images rather than the model.
FEWEST_OF_A_CLASS = 20

WIDTH_IN = 9.0
# Smallest width with room for the heading and the note of a figure with one small panel.
NARROWEST_IN = 4.2
DPI = 150
SMALL_PT = 8
LONGEST_NAME = 34
LONGEST_CLASS = 22

STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif"],
    # Matplotlib bundles DejaVu Sans; the others are fallbacks for a browser without it.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": "#222222",
    "axes.edgecolor": "#808080",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "axes.unicode_minus": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "xtick.labelsize": SMALL_PT + 0.5,
    "ytick.labelsize": SMALL_PT + 0.5,
    "legend.fontsize": SMALL_PT + 0.5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    # A class name such as "$x_1$" is shown literally, not typeset as a formula.
    "text.parse_math": False,
    # Keep text as text, not as outlines: it can be searched, copied and read aloud.
    "svg.fonttype": "none",
    "svg.hashsalt": "chestx",
}


def shown(text: str, longest: int = LONGEST_NAME) -> str:
    """Return text from a file as a one-line label: unprintable characters escaped, the middle of a long text cut."""
    # File names may hold control characters, which XML forbids.
    clean = printable(text)
    if len(clean) <= longest:
        return clean
    tail = (longest - 1) // 2
    return f"{clean[: longest - 1 - tail]}…{clean[-tail:]}"


def new_figure(height_in: float, title: str, *, note: str = "", width_in: float = WIDTH_IN) -> Figure:
    """Return an empty figure with a heading, and a note in small grey letters at the bottom."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    # The stubs lack that `layout="constrained"` sets a constrained engine.
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr, call-arg]  # constrained
    _set_title(figure, title)
    if note:
        figure.supxlabel(_wrapped(note, width_in * 14.5), x=0.01, ha="left", fontsize=SMALL_PT, color=GREY)
    return figure


def stamp_figure(figure: Figure, stamps: Sequence[str]) -> None:
    """Prefix a figure's heading with stamps, such as UNGROUPED, so that a copied figure keeps them."""
    if stamps:
        _set_title(figure, f"{', '.join(stamps)}: {figure.get_suptitle()}", color=VERMILLION)


def _set_title(figure: Figure, title: str, *, color: str | None = None) -> None:
    wrapped = _wrapped(title, figure.get_size_inches()[0] * 10.5)
    figure.suptitle(wrapped, x=0.01, ha="left", fontsize=11, fontweight="bold", color=color)


def panel_grid(panels: int, most_columns: int = 3) -> tuple[int, int]:
    """Return the rows and columns of a grid for a number of panels, with as few empty cells as possible."""
    if panels <= most_columns:
        return 1, panels
    lines = math.ceil(panels / most_columns)
    return lines, math.ceil(panels / lines)


def _wrapped(text: str, width: float) -> str:
    return "\n".join(textwrap.wrap(text, int(width)))


def add_legend(where: Axes | Figure, handles: Sequence[Artist], labels: Sequence[str], **options: Any) -> Legend:
    """Add a legend with literal labels; matplotlib would otherwise omit labels that start with "_"."""
    legend = where.legend(list(handles), ["label"] * len(labels), **options)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)
    return legend


def ink_on(face: Any) -> str:
    """Return black or white, whichever has more contrast with a colour (red, green, blue, ...; each in 0-1)."""
    luminance = sum(
        share * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
        for share, c in zip((0.2126, 0.7152, 0.0722), face[:3], strict=True)
    )
    # At this luminance the WCAG contrast ratios with white and with black are equal.
    return "white" if luminance < 0.179 else "black"


def bare(axes: Axes) -> None:
    """Remove spines and tick marks of an axes, for grids of cells."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def stale_note(names: Sequence[str]) -> str:
    """Return sentences that name the stale variants; empty if there are none."""
    if not names:
        return ""
    listed = ", ".join(shown(name) for name in names)
    return f"STALE, made from other models than the current ones: {listed}. The report shows how to make them again."


def separate_runs_note(variants: Sequence[VariantResults]) -> str:
    """Return a sentence on latencies of separate benchmark runs; empty if the variants were timed in one run."""
    if not timed_in_separate_runs(variants, CPU):
        return ""
    return "LATENCIES COME FROM SEPARATE BENCHMARK RUNS and can only be compared roughly."


def share_of_one(n: int) -> str:
    """Return the share of one in n images, in per cent with two digits: 1.8% of 56, 0.01% of 10,000."""
    return f"{100 / max(1, n):.2g}%"
