"""What a page is made of: sections of texts, tables and pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from chestx_cli.core.record import Column, table_columns

if TYPE_CHECKING:
    from chestx_cli.study.split import Split

UNFOLDED_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph; the tone is empty, `hint` (something is not there yet) or `warning`."""

    kind: ClassVar[str] = "text"
    text: str
    tone: str = ""


@dataclass(frozen=True, kw_only=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts; `styles` has `number`, `code`, `prose` or nothing for each column."""

    kind: ClassVar[str] = "table"
    caption: str
    headings: tuple[str, ...]
    styles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as a data URI for the page and as a path relative to the Markdown file."""

    kind: ClassVar[str] = "picture"
    title: str
    caption: str
    uri: str
    link: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """A row of small pictures."""

    kind: ClassVar[str] = "gallery"
    title: str
    pictures: tuple[Picture, ...]
    caption: str


# Heading, format spec, one value per row.
Shown = tuple[str, str, Sequence[object]]
Block = Text | Bullets | Table | Picture | Gallery


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The pictures of a page, and whether it may name the files of images, which may name patients.

    Sections take their figures out of `figures`; `flips` are images with a changed decision, by variant.
    """

    figures: dict[str, Picture]
    examples: tuple[Picture, ...]
    flips: Mapping[str, tuple[Picture, ...]]
    show_paths: bool

    def take(self, *names: str) -> list[Block]:
        """Return those of these figures that are there, and take them out."""
        return [self.figures.pop(name) for name in names if name in self.figures]

    def files(self, split: Split, image_ids: Sequence[str]) -> list[Shown]:
        """Return the column with the files of some images of a split; none unless they may be named."""
        if not self.show_paths:
            return []
        path_of = dict(zip(split.ids.tolist(), split.paths.tolist(), strict=True))
        return [("File", "", [path_of[image_id] for image_id in image_ids])]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]
    # What stands before each of its tables, such as UNGROUPED.
    stamps: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """Return the heading as the page's link target."""
        return re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")


def percent(value: float, digits: int = 1) -> str:
    """Return a rate as `96.4 %`; a rate below 1 is never rounded up to 100 %."""
    while 0 < value < 1 and digits < 6 and f"{value:.{digits}%}" in {f"{0:.{digits}%}", f"{1:.{digits}%}"}:
        digits += 1
    return f"{100 * value:.{digits}f} %"


def rate(part: int, whole: int) -> float:
    """Return part / whole, or NaN of nothing."""
    return part / whole if whole else float("nan")


def make_table(
    caption: str, shown: Sequence[Shown], *, folded: bool = False, styles: Mapping[str, str] = MappingProxyType({})
) -> Table:
    """Return a table; columns of numbers are told by their values, the style of others is given by heading."""

    def style(heading: str, values: Sequence[object]) -> str:
        numbers = all(isinstance(v, (int, float, tuple)) or v is None for v in values)
        return styles.get(heading, "number" if numbers and not all(isinstance(v, bool) for v in values) else "")

    def cell(spec: str, value: object) -> str:
        # Between signed numbers a dash would be read as a sign.
        text = Column(heading="", spec=spec, separator=" to " if spec.startswith("+") else "–").text(value)
        return re.sub(r"%(?!–)", " %", text).replace("%–", "–") if spec.endswith("%") else text

    texts = [[cell(spec, value) for value in values] for _, spec, values in shown]
    return Table(
        caption=caption,
        headings=tuple(heading for heading, _, _ in shown),
        styles=tuple(style(heading, values) for heading, _, values in shown),
        rows=tuple(zip(*texts, strict=True)),
        folded=folded,
    )


def table_of(
    caption: str, rows: Sequence[Any], *, without: Sequence[str] = (), extra: Sequence[Shown] = (), folded: bool = False
) -> Table:
    """Return dataclass rows as a table of their shown fields, and of `extra` columns after them."""
    own = [(column.heading, column.spec, values) for name, column, values in table_columns(rows) if name not in without]
    return make_table(caption, [*own, *extra], folded=folded)


def pairs_table(caption: str, pairs: Sequence[tuple[str, str]], *, folded: bool = False) -> Table:
    """Return names and values as a table."""
    names, values = [name for name, _ in pairs], [value for _, value in pairs]
    return make_table(caption, [("What", "", names), ("Value", "", values)], folded=folded, styles={"Value": "prose"})


def missing(fact: str, command: str) -> Text:
    """Return the sentence that stands where a part of the study has not been made."""
    return Text(text=f'{fact}: run "{command}".', tone="hint")
