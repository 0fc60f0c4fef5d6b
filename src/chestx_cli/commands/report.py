"""`chestx report`: what the study shows, in words, tables and figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.core.command import Run, stage
from chestx_cli.core.files import folder_appears_whole, write_atomic
from chestx_cli.core.options import Opt
from chestx_cli.core.shared_options import Seed, StudyDir
from chestx_cli.evaluation.results import read_results
from chestx_cli.records.commands import ReportRecord, StatementRow
from chestx_cli.reporting.answers import of_report
from chestx_cli.reporting.decision import decide
from chestx_cli.reporting.page.facts import StudyFacts, gather
from chestx_cli.reporting.page.pictures import draw_examples, draw_flips, read_figures
from chestx_cli.reporting.page.render import render
from chestx_cli.reporting.page.sections import build_sections
from chestx_cli.reporting.page.statements import summarise
from chestx_cli.study.caveats import stamps_of, uses_split
from chestx_cli.study.directory import Study
from chestx_cli.study.locks import hold

if TYPE_CHECKING:
    from chestx_cli.core.worker import Beside

PAGE, MARKDOWN = "index.html", "report.md"


@stage
def report(
    run: Run,
    *,
    study: StudyDir = Path("study"),
    show_paths: Annotated[
        bool, Opt(help="Tell the files and the folder of images too, which may name patients.", identity=False)
    ] = False,
    seed: Seed = 42,
) -> ReportRecord:
    """Write the study's tables, figures and conclusions as one HTML page and as Markdown.

    The page holds everything it shows and loads nothing. The words are made from the numbers; results that belong to
    earlier weights or to another split are left out and named. The seed chooses the example images. Images are named
    by their ids; split.csv, which stays with the data, tells their files.
    """
    from chestx_cli.reporting.figures.drawing import drawing_beside

    target = Study(study)
    # Where there is nothing to draw, this says so.
    target.read_split_record()
    # Started first: it loads its libraries while the results are read.
    with drawing_beside(target) as other:
        facts = gather(target, show_paths=show_paths)
        hold(run, target.root, "the report")
        uses_split(run, target, facts.split)
        run.stamped(stamps_of(facts.model_caveats))
        for variant in facts.variants:
            run.uses(f"{variant.name}/{variant.record.model_file}", variant.record.model_sha256)
        # Figures that other commands draw wait meanwhile.
        with target.figures_files(), folder_appears_whole(target.report) as folder:
            figures, statements = _write(run, facts, folder, seed, other)
    result = ReportRecord(
        stamp=run.stamp(),
        notes=tuple(f"Left out: {text}." for text in facts.stale),
        html=str(target.report / PAGE),
        markdown=str(target.report / MARKDOWN),
        figures=figures,
        variants=len(facts.variants),
        statements=tuple(StatementRow(text=text) for text in statements),
    )
    stored = read_results(target)
    decision = decide(stored) if any(one.evaluation for one in stored) else None
    return result.replace(answer=of_report(result, decision, result.html))


def _write(
    run: Run, facts: StudyFacts, folder: Path, seed: int, other: Beside | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write the report's files into a folder; return the names of its figures, and its statements."""
    import numpy as np

    from chestx_cli.reporting.figures.drawing import FIGURES, draw_figures_into

    with run.reporter.progress("Drawing figures", len(FIGURES)) as advance:
        drawn = read_figures(draw_figures_into(folder / "figures", facts.study, tuple(FIGURES), advance, other))
    examples = draw_examples(facts, np.random.default_rng(seed))
    flips = draw_flips(facts, run.reporter)
    for found in (examples, *flips.values()):
        for file, (_, content) in found.items():
            write_atomic(folder / "figures" / file, content)
    by_variant = {name: tuple(picture for picture, _ in found.values()) for name, found in flips.items()}
    facts = dataclasses.replace(facts, flip_pictures=by_variant)
    statements = summarise(facts)
    pictures = tuple(picture for picture, _ in examples.values())
    # The sections take their figures out of the mapping.
    names = tuple(drawn)
    sections = build_sections(facts, statements, drawn, pictures, run.command)
    values = {"classes": facts.split.classes, "sections": sections}
    write_atomic(folder / PAGE, render("report.html.j2", **values))
    write_atomic(folder / MARKDOWN, render("report.md.j2", **values))
    return names, statements
