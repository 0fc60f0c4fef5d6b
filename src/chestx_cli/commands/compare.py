"""`chestx compare`: the full paired comparison of two variants."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.core.command import Run, stage
from chestx_cli.core.errors import StudyError, UsageError
from chestx_cli.core.options import Opt
from chestx_cli.core.shared_options import AurocMargin, Margin, Seed, SensitivityMargin, SpecificityMargin, StudyDir
from chestx_cli.evaluation.cells import auroc_gap_of, compare_cells
from chestx_cli.evaluation.comparison import auroc_rows, cells_of, endpoint_row, fold_rows, paired_rows, read_pair
from chestx_cli.evaluation.endpoints import ACCURACY, ENDPOINTS
from chestx_cli.evaluation.learned import findings
from chestx_cli.evaluation.predictions import sides, stacked
from chestx_cli.evaluation.reading import read_study
from chestx_cli.evaluation.result_tables import flip_rows
from chestx_cli.evaluation.results import EVALUATIONS, VARIANTS
from chestx_cli.evaluation.statistics.intervals import draw_patients
from chestx_cli.evaluation.verdicts import Margins, in_words, judge
from chestx_cli.records.evaluation import CompareRecord
from chestx_cli.reporting import answers
from chestx_cli.store.caveats import caveat, stamps_of
from chestx_cli.store.directory import open_study
from chestx_cli.store.lineage import in_fold

if TYPE_CHECKING:
    from chestx_cli.evaluation.statistics.auroc import AurocDifference

First = Annotated[str, Opt(help="Variant that the other is compared with.", argument=True, metavar="A")]
Second = Annotated[str, Opt(help="Variant to judge.", argument=True, metavar="B")]


@stage(
    examples=("chestx compare baseline static-int8", "chestx compare baseline oneshot-50 --margin 0.05"),
    after="evaluate",
    answer=answers.of_comparison,
)
def compare(
    run: Run,
    first: First,
    second: Second,
    *,
    study: StudyDir = Path("study"),
    on: Annotated[str, Opt(help="Images: test, or the --name of an evaluation.")] = "test",
    endpoint: Annotated[str, Opt(help="What the verdict is on.", choices=ENDPOINTS)] = ACCURACY,
    margin: Margin = None,
    sensitivity_margin: SensitivityMargin = 0.05,
    specificity_margin: SpecificityMargin = 0.05,
    auroc_margin: AurocMargin = 0.02,
    seed: Seed = 42,
) -> CompareRecord:
    """Compare two variants in full on the same images.

    The verdict is on the endpoint, accuracy by default; a fall in sensitivity, specificity or AUROC rules out a good
    verdict.

    In a study of folds each image was tested once, by its fold's model: counts are over all folds, and measures of
    probabilities are computed within folds.
    """
    import numpy as np

    if first == second:
        raise UsageError(f"{first} is compared with itself", "name two variants")
    target = open_study(study)
    cells = cells_of(target)
    if not cells:
        raise StudyError(f"{study}/ lists folds but contains none", "make them again")
    read = [read_study(cell, parts=(VARIANTS, EVALUATIONS), names=(first, second)) for _, cell in cells]
    margin = ENDPOINTS[endpoint].margin if margin is None else margin
    pairs = [read_pair(results, fold, first, second, on) for (fold, _), results in zip(cells, read, strict=True)]
    sentences: list[str] = []
    faults: list[str] = []
    for results, pair in zip(read, pairs, strict=True):
        prefix = f"{pair.fold}/" if pair.fold else ""
        run.uses(f"{prefix}split.csv", results.split.sha256)
        for variant in results.variants:
            run.uses(f"{prefix}{variant.name}/{variant.record.model_file}", variant.record.model_sha256)
        sentences += (*results.split_caveats, *pair.caveats, *in_fold(pair.fold, results.model_caveats))
        faults += results.variants[0].unproven
    a, b = (stacked(side) for side in sides(pairs))
    split = read[0].split
    images = "test images" if on == "test" else f"images of {on}"
    unproven = findings([pair.first for pair in pairs], split.class_pair, images)
    sentences += [caveat(first, finding) for finding in unproven]
    run.stamped(stamps_of(sentences))
    patients = draw_patients(a.images.groups, np.random.default_rng(seed))
    margins = Margins(
        endpoint=margin, sensitivity=sensitivity_margin, specificity=specificity_margin, auroc=auroc_margin
    )
    comparison = compare_cells(second, pairs, endpoint, margins, tuple(dict.fromkeys((*faults, *unproven))))
    on_endpoint = comparison.endpoint
    (verdict,) = judge([comparison])
    return CompareRecord(
        stamp=run.stamp(),
        notes=(
            *_notes(pairs_n=len(pairs), test=on_endpoint.test),
            *(_auroc_note(auroc_gap_of(pairs)) if len(pairs) > 1 else ()),
            *dict.fromkeys(sentences),
        ),
        first=first,
        second=second,
        evaluated_on=f"{on}, pooled over {len(pairs)} folds" if len(pairs) > 1 else on,
        images=on_endpoint.n,
        patients=patients.n,
        endpoint=endpoint,
        margin=margin,
        word=verdict.word,
        short=verdict.short,
        verdict=f"{second} is {in_words(comparison, verdict, first)}.",
        needed_images=verdict.needed_images,
        endpoint_rows=(endpoint_row(pairs, on_endpoint),),
        rows=paired_rows(a, b, patients, margin, split.classes[split.positive]),
        auroc_rows=auroc_rows(pairs, seed),
        guards=comparison.guards,
        folds=fold_rows(pairs, seed),
        flips=flip_rows(second, a, b),
    )


def _notes(*, pairs_n: int, test: str) -> tuple[str, ...]:
    notes = [
        f"p is from the exact paired test ({test}) of this comparison alone: chestx evaluate corrects it for the "
        "number of variants."
    ]
    if pairs_n > 1:
        notes.append(
            f"The {pairs_n} folds' models differ: the interval covers the sampling of images, not the variation "
            "between trainings."
        )
    return tuple(notes)


def _auroc_note(gap: AurocDifference | None) -> tuple[str, ...]:
    if gap is None:
        return ()
    low, high = gap.interval
    return (
        f"Mean ΔAUROC within folds: {gap.value:+.4f}, 95 % {low:+.4f} to {high:+.4f}, p = {gap.p:.2g}; scores of "
        "different folds are not compared with each other.",
    )
