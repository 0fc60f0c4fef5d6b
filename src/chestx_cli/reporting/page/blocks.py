"""Building blocks of a page: sections of texts, tables and pictures."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from chestx_cli.core.record import Column, table_columns

if TYPE_CHECKING:
    from chestx_cli.store.split import Split

UNFOLDED_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph; the tone is empty, `hint` (a result is missing) or `warning`."""

    kind: ClassVar[str] = "text"
    text: str
    tone: str = ""


@dataclass(frozen=True, kw_only=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]
    title: str = ""
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts; each column's style is `number`, `code`, `prose` or empty, optionally with `spare`.

    Spare columns are hidden in a narrow window on the first screen.
    """

    kind: ClassVar[str] = "table"
    caption: str
    headings: tuple[str, ...]
    styles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False
    # Path of the CSV file with the same cells, relative to the page.
    file: str = ""
    # Index of the row that the decision names.
    marked: int | None = None
    # Link target of each row's first cell, relative to the page; empty for no links.
    links: tuple[str, ...] = ()

    def with_marked(self, row: int | None) -> Table:
        """Return the table with one row marked as the chosen one."""
        return dataclasses.replace(self, marked=row)

    def with_links(self, links: tuple[str, ...]) -> Table:
        """Return the table with a link from the first cell of each row."""
        return dataclasses.replace(self, links=links)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as a data URI for the page and as a path relative to the Markdown file."""

    kind: ClassVar[str] = "picture"
    title: str
    caption: str
    uri: str
    link: str
    # Largest size in pixels on the page before the picture is opened; a drawing has no height of its own.
    width_px: int = 0
    height_px: int = 0
    # Whether it shows pixels of images, which dark mode must not change.
    has_pixels: bool = False

    @property
    def anchor(self) -> str:
        """Return the link target that opens the picture at full size."""
        return re.sub(r"[^a-z0-9]+", "-", self.link.rpartition("/")[2].lower()).strip("-")


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """A row of small pictures."""

    kind: ClassVar[str] = "gallery"
    title: str
    pictures: tuple[Picture, ...]
    caption: str


# A column: heading, format spec, one value per row.
Shown = tuple[str, str, Sequence[object]]
Block = Text | Bullets | Table | Picture | Gallery


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The pictures of a page, and whether the page may show image paths, which may identify patients.

    Sections remove the figures that they show from `figures`; `flips` are images with a changed decision, by variant.
    """

    figures: dict[str, Picture]
    examples: tuple[Picture, ...]
    flips: Mapping[str, tuple[Picture, ...]]
    show_paths: bool

    def take(self, *names: str) -> list[Block]:
        """Return the named figures that exist, and remove them from `figures`."""
        return [self.figures.pop(name) for name in names if name in self.figures]

    def take_curve(self, name: str, title: str) -> list[Block]:
        """Return a figure as `take` does, or a hint that there are too few images for it."""
        return self.take(name) or [Text(text=f"{title}: too few images for this figure.", tone="hint")]

    def files(self, split: Split, image_ids: Sequence[str]) -> list[Shown]:
        """Return a column with the paths of some images of a split; empty unless paths may be shown."""
        if not self.show_paths:
            return []
        path_of = dict(zip(split.ids.tolist(), split.paths.tolist(), strict=True))
        return [("File", "", [path_of[image_id] for image_id in image_ids])]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and its blocks."""

    title: str
    blocks: tuple[Block, ...]
    # Stamps shown before each of its tables, such as UNGROUPED.
    stamps: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """Return the heading as a link target."""
        return re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")


def percent(value: float, digits: int = 1) -> str:
    """Return a rate as `96.4 %`, with more digits where it would otherwise round to 0 % or 100 %."""
    while 0 < value < 1 and digits < 6 and f"{value:.{digits}%}" in {f"{0:.{digits}%}", f"{1:.{digits}%}"}:
        digits += 1
    return f"{100 * value:.{digits}f} %"


def rate(part: int, whole: int) -> float:
    """Return part / whole; NaN if `whole` is 0."""
    return part / whole if whole else float("nan")


def make_table(
    caption: str, shown: Sequence[Shown], *, folded: bool = False, styles: Mapping[str, str] = MappingProxyType({})
) -> Table:
    """Return a table; numeric columns are recognised by their values, `styles` gives other styles by heading."""

    def style(heading: str, values: Sequence[object]) -> str:
        numbers = all(isinstance(v, (int, float, tuple)) or v is None for v in values)
        return styles.get(heading, "number" if numbers and not all(isinstance(v, bool) for v in values) else "")

    def cell(spec: str, value: object) -> str:
        # Between signed numbers a dash could be read as a minus sign.
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
    """Return dataclass rows as a table of their displayed fields, followed by `extra` columns."""
    fields = [
        (column.heading, column.spec, values) for name, column, values in table_columns(rows) if name not in without
    ]
    return make_table(caption, [*fields, *extra], folded=folded)


def pairs_table(caption: str, pairs: Sequence[tuple[str, str]], *, folded: bool = False) -> Table:
    """Return a table of names and values."""
    names, values = [name for name, _ in pairs], [value for _, value in pairs]
    return make_table(caption, [("What", "", names), ("Value", "", values)], folded=folded, styles={"Value": "prose"})


def missing(fact: str, command: str) -> Text:
    """Return the hint shown in place of a missing result: a fact and the command that produces it."""
    return Text(text=f'{fact}: run "{command}".', tone="hint")
