"""The registry of figures: what each shows, in words, and the function that draws it from a study."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.registry import Registry
from chestx_cli.evaluation.results import EVERYTHING, StudyResults
from chestx_cli.study.caveats import MODEL_STAMPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# None where the study lacks what the figure needs.
Draw = Callable[[StudyResults], "Figure | None"]


@dataclass(frozen=True, kw_only=True)
class FigureEntry:
    """A figure: its heading in the report, what it shows on which images (its alt text too), and how it is drawn."""

    title: str
    caption: str
    draw: Draw
    # Stamps of models that stand on it where one of the study's variants has them.
    model_stamps: tuple[str, ...] = MODEL_STAMPS
    # The parts of a study that `draw` is given, of `evaluation.results.EVERYTHING`: it is drawn anew when they change.
    shows: Collection[str] = EVERYTHING
    # Whether it shows pixels of images, too, which no document tells of: it is drawn anew each time.
    reads_images: bool = False


FIGURES: Registry[FigureEntry] = Registry("figure")


def figure(
    name: str,
    *,
    title: str,
    caption: str,
    model_stamps: tuple[str, ...] = MODEL_STAMPS,
    shows: Collection[str] = EVERYTHING,
    reads_images: bool = False,
) -> Callable[[Draw], Draw]:
    """Return a decorator that registers the function it decorates as the figure `name`."""

    def register(draw: Draw) -> Draw:
        entry = FigureEntry(
            title=title, caption=caption, draw=draw, model_stamps=model_stamps, shows=shows, reads_images=reads_images
        )
        FIGURES.add(name, entry)
        return draw

    return register
