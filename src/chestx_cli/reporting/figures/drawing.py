"""Drawing of a study's figures as SVG (for the page) and PNG (for everything else)."""

from __future__ import annotations

import dataclasses
import functools
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
from chestx_cli.core.progress import SILENT
from chestx_cli.core.record import Record
from chestx_cli.core.worker import Beside, answer, beside, receive
from chestx_cli.evaluation.reading import read_study
from chestx_cli.evaluation.results import VARIANTS, StudyResults, VariantResults
from chestx_cli.reporting.figures import style
from chestx_cli.reporting.figures.registry import FIGURES, FigureEntry
from chestx_cli.reporting.figures.style import STYLE, stamp_figure
from chestx_cli.store.caveats import MODEL_STAMPS, stamps_of

# isort: off
# Importing one of these modules registers its figures; a report shows them in this order.
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

# Draws like one of the modules above, and must not register it before its turn.
from chestx_cli.reporting.figures.pooled import POOLED_FIGURES
# isort: on

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from chestx_cli.core.progress import Reporter
    from chestx_cli.records.cells import StudyRecord
    from chestx_cli.store.directory import Study

__all__ = [
    "FIGURES",
    "POOLED_FIGURES",
    "DrawnFigure",
    "FigureEntry",
    "draw_figures",
    "draw_figures_into",
    "draw_pooled_figures",
    "drawing_beside",
]


# Starting a second process takes as long as drawing two or three figures: it pays off from this number on.
WORTH_A_PROCESS = 6


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The content of a figure's two files."""

    svg: bytes
    png: bytes

    def note(self, key: str | None) -> dict[str, str | None]:
        """Return the cache entry: the hash of the figure's inputs and those of its two files."""
        svg, png = (hashlib.sha256(content).hexdigest() for content in (self.svg, self.png))
        return {"key": key, "svg_sha256": svg, "png_sha256": png}


@dataclass(frozen=True, kw_only=True)
class DrawnFigure:
    """A figure that was written: its name, title, caption and two files."""

    name: str
    title: str
    caption: str
    svg: Path
    png: Path
    # Whether it shows pixels of images.
    has_pixels: bool = False


def draw_figures(study: Study, names: Iterable[str], reporter: Reporter = SILENT) -> tuple[DrawnFigure, ...]:
    """Draw figures into the study's report/figures/ as `draw_figures_into` does, keeping the other figures there."""
    names = tuple(names)
    parts = {part for name in names for part in FIGURES[name].shows}
    # Stamps come from the variants.
    parts |= {VARIANTS} if any(FIGURES[name].model_stamps for name in names) else set()
    with study.figures_files(), reporter.progress("Drawing figures", len(names)) as advance:
        results = read_study(study, parts=parts, check_models=False, needed=())
        return draw_figures_into(study.report / "figures", results, names, advance)


def draw_figures_into(
    folder: Path, results: StudyResults, names: Iterable[str], advance: Callable[[], None] = lambda: None
) -> tuple[DrawnFigure, ...]:
    """Draw figures into a folder; return those for which the study has results. The figures' lock must be held.

    A figure of the report whose inputs have not changed is reused. If many remain, a second process draws some of them.
    The same study gives the same bytes. The files of a figure that can no longer be drawn are removed. Raises
    UsageError for an unknown name, IntegrityError for a damaged record, StorageError.
    """
    entries = {name: FIGURES[name] for name in names}
    hashes: dict[int, str] = {}
    keys = {name: _key(results, name, entry, hashes) for name, entry in entries.items()}
    notes = _read_notes(results.study)
    stored = {name: _stored_pictures(results.study, name, notes.get(name), key) for name, key in keys.items()}
    unchanged = {name: pictures for name, pictures in stored.items() if pictures}
    for _ in unchanged:
        advance()
    pictures_of = unchanged | _draw_all(results, [name for name in entries if name not in unchanged], advance)
    drawn = []
    for name, entry in entries.items():
        pictures = pictures_of[name]
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        if pictures is None:
            _remove(svg, png)
            notes.pop(name, None)
            continue
        if name not in unchanged or not svg.exists():
            write_atomic(png, pictures.png)
            write_atomic(svg, pictures.svg)
        notes[name] = pictures.note(keys[name])
        drawn.append(
            DrawnFigure(
                name=name,
                title=entry.title,
                caption=entry.caption,
                svg=svg,
                png=png,
                has_pixels=entry.reads_images,
            )
        )
    write_atomic(_notes_file(results.study), json.dumps(notes, indent=1))
    return tuple(drawn)


def _draw_all(results: StudyResults, names: Sequence[str], advance: Callable[[], None]) -> dict[str, Pictures | None]:
    """Return figures by name; if there are many, a second process draws some of them."""
    # Largest files first: they take longest, and drawing one last would leave a process idle.
    remaining = deque(sorted(names, key=lambda name: -_stored_bytes(results.study, name)))
    pictures_of: dict[str, Pictures | None] = {}

    def work(draw: Callable[[str], Pictures | None]) -> None:
        while True:
            try:
                name = remaining.popleft()
            except IndexError:
                return
            pictures_of[name] = draw(name)
            advance()

    def work_beside(other: Beside) -> None:
        other.send(results)
        work(lambda name: drawn_beside(other, name))

    with drawing_beside(len(names)) as other, ThreadPoolExecutor(1) as pool:
        other_thread = pool.submit(work_beside, other) if other else None
        try:
            work(lambda name: _drawn(results, name))
        finally:
            remaining.clear()
        if other_thread:
            other_thread.result()
    return pictures_of


def _key(results: StudyResults, name: str, entry: FigureEntry, hashes: dict[int, str]) -> str | None:
    """Return a hash of all inputs of a figure, its code included; None for a figure that reads image files.

    `hashes` caches the hash of each document by the document's `id`, so that each is hashed once for all figures.
    """
    if entry.reads_images:
        return None
    code = [sys.modules[module].__file__ for module in (entry.draw.__module__, style.__name__, __name__)]
    inputs = results.only(entry.shows)
    context = (chestx_cli.__version__, importlib.metadata.version("matplotlib"), name, _stamps(results, entry))
    content = repr((context, inputs.split.sha256, _hashed((inputs.split_record, *inputs.variants), hashes))).encode()
    return hashlib.sha256(content + b"".join(Path(file).read_bytes() for file in code if file)).hexdigest()


def _hashed(value: object, hashes: dict[int, str]) -> object:
    """Return a value with its documents replaced by hashes: their repr omits most of their content."""
    if isinstance(value, Record):
        if id(value) not in hashes:
            hashes[id(value)] = hashlib.sha256(value.to_json().encode()).hexdigest()
        return hashes[id(value)]
    if isinstance(value, tuple):
        return tuple(_hashed(part, hashes) for part in value)
    if isinstance(value, VariantResults):
        return tuple(_hashed(getattr(value, part.name), hashes) for part in dataclasses.fields(value))
    return value


def _notes_file(study: Study) -> Path:
    # Folds and cells share one cache, so their files differ by name; a study with its own cache may be renamed.
    is_own = study.cache.parent == study.root
    within = () if is_own else study.root.resolve().relative_to(study.cache.resolve().parent).parts
    return study.cache / ".".join(("figures", *within, "json"))


def _read_notes(study: Study) -> dict[str, dict[str, str | None]]:
    """Return the cache entries of the report's figures by name, as `Pictures.note` writes them; empty if unreadable."""
    try:
        notes = read_json(_notes_file(study))
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _stored_pictures(study: Study, name: str, note: dict[str, str | None] | None, key: str | None) -> Pictures | None:
    """Return the report's stored figure; None if its inputs or its files have changed."""
    if key is None or not note or note.get("key") != key:
        return None
    try:
        svg, png = ((study.report / "figures" / f"{name}.{kind}").read_bytes() for kind in ("svg", "png"))
    except OSError:
        return None
    pictures = Pictures(svg=svg, png=png)
    return pictures if pictures.note(key) == note else None


def _stored_bytes(study: Study, name: str) -> int:
    """Return the size of the stored SVG, an estimate of how long drawing takes; 0 if there is none."""
    path = study.report / "figures" / f"{name}.svg"
    return path.stat().st_size if path.exists() else 0


def _drawn(results: StudyResults, name: str) -> Pictures | None:
    """Return a figure as SVG and PNG; None if the study lacks the results for it."""
    entry = FIGURES[name]
    # A figure receives only the parts that it declares, so that the hash of its inputs is complete.
    return _pictures(lambda: entry.draw(results.only(entry.shows)), _stamps(results, entry))


def draw_pooled_figures(
    folder: Path, record: StudyRecord, advance: Callable[[], None] = lambda: None
) -> tuple[DrawnFigure, ...]:
    """Draw the figures of a study over folds and seeds into a folder; return those for which it has results."""
    drawn = []
    for entry in POOLED_FIGURES:
        pictures = _pictures(functools.partial(entry.draw, record), record.stamp.data_stamps)
        advance()
        if pictures is None:
            continue
        svg, png = folder / f"{entry.name}.svg", folder / f"{entry.name}.png"
        write_atomic(png, pictures.png)
        write_atomic(svg, pictures.svg)
        drawn.append(DrawnFigure(name=entry.name, title=entry.title, caption=entry.caption, svg=svg, png=png))
    return tuple(drawn)


def _pictures(draw: Callable[[], Figure | None], stamps: Sequence[str]) -> Pictures | None:
    """Return the figure drawn by a function as SVG and PNG, with stamps; None if it draws none."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The font lacks some scripts. Browsers still show such class names, since SVG text stays text.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        figure = draw()
        if figure is None:
            return None
        stamp_figure(figure, stamps)
        png = _png(figure)
        # The PNG has computed the layout; computing it again would take half of the drawing time.
        figure.set_layout_engine("none")
        return Pictures(svg=_svg(figure), png=png)


@contextmanager
def drawing_beside(n_figures: int) -> Iterator[Beside | None]:
    """Yield a second process that draws figures; None if starting it would take longer than it saves."""
    if available_threads() < 2 or n_figures < WORTH_A_PROCESS:
        yield None
        return
    with beside("chestx_cli.reporting.figures.drawing", what="draws figures") as process:
        yield process


def drawn_beside(process: Beside, name: str) -> Pictures | None:
    """Return a figure drawn by another process, as `_drawn` does; raises the errors of `_drawn` and of `ask`."""
    n_svg, content = process.ask(name)
    return None if n_svg is None else Pictures(svg=content[:n_svg], png=content[n_svg:])


def main() -> None:
    """Read a study's results from stdin, then draw the figures that stdin names."""
    results = receive()
    # Import now, while waiting, the modules that drawing needs.
    import pandas  # noqa: F401
    from matplotlib.backends import backend_agg, backend_svg  # noqa: F401

    def draw(name: str) -> tuple[int | None, list[memoryview]]:
        pictures = _drawn(results, name)
        if pictures is None:
            return None, []
        return len(pictures.svg), [memoryview(pictures.svg), memoryview(pictures.png)]

    answer(draw)


def _stamps(results: StudyResults, entry: FigureEntry) -> tuple[str, ...]:
    """Return the stamps to print on a figure, such as UNGROUPED."""
    left_out = set(MODEL_STAMPS) - set(entry.model_stamps)
    return tuple(stamp for stamp in stamps_of(results.caveats) if stamp not in left_out)


def _png(figure: Figure) -> bytes:
    # Print by the canvas: `savefig` would draw everything twice.
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]  # matplotlib's
    return buffer.getvalue()


def _svg(figure: Figure) -> bytes:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    # No date: the same study must give the same bytes.
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]  # matplotlib's
    return buffer.getvalue()


def _remove(*paths: Path) -> None:
    """Remove files of an earlier state of the study, so that they are not mistaken for current ones."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, path) from error


if __name__ == "__main__":
    main()
