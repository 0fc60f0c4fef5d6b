"""The registry of figures: what each shows, in words, and the function that draws it from a study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.audit import MODEL_STAMPS
from chestx_cli.registry import Registry
from chestx_cli.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# None where the study lacks what the figure needs.
Draw = Callable[[Study], "Figure | None"]


@dataclass(frozen=True, kw_only=True)
class FigureEntry:
    """A figure: its heading in the report, what it shows on which images (its alt text too), and how it is drawn."""

    title: str
    caption: str
    draw: Draw
    # Stamps of models that stand on it where one of the study's variants has them.
    model_stamps: tuple[str, ...] = MODEL_STAMPS


FIGURES: Registry[FigureEntry] = Registry("figure")


def figure(
    name: str, *, title: str, caption: str, model_stamps: tuple[str, ...] = MODEL_STAMPS
) -> Callable[[Draw], Draw]:
    """Return a decorator that registers the function it decorates as the figure `name`."""

    def register(draw: Draw) -> Draw:
        FIGURES.add(name, FigureEntry(title=title, caption=caption, draw=draw, model_stamps=model_stamps))
        return draw

    return register
