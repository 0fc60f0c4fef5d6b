"""`chestx report`: what the study shows, in words, tables and figures."""

from __future__ import annotations

from pathlib import Path

from chestx_cli.files import write_atomic
from chestx_cli.locks import hold
from chestx_cli.options import Seed, StudyDir
from chestx_cli.records import ReportRecord, StatementRow
from chestx_cli.report_sections import build_sections
from chestx_cli.report_statements import summarise
from chestx_cli.reporting import (
    Picture,
    draw_examples,
    gather,
    read_figures,
    render,
)
from chestx_cli.stage import Run, stage
from chestx_cli.study import Study


@stage
def report(run: Run, *, study: StudyDir = Path("study"), seed: Seed = 42) -> ReportRecord:
    """Write the study's tables, figures and conclusions as one HTML page and as Markdown.

    The page holds everything it shows and loads nothing. The words are made from the numbers; results that belong to
    earlier weights or to another split are left out and named. The seed chooses the example images.
    """
    import numpy as np

    from chestx_cli.figures import FIGURES, draw_figures

    target = Study(study)
    facts = gather(target)
    hold(run, target.root, "the report")
    run.uses("split.csv", facts.split.sha256)
    for variant in facts.variants:
        run.uses(f"{variant.name}/{variant.record.model_file}", variant.record.model_sha256)
    drawn: dict[str, Picture] = {}
    with run.reporter.progress("Drawing figures", len(FIGURES)) as advance:
        for name in FIGURES:
            drawn |= read_figures(draw_figures(target, (name,)))
            advance()
    figures = tuple(drawn)
    examples = draw_examples(facts, np.random.default_rng(seed))
    for file, (_, content) in examples.items():
        write_atomic(target.report / "figures" / file, content)
    statements = summarise(facts)
    pictures = tuple(picture for picture, _ in examples.values())
    sections = build_sections(facts, statements, drawn, pictures, run.command)
    values = {"classes": facts.split.classes, "sections": sections}
    page, markdown = target.report / "index.html", target.report / "report.md"
    write_atomic(page, render("report.html.j2", **values))
    write_atomic(markdown, render("report.md.j2", **values))
    return ReportRecord(
        stamp=run.stamp(),
        notes=tuple(f"Left out: {text}." for text in facts.stale),
        html=str(page),
        markdown=str(markdown),
        figures=figures,
        variants=len(facts.variants),
        statements=tuple(StatementRow(text=text) for text in statements),
    )
