"""Drawing a study's figures, as SVG for the page and as PNG for everything else."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

# These modules register their figures; the registry keeps the order in which they are imported.
from chestx_cli import (  # noqa: F401 - registers
    errors,
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
from chestx_cli.errors import ChestxError
from chestx_cli.figure_registry import FIGURES, FigureEntry
from chestx_cli.figure_style import STYLE, stamp_figure
from chestx_cli.files import storage_error, write_atomic
from chestx_cli.stage import available_threads
from chestx_cli.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "FIGURES",
    "Beside",
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

    def to_text(self) -> list[str]:
        """Return both as text, for JSON."""
        return [base64.b64encode(content).decode() for content in (self.svg, self.png)]

    @classmethod
    def from_text(cls, text: Sequence[str]) -> Pictures:
        """Return what `to_text` made text of."""
        svg, png = (base64.b64decode(one) for one in text)
        return cls(svg=svg, png=png)


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
    beside: Beside | None = None,
) -> tuple[DrawnFigure, ...]:
    """Draw figures into a folder and return those that the study has the results for.

    A process `beside` draws some of them meanwhile. The same study gives the same bytes. The files of a figure that
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
        other = pool.submit(work, beside.draw) if beside else None
        try:
            work(lambda name: _drawn(study, name, stamps))
        finally:
            left.clear()
        if other:
            other.result()
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
        stamp_figure(figure, stamps)
        png = _png(figure)
        # The layout is found by now; finding it again takes half the time.
        figure.set_layout_engine("none")
        return Pictures(svg=_svg(figure), png=png)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A process that draws figures of a study, one at a time; it writes no file."""

    process: subprocess.Popen[str]
    said: IO[str]

    def draw(self, name: str) -> Pictures | None:
        """Return the figure, as `_drawn` does; raises what that raises, and ChestxError where the process ended."""
        assert self.process.stdin is not None  # noqa: S101 - asked for below
        assert self.process.stdout is not None  # noqa: S101 - asked for below
        line = ""
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{name}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if not line:
            self.said.seek(0)
            last = self.said.read().strip().rpartition("\n")[2]
            raise ChestxError(f"the process that draws {name} ended with code {self.process.wait()}: {last}")
        answer = json.loads(line)
        if "failed" in answer:
            kind, fact, remedy = answer["failed"]
            raise getattr(errors, kind)(fact, remedy)
        return answer["drawn"] and Pictures.from_text(answer["drawn"])


@contextmanager
def drawing_beside(study: Study) -> Iterator[Beside | None]:
    """Start a process that draws figures of a study inside the block; None where there is one processor only.

    It is started by its command line, and not by multiprocessing: that would run the script of a caller again.
    """
    if available_threads() < 2:
        yield None
        return
    words = [sys.executable, "-P", "-m", "chestx_cli.figures", str(study.root)]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=said, text=True) as process,
    ):
        try:
            yield Beside(process=process, said=said)
        finally:
            process.kill()


def main(root: str) -> None:
    """Draw the figures of a study that stdin names, each as a line of JSON on stdout."""
    # What drawing imports when it is first needed: there is time for it now.
    import pandas  # noqa: F401
    from matplotlib.backends import backend_agg, backend_svg  # noqa: F401

    study = Study(Path(root))
    for line in sys.stdin:
        try:
            found = _drawn(study, line.strip(), _stamps(study))
            answer: dict[str, object] = {"drawn": found and found.to_text()}
        except ChestxError as error:
            kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
            answer = {"failed": [kind, error.fact, error.remedy]}
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


def _stamps(study: Study) -> tuple[str, ...]:
    """Return what must stand on every figure of a study, such as UNGROUPED; figures of no split have nothing to say."""
    if not study.split_json.exists():
        return ()
    return stamps_of(caveats(study.read_split(), study.read_split_record().group_rules))


def _png(figure: Figure) -> bytes:
    # By the canvas itself: savefig would first draw everything once for nothing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _svg(figure: Figure) -> bytes:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    # A date would make each drawing of the same study another file.
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
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
