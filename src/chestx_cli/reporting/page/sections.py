"""The sections of the report: tables, figures and the text between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from chestx_cli.core.record import columns
from chestx_cli.evaluation.results import CPU, StudyResults, VariantResults
from chestx_cli.inference.speedups import runtime_name
from chestx_cli.records.answers import NOT_INFERIOR
from chestx_cli.records.split import DataAudit
from chestx_cli.records.variant import BASELINE, NOT_REESTIMATED, STATISTICS_NOTES, ZEROS_NOTE
from chestx_cli.reporting.page.blocks import (
    UNFOLDED_ROWS,
    Block,
    Bullets,
    Drawn,
    Gallery,
    Section,
    Shown,
    Text,
    make_table,
    missing,
    pairs_table,
    percent,
    table_of,
)
from chestx_cli.reporting.page.claim import claim
from chestx_cli.reporting.page.methods import methods_text, model_card
from chestx_cli.reporting.page.results import (
    calibration,
    changed_decisions,
    operating_points,
    other_images,
    subgroups,
    test_results,
)
from chestx_cli.store.caveats import MODEL_STAMPS, NO_LEAK, UNPROVEN, stamps_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestx_cli.records.answers import Decision
    from chestx_cli.records.benchmark import BenchmarkRecord, BenchmarkRow

MOST_CRITICAL, MOST_ROBUST = 10, 5


def build_sections(results: StudyResults, decision: Decision | None, drawn: Drawn, command: str) -> tuple[Section, ...]:
    """Return the folded sections; each removes its figures from `drawn`; the remaining ones get their own section."""
    gallery: Block = (
        Gallery(
            title="Example images",
            pictures=drawn.examples,
            caption=f"{len(drawn.examples)} training images, drawn at random from each class in turn.",
        )
        if drawn.examples
        else Text(text="No example images: every file has changed or gone since the split.", tone="hint")
    )
    stamps = stamps_of(results.caveats)
    sections: list[Section] = []
    for title, build, model_stamps in SECTIONS:
        blocks = (*build(results, drawn), *([gallery] if build is _data_set else []))
        section_stamps = tuple(stamp for stamp in stamps if stamp not in set(MODEL_STAMPS) - set(model_stamps))
        sections.append(Section(title=title, blocks=blocks, stamps=section_stamps))
        if build is changed_decisions:
            sections += other_images(results)
    sections.append(Section(title="Methods, ready to paste", blocks=tuple(methods_text(results))))
    if card := model_card(results, decision):
        sections.append(Section(title="Model card", blocks=(card,), stamps=stamps))
    sections.append(Section(title="More figures", blocks=tuple(drawn.figures.values()), stamps=stamps))
    sections.append(Section(title="Settings and environment", blocks=tuple(_settings(results, command))))
    sections.append(Section(title="Limits", blocks=(Bullets(items=_limits(results)),)))
    return tuple(section for section in sections if section.blocks)


def _data_set(results: StudyResults, drawn: Drawn) -> list[Block]:
    split, record = results.split, results.split_record
    blocks: list[Block] = [
        pairs_table(
            "The images",
            [
                *([("Folder", record.data)] if drawn.show_paths else []),
                ("Layout", record.layout),
                ("Images", f"{record.images:,}"),
                ("Patients", f"{record.patients:,}"),
                *(
                    (f"Images of class {name}", f"{int((split.labels == i).sum()):,}")
                    for i, name in enumerate(split.classes)
                ),
                ("Positive class", record.positive),
                ("Images left out", f"{len(record.bad_images):,}"),
                ("Other files ignored", f"{record.ignored_files:,}"),
            ],
        ),
        table_of("Source of each image's patient", record.group_rules),
    ]
    if record.taken:
        blocks.append(table_of("Ambiguities in the data and how they were resolved", record.taken))
    if record.left_out:
        blocks.append(table_of("Files that are not images, left out", record.left_out))
    if record.bad_images:
        without = () if drawn.show_paths else ("path",)
        folded = len(record.bad_images) > UNFOLDED_ROWS
        blocks.append(table_of("Images left out", record.bad_images, without=without, folded=folded))
    notes = [Text(text=note, tone="warning") for note in record.notes]
    return [*blocks, *notes, *drawn.take("class-distribution"), *_audit(record.audit)]


def _audit(audit: DataAudit | None) -> list[Block]:
    """Return the results of scanning all images: patients, copies, formats; empty without an audit."""
    if audit is None:
        return []
    shown = columns(DataAudit)
    values = [(column.heading, column.text(getattr(audit, name))) for name, column in shown.items()]
    tables = (
        ("Copies of images", audit.duplicates),
        ("Files of each class: quartiles, pixel modes, file types", audit.formats),
        ("Images whose patient is not known", audit.unmatched),
    )
    return [
        pairs_table("Audit of the images", values),
        *(table_of(caption, rows, folded=len(rows) > UNFOLDED_ROWS) for caption, rows in tables if rows),
    ]


def _split(results: StudyResults, drawn: Drawn) -> list[Block]:
    return [
        # Caveats of the split are shown with the answer.
        *([] if results.split_caveats else [Text(text=NO_LEAK)]),
        table_of("Images and patients of each part", results.split_record.rows),
        *drawn.take("split", "near-duplicates"),
    ]


def _training(results: StudyResults, drawn: Drawn) -> list[Block]:
    if results.baseline is None or results.baseline.record.training is None:
        return [missing("No baseline has been trained on this split", "chestx train")]
    record, training = results.baseline.record, results.baseline.record.training
    recipe = [(name.replace("_", " "), str(value)) for name, value in record.options.items()]
    return [
        Text(text=f"Epoch {training.best_epoch} of {len(training.epochs)} was kept: it has {training.kept_loss}."),
        pairs_table(
            "Recipe of the baseline",
            [*recipe, ("device used", training.device), ("precision used", training.precision)],
        ),
        *drawn.take("training-curves"),
        table_of("Epochs", training.epochs, folded=len(training.epochs) > UNFOLDED_ROWS),
    ]


def _sensitivity(results: StudyResults, drawn: Drawn) -> list[Block]:
    blocks: list[Block] = []
    for record in (v.sensitivity for v in results.variants if v.sensitivity):
        amounts = ", ".join(percent(amount, 0) for amount in record.amounts)
        method = (
            f"Each layer of {record.variant} was pruned alone by {amounts}, and measured on {record.images} "
            f"validation images (unpruned: loss {record.loss:.4f}, accuracy {percent(record.accuracy)}). They are "
            "ranked by mean increase of the loss."
        )
        blocks += [
            Text(text=method),
            table_of(f"The most critical layers of {record.variant}", record.rows[:MOST_CRITICAL]),
            table_of(f"The most robust layers of {record.variant}", record.rows[-MOST_ROBUST:]),
            *drawn.take("sensitivity"),
            table_of(f"All {len(record.rows)} layers of {record.variant}", record.rows, folded=True),
        ]
    blocks += drawn.take("structured-sensitivity")
    blocks = blocks or [missing("Pruning sensitivity has not been measured", "chestx sensitivity")]
    return [*blocks, *drawn.take("int8-sensitivity")]


def _pruning(results: StudyResults, drawn: Drawn) -> list[Block]:
    pruned = [v for v in results.variants if v.record.pruning or v.record.structure]
    if not pruned:
        return [missing("Nothing has been pruned", "chestx prune")]
    shown = [v for v in results.variants if v.name == BASELINE or v in pruned]
    zeros = [v.record.pruning for v in shown]
    channels = [v.record.structure for v in shown]
    parts = [z or c for z, c in zip(zeros, channels, strict=True)]
    not_reestimated = [
        v.name for v in shown if v.record.pruning and v.record.pruning.batchnorm_statistics == NOT_REESTIMATED
    ]
    return [
        *([Text(text=ZEROS_NOTE)] if any(zeros) else []),
        *([Text(text=f"{', '.join(not_reestimated)}: {STATISTICS_NOTES[NOT_REESTIMATED]}")] if not_reestimated else []),
        make_table(
            "The baseline against its pruned variants",
            [
                ("Variant", "", [v.name for v in shown]),
                ("Target sparsity", ".1%", [p and p.target_sparsity for p in zeros]),
                ("Achieved sparsity", ".1%", [p and p.achieved_sparsity for p in zeros]),
                ("MACs removed", ".1%", [p and p.achieved_macs_removed for p in channels]),
                ("BatchNorm statistics", "", [p and p.batchnorm_statistics for p in parts]),
                ("Fine-tuning epochs", ",", [p and p.finetune_epochs for p in parts]),
                *_accuracy_columns(shown),
                *_cost_columns(shown),
            ],
        ),
        *drawn.take("pruning-comparison"),
    ]


def _comparison(results: StudyResults, drawn: Drawn) -> list[Block]:
    if not results.variants:
        return [missing("There are no variants of this split", "chestx train")]
    verdicts = [results.marked(v.name, _short_verdict(v)) for v in results.variants]
    columns_shown = [
        ("Variant", "", [v.name for v in results.variants]),
        *_accuracy_columns(results.variants),
        *_cost_columns(results.variants),
        ("Against the baseline", "", verdicts),
    ]
    caption = (
        "All variants: accuracy with its 95 % interval, the exact paired test against the baseline, size and speed"
    )
    styles = {"Against the baseline": "prose"}
    blocks: list[Block] = [make_table(caption, columns_shown, styles=styles), *drawn.take("comparison")]
    if not any(v.row for v in results.variants):
        blocks.insert(0, missing("No variant has been evaluated on the test split", "chestx evaluate"))
    return [*blocks, *_speed_blocks(results)]


def _short_verdict(variant: VariantResults) -> str:
    """Return the verdict of a comparison in a few words; Test results has the full sentence."""
    if variant.row is None:
        return "not evaluated"
    if variant.comparison is None:
        return variant.row.verdict
    word = variant.comparison.word
    return f"{word} within {variant.comparison.margin:g}" if word == NOT_INFERIOR else variant.comparison.short


def _accuracy_columns(shown: Sequence[VariantResults]) -> list[Shown]:
    """Return columns with accuracy and the paired comparison with the baseline."""
    results, paired = [v.row for v in shown], [v.comparison for v in shown]
    return [
        ("Accuracy", ".1%", [r and r.accuracy for r in results]),
        ("95 % interval", ".1%", [r and r.accuracy_interval for r in results]),
        ("Correct in baseline only", ",", [c and c.lost for c in paired]),
        ("Correct in variant only", ",", [c and c.won for c in paired]),
        ("Difference, 95 %", "+.1%", [c and c.interval for c in paired]),
        ("Holm p", ".2g", [c and c.holm_p for c in paired]),
    ]


def _cost_columns(shown: Sequence[VariantResults]) -> list[Shown]:
    """Return columns with file size, parameters, and CPU latency under each benchmarked runtime."""
    timed = [row for v in shown for b in v.benchmarks if b.device == CPU for row in b.rows]
    speeds: list[Shown] = []
    for runtime in dict.fromkeys(row.runtime for row in timed):
        rows = [v.speed(CPU, runtime) for v in shown]
        speeds.append((f"p50 ms, {runtime_name(runtime)}", ".2f", [row and row.latency_p50_ms for row in rows]))
    return [
        ("File MB", ".2f", [v.record.model_bytes / 1e6 for v in shown]),
        ("Parameters", ",", [v.record.parameters for v in shown]),
        ("Non-zero", ",", [v.record.nonzero_parameters for v in shown]),
        *speeds,
    ]


def _speed_blocks(results: StudyResults) -> list[Block]:
    blocks: list[Block] = []
    for device in results.devices:
        timed = [(b, row) for v in results.variants for b in v.benchmarks if b.device == device for row in b.rows]
        costs = [row for v in results.variants for b in v.benchmarks if b.device == device for row in b.cost_rows]
        threads = " or ".join(sorted({str(b.threads) for b, _ in timed}))
        batches = " or ".join(sorted({", ".join(map(str, b.batch_sizes)) for b, _ in timed}))
        best = " or ".join(sorted({runtime_name(b.best_fp32_runtime) for b, _ in timed if b.best_fp32_runtime}))
        caption = f"Speed on {device} (threads: {threads}; batch sizes: {batches}): latency of the smallest batch"
        same = ("× FP32, same runtime", ".2f", [results.same_runtime_speedup(b, row) for b, row in timed])
        ratios_note = (
            "The ratios are speed-ups over the FP32 baseline: under the same runtime, under eager PyTorch, and "
            f"under the runtime that is best for the baseline ({best or 'not timed'}). Only the first is due to the "
            "variant alone."
        )
        memory_note = (
            'Peak memory is of the whole process; "added" is what exceeds the imported runtime. "Sparse MB" is a '
            "theoretical size with zeros removed; no runtime here can load such a file."
        )
        blocks += [
            table_of(caption, [row for _, row in timed], without=("images_per_s",), extra=[same, *_rates(timed)]),
            Text(text=ratios_note),
            table_of(f"Memory and size on {device}", costs),
            Text(text=memory_note),
        ]
    waiting = [v.name for v in results.variants if not v.benchmarks]
    if waiting:
        blocks.append(missing(f"Speed has not been measured for {', '.join(waiting)}", "chestx benchmark"))
    return blocks


def _rates(timed: Sequence[tuple[BenchmarkRecord, BenchmarkRow]]) -> list[Shown]:
    """Return images per second, one column per batch size; benchmark runs may differ in their batch sizes."""
    rates = [{batch.batch_size: batch.images_per_s for batch in row.batches} for _, row in timed]
    sizes = sorted({size for by_size in rates for size in by_size})
    return [(f"images/s, batch {size}", ".1f", [by_size.get(size) for by_size in rates]) for size in sizes]


def _settings(results: StudyResults, command: str) -> list[Block]:
    records = results.records()
    stamps = list({(r.stamp.created, r.stamp.command): r.stamp for _, r in records}.values())
    labels: dict[tuple[str, ...], list[str]] = {}
    names = list(dict.fromkeys(name for _, r in records for name in r.stamp.environment))
    for label, record in records:
        labels.setdefault(tuple(record.stamp.environment.get(name, "–") for name in names), []).append(label)
    headings = ["Value"] if len(labels) == 1 else [", ".join(group) for group in labels.values()]
    options = [(label, "; ".join(f"{k} = {v}" for k, v in r.stamp.options.items())) for label, r in records]
    hashes = [("split.csv", results.split.sha256)]
    for v in results.variants:
        hashes.append((f"{v.name}/{v.record.model_file}", v.record.model_sha256))
        if v.record.calibration_sha256:
            hashes.append((f"calibration set of {v.name}", v.record.calibration_sha256))
    return [
        make_table(
            "Commands, in the order in which they ran",
            [
                ("Command", "", [*(s.command for s in stamps), command]),
                ("When", "", [*(s.created for s in stamps), "this report"]),
                ("Time s", ".1f", [*(s.duration_s for s in stamps), None]),
            ],
            styles={"Command": "code"},
        ),
        pairs_table("Options of each result", options, folded=True),
        make_table(
            "Environment",
            [("", "", names), *((h, "", list(values)) for h, values in zip(headings, labels, strict=True))],
        ),
        make_table(
            "SHA-256 of the split and of the weights",
            [("File", "", [n for n, _ in hashes]), ("SHA-256", "", [h for _, h in hashes])],
            styles={"SHA-256": "code"},
        ),
    ]


def _limits(results: StudyResults) -> tuple[str, ...]:
    n, patients = results.test_size()
    limits = [
        "Nothing here has been validated for use on patients.",
        f"The {n} test images come from {patients} patients: intervals and tests hold for patients drawn like "
        f"these, of one "
        "source.",
        "Verdicts are on accuracy at one operating point; the intervals beside them are 95 % each, not simultaneous.",
        "One split, one seed: another split or another training run would give other numbers.",
    ]
    if results.devices:
        limits.append("Latency holds for the processor and the threads named above, and is of the network alone.")
    limits += [
        f"{v.name} was timed in another run than the baseline shown here: only the ratios of its own run hold."
        for v in results.variants
        if any(not results.same_run_speed(b, row.runtime) for b in v.benchmarks for row in b.rows)
    ]
    return (*limits, *(f"Stale, and left out: {text}." for text in results.left_out))


# Title, builder, and the model stamps shown before the section's tables.
SECTIONS: tuple[tuple[str, Callable[[StudyResults, Drawn], list[Block]], tuple[str, ...]], ...] = (
    ("Data set", _data_set, ()),
    ("Split", _split, ()),
    ("Training of the baseline", _training, (UNPROVEN,)),
    ("Test results", test_results, MODEL_STAMPS),
    ("Operating points", operating_points, MODEL_STAMPS),
    ("Calibration", calibration, MODEL_STAMPS),
    ("Subgroups", subgroups, MODEL_STAMPS),
    ("Changed decisions", changed_decisions, MODEL_STAMPS),
    ("Pruning sensitivity", _sensitivity, (UNPROVEN,)),
    ("Baseline against pruning", _pruning, MODEL_STAMPS),
    ("Final comparison", _comparison, MODEL_STAMPS),
    ("CLAIM checklist", claim, MODEL_STAMPS),
)
