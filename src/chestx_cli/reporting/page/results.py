"""The report's sections about results: accuracy, operating points, calibration, changed decisions, other images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.evaluation.result_tables import FEWEST_IMAGES, NEW_MISS
from chestx_cli.evaluation.results import StudyResults
from chestx_cli.records.preprocessing import RESIZED
from chestx_cli.reporting.page.blocks import UNFOLDED_ROWS, Block, Gallery, Section, Text, make_table, missing, table_of
from chestx_cli.store.caveats import LEAKED, UNREAD, caveat, stamped, stamps_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestx_cli.records.evaluation import EvaluationRecord
    from chestx_cli.reporting.page.blocks import Drawn

METHODS = (
    "Intervals by Wilson: score interval. By patients: the same, adjusted for several images per patient "
    "(effective sample size from 2,000 patient-level bootstrap resamples). By Newcombe-DeLong: "
    "Newcombe's method 5 with a design effect by DeLong's variance. By Tango: score interval of the paired "
    "difference. docs/statistics.md describes each method and its limits."
)


def evaluations(results: StudyResults) -> list[EvaluationRecord]:
    """Return the evaluations of all evaluated variants."""
    return [variant.evaluation for variant in results.variants if variant.evaluation]


def test_results(results: StudyResults, drawn: Drawn) -> list[Block]:
    """Return the results on the test split and the comparisons with the baseline."""
    records = evaluations(results)
    waiting = [v.name for v in results.variants if not v.evaluation]
    if not records:
        return [missing("No variant has been evaluated on the test split", "chestx evaluate")]
    n, patients = results.test_size()
    blocks: list[Block] = [Text(text=f"{n} test images of {patients} patients."), Text(text=METHODS)]
    if waiting:
        blocks.append(missing(f"Not evaluated: {', '.join(waiting)}", "chestx evaluate"))
    blocks += _results(records)
    blocks.append(
        table_of("Classification report", [row for e in records for row in e.class_rows], folded=len(records) > 1)
    )
    blocks += drawn.take("classification-report", "confusion-matrices")
    blocks += drawn.take_curve("roc-pr", "ROC and precision-recall curves")
    misses = [row for e in records for row in e.misses]
    positive = results.split_record.positive
    if misses:
        caption = f"False negatives: {positive} images called negative"
        files = drawn.files(results.split, [row.image_id for row in misses])
        blocks.append(table_of(caption, misses, extra=files, folded=len(misses) > UNFOLDED_ROWS))
    else:
        blocks.append(Text(text=f"No {positive} image of the test split was missed."))
    return blocks


def _results(records: Sequence[EvaluationRecord]) -> list[Block]:
    """Return tables of accuracy and AUROC, decision counts and paired comparisons."""
    rows = [e.rows[0] for e in records]
    compared = [e.comparison for e in records if e.comparison]
    blocks: list[Block] = [
        table_of("Accuracy and AUROC, each with its 95 % interval", rows),
        make_table(
            "Counts of decisions, and the AUROC's interval by the bootstrap",
            [
                ("Variant", "", [row.variant for row in rows]),
                ("True positives", ",", [row.true_positives for row in rows]),
                ("False negatives", ",", [row.false_negatives for row in rows]),
                ("True negatives", ",", [row.true_negatives for row in rows]),
                ("False positives", ",", [row.false_positives for row in rows]),
                ("AUROC, bootstrap of patients", ".3f", [row.auroc_bootstrap_interval for row in rows]),
            ],
        ),
    ]
    if compared:
        blocks.append(
            table_of("Against the baseline on the same images; p values corrected for the number of variants", compared)
        )
    return blocks


def operating_points(results: StudyResults, drawn: Drawn) -> list[Block]:
    """Return thresholds, sensitivity, specificity, drift of the operating point, predictive values, net benefit."""
    records = evaluations(results)
    if not records:
        return [missing("Operating points are shown with test results", "chestx evaluate")]
    positive = results.split_record.positive
    points = [v.record.operating_point for v in results.variants if v.evaluation]
    explanation = (
        f"An image is called {positive} if its probability reaches the variant's threshold. A threshold of 0.5 is a "
        "convention; the others were chosen on the validation split, by the same rule for every variant; the test "
        "images were not used. Choosing the rule after seeing test results biases them upwards."
    )
    blocks: list[Block] = [
        Text(text=explanation),
        table_of("At the frozen operating points", [e.operating_rows[0] for e in records]),
    ]
    if any(points):
        chosen = [(v, p) for v, p in ((v, v.record.operating_point) for v in results.variants if v.evaluation) if p]
        blocks.append(
            make_table(
                "Thresholds on the validation images they were chosen on (biased upwards: use the table above)",
                [
                    ("Variant", "", [v.name for v, _ in chosen]),
                    ("Rule", "", [p.rule for _, p in chosen]),
                    ("Threshold", ".3f", [v.record.threshold for v, _ in chosen]),
                    ("Images", ",", [p.images for _, p in chosen]),
                    ("Sensitivity", ".1%", [p.sensitivity for _, p in chosen]),
                    ("Specificity", ".1%", [p.specificity for _, p in chosen]),
                ],
                folded=True,
            )
        )
    drift = [row for e in records for row in e.drift]
    if drift:
        blocks += [
            Text(
                text=(
                    "Drift: change of sensitivity and specificity if the model is replaced and the baseline's "
                    "threshold is kept. Intervals of changes are Tango's, as for accuracy."
                )
            ),
            table_of("Drift of the operating point after compression", drift),
            table_of(
                "Guards of the verdict, at the variants' own thresholds: measures that must not fall",
                [row for e in records for row in e.guards],
            ),
        ]
    blocks.append(
        table_of("Predictive values at other prevalences", [row for e in records for row in e.predictive_values])
    )
    blocks += drawn.take_curve("decision-curve", "Decision curve")
    blocks.append(
        table_of(
            "Net benefit per 100 images: true positives minus false positives, weighted by the odds of the threshold",
            [row for e in records for row in e.net_benefit],
            folded=True,
        )
    )
    return blocks


def calibration(results: StudyResults, drawn: Drawn) -> list[Block]:
    """Return the calibration of the probabilities, before and after compression."""
    records = evaluations(results)
    if not records:
        return [missing("Calibration is shown with test results", "chestx evaluate")]
    fits = [(v.name, v.record.temperature_fit, v.record.temperature) for v in results.variants]
    explanation = (
        "Of images with a probability of 0.8, 8 in 10 should be positive. Slope below 1: probabilities too "
        "extreme; above 1: not extreme enough. Intercept above 0: too low on average. ECE: mean gap over "
        "equal-count bins, 0 at best but biased upwards in small samples. The probabilities hold for the "
        "prevalence in these images."
    )
    blocks: list[Block] = [
        Text(text=explanation),
        table_of("Calibration of each variant, the baseline first", [e.calibration[0] for e in records]),
        *drawn.take_curve("reliability", "Reliability of the probabilities"),
    ]
    fitted = [(name, fit, value) for name, fit, value in fits if fit]
    if fitted:
        blocks.append(
            make_table(
                "Temperatures fitted on the validation images",
                [
                    ("Variant", "", [name for name, _, _ in fitted]),
                    ("Temperature", ".3f", [value for _, _, value in fitted]),
                    ("Images", ",", [fit.images for _, fit, _ in fitted]),
                    ("Log-loss before", ".3f", [fit.log_loss_before for _, fit, _ in fitted]),
                    ("after", ".3f", [fit.log_loss_after for _, fit, _ in fitted]),
                ],
            )
        )
    return blocks


def changed_decisions(results: StudyResults, drawn: Drawn) -> list[Block]:
    """Return the images whose decision differs from the baseline's, some of them as pictures."""
    compared = [e for e in evaluations(results) if e.comparison]
    if not compared:
        return []
    blocks: list[Block] = []
    for evaluation in compared:
        name, flips = evaluation.rows[0].variant, evaluation.flips
        if not flips:
            blocks.append(Text(text=f"{name} decides all {evaluation.images} test images like {evaluation.reference}."))
            continue
        new = sum(row.change == NEW_MISS for row in flips)
        caption = f"{name}: {len(flips)} of {evaluation.images} decisions changed, {new} of them new false negatives"
        files = drawn.files(results.split, [row.image_id for row in flips])
        blocks.append(table_of(caption, flips, without=("variant",), extra=files, folded=len(flips) > UNFOLDED_ROWS))
        blocks += flips_gallery(results, name, drawn, of=len(flips))
    return blocks


def flips_gallery(results: StudyResults, name: str, drawn: Drawn, *, of: int) -> list[Block]:
    """Return the pictures of a variant's changed decisions, `of` of which there are, if any were drawn."""
    pictures = drawn.flips.get(name, ())
    if not pictures:
        return []
    shown = "All of them" if len(pictures) == of else f"The first {len(pictures)} of them"
    resize = next(variant.record.preprocessing.resize for variant in results.variants if variant.name == name)
    return [
        Gallery(
            title=f"Decisions changed by {name}",
            pictures=pictures,
            caption=f"{shown}, as the network sees them: {RESIZED[resize]}.",
        )
    ]


def subgroups(results: StudyResults, drawn: Drawn) -> list[Block]:  # noqa: ARG001 - every section has this signature
    """Return results by subgroup, if they were evaluated."""
    return _subgroup_tables(evaluations(results))


def _subgroup_tables(records: Sequence[EvaluationRecord]) -> list[Block]:
    rows = [row for e in records for row in e.subgroups]
    if not rows:
        return []
    explanation = (
        "Subgroups are small and many: their intervals are not corrected for multiple comparisons, and no result "
        f"is given below {FEWEST_IMAGES} images. If a subgroup has one class, its accuracy is its sensitivity or "
        "specificity."
    )
    tables = [
        table_of(
            f"By {column}, with the change against the baseline on the same images",
            [row for row in rows if row.column == column],
        )
        for column in dict.fromkeys(row.column for row in rows)
    ]
    return [Text(text=explanation), *tables]


def other_images(results: StudyResults) -> list[Section]:
    """Return one section per data set other than the test split that variants were evaluated on."""
    records = [evaluation for variant in results.variants for evaluation in variant.externals]
    names = dict.fromkeys(evaluation.split for evaluation in records)
    return [_other_images_section(results, [record for record in records if record.split == name]) for name in names]


def _other_images_section(results: StudyResults, records: Sequence[EvaluationRecord]) -> Section:
    """Return the section of one other data set, from the evaluations of all variants on it."""
    first = records[0]
    notes = list(dict.fromkeys(note for e in records for note in stamped(e.notes) if note not in results.split_caveats))
    unproven = list(dict.fromkeys(caveat(row.variant, row.finding) for e in records for row in e.unproven))
    unseen = (
        "" if {LEAKED, UNREAD} & set(stamps_of(notes)) else ", none of them found in the training or validation split"
    )
    blocks: list[Block] = [
        Text(text=f"{first.images:,} images of {first.patients:,} patients{unseen}. Thresholds are the study's own."),
        Text(text=METHODS),
        *(Text(text=note, tone="warning") for note in (*notes, *unproven)),
        *_results(records),
        table_of("At the frozen operating points", [e.operating_rows[0] for e in records]),
        table_of("Calibration", [e.calibration[0] for e in records]),
        *_subgroup_tables(records),
    ]
    predictive = [row for e in records for row in e.predictive_values]
    if predictive:
        blocks.append(table_of("Predictive values at other prevalences", predictive, folded=True))
    if len({e.images_sha256 for e in records}) > 1:
        blocks.insert(1, Text(text="The variants were evaluated on different states of these images.", tone="warning"))
    stamps = stamps_of((*results.split_caveats, *notes, *results.model_caveats, *unproven))
    return Section(title=f"Results on other images: {first.split}", blocks=tuple(blocks), stamps=stamps)
