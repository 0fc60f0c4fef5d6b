"""Drawing a study's figures, as SVG for the page and as PNG for everything else."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import chestx_cli
from chestx_cli.core.files import read_json, storage_error, write_atomic
from chestx_cli.core.machine import available_threads
from chestx_cli.core.worker import Beside, answer, beside, given
from chestx_cli.evaluation.results import VARIANTS, StudyResults, read_study
from chestx_cli.reporting.figures import style
from chestx_cli.reporting.figures.registry import FIGURES, FigureEntry
from chestx_cli.reporting.figures.style import STYLE, stamp_figure
from chestx_cli.study.caveats import MODEL_STAMPS, stamps_of

# isort: off
# Each of these modules registers its figures; a report shows them in this order.
from chestx_cli.reporting.figures import (  # noqa: F401 - registers
    data,
    training,
    int8_sensitivity,
    reliability,
    pareto,
    classification,
    sensitivity,
    variants,
)
# isort: on

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from chestx_cli.study.directory import Study

__all__ = [
    "FIGURES",
    "DrawnFigure",
    "FigureEntry",
    "draw_figures",
    "draw_figures_into",
    "drawing_beside",
]


# Starting a process that draws takes as long as drawing two or three figures.
WORTH_A_PROCESS = 6


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The content of a figure's two files."""

    svg: bytes
    png: bytes

    def note(self, key: str | None) -> dict[str, str | None]:
        """Return what is noted of a figure that is made of what has this hash."""
        svg, png = (hashlib.sha256(content).hexdigest() for content in (self.svg, self.png))
        return {"key": key, "svg_sha256": svg, "png_sha256": png}


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
    names = tuple(names)
    parts = {part for name in names for part in FIGURES[name].shows}
    # The stamps are of variants.
    parts |= {VARIANTS} if any(FIGURES[name].model_stamps for name in names) else set()
    with study.figures_files():
        return draw_figures_into(study.report / "figures", read_study(study, parts=parts, check_models=False), names)


def draw_figures_into(
    folder: Path, results: StudyResults, names: Iterable[str], advance: Callable[[], None] = lambda: None
) -> tuple[DrawnFigure, ...]:
    """Draw figures into a folder and return those that the study has the results for; the figures' lock must be held.

    A figure that the study's report has already, of the same results, is taken from there. Where there are many left,
    a second process draws some of them. The same study gives the same bytes. The files of a figure that cannot be drawn
    any more are removed. Raises UsageError for an unknown name, IntegrityError for a damaged record, StorageError.
    """
    entries = {name: FIGURES[name] for name in names}
    keys = {name: _key(results, name, entry) for name, entry in entries.items()}
    notes = _read_notes(results.study)
    found = {name: _kept(results.study, name, notes.get(name), key) for name, key in keys.items()}
    kept = {name: pictures for name, pictures in found.items() if pictures}
    for _ in kept:
        advance()
    made = kept | _draw_all(results, [name for name in entries if name not in kept], advance)
    drawn = []
    for name, entry in entries.items():
        pictures = made[name]
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        if pictures is None:
            _remove(svg, png)
            notes.pop(name, None)
            continue
        if name not in kept or not svg.exists():
            write_atomic(png, pictures.png)
            write_atomic(svg, pictures.svg)
        notes[name] = pictures.note(keys[name])
        drawn.append(DrawnFigure(name=name, title=entry.title, caption=entry.caption, svg=svg, png=png))
    write_atomic(_notes_file(results.study), json.dumps(notes, indent=1))
    return tuple(drawn)


def _draw_all(results: StudyResults, names: Sequence[str], advance: Callable[[], None]) -> dict[str, Pictures | None]:
    """Return figures by name, some of them drawn by another process where there are many."""
    # Those that took long when they were last drawn come first, so that no long one is left to the end.
    left = deque(sorted(names, key=lambda name: -_earlier_bytes(results.study, name)))
    made: dict[str, Pictures | None] = {}

    def work(draw: Callable[[str], Pictures | None]) -> None:
        while True:
            try:
                name = left.popleft()
            except IndexError:
                return
            made[name] = draw(name)
            advance()

    def work_beside(other: Beside) -> None:
        other.give(results)
        work(lambda name: drawn_beside(other, name))

    with drawing_beside(len(names)) as other, ThreadPoolExecutor(1) as pool:
        others = pool.submit(work_beside, other) if other else None
        try:
            work(lambda name: _drawn(results, name))
        finally:
            left.clear()
        if others:
            others.result()
    return made


def _key(results: StudyResults, name: str, entry: FigureEntry) -> str | None:
    """Return a hash of all that a figure is made of, its code included; None where that is not known."""
    if entry.reads_images:
        return None
    code = [sys.modules[module].__file__ for module in (entry.draw.__module__, style.__name__, __name__)]
    seen = results.only(entry.shows)
    about = (chestx_cli.__version__, importlib.metadata.version("matplotlib"), name, _stamps(results, entry))
    content = repr((about, seen.split_record, seen.split.sha256, seen.variants)).encode()
    return hashlib.sha256(content + b"".join(Path(file).read_bytes() for file in code if file)).hexdigest()


def _notes_file(study: Study) -> Path:
    # Folds share one cache; a study of its own may be given another name.
    is_own = study.cache.parent == study.root
    return study.cache / ("figures.json" if is_own else f"figures.{study.root.resolve().name}.json")


def _read_notes(study: Study) -> dict[str, dict[str, str | None]]:
    """Return what was noted of each figure of the report: the hash of what it was made of, and those of its files."""
    try:
        found = read_json(_notes_file(study))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _kept(study: Study, name: str, note: dict[str, str | None] | None, key: str | None) -> Pictures | None:
    """Return the figure that the report has, if it is made of the same and nobody has changed its files."""
    if key is None or not note or note.get("key") != key:
        return None
    try:
        svg, png = ((study.report / "figures" / f"{name}.{kind}").read_bytes() for kind in ("svg", "png"))
    except OSError:
        return None
    pictures = Pictures(svg=svg, png=png)
    return pictures if pictures.note(key) == note else None


def _earlier_bytes(study: Study, name: str) -> int:
    """Return the size of a figure as the study has it, which goes with the time of drawing it; 0 without one."""
    path = study.report / "figures" / f"{name}.svg"
    return path.stat().st_size if path.exists() else 0


def _drawn(results: StudyResults, name: str) -> Pictures | None:
    """Return a figure as both kinds of file; None where the study has no results for it."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The font lacks some scripts; a page shows such class names nevertheless, since its text stays text.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        # What it does not declare it does not get: the hash by which it is known again has all that it shows.
        figure = FIGURES[name].draw(results.only(FIGURES[name].shows))
        if figure is None:
            return None
        stamp_figure(figure, _stamps(results, FIGURES[name]))
        png = _png(figure)
        # The layout is found by now; finding it again takes half the time.
        figure.set_layout_engine("none")
        return Pictures(svg=_svg(figure), png=png)


@contextmanager
def drawing_beside(n_figures: int) -> Iterator[Beside | None]:
    """Start a process that draws figures inside the block; None where it would take longer to start than it saves."""
    if available_threads() < 2 or n_figures < WORTH_A_PROCESS:
        yield None
        return
    with beside("chestx_cli.reporting.figures.drawing", what="draws figures") as process:
        yield process


def drawn_beside(process: Beside, name: str) -> Pictures | None:
    """Return a figure that another process draws, as `_drawn` does; raises what that raises, and what `ask` does."""
    n_svg, content = process.ask(name)
    return None if n_svg is None else Pictures(svg=content[:n_svg], png=content[n_svg:])


def main() -> None:
    """Draw the figures that stdin names, of the results that it hands over first."""
    results = given()
    # What drawing imports when it is first needed: there is time for it now.
    import pandas  # noqa: F401
    from matplotlib.backends import backend_agg, backend_svg  # noqa: F401

    def draw(name: str) -> tuple[int | None, list[memoryview]]:
        found = _drawn(results, name)
        if found is None:
            return None, []
        return len(found.svg), [memoryview(found.svg), memoryview(found.png)]

    answer(draw)


def _stamps(results: StudyResults, entry: FigureEntry) -> tuple[str, ...]:
    """Return what must stand on a figure, such as UNGROUPED."""
    left_out = set(MODEL_STAMPS) - set(entry.model_stamps)
    return tuple(stamp for stamp in stamps_of(results.caveats) if stamp not in left_out)


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
    main()
