"""The answer of each command: a small table, a sentence, and the command to type next."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from chestx_cli.core.record import Answer
from chestx_cli.inference.speedups import is_noisy, recommendation, word_of
from chestx_cli.records.answers import (
    LayerAnswerRow,
    MeasureRow,
    ModelRow,
    PartRow,
    SearchRow,
    SpeedRow,
)
from chestx_cli.records.sensitivity import GroupSensitivityRecord, Int8SensitivityRecord
from chestx_cli.records.split import SPLITS, FoldsRecord
from chestx_cli.records.variant import BASELINE
from chestx_cli.reporting.decision import short_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestx_cli.core.record import Record
    from chestx_cli.records.answers import Decision
    from chestx_cli.records.benchmark import BenchmarkRecord
    from chestx_cli.records.commands import CompressRecord, DemoRecord, ExportRecord
    from chestx_cli.records.evaluation import CompareRecord
    from chestx_cli.records.sensitivity import GroupRow, LayerRow, SensitivityRecord
    from chestx_cli.records.split import SplitRecord
    from chestx_cli.records.variant import VariantRecord

Row = TypeVar("Row")

# Layers shown from each end of a ranking.
MOST_CRITICAL, MOST_ROBUST = 6, 4
# A layer that loses no more than this share of accuracy, pruned alone, is called robust.
ROBUST_DROP = 0.01


def warnings_of(record: Record) -> tuple[str, ...]:
    """Return those notes of a record that begin with one of its stamps."""
    return tuple(note for note in record.notes if note.partition(":")[0] in record.stamp.data_stamps)


def of_split(record: SplitRecord | FoldsRecord) -> Answer:
    """Return the parts with their images, patients and positive images, or the folds."""
    if isinstance(record, FoldsRecord):
        rows: tuple[PartRow, ...] = tuple(
            PartRow(
                part=row.study,
                images=row.test_images,
                patients=row.test_patients,
                positive=None,
                positive_share=row.test_positive,
            )
            for row in record.rows
        )
        divided = f"divided into {len(rows)} folds; each image is tested once"
        next_command = f"chestx train --study {rows[0].part}" if rows else ""
    else:
        rows = tuple(_part_row(record, part) for part in SPLITS)
        divided = f"divided {'/'.join(f'{row.images:,}' for row in rows)}"
        next_command = "chestx train"
    refused = sum(row.images for row in record.refusals)
    left_out = f" {refused:,} image{' was' if refused == 1 else 's were'} refused: --full says why." if refused else ""
    leaks = "" if record.stamp.data_stamps else "; no patient is in two parts"
    return Answer(
        rows=rows,
        sentence=f"{record.images:,} images of {record.patients:,} patients ({record.positive} is the positive class), "
        f"{divided}{leaks}.{left_out}",
        # What a set gives away beside the disease is a doubt of every result on it.
        warnings=record.notes,
        next_command=next_command,
    )


def _part_row(record: SplitRecord, part: str) -> PartRow:
    rows = [row for row in record.rows if row.split == part]
    images = sum(row.images for row in rows)
    positive = sum(row.images for row in rows if row.label == record.positive)
    return PartRow(
        part=part,
        images=images,
        patients=sum(row.patients for row in rows),
        positive=positive,
        positive_share=positive / images if images else 0.0,
    )


def of_variant(record: VariantRecord) -> Answer:
    """Return what a variant that was trained, pruned or quantized takes, and how it did on the validation images."""
    kept = next((row for row in record.training.epochs[::-1] if row.kept), None) if record.training else None
    measured = record.quantization
    row = ModelRow(
        variant=record.name,
        parameters=record.parameters,
        nonzero=record.nonzero_parameters / record.parameters,
        gmacs=record.macs / 1e9,
        size_mb=short_number(record.model_bytes / 1e6),
        val_accuracy=measured.accuracy if measured else kept.val.get("accuracy") if kept else None,
        val_auroc=measured.auroc if measured else kept.val.get("auroc") if kept else None,
    )
    return Answer(
        rows=(row,),
        sentence=_made(record),
        warnings=(
            *warnings_of(record),
            *(f"{record.name} is not shown to have learned anything: {reason}." for reason in record.unproven),
        ),
        next_command=_after(record),
    )


def _made(record: VariantRecord) -> str:
    if record.quantization is not None:
        made = record.quantization
        saved = 1 - record.model_bytes / made.parent_bytes
        return (
            f"{made.quantized_share:.1%} of the parameters are 8-bit integers; the file is {saved:.0%} smaller than "
            f"FP32 ONNX. On the validation images {made.lost} were lost and {made.won} won."
        )
    if record.structure is not None:
        return (
            f"{record.structure.achieved_macs_removed:.0%} of the MACs and {record.structure.parameters_removed:.0%} "
            f"of the parameters of {record.parent} are removed."
        )
    if record.pruning is not None:
        return (
            f"{record.pruning.achieved_sparsity:.1%} of the weights are zero; file and latency stay those of "
            f"{record.parent}."
        )
    if record.training is None:
        return f"{record.name} is stored."
    training = record.training
    return (
        f"Epoch {training.best_epoch} of {len(training.epochs)} is kept, with the lowest validation loss "
        f"({training.best_val_loss:.4f})."
    )


def _after(record: VariantRecord) -> str:
    """Return the next step of the study: compress the baseline, quantize what was pruned, judge what was quantized."""
    if record.parent is None:
        source = "" if record.name == BASELINE else f" --from {record.name}"
        return f"chestx prune --method structured{source}"
    if record.structure is not None:
        return f"chestx quantize --method static --from {record.name}"
    return "chestx evaluate"


def of_sensitivity(record: SensitivityRecord | GroupSensitivityRecord | Int8SensitivityRecord) -> Answer:
    """Return the most critical and the most robust layers or groups."""
    if isinstance(record, Int8SensitivityRecord):
        return _of_int8_sensitivity(record)
    grouped = isinstance(record, GroupSensitivityRecord)
    rows: tuple[LayerRow | GroupRow, ...] = record.rows
    things, budget = ("groups of coupled layers", "MACs") if grouped else ("layers", "sparsity")
    robust = sum(row.max_accuracy_drop <= ROBUST_DROP for row in record.rows)
    return Answer(
        rows=tuple(
            LayerAnswerRow(
                rank=row.rank,
                layer=row.layer,
                mean_loss_increase=row.mean_loss_increase,
                max_accuracy_drop=row.max_accuracy_drop,
            )
            for row in _ends(rows)
        ),
        sentence=f"{robust} of {len(record.rows)} {things} lose at most {ROBUST_DROP:.0%} of accuracy alone, at every "
        f"amount up to {max(record.amounts):g}; the most critical is {record.rows[0].layer}.",
        warnings=warnings_of(record),
        next_command=f"chestx prune --method guided --budget {budget}{_from(record.variant)}",
    )


def _of_int8_sensitivity(record: Int8SensitivityRecord) -> Answer:
    """Return the layers that lose most, and least, when they alone compute in 8 bits."""
    return Answer(
        rows=tuple(
            LayerAnswerRow(
                rank=row.rank,
                layer=row.layer,
                mean_loss_increase=row.loss_increase,
                max_accuracy_drop=row.accuracy_drop,
            )
            for row in _ends(record.rows)
        ),
        sentence=f"All layers in 8 bits together change the loss by {record.loss_increase_of_all:+.4f}; the most "
        f"critical is {record.rows[0].layer}.",
        warnings=warnings_of(record),
        next_command=f"chestx quantize --method static{_from(record.variant)}",
    )


def _from(variant: str) -> str:
    return "" if variant == BASELINE else f" --from {variant}"


def _ends(rows: Sequence[Row]) -> tuple[Row, ...]:
    if len(rows) <= MOST_CRITICAL + MOST_ROBUST:
        return tuple(rows)
    return (*rows[:MOST_CRITICAL], *rows[-MOST_ROBUST:])


def of_benchmark(record: BenchmarkRecord, int8: set[str], decision: Decision | None) -> Answer:
    """Return each variant under its best runtime; `decision` is None where nothing was judged on test images."""
    fastest = [row for name in dict.fromkeys(row.variant for row in record.rows) if (row := record.fastest(name))]
    sizes_mb = {row.variant: row.size_mb for row in record.cost_rows}
    noisy = is_noisy(record)
    rows = tuple(
        SpeedRow(
            variant=row.variant,
            runtime=row.runtime,
            latency_ms=short_number(row.latency_p50_ms),
            speedup=row.speedup_over_best_fp32,
            interval=row.speedup_over_best_fp32_interval,
            size_mb=short_number(sizes_mb[row.variant]),
            verdict="–"
            if row.variant == record.baseline
            else "NOISY"
            if noisy
            else word_of(record, row.variant) or "–",
        )
        for row in fastest
    )
    sentence = decision.sentence if decision else " ".join(recommendation(record, int8, {})[:1])
    return Answer(
        rows=rows,
        sentence=sentence or f"{len(rows)} variant{'' if len(rows) == 1 else 's'} timed on {record.device}.",
        warnings=(*warnings_of(record), *record.warnings),
        next_command=decision.next_command if decision else "chestx evaluate",
    )


def of_evaluation(record: Record, decision: Decision, also: tuple[str, ...] = ()) -> Answer:
    """Return every variant's mistakes, verdict and cost, and which to ship; `also` is what else has to be known."""
    return Answer(
        rows=decision.rows,
        sentence=decision.sentence,
        warnings=(*warnings_of(record), *also),
        next_command=decision.next_command,
    )


def of_report(record: Record, decision: Decision | None, page: str) -> Answer:
    """Return the decision and where the page lies; the page shows the same decision first."""
    where = f"The page: {page}"
    if decision is None:
        return Answer(sentence=where, warnings=warnings_of(record), next_command="chestx evaluate")
    return Answer(
        rows=decision.rows,
        sentence=f"{decision.sentence} {where}",
        warnings=warnings_of(record),
        next_command=decision.next_command,
    )


def of_comparison(record: CompareRecord) -> Answer:
    """Return accuracy, sensitivity, specificity and AUROC of two variants with what their differences support."""
    endpoint, *_ = record.rows
    auroc = record.auroc_rows[0] if record.auroc_rows else None
    shares = {row.measure.partition(" ")[0].lower(): row for row in record.rows}
    rows = [
        MeasureRow(
            measure="Accuracy",
            first=endpoint.first,
            second=endpoint.second,
            difference=endpoint.difference,
            interval=endpoint.difference_interval,
            margin=record.margin,
            state=record.word,
        )
    ]
    for guard in record.guards:
        pair = shares.get(guard.measure)
        rows.append(
            MeasureRow(
                measure=guard.measure[0].upper() + guard.measure[1:],
                first=pair.first if pair else auroc.first if auroc else None,
                second=pair.second if pair else auroc.second if auroc else None,
                difference=guard.difference,
                interval=guard.interval,
                margin=guard.margin,
                state=guard.state,
            )
        )
    needed = f" About {record.needed_images:,} images would settle it." if record.needed_images else ""
    return Answer(
        rows=tuple(rows),
        sentence=f"{record.second} (B) against {record.first} (A) on {record.images:,} images: {record.short}; "
        f"{endpoint.lost or 0} lost, {endpoint.won or 0} won.{needed}",
        warnings=warnings_of(record),
        next_command="chestx report" if record.evaluated_on == "test" else "",
    )


def of_search(record: CompressRecord, stopped: str) -> Answer:
    """Return the models of a search that no other beats, the chosen one, and why the search stopped."""
    best = record.chosen or record.nearest
    shown = [row for row in record.rows if row.is_on_front or row.variant in (best, record.parent)]
    if record.chosen:
        sentence = f"{record.chosen} keeps all limits on the validation images. {stopped}"
    else:
        missed = next((" and ".join(row.missed) for row in record.rows if row.variant == record.nearest), "")
        sentence = f"No model keeps all limits; nearest is {record.nearest}, which misses {missed}. {stopped}"
    return Answer(
        rows=tuple(
            SearchRow(
                variant=row.variant,
                latency_ms=short_number(row.latency_p50_ms),
                size_mb=short_number(row.size_mb),
                accuracy=row.accuracy,
                difference=row.difference,
                auroc_difference=row.auroc_difference,
                missed=", ".join(row.missed) or "none",
            )
            for row in shown
        ),
        sentence=sentence,
        warnings=warnings_of(record),
        next_command=f"chestx evaluate {best}" if best else "",
    )


def of_export(record: ExportRecord) -> Answer:
    """Return where the bundle lies and how closely it agrees with the variant."""
    return Answer(
        sentence=f"{record.variant} is in {record.bundle} ({short_number(record.model_bytes / 1e6)} MB); on "
        f"{record.checked_images} validation images its probabilities agree within "
        f"{record.max_probability_difference:.0e}.",
        warnings=record.notes,
        next_command=f"python3 {record.bundle}/chestx_bundle.py predict IMAGE",
    )


def of_demo(record: DemoRecord, decision: Decision) -> Answer:
    """Return the decision of the demonstration, and where its page lies."""
    return Answer(
        rows=decision.rows,
        sentence=f"{decision.sentence} The page: {record.page}",
        warnings=("The images are synthetic: the numbers show that the commands work, nothing about real patients.",),
    )
