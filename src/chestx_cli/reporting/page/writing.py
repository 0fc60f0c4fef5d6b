"""Builds a page and writes it: HTML, Markdown, the model card, and the tables as CSV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.files import write_atomic
from chestx_cli.reporting.page.opening import Opening, build_opening, build_reasons
from chestx_cli.reporting.page.pooled import PooledResults, build_pooled_opening, build_pooled_reasons
from chestx_cli.reporting.page.pooled_sections import build_pooled_sections
from chestx_cli.reporting.page.render import render
from chestx_cli.reporting.page.sections import build_sections
from chestx_cli.reporting.page.tables import csv_of, tables_of, with_files, without_repeats

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chestx_cli.evaluation.results import StudyResults
    from chestx_cli.records.answers import Decision
    from chestx_cli.reporting.page.blocks import Drawn, Section

PAGE, MARKDOWN, CARD = "index.html", "report.md", "model-card.md"


@dataclass(frozen=True, kw_only=True)
class Page:
    """The three depths of a report: the answer, the reasons, and everything, folded."""

    title: str
    opening: Opening
    reasons: Section
    sections: tuple[Section, ...]

    @property
    def card(self) -> Section | None:
        """Return the section with the model card; None without a model."""
        return next((section for section in self.sections if section.title == "Model card"), None)


def build_page(
    results: StudyResults, decision: Decision | None, statements: Sequence[str], drawn: Drawn, command: str
) -> Page:
    """Return the page of a report, without repeated sentences; removes its figures from `drawn`."""
    opening = build_opening(results, decision, drawn)
    reasons = build_reasons(results, decision, statements)
    sections = build_sections(results, decision, drawn, command)
    return _page(results, "study report", opening, reasons, sections)


def build_pooled_page(pooled: PooledResults, drawn: Drawn) -> Page:
    """Return the page of a study over folds and seeds; removes its figures from `drawn`."""
    opening, reasons = build_pooled_opening(pooled, drawn), build_pooled_reasons(pooled)
    sections = build_pooled_sections(pooled, drawn)
    return _page(pooled.cell, "study over folds and seeds", opening, reasons, sections)


def _page(results: StudyResults, what: str, opening: Opening, reasons: Section, sections: Sequence[Section]) -> Page:
    """Return a page without repeated sentences, its tables with the names of their files."""
    title = f"{' or '.join(results.split.classes)} on chest X-rays: {what}"
    reasons, *rest = with_files(without_repeats((reasons, *sections), (*opening.warnings, opening.sentence)))
    return Page(title=title, opening=opening, reasons=reasons, sections=tuple(rest))


def write_page(folder: Path, page: Page) -> None:
    """Write a page's files into a folder."""
    values = {"page": page, "opening": page.opening, "reasons": page.reasons, "sections": page.sections}
    write_atomic(folder / PAGE, render("report.html.j2", **values))
    write_atomic(folder / MARKDOWN, render("report.md.j2", **values))
    if page.card:
        write_atomic(folder / CARD, render("model-card.md.j2", card=page.card.blocks[0], stamps=page.card.stamps))
    for table in tables_of((page.reasons, *page.sections)):
        write_atomic(folder / table.file, csv_of(table))
