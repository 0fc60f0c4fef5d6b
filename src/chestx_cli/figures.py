"""Drawing a study's figures, as SVG for the page and as PNG for everything else."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

# These modules register their figures; the registry keeps the order in which they are imported.
from chestx_cli import (  # noqa: F401 - registers
    plots_data,
    plots_fitting,
    plots_int8,
    plots_judgement,
    plots_pareto,
    plots_results,
    plots_sensitivity,
    plots_variants,
)
from chestx_cli.audit import caveats, stamps_of
from chestx_cli.figure_registry import FIGURES, FigureEntry
from chestx_cli.figure_style import DPI, STYLE, stamp_figure
from chestx_cli.files import storage_error, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from matplotlib.figure import Figure

    from chestx_cli.study import Study

__all__ = ["FIGURES", "DrawnFigure", "FigureEntry", "draw_figures", "draw_figures_into", "draw_older_figures"]


@dataclass(frozen=True, kw_only=True)
class DrawnFigure:
    """A figure that was written: its name, its words and its two files."""

    name: str
    title: str
    caption: str
    svg: Path
    png: Path


def draw_figures(study: Study, names: Iterable[str]) -> tuple[DrawnFigure, ...]:
    """Draw figures into the study's report/figures/, beside those that lie there, as `draw_figures_into` does."""
    with study.figures_files():
        return draw_figures_into(study.report / "figures", study, names)


def draw_older_figures(study: Study, names: Iterable[str], record: Path) -> None:
    """Draw those figures that are missing or older than the record they show, as after a command that was killed."""
    told_ns = record.stat().st_mtime_ns
    paths = {name: study.report / "figures" / f"{name}.svg" for name in names}
    draw_figures(
        study, [name for name, path in paths.items() if not path.exists() or path.stat().st_mtime_ns < told_ns]
    )


def draw_figures_into(folder: Path, study: Study, names: Iterable[str]) -> tuple[DrawnFigure, ...]:
    """Draw figures into a folder and return those that the study has the results for.

    The same study gives the same bytes. The files of a figure that cannot be drawn any more are removed.
    Raises UsageError for an unknown name, IntegrityError for a damaged record, StorageError.
    """
    import matplotlib

    drawn = []
    stamps = _stamps(study)
    for name in names:
        entry = FIGURES[name]
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            # The font lacks some scripts; a page shows such class names nevertheless, since its text stays text.
            warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
            figure = entry.draw(study)
            if figure is None:
                _remove(svg, png)
                continue
            stamp_figure(figure, stamps)
            write_atomic(png, _rendered(figure, "png"))
            # The layout is found by now; finding it again takes half the time.
            figure.set_layout_engine("none")
            write_atomic(svg, _rendered(figure, "svg"))
        drawn.append(DrawnFigure(name=name, title=entry.title, caption=entry.caption, svg=svg, png=png))
    return tuple(drawn)


def _stamps(study: Study) -> tuple[str, ...]:
    """Return what must stand on every figure of a study, such as UNGROUPED; figures of no split have nothing to say."""
    if not study.split_json.exists():
        return ()
    return stamps_of(caveats(study.read_split(), study.read_split_record().group_rules))


def _rendered(figure: Figure, file_format: str) -> bytes:
    buffer = io.BytesIO()
    # A date would make each drawing of the same study another file.
    metadata = {"Date": None} if file_format == "svg" else {}
    figure.savefig(buffer, format=file_format, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def _remove(*paths: Path) -> None:
    """Remove what an earlier state of the study gave, so that nobody takes it for the present one."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, path) from error
