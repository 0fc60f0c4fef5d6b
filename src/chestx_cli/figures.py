"""Drawing a study's figures, as SVG for the page and as PNG for everything else."""

from __future__ import annotations

import io
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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
from chestx_cli.audit import MODEL_STAMPS, caveats, stamps_of
from chestx_cli.beside import Beside, answer, beside
from chestx_cli.figure_inputs import read_variants
from chestx_cli.figure_registry import FIGURES, FigureEntry
from chestx_cli.figure_style import STYLE, stamp_figure
from chestx_cli.files import storage_error, write_atomic
from chestx_cli.lineage import model_caveats
from chestx_cli.stage import available_threads
from chestx_cli.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "FIGURES",
    "DrawnFigure",
    "FigureEntry",
    "draw_figures",
    "draw_figures_into",
    "draw_older_figures",
    "drawing_beside",
]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The content of a figure's two files."""

    svg: bytes
    png: bytes


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


def draw_figures_into(
    folder: Path,
    study: Study,
    names: Iterable[str],
    advance: Callable[[], None] = lambda: None,
    other: Beside | None = None,
) -> tuple[DrawnFigure, ...]:
    """Draw figures into a folder and return those that the study has the results for.

    The `other` process draws some of them meanwhile. The same study gives the same bytes. The files of a figure that
    cannot be drawn any more are removed. Raises UsageError for an unknown name, IntegrityError for a damaged record,
    StorageError.
    """
    entries = {name: FIGURES[name] for name in names}
    stamps = _stamps(study)
    # Those that took long when they were last drawn come first, so that no long one is left to the end.
    left = deque(sorted(entries, key=lambda name: -_earlier_bytes(study, name)))
    made: dict[str, Pictures | None] = {}

    def work(draw: Callable[[str], Pictures | None]) -> None:
        while True:
            try:
                name = left.popleft()
            except IndexError:
                return
            made[name] = draw(name)
            advance()

    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(work, lambda name: drawn_beside(other, name)) if other else None
        try:
            work(lambda name: _drawn(study, name, stamps))
        finally:
            left.clear()
        if others:
            others.result()
    drawn = []
    for name, entry in entries.items():
        pictures = made[name]
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        if pictures is None:
            _remove(svg, png)
            continue
        write_atomic(png, pictures.png)
        write_atomic(svg, pictures.svg)
        drawn.append(DrawnFigure(name=name, title=entry.title, caption=entry.caption, svg=svg, png=png))
    return tuple(drawn)


def _earlier_bytes(study: Study, name: str) -> int:
    """Return the size of a figure as the study has it, which goes with the time of drawing it; 0 without one."""
    path = study.report / "figures" / f"{name}.svg"
    return path.stat().st_size if path.exists() else 0


def _drawn(study: Study, name: str, stamps: Sequence[str]) -> Pictures | None:
    """Return a figure as both kinds of file; None where the study has no results for it."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The font lacks some scripts; a page shows such class names nevertheless, since its text stays text.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        figure = FIGURES[name].draw(study)
        if figure is None:
            return None
        left_out = set(MODEL_STAMPS) - set(FIGURES[name].model_stamps)
        stamp_figure(figure, [stamp for stamp in stamps if stamp not in left_out])
        png = _png(figure)
        # The layout is found by now; finding it again takes half the time.
        figure.set_layout_engine("none")
        return Pictures(svg=_svg(figure), png=png)


@contextmanager
def drawing_beside(study: Study) -> Iterator[Beside | None]:
    """Start a process that draws figures of a study inside the block; None where there is one processor only."""
    if available_threads() < 2:
        yield None
        return
    with beside("chestx_cli.figures", str(study.root), what="draws figures") as process:
        yield process


def drawn_beside(process: Beside, name: str) -> Pictures | None:
    """Return a figure that another process draws, as `_drawn` does; raises what that raises, and what `ask` does."""
    n_svg, content = process.ask(name)
    return None if n_svg is None else Pictures(svg=content[:n_svg], png=content[n_svg:])


def main(root: str) -> None:
    """Draw the figures of a study that stdin names."""
    # What drawing imports when it is first needed: there is time for it now.
    import pandas  # noqa: F401
    from matplotlib.backends import backend_agg, backend_svg  # noqa: F401

    study = Study(Path(root))

    def draw(name: str) -> tuple[int | None, list[memoryview]]:
        found = _drawn(study, name, _stamps(study))
        if found is None:
            return None, []
        return len(found.svg), [memoryview(found.svg), memoryview(found.png)]

    answer(draw)


def _stamps(study: Study) -> tuple[str, ...]:
    """Return what must stand on a study's figures, such as UNGROUPED; figures of no split have nothing to say."""
    if not study.split_json.exists():
        return ()
    of_images = caveats(study.read_split(), study.read_split_record().group_rules)
    return stamps_of((*of_images, *model_caveats(study, read_variants(study))))


def _png(figure: Figure) -> bytes:
    # By the canvas itself: savefig would first draw everything once for nothing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]  # matplotlib's
    return buffer.getvalue()


def _svg(figure: Figure) -> bytes:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    # A date would make each drawing of the same study another file.
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]  # matplotlib's
    return buffer.getvalue()


def _remove(*paths: Path) -> None:
    """Remove what an earlier state of the study gave, so that nobody takes it for the present one."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, path) from error


if __name__ == "__main__":
    main(sys.argv[1])
