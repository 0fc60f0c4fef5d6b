"""`chestx report`: what the study shows, in words, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from chestx_cli.core.command import Run, stage
from chestx_cli.core.errors import IntegrityError
from chestx_cli.core.files import folder_appears_whole, write_atomic
from chestx_cli.core.shared_options import Seed, ShowPaths, StudyDir
from chestx_cli.evaluation.reading import read_study
from chestx_cli.evaluation.results import StudyResults
from chestx_cli.records.commands import ReportRecord, StatementRow
from chestx_cli.reporting.answers import of_report
from chestx_cli.reporting.decision import decide
from chestx_cli.reporting.page.blocks import Drawn, Picture
from chestx_cli.reporting.page.pictures import draw_examples, draw_exemplars, draw_flips, read_figures
from chestx_cli.reporting.page.pooled import PooledResults, statements_of
from chestx_cli.reporting.page.statements import summarise
from chestx_cli.reporting.page.writing import MARKDOWN, PAGE, build_page, build_pooled_page, write_page
from chestx_cli.reporting.study_answer import choice_of, of_page
from chestx_cli.store.caveats import stamps_of
from chestx_cli.store.directory import Study, open_study
from chestx_cli.store.locks import hold

# Pictures of images by the name of their file, each with its bytes.
PicturesByFile = Mapping[str, tuple[Picture, bytes]]


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

    Of a study over folds and seeds the page has the pooled answer; each of its cells can have a page of its own.
    """
    if Study(study).plan_json.exists() or Study(study).study_json.exists():
        return _report_pooled(run, study, show_paths=show_paths)
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
    statements = summarise(results)
    decision = decide(results.variants) if results.evaluated else None
    names = tuple(figures)
    drawn = _drawn(folder, figures, examples, flips, show_paths=show_paths)
    with run.reporter.progress("Writing the page", None):
        write_page(folder, build_page(results, decision, statements, drawn, run.command))
    return names, statements


def _drawn(
    folder: Path,
    figures: dict[str, Picture],
    examples: PicturesByFile,
    flips: Mapping[str, PicturesByFile],
    *,
    show_paths: bool,
) -> Drawn:
    """Write the files of pictures of images, and return all pictures of a page."""
    for pictures in (examples, *flips.values()):
        for file, (_, content) in pictures.items():
            write_atomic(folder / "figures" / file, content)
    return Drawn(
        figures=figures,
        examples=tuple(picture for picture, _ in examples.values()),
        flips={name: tuple(picture for picture, _ in pictures.values()) for name, pictures in flips.items()},
        show_paths=show_paths,
    )


def _report_pooled(run: Run, root: Path, *, show_paths: bool) -> ReportRecord:
    """Write the page of a study over folds and seeds, whose cells must be those that its results are of."""
    # All of its commands come with it.
    from chestx_cli.cells.answered import read_answered
    from chestx_cli.commands.study import STAGES
    from chestx_cli.reporting.figures.drawing import POOLED_FIGURES, draw_pooled_figures

    with run.reporter.progress("Reading the cells", None):
        record, plan, pooled = read_answered(root, STAGES)
    if pooled.timed is None:
        raise IntegrityError(f"{root}/ has no complete seed", 'run "chestx study"')
    hold(run, root, "the report")
    run.stamped(record.stamp.data_stamps)
    for name, sha256 in pooled.inputs.items():
        run.uses(name, sha256)
    choice = choice_of(record, pooled.records, pooled.benchmarks)
    results = PooledResults(
        record=record,
        plan=plan,
        cell=pooled.timed,
        benchmarks=pooled.benchmarks,
        choice=choice,
        noise=pooled.noise_sentence,
        caveats=pooled.caveats,
        command=run.command,
    )
    target = open_study(root)
    with target.figures_files(), folder_appears_whole(target.report) as folder:
        with run.reporter.progress("Drawing figures", len(POOLED_FIGURES)) as advance:
            figures = read_figures(draw_pooled_figures(folder / "figures", record, advance))
        names = tuple(figures)
        with run.reporter.progress("Drawing images that variants decide differently", None):
            flips = draw_exemplars(pooled.timed, record.exemplars, run.reporter)
        drawn = _drawn(folder, figures, {}, flips, show_paths=show_paths)
        with run.reporter.progress("Writing the page", None):
            write_page(folder, build_pooled_page(results, drawn))
    page = str(target.report / PAGE)
    result = ReportRecord(
        stamp=run.stamp(),
        html=page,
        markdown=str(target.report / MARKDOWN),
        figures=names,
        variants=len(record.rows),
        statements=tuple(StatementRow(text=text) for text in statements_of(record)),
    )
    return result.replace(answer=of_page(record, root, choice, pooled.noise_sentence, page))
