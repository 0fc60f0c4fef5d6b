"""A methods section to paste into a paper, and the model card, both from the study's records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.core.options import declared_fields
from chestx_cli.core.printable import counted, paragraph
from chestx_cli.core.record import NOT_A_DEVICE, Options
from chestx_cli.core.shared_options import Refinements
from chestx_cli.evaluation.results import CPU, StudyResults
from chestx_cli.inference.speedups import runtime_name
from chestx_cli.records.preprocessing import RESIZED
from chestx_cli.reporting.page.blocks import Block, Table, Text, pairs_table, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestx_cli.core.record import Stamp
    from chestx_cli.records.answers import Decision
    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.records.variant import Training, VariantRecord

PACKAGES = ("chestx-cli", "torch", "torchvision", "onnxruntime", "scikit-learn", "numpy", "python")


def methods_text(results: StudyResults) -> list[Block]:
    """Return paragraphs on data, models, statistics and speed, with the study's numbers, versions and citations."""
    paragraphs = (_data(results), _models(results), _statistics(results), speed_text(results))
    return [Text(text=text) for text in paragraphs if text]


def _data(results: StudyResults) -> str:
    record = results.split_record
    parts = ", ".join(f"{row.images:,} {row.label} in {row.split}" for row in record.rows)
    how = "split them by patient" if _is_split_by_patient(results) else "split them"
    return paragraph(
        f"We used {record.images:,} chest radiographs of {record.patients:,} patients and {how} ({parts}); "
        f"{record.positive} is the positive class.",
        *results.split_caveats,
    )


def _is_split_by_patient(results: StudyResults) -> bool:
    """Return whether the split has no caveat, so that no patient is known to be in two parts."""
    return not results.split_caveats


def _models(results: StudyResults) -> str:
    if not results.baseline:
        return ""
    record, training = results.baseline.record, results.baseline.record.training
    compressed = [f"{v.name} ({v.record.method})" for v in results.variants if v is not results.baseline]
    return paragraph(
        f"The classifier is a {record.backbone} with {record.parameters:,} parameters on "
        f"{input_text(record.preprocessing)}.",
        f"It was {initialised(training)} and trained for {counted(len(training.epochs), 'epoch')}; epoch "
        f"{training.best_epoch}, of {training.kept_loss}, was kept."
        if training
        else "",
        refined(record.options) if training else "",
        f"Compressed variants: {', '.join(compressed)}." if compressed else "",
        software_text(record.stamp),
    )


def input_text(preprocessing: Preprocessing) -> str:
    """Return the size of the network's input, and how an image becomes it, as part of a sentence."""
    side = preprocessing.image_size_px
    window = "" if preprocessing.window is None else f"; DICOM shown by window or table {preprocessing.window}"
    return f"{side}×{side} pixels (each image {RESIZED[preprocessing.resize]}{window})"


# Refinements of a fit in words, where these are not the option's name and value.
REFINED = {
    "schedule": "a learning rate by schedule {}",
    "keep": "its epoch chosen by rule {}",
    "warmup_epochs": "a warm-up of {:g} epochs",
    "ema": "weights averaged with decay {:g}",
    "early_stop": "an end after {} epochs without a lower loss",
    "mixup": "mixup with alpha {:g}",
    "freeze_epochs": "the head alone in the first {} epochs",
}


def refined(options: Options) -> str:
    """Return a sentence on what a fit adds to the original recipe; empty if nothing."""
    parts = [
        REFINED.get(name, f"{name.replace('_', ' ')} {{}}").format(options[name])
        for name, declared in declared_fields(Refinements).items()
        if options.get(name) not in (None, declared.parameter.default)
    ]
    return f"The fit had {', '.join(parts)}." if parts else ""


def initialised(training: Training) -> str:
    """Return the initialisation of a training as part of a sentence."""
    return (
        "initialised at random"
        if training.initial_weights == "none"
        else f"initialised from {training.initial_weights}"
    )


def software_text(stamp: Stamp) -> str:
    """Return a sentence with the package versions in a stamp."""
    used = ", ".join(f"{name} {stamp.environment[name]}" for name in PACKAGES if name in stamp.environment)
    return f"Software: {used}."


def _statistics(results: StudyResults) -> str:
    evaluation = next((variant.evaluation for variant in results.variants if variant.evaluation), None)
    if evaluation is None:
        return ""
    n, patients = results.test_size()
    return (
        f"Variants were compared with {evaluation.baseline} on the same {n:,} test images of {patients:,} patients, by "
        f"{evaluation.endpoint} with a non-inferiority margin of {evaluation.margin:g}. Proportions have score "
        "intervals (Wilson 1927), on the effective number of images where patients have several; paired differences "
        "have Tango's score interval (Tango 1998) and McNemar's exact test (McNemar 1947), or a permutation test "
        "that swaps whole patients; areas under the ROC curve have Newcombe's interval (Newcombe 2006) with a design "
        "effect by DeLong's variance (DeLong et al. 1988), their differences that of Zou and Yue (2013) by the same "
        "variance; p values are corrected over all variants (Holm 1979)."
    )


def speed_text(results: StudyResults) -> str:
    """Return a sentence on how latency was measured; empty without a benchmark."""
    benchmark = next((b for variant in results.variants if (b := variant.benchmark_on(CPU))), None)
    if benchmark is None:
        return ""
    runtimes = sorted(
        {runtime_name(row.runtime) for variant in results.variants for b in variant.benchmarks for row in b.rows}
    )
    return (
        f"Latency was measured on {benchmark.machine} with {counted(benchmark.threads, 'thread')}, in "
        f"{benchmark.rounds} interleaved rounds, each in its own process, under {', '.join(runtimes)}; it is that of "
        f"the network alone, at a batch size of {benchmark.latency_batch}. Speed-ups are medians of the rounds' ratios."
    )


def model_card(results: StudyResults, decision: Decision | None) -> Table | None:
    """Return the model card (Mitchell et al. 2019) of the shipped variant or of the reference; None without either."""
    variant = (results.variant(decision.ship) if decision and decision.ship else None) or results.reference
    variant = variant or results.baseline
    if variant is None:
        return None
    record = variant.record
    split = results.split_record
    return pairs_table(
        f"Model card of {variant.name} (headings of Mitchell et al. 2019)",
        [
            ("Model details", _details(record)),
            (
                "Intended use",
                f"Research on the compression of classifiers of {' and '.join(record.classes)}. {NOT_A_DEVICE} Not for "
                "diagnosis, triage or any decision on a patient.",
            ),
            (
                "Factors",
                "Population, age, projection, scanner and site change results; those that were evaluated are under "
                "Subgroups, the others are unknown.",
            ),
            (
                "Metrics",
                f"Accuracy, sensitivity and specificity at a threshold of {record.threshold:.3g}, AUROC, calibration; "
                "each with a 95 % interval.",
            ),
            ("Evaluation data", _evaluation_data(results)),
            (
                "Training data",
                f"{_part(results, 'train')} of the same source ({split.layout})"
                f"{', of other patients than the test images' if _is_split_by_patient(results) else ''}.",
            ),
            ("Quantitative analyses", _quantities(results, variant.name)),
            (
                "Ethical considerations",
                "Labels come with the data and may be wrong. The images are of patients: the weights may retain traces "
                "of them.",
            ),
            (
                "Caveats and recommendations",
                " ".join(
                    [
                        *results.caveats,
                        "One source, one split, one seed. Evaluate on images of the place of use before anything else.",
                    ]
                ),
            ),
        ],
    )


def _details(record: VariantRecord) -> str:
    origin = f"{record.method} of {record.parent}" if record.parent else record.method
    version = record.stamp.environment.get("chestx-cli", "")
    return (
        f"{record.backbone}, {origin}; {record.parameters:,} parameters, {record.model_bytes / 1e6:.3g} MB "
        f"({record.model_file}); made {record.stamp.created[:10]} by chestx-cli {version}; SHA-256 "
        f"{record.model_sha256}."
    )


def _part(results: StudyResults, part: str) -> str:
    rows = results.split.indices(part)
    return f"{len(rows):,} images of {len(set(results.split.groups[rows].tolist())):,} patients"


def _evaluation_data(results: StudyResults) -> str:
    others: Sequence[str] = list(dict.fromkeys(e.split for v in results.variants for e in v.externals))
    external = f"; other images: {', '.join(others)}" if others else "; no images of another source"
    how = "kept apart by patient" if _is_split_by_patient(results) else "NOT shown to be of other patients"
    return f"{_part(results, 'test')}, {how}{external}."


def _quantities(results: StudyResults, name: str) -> str:
    variant = results.variant(name)
    row = variant.row if variant else None
    if row is None:
        return "Not evaluated."
    low, high = row.accuracy_interval
    auroc = (
        f"; AUROC {row.auroc:.3f} (95 % {row.auroc_interval[0]:.3f}–{row.auroc_interval[1]:.3f})"
        if row.auroc is not None and row.auroc_interval
        else ""
    )
    return (
        f"Accuracy {percent(row.accuracy)} (95 % {100 * low:.1f}–{100 * high:.1f} %){auroc}; missed "
        f"{row.false_negatives} of {row.false_negatives + row.true_positives}, false alarms {row.false_positives} of "
        f"{row.false_positives + row.true_negatives}."
    )
