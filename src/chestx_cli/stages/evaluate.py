"""`chestx evaluate`: every variant on the test split, compared with the baseline on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.audit import caveats
from chestx_cli.evaluation import class_rows, evaluation_row, misses, predictions_of
from chestx_cli.locks import hold
from chestx_cli.options import Baseline, Seed, StudyDir, Threads, Variants
from chestx_cli.predicting import predict_split
from chestx_cli.predictions import write_predictions
from chestx_cli.records import EvaluationRecord
from chestx_cli.stage import Run, stage
from chestx_cli.stats import BOOTSTRAP_DRAWS
from chestx_cli.study import BASELINE, Study, write_record

if TYPE_CHECKING:
    from chestx_cli.predictions import Predictions
    from chestx_cli.records import VariantRecord
    from chestx_cli.study import Split


@stage
def evaluate(
    run: Run,
    variants: Variants = (),
    *,
    study: StudyDir = Path("study"),
    baseline: Baseline = BASELINE,
    threads: Threads = None,
    seed: Seed = 42,
) -> EvaluationRecord:
    """Evaluate variants on the test split, with intervals and paired tests against the baseline.

    Torch variants run in FP32 under PyTorch, ONNX variants under ONNX Runtime, both on the CPU.
    """
    import numpy as np

    target = Study(study)
    split = target.read_split()
    hold(run, target.root, "the evaluation")
    reference = target.read_usable_variant(baseline, split)
    named = target.chosen(variants, split)
    chosen = [reference, *(record for record in named if record.name != baseline)]
    run.uses("split.csv", split.sha256)
    rows = split.indices("test")
    found: dict[str, Predictions] = {}
    with run.reporter.progress("Evaluating variants", len(chosen)) as advance:
        for record in chosen:
            run.uses(f"{record.name}/{record.model_file}", record.model_sha256)
            probabilities = predict_split(target, split, record, rows, run.reporter, threads=threads)
            found[record.name] = predictions_of(record, split, rows, probabilities)
            advance()
    evaluated = tuple(
        evaluation_row(
            record,
            found[record.name],
            None if record is reference else found[baseline],
            "the baseline" if baseline == BASELINE else baseline,
            split.groups[rows],
            np.random.default_rng(seed),
        )
        for record in chosen
    )
    result = EvaluationRecord(
        stamp=run.stamp(),
        notes=(
            *(f"{row.variant} is {row.verdict}." for row in evaluated[1:]),
            *caveats(split, target.read_split_record().group_rules),
            *_notes(target, split, chosen),
        ),
        split="test",
        images=len(rows),
        patients=len(set(split.groups[rows].tolist())),
        positive=split.classes[split.positive],
        baseline=baseline,
        split_sha256=split.sha256,
        rows=evaluated,
        class_rows=tuple(row for record in chosen for row in class_rows(record, found[record.name], split)),
        misses=tuple(row for record in chosen for row in misses(record, found[record.name], split, rows)),
    )
    for record in chosen:
        folder = target.variant(record.name)
        write_predictions(folder / "predictions.test.csv", found[record.name])
        write_record(folder / "evaluation.test.json", result.of(record.name))
    from chestx_cli.figures import draw_figures

    draw_figures(target, ("confusion-matrices", "roc-pr", "classification-report"))
    return result


def _notes(target: Study, split: Split, chosen: list[VariantRecord]) -> tuple[str, ...]:
    rows = split.indices("test")
    n, patients = len(rows), len(set(split.groups[rows].tolist()))
    notes = [
        f"{n} test images: one image is {1 / n:.1%} of accuracy. Accuracy has Wilson's 95 % score interval, AUROC a "
        f"95 % interval from {BOOTSTRAP_DRAWS:,} bootstrap draws of patients. Lost and won count images "
        "against the baseline."
    ]
    if patients < n:
        notes.append(
            f"The {n} images come from {patients} patients; Wilson's interval and McNemar's test count images as "
            "independent and are therefore somewhat too narrow."
        )
    if len(chosen) > 2:
        notes.append(f"The p values are not corrected for comparing {len(chosen) - 1} variants.")
    present = {name: target.read_variant(name).model_sha256 for name in target.variant_names()}
    notes.extend(
        f"{record.name} was made from an earlier {record.parent} than the present one."
        for record in chosen
        if record.parent in present and present[record.parent] != record.parent_sha256
    )
    return tuple(notes)
