"""`chestx report`: what the study shows, in words, tables and figures."""

from __future__ import annotations

from pathlib import Path

from chestx_cli.core.command import Run, stage
from chestx_cli.core.files import folder_appears_whole, write_atomic
from chestx_cli.core.shared_options import Seed, ShowPaths, StudyDir
from chestx_cli.evaluation.results import StudyResults, read_study
from chestx_cli.records.commands import ReportRecord, StatementRow
from chestx_cli.reporting.answers import of_report
from chestx_cli.reporting.decision import decide
from chestx_cli.reporting.page.blocks import Drawn
from chestx_cli.reporting.page.pictures import draw_examples, draw_flips, read_figures
from chestx_cli.reporting.page.statements import summarise
from chestx_cli.reporting.page.writing import MARKDOWN, PAGE, build_page, write_page
from chestx_cli.store.caveats import stamps_of
from chestx_cli.store.directory import open_study
from chestx_cli.store.locks import hold


@stage(examples=("chestx report",), after="export")
def report(
    run: Run,
    *,
    study: StudyDir = Path("study"),
    show_paths: ShowPaths = False,
    seed: Seed = 42,
) -> ReportRecord:
    """Write the study as one HTML page and as Markdown.

    The page holds everything it shows and loads nothing. Sentences are generated from the numbers; results of earlier
    weights or of another split are left out and named. The seed chooses the example images. Images are named by their
    ids; split.csv, which stays with the data, lists their files.
    """
    target = open_study(study)
    with run.reporter.progress("Reading the results and checking the models", None):
        results = read_study(target)
    hold(run, target.root, "the report")
    run.stamped(stamps_of(results.caveats))
    run.uses("split.csv", results.split.sha256)
    for variant in results.variants:
        run.uses(f"{variant.name}/{variant.record.model_file}", variant.record.model_sha256)
    # Figures that other commands draw wait meanwhile.
    with target.figures_files(), folder_appears_whole(target.report) as folder:
        figures, statements = _write(run, results, folder, seed, show_paths=show_paths)
    result = ReportRecord(
        stamp=run.stamp(),
        notes=tuple(f"Left out: {text}." for text in results.left_out),
        html=str(target.report / PAGE),
        markdown=str(target.report / MARKDOWN),
        figures=figures,
        variants=len(results.variants),
        statements=tuple(StatementRow(text=text) for text in statements),
    )
    decision = decide(results.variants) if results.evaluated else None
    return result.replace(answer=of_report(result, decision, result.html))


def _write(
    run: Run, results: StudyResults, folder: Path, seed: int, *, show_paths: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write the report's files into a folder; return the names of its figures, and its statements."""
    import numpy as np

    from chestx_cli.reporting.figures.drawing import FIGURES, draw_figures_into

    with run.reporter.progress("Drawing figures", len(FIGURES)) as advance:
        figures = read_figures(draw_figures_into(folder / "figures", results, tuple(FIGURES), advance))
    with run.reporter.progress("Drawing images that variants decide differently", None):
        examples = draw_examples(results, np.random.default_rng(seed))
        flips = draw_flips(results, run.reporter)
    for pictures in (examples, *flips.values()):
        for file, (_, content) in pictures.items():
            write_atomic(folder / "figures" / file, content)
    statements = summarise(results)
    decision = decide(results.variants) if results.evaluated else None
    names = tuple(figures)
    drawn = Drawn(
        figures=figures,
        examples=tuple(picture for picture, _ in examples.values()),
        flips={name: tuple(picture for picture, _ in pictures.values()) for name, pictures in flips.items()},
        show_paths=show_paths,
    )
    with run.reporter.progress("Writing the page", None):
        write_page(folder, build_page(results, decision, statements, drawn, run.command))
    return names, statements
