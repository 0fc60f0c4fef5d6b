"""The registry of figures: title, caption and drawing function of each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.registry import Registry
from chestx_cli.evaluation.results import EVERYTHING, StudyResults
from chestx_cli.store.caveats import MODEL_STAMPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Returns None if the study lacks the results that the figure needs.
Draw = Callable[[StudyResults], "Figure | None"]


@dataclass(frozen=True, kw_only=True)
class FigureEntry:
    """A figure: its heading in the report, its caption (also the alt text) and the function that draws it."""

    title: str
    caption: str
    draw: Draw
    # Model stamps to print on the figure if any variant of the study carries them.
    model_stamps: tuple[str, ...] = MODEL_STAMPS
    # The parts of `evaluation.results.EVERYTHING` passed to `draw`; a change in one of them triggers redrawing.
    shows: Collection[str] = EVERYTHING
    # Whether it shows pixels of images, which no document records: such a figure is redrawn each time.
    reads_images: bool = False


FIGURES: Registry[FigureEntry] = Registry("figure", of=FigureEntry)


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
