"""The sections of the report: tables, figures and the sentences between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from chestx_cli.audit import NO_LEAK
from chestx_cli.pruning import ZEROS_NOTE
from chestx_cli.record import NOT_A_DEVICE, columns
from chestx_cli.records import EpochRow
from chestx_cli.reporting import (
    CPU,
    MOST_CRITICAL,
    MOST_ROBUST,
    UNFOLDED_ROWS,
    Block,
    Bullets,
    Gallery,
    Picture,
    Section,
    Shown,
    StudyFacts,
    Text,
    VariantFacts,
    make_table,
    missing,
    pairs_table,
    percent,
    rate,
    runtime_name,
    same_runtime_speedup,
    sources,
    table_of,
)
from chestx_cli.study import BASELINE

if TYPE_CHECKING:
    from collections.abc import Sequence


Drawn = dict[str, Picture]


def build_sections(
    facts: StudyFacts, statements: Sequence[str], drawn: Drawn, examples: tuple[Picture, ...], command: str
) -> tuple[Section, ...]:
    """Return the report's sections; each takes its figures out of `drawn`, the rest gets a section of its own."""
    gallery: Block = (
        Gallery(
            pictures=examples,
            caption=f"{len(examples)} training images, drawn at random from each class in turn.",
        )
        if examples
        else Text(text="No example images: none is any longer what the split recorded.", tone="hint")
    )
    made: list[tuple[str, list[Block]]] = [("Summary", [Bullets(items=tuple(statements))])]
    made += [(title, build(facts, drawn)) for title, build in SECTIONS]
    made[1][1].append(gallery)
    if drawn:
        made.append(("More figures", list(drawn.values())))
    made.append(("Settings and environment", _settings(facts, command)))
    made.append(("Limits", [Bullets(items=_limits(facts))]))
    return tuple(Section(title=title, blocks=tuple(blocks)) for title, blocks in made)


def _take(drawn: Drawn, *names: str) -> list[Block]:
    return [drawn.pop(name) for name in names if name in drawn]


def _data_set(facts: StudyFacts, drawn: Drawn) -> list[Block]:
    split, record = facts.split, facts.split_record
    blocks: list[Block] = [
        pairs_table(
            "The images",
            [
                ("Source", record.data),
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
        table_of("How the patient of each image was told", record.group_rules),
    ]
    if record.bad_images:
        blocks.append(table_of("Images left out", record.bad_images, folded=len(record.bad_images) > UNFOLDED_ROWS))
    return [*blocks, *(Text(text=note, tone="warning") for note in record.notes), *_take(drawn, "class-distribution")]


def _split(facts: StudyFacts, drawn: Drawn) -> list[Block]:
    said = [Text(text=text, tone="warning") for text in facts.caveats()] or [Text(text=NO_LEAK)]
    return [*said, table_of("Images and patients of each part", facts.split_record.rows), *_take(drawn, "split")]


def _training(facts: StudyFacts, drawn: Drawn) -> list[Block]:
    if facts.baseline is None or facts.baseline.record.training is None:
        return [missing("No baseline has been trained on this split", "chestx train")]
    record, training = facts.baseline.record, facts.baseline.record.training
    recipe = [(name.replace("_", " "), str(value)) for name, value in record.options.items()]
    return [
        Text(
            text=f"Epoch {training.best_epoch} of {len(training.epochs)} was kept: it has the lowest validation loss."
        ),
        pairs_table(
            "Recipe of the baseline",
            [*recipe, ("device used", training.device), ("precision used", training.precision)],
        ),
        *_take(drawn, "training-curves"),
        make_table(
            "Epochs",
            [
                (_epoch_heading(name, column.heading), column.spec, [getattr(row, name) for row in training.epochs])
                for name, column in columns(EpochRow).items()
            ],
            folded=len(training.epochs) > UNFOLDED_ROWS,
        ),
    ]


def _epoch_heading(name: str, heading: str) -> str:
    part = {"train": "Train", "val": "Val"}.get(name.split("_")[0], "")
    return heading if heading.startswith(part) else f"{part} {heading}"


def _test_results(facts: StudyFacts, drawn: Drawn) -> list[Block]:
    found = [(v, v.evaluation, v.evaluation.rows[0]) for v in facts.variants if v.evaluation]
    waiting = [v.name for v in facts.variants if not v.evaluation]
    if not found:
        return [missing("No variant has been evaluated on the test split", "chestx evaluate")]
    rows = [row for _, _, row in found]
    n, patients = facts.test_size()
    thresholds = " and ".join(sorted({f"{v.record.threshold:g}" for v, _, _ in found}))
    positive = facts.split_record.positive
    said = f"{n} test images of {patients} patients; {positive} is called from a probability of {thresholds} on."
    blocks: list[Block] = [Text(text=said)]
    if waiting:
        blocks.append(missing(f"Not evaluated: {', '.join(waiting)}", "chestx evaluate"))
    blocks.append(
        table_of(
            "Results on the test split; a 95 % interval is of what stands before it (of accuracy: Wilson's)",
            rows,
            without=("only_baseline_correct", "only_variant_correct", "mcnemar_p"),
            extra=[
                ("Sensitivity", ".1%", [rate(r.true_positives, r.true_positives + r.false_negatives) for r in rows]),
                ("Specificity", ".1%", [rate(r.true_negatives, r.true_negatives + r.false_positives) for r in rows]),
            ],
        )
    )
    blocks.append(table_of("Classification report", [row for _, e, _ in found for row in e.class_rows]))
    blocks += _take(drawn, "classification-report", "confusion-matrices", "roc-pr")
    misses = [row for _, e, _ in found for row in e.misses]
    if misses:
        caption = f"False negatives: {facts.split_record.positive} images called negative"
        blocks.append(table_of(caption, misses, without=("path",), folded=len(misses) > UNFOLDED_ROWS))
    else:
        blocks.append(Text(text=f"No {facts.split_record.positive} image of the test split was missed."))
    return blocks


def _sensitivity(facts: StudyFacts, drawn: Drawn) -> list[Block]:
    blocks: list[Block] = []
    for found in (v.sensitivity for v in facts.variants if v.sensitivity):
        amounts = ", ".join(percent(amount, 0) for amount in found.amounts)
        said = (
            f"Each layer of {found.variant} was pruned alone by {amounts}, and measured on {found.images} validation "
            f"images (unpruned: loss {found.loss:.4f}, accuracy {percent(found.accuracy)}). The order goes by the mean "
            "increase of the loss."
        )
        blocks += [
            Text(text=said),
            table_of(f"The most critical layers of {found.variant}", found.rows[:MOST_CRITICAL]),
            table_of(f"The most robust layers of {found.variant}", found.rows[-MOST_ROBUST:]),
            *_take(drawn, "sensitivity"),
            table_of(f"All {len(found.rows)} layers of {found.variant}", found.rows, folded=True),
        ]
    blocks = blocks or [missing("Pruning sensitivity has not been measured", "chestx sensitivity")]
    return [*blocks, *_take(drawn, "int8-sensitivity")]


def _pruning(facts: StudyFacts, drawn: Drawn) -> list[Block]:
    pruned = [v for v in facts.variants if v.record.pruning]
    if not pruned:
        return [missing("Nothing has been pruned", "chestx prune")]
    shown = [v for v in facts.variants if v.name == BASELINE or v in pruned]
    parts = [v.record.pruning for v in shown]
    return [
        Text(text=ZEROS_NOTE),
        make_table(
            "The baseline against its pruned variants",
            [
                ("Variant", "", [v.name for v in shown]),
                ("Asked sparsity", ".1%", [p and p.asked_sparsity for p in parts]),
                ("Achieved sparsity", ".1%", [p and p.achieved_sparsity for p in parts]),
                ("Fine-tuning epochs", ",", [p and p.finetune_epochs for p in parts]),
                *_accuracy_columns(shown),
                *_cost_columns(shown),
            ],
        ),
        *_take(drawn, "pruning-comparison"),
    ]


def _comparison(facts: StudyFacts, drawn: Drawn) -> list[Block]:
    if not facts.variants:
        return [missing("There are no variants of this split", "chestx train")]
    verdicts = [v.result.verdict if v.result else "not evaluated" for v in facts.variants]
    columns_shown = [
        ("Variant", "", [v.name for v in facts.variants]),
        *_accuracy_columns(facts.variants),
        ("McNemar p", ".3g", [v.result and v.result.mcnemar_p for v in facts.variants]),
        *_cost_columns(facts.variants),
        ("Against the baseline", "", verdicts),
    ]
    caption = (
        "All variants: accuracy with Wilson's 95 % interval, McNemar's exact test against the baseline, size and speed"
    )
    styles = {"Against the baseline": "prose"}
    blocks: list[Block] = [make_table(caption, columns_shown, styles=styles), *_take(drawn, "comparison")]
    if not any(v.result for v in facts.variants):
        blocks.insert(0, missing("No variant has been evaluated on the test split", "chestx evaluate"))
    return [*blocks, *_speed_blocks(facts)]


def _accuracy_columns(shown: Sequence[VariantFacts]) -> list[Shown]:
    results = [v.result for v in shown]
    return [
        ("Accuracy", ".1%", [r and r.accuracy for r in results]),
        ("95 % interval", ".1%", [r and r.accuracy_interval for r in results]),
    ]


def _cost_columns(shown: Sequence[VariantFacts]) -> list[Shown]:
    """Return file, parameters and the CPU's latency at batch 1 under each runtime; no latency without a benchmark."""
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


def _speed_blocks(facts: StudyFacts) -> list[Block]:
    blocks: list[Block] = []
    for device in facts.devices:
        timed = [(b, row) for v in facts.variants for b in v.benchmarks if b.device == device for row in b.rows]
        threads = " or ".join(sorted({str(b.threads) for b, _ in timed}))
        batches = " or ".join(sorted({str(b.throughput_batch) for b, _ in timed}))
        best = " or ".join(sorted({runtime_name(b.best_fp32_runtime) for b, _ in timed}))
        caption = f"Speed on {device} (threads: {threads}): latency of one image, throughput in batches of {batches}"
        same = ("× FP32, same runtime", ".2f", [same_runtime_speedup(facts, b, row) for b, row in timed])
        without = ("size_mb", "parameters", "nonzero_parameters", "gmacs")
        said = (
            "The ratios say how many times as fast as the FP32 baseline a variant is: under the same runtime, under "
            f"eager PyTorch, and under the runtime that is best for the baseline ({best}). Only the first is due to "
            "the variant alone."
        )
        blocks += [table_of(caption, [row for _, row in timed], without=without, extra=[same]), Text(text=said)]
    waiting = [v.name for v in facts.variants if not v.benchmarks]
    if waiting:
        blocks.append(missing(f"Speed has not been measured for {', '.join(waiting)}", "chestx benchmark"))
    return blocks


def _settings(facts: StudyFacts, command: str) -> list[Block]:
    records = sources(facts)
    stamps = list({(r.stamp.created, r.stamp.command): r.stamp for _, r in records}.values())
    labels: dict[tuple[str, ...], list[str]] = {}
    names = list(dict.fromkeys(name for _, r in records for name in r.stamp.environment))
    for label, record in records:
        labels.setdefault(tuple(record.stamp.environment.get(name, "–") for name in names), []).append(label)
    headings = ["Value"] if len(labels) == 1 else [", ".join(found) for found in labels.values()]
    options = [(label, "; ".join(f"{k} = {v}" for k, v in r.stamp.options.items())) for label, r in records]
    hashes = [("split.csv", facts.split.sha256)]
    for v in facts.variants:
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


def _limits(facts: StudyFacts) -> tuple[str, ...]:
    n, patients = facts.test_size()
    compared = sum(1 for v in facts.variants if v.result and v.result.mcnemar_p is not None)
    narrow = " Images of one patient are alike, so these intervals are too narrow." if patients < n else ""
    said = [
        f"{NOT_A_DEVICE} Nothing here has been validated for use on patients.",
        f"Accuracy intervals and paired tests treat images as independent; the {n} test images come from {patients} "
        f"patients.{narrow}",
        f"The p values are not corrected for comparing several variants ({compared} here).",
        "One split, one seed: another split or another training run would give other numbers.",
    ]
    said.extend(facts.caveats())
    for v in facts.variants:
        parent = facts.variant(v.record.parent) if v.record.parent else None
        if parent and parent.record.model_sha256 != v.record.parent_sha256:
            said.append(f"{v.name} was made from an earlier {parent.name} than the one shown here.")
    if facts.devices:
        said.append("Latency holds for the processor and the threads named above, and is of the network alone.")
    said += [
        f"{v.name} was timed in another run than the baseline shown here: only the ratios of its own run hold."
        for v in facts.variants
        if any(not facts.same_run_speed(b, row.runtime) for b in v.benchmarks for row in b.rows)
    ]
    return (*said, *(f"Stale, and left out: {text}." for text in facts.stale))


SECTIONS: tuple[tuple[str, Callable[[StudyFacts, Drawn], list[Block]]], ...] = (
    ("Data set", _data_set),
    ("Split", _split),
    ("Training of the baseline", _training),
    ("Test results", _test_results),
    ("Pruning sensitivity", _sensitivity),
    ("Baseline against pruning", _pruning),
    ("Final comparison", _comparison),
)
