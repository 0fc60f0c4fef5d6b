"""`chestx evaluate`: every variant on the test split or other images, compared with the baseline on the same images."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.core.command import Run, stage
from chestx_cli.core.errors import UsageError
from chestx_cli.core.files import sha256_of, write_atomic
from chestx_cli.core.options import Opt
from chestx_cli.core.printable import counted
from chestx_cli.core.shared_options import (
    AllowLateral,
    AurocMargin,
    Baseline,
    GroupRegex,
    Groups,
    Margin,
    Prevalences,
    Seed,
    SensitivityMargin,
    SpecificityMargin,
    StudyDir,
    Threads,
    Variants,
)
from chestx_cli.data.sources.label_tables import LabelsFrom
from chestx_cli.data.sources.manifest_files import Wish, read_manifest, wish_of
from chestx_cli.data.sources.patients import pathogen_of
from chestx_cli.evaluation.endpoints import ACCURACY, ENDPOINTS
from chestx_cli.evaluation.learned import findings
from chestx_cli.evaluation.predictions import Images, images_of, predictions_csv, predictions_of
from chestx_cli.evaluation.reading import read_study
from chestx_cli.evaluation.result_tables import NEW_MISS, EvaluationOptions, evaluate_all
from chestx_cli.evaluation.results import BENCHMARKS, VARIANTS
from chestx_cli.evaluation.statistics.intervals import BOOTSTRAP_DRAWS, draw_patients
from chestx_cli.evaluation.statistics.operating_points import CHOICES_HELP
from chestx_cli.evaluation.subgroups import subgroups_of
from chestx_cli.evaluation.verdicts import Margins
from chestx_cli.inference.prediction import predict_split
from chestx_cli.inference.thresholds import freeze
from chestx_cli.records.evaluation import EvaluationRecord, FlipRow, UnprovenRow
from chestx_cli.records.split import SPLITS, TEST
from chestx_cli.records.variant import BASELINE
from chestx_cli.reporting.answers import of_evaluation
from chestx_cli.reporting.decision import decide
from chestx_cli.store.caveats import caveat, stamps_of, uses_split
from chestx_cli.store.directory import Study, open_study
from chestx_cli.store.documents import write_record
from chestx_cli.store.lineage import unproven_models, uses_models
from chestx_cli.store.locks import hold
from chestx_cli.store.tables import read_csv_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from chestx_cli.core.record import Options
    from chestx_cli.evaluation.predictions import Predictions
    from chestx_cli.inference.external_images import Source
    from chestx_cli.records.answers import Decision
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.split import Split

# Columns for --by that are read from file names if no manifest has them.
BY_NAME = {"pathogen": pathogen_of}
# Options that need --data.
ABOUT_OTHER_IMAGES = ("name", "labels_from", "groups", "group_regex", "allow_leakage", "allow_lateral")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The images to evaluate on, each variant's probabilities [N] for them, caveats and notes.

    The image `paths` and the `manifests` that list them only define subgroups and are not stored.
    """

    where: str
    images: Images
    paths: tuple[str, ...]
    sha256: str
    manifests: tuple[pd.DataFrame, ...]
    probability: dict[str, npt.NDArray[np.float64]]
    caveats: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unlike: int | None = None


def _require_other_images(options: Options) -> None:
    for name in ABOUT_OTHER_IMAGES if options["data"] is None else ():
        if options[name] not in (None, False):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} applies to other images only", "name them with --data, or leave it out", option=name
            )


@stage(
    examples=(
        "chestx evaluate",
        "chestx evaluate --operating-point sensitivity=0.95 --by pathogen",
        "chestx evaluate --data other/ --name external",
    ),
    after="compress",
    check=_require_other_images,
)
def evaluate(
    run: Run,
    variants: Variants = (),
    *,
    study: StudyDir = Path("study"),
    data: Annotated[Path | None, Opt(help="Other images than the study's test split.", metavar="DATA")] = None,
    name: Annotated[str | None, Opt(help="Its name with --data; external by default.", identity=False)] = None,
    labels_from: LabelsFrom = None,
    groups: Groups = None,
    group_regex: GroupRegex = None,
    allow_leakage: Annotated[bool, Opt(help="Evaluate images that leak (LEAKED).")] = False,
    allow_lateral: AllowLateral = False,
    baseline: Baseline = BASELINE,
    operating_point: Annotated[
        str | None,
        Opt(
            help=f"{CHOICES_HELP}.",
            metavar="RULE",
        ),
    ] = None,
    temperature: Annotated[bool, Opt(help="Fit temperatures on validation; keep them.")] = False,
    endpoint: Annotated[str, Opt(help="What the verdict is on.", choices=ENDPOINTS)] = ACCURACY,
    margin: Margin = None,
    sensitivity_margin: SensitivityMargin = 0.05,
    specificity_margin: SpecificityMargin = 0.05,
    auroc_margin: AurocMargin = 0.02,
    prevalence: Prevalences = (0.05, 0.10, 0.30),
    by: Annotated[str | None, Opt(help="Column of the manifest that names subgroups.")] = None,
    threads: Threads = None,
    seed: Seed = 42,
) -> EvaluationRecord:
    """Judge every variant on the test images: which to ship?

    Each variant is compared with the baseline on the same images. The verdict is on the endpoint, accuracy by default;
    a fall in sensitivity, specificity or AUROC rules out a good verdict.

    The threshold is 0.5, or with --operating-point chosen for each variant on the validation images and kept in it.
    Torch variants run in FP32 under PyTorch, ONNX variants under ONNX Runtime, both on the CPU.
    """
    import numpy as np

    margin = ENDPOINTS[endpoint].margin if margin is None else margin
    target = open_study(study)
    split = target.read_split()
    hold(run, target.root, "the evaluation")
    where = _evaluation_name(name, data)
    source = None
    if data is not None:
        # Here, since the test split needs no reader of folders.
        from chestx_cli.inference.external_images import Source

        source = Source(
            data=data,
            name=where,
            groups=groups,
            group_regex=group_regex,
            labels_from=labels_from,
            allow_leakage=allow_leakage,
            allow_lateral=allow_lateral,
        )
    reference = target.read_usable_variant(baseline, split)
    chosen = [reference, *(record for record in target.chosen(variants, split) if record.name != baseline)]
    caveats = uses_split(run, target, split)
    chosen = _frozen(run, target, split, chosen, operating_point or reference.operating_rule, temperature, threads)
    for record in chosen:
        run.uses(f"{record.name}/{record.model_file}", record.model_sha256)
    judged = (
        _on_test(run, target, split, chosen, threads)
        if source is None
        else _on_others(run, target, split, chosen, source, threads)
    )
    patients = draw_patients(judged.images.groups, np.random.default_rng(seed))
    predictions = {r.name: predictions_of(judged.images, judged.probability[r.name], r.threshold) for r in chosen}
    unproven = _unproven(chosen, predictions, baseline, split, where)
    retested = tuple(r.name for r in chosen) if where == TEST else ()
    of_models = (
        *uses_models(run, target, chosen, retested=retested),
        *(caveat(row.variant, row.finding) for row in unproven),
    )
    run.stamped(stamps_of(of_models))
    options = EvaluationOptions(
        baseline=baseline,
        reference="the baseline" if baseline == BASELINE else baseline,
        margins=Margins(
            endpoint=margin, sensitivity=sensitivity_margin, specificity=specificity_margin, auroc=auroc_margin
        ),
        faults=(
            *(finding for _, finding in unproven_models(target, chosen[:1], retested=retested)),
            *(row.finding for row in unproven if row.variant == baseline),
        ),
        prevalences=prevalence,
        endpoint=endpoint,
        column=by or "",
        subgroups=None if by is None else subgroups_of(by, judged.images, judged.paths, judged.manifests, BY_NAME),
    )
    with run.reporter.progress("Computing intervals and tests", None):
        tables = evaluate_all(chosen, predictions, patients, options)
    result = EvaluationRecord(
        stamp=run.stamp(),
        notes=(
            *(f"{row.variant} is {row.verdict}." for row in tables.comparisons),
            *_flip_notes(tables.flips),
            *caveats,
            *of_models,
            *judged.caveats,
            *judged.notes,
            *_notes(len(chosen), len(judged.images.ids), patients.n),
        ),
        split=where,
        images_sha256=judged.sha256,
        images=len(judged.images.ids),
        patients=patients.n,
        unlike_training=judged.unlike,
        positive=split.classes[split.positive],
        baseline=baseline,
        endpoint=endpoint,
        margin=margin,
        baseline_faults=options.faults,
        split_sha256=split.sha256,
        unproven=unproven,
        rows=tables.rows,
        operating_rows=tables.operating_rows,
        comparisons=tables.comparisons,
        drift=tables.drift,
        guards=tables.guards,
        calibration=tables.calibration,
        predictive_values=tables.predictive_values,
        subgroups=tables.subgroups,
        flips=tables.flips,
        net_benefit=tables.net_benefit,
        class_rows=tables.class_rows,
        misses=tables.misses,
    )
    for record in chosen:
        with target.results_of(record) as folder:
            write_atomic(folder / f"predictions.{where}.csv", predictions_csv(predictions[record.name]))
            write_record(folder / f"evaluation.{where}.json", result.of(record.name))
    if data is None:
        from chestx_cli.reporting.figures.drawing import draw_figures

        names = ("confusion-matrices", "roc-pr", "classification-report", "reliability", "decision-curve")
        draw_figures(target, names, run.reporter)
    return result.replace(answer=of_evaluation(result, _decision(target, chosen, result), judged.notes))


def _decision(target: Study, chosen: list[VariantRecord], result: EvaluationRecord) -> Decision:
    """Decide what to ship from these results and the stored times of the same models."""
    names = [record.name for record in chosen]
    stored = read_study(target, parts=(VARIANTS, BENCHMARKS), names=names, check_models=False)
    return decide([replace(variant, evaluation=result.of(variant.name)) for variant in stored.variants])


def _evaluation_name(name: str | None, data: Path | None) -> str:
    """Return the name of the evaluation in its files; raises UsageError for an invalid name."""
    if data is None:
        return TEST
    chosen = name or "external"
    if chosen in SPLITS or not chosen.replace("-", "").replace("_", "").isalnum():
        raise UsageError(
            f"--name {chosen!r} cannot name an evaluation", "use letters, digits, '_' and '-', as in external"
        )
    return chosen


def _frozen(
    run: Run,
    target: Study,
    split: Split,
    chosen: list[VariantRecord],
    rule: str,
    temperature: bool,
    threads: int | None,
) -> list[VariantRecord]:
    """Return the variants with their operating points chosen; all get a temperature if the baseline has one."""
    fit = temperature or chosen[0].temperature_fit is not None
    with run.reporter.progress("Choosing operating points", len(chosen)) as advance:
        frozen = []
        for record in chosen:
            frozen.append(freeze(run, target, split, record, rule=rule, temperature=fit, threads=threads))
            advance()
    return frozen


def _on_test(run: Run, target: Study, split: Split, chosen: list[VariantRecord], threads: int | None) -> Judged:
    rows = split.indices(TEST)
    probability = {}
    with run.reporter.progress("Evaluating variants", len(chosen)) as advance:
        for record in chosen:
            class_probability = predict_split(target, split, record, rows, run.reporter, threads=threads)
            probability[record.name] = class_probability[:, split.positive]
            advance()
    split_record = target.read_split_record()
    manifest = _manifest(target, Path(split_record.source), wish_of(split_record))
    return Judged(
        where=TEST,
        images=images_of(split, rows),
        paths=tuple(split.paths[rows].tolist()),
        sha256=hashlib.sha256("\n".join(split.image_sha256[rows].tolist()).encode()).hexdigest(),
        manifests=(read_csv_text(target.split_csv.read_bytes()), *manifest),
        probability=probability,
    )


def _on_others(
    run: Run, target: Study, split: Split, chosen: list[VariantRecord], source: Source, threads: int | None
) -> Judged:
    from chestx_cli.inference.external_images import external_wish, predict_external

    external = predict_external(source, run, target, split, chosen, threads=threads)
    run.stamped(stamps_of(external.caveats))
    if source.groups is not None:
        run.uses("groups", sha256_of(source.groups))
    write_atomic(target.images_csv(source.name), external.listed)
    return Judged(
        where=source.name,
        images=external.images,
        paths=external.paths,
        sha256=external.sha256,
        manifests=_manifest(target, source.data, external_wish(source.labels_from, split)),
        probability=external.probability,
        caveats=external.caveats,
        notes=external.notes,
        unlike=external.unlike,
    )


def _manifest(target: Study, path: Path, wish: Wish) -> tuple[pd.DataFrame, ...]:
    """Return the manifest that lists the images, if the data were given as one."""
    return (read_manifest(path, wish, leave_out=target.root).table,) if path.is_file() else ()


def _flip_notes(flips: tuple[FlipRow, ...]) -> tuple[str, ...]:
    by_variant = Counter(row.variant for row in flips)
    new = Counter(row.variant for row in flips if row.change == NEW_MISS)
    return tuple(
        f"{name} changes {counted(n, 'decision')}; {_new_misses(new[name])}. The report shows them."
        for name, n in by_variant.items()
    )


def _new_misses(n: int) -> str:
    return f"{n} are new false negatives" if n > 1 else f"{n or 'none'} is a new false negative"


def _unproven(
    chosen: list[VariantRecord], predictions: dict[str, Predictions], baseline: str, split: Split, where: str
) -> tuple[UnprovenRow, ...]:
    """Return the trained models, and the baseline, that these images do not show to have learned anything."""
    images = "test images" if where == TEST else f"images of {where}"
    return tuple(
        UnprovenRow(variant=record.name, finding=finding)
        for record in chosen
        if record.is_new_network or record.name == baseline
        for finding in findings([predictions[record.name]], split.class_pair, images)
    )


def _notes(chosen_n: int, n: int, patients: int) -> tuple[str, ...]:
    notes = [f"{n} images of {patients} patients: one image is {1 / n:.1%} of accuracy."]
    if patients < n:
        notes.append(
            "Intervals by patients are adjusted for several images per patient (effective sample size from "
            f"{BOOTSTRAP_DRAWS:,} patient-level bootstrap resamples); p is from a patient-level permutation test. "
            "Intervals without that word are of images of which no patient has several."
        )
    if chosen_n > 2:
        notes.append(f"The p values and the verdicts are corrected for comparing {chosen_n - 1} variants (Holm).")
    return tuple(notes)
