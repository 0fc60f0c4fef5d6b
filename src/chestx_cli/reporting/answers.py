"""The answer of each command: a small table, a sentence, and the command to type next."""

from __future__ import annotations

import shlex
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from chestx_cli.core.errors import STUDY_FLAG, command_line, quoted
from chestx_cli.core.printable import counted, paragraph, short_number
from chestx_cli.core.record import Answer
from chestx_cli.inference.speedups import NOISY, is_noisy, recommendation, word_of
from chestx_cli.inference.timing import BUSY
from chestx_cli.records.answers import (
    EXCEEDED,
    CheckRow,
    LayerAnswerRow,
    MeasureRow,
    ModelRow,
    PartRow,
    SearchRow,
    SpeedRow,
)
from chestx_cli.records.split import SPLITS, FoldsRecord
from chestx_cli.records.variant import BASELINE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chestx_cli.core.record import Record
    from chestx_cli.records.answers import Decision
    from chestx_cli.records.benchmark import BenchmarkRecord
    from chestx_cli.records.commands import (
        CompressRecord,
        CompressRow,
        DemoRecord,
        DoctorRecord,
        ExportRecord,
        ReportRecord,
    )
    from chestx_cli.records.evaluation import CompareRecord
    from chestx_cli.records.sensitivity import (
        GroupRow,
        GroupSensitivityRecord,
        Int8SensitivityRecord,
        LayerRow,
        SensitivityRecord,
    )
    from chestx_cli.records.split import SplitRecord
    from chestx_cli.records.variant import LayerSpeeds, VariantRecord

Row = TypeVar("Row")

# Layers shown from each end of a ranking.
MOST_CRITICAL, MOST_ROBUST = 6, 4
# Short forms of states that would make the table wider than 80 columns.
STATE_IN_SHORT = {EXCEEDED: "possibly fell"}
# A layer is robust if pruning it alone lowers accuracy by at most this share.
ROBUST_DROP = 0.01


def warnings_of(record: Record) -> tuple[str, ...]:
    """Return the notes of a record that start with one of its data stamps."""
    return tuple(note for note in record.notes if note.partition(":")[0] in record.stamp.data_stamps)


def of_split(record: SplitRecord | FoldsRecord, root: Path) -> Answer:
    """Return images, patients and positives per part of a split, or per fold's test part; `root`: the study folder."""
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
        division = f"divided into {len(rows)} folds; each image is tested once"
        next_command = command_line(["chestx", "train", "--study", str(root / rows[0].part)]) if rows else ""
    else:
        rows = tuple(_part_row(record, part) for part in SPLITS)
        division = f"divided {'/'.join(f'{row.images:,}' for row in rows)}"
        next_command = "chestx train"
    refused = sum(row.images for row in record.refusals)
    if not record.stamp.data_stamps:
        division = f"{division}; no patient is in two parts"
    return Answer(
        rows=rows,
        sentence=paragraph(
            f"{counted(record.images, 'image')} of {counted(record.patients, 'patient')} ({record.positive} is the "
            f"positive class), {division}.",
            f"Refused: {counted(refused, 'image')}; --full shows why." if refused else "",
        ),
        # A shortcut in the data set puts every result on it in doubt.
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
    """Return the size and the validation results of a trained, pruned or quantized variant."""
    kept_epoch = next((row for row in record.training.epochs[::-1] if row.kept), None) if record.training else None
    quantization = record.quantization
    row = ModelRow(
        variant=record.name,
        parameters=record.parameters,
        nonzero=record.nonzero_parameters / record.parameters,
        gmacs=record.macs / 1e9,
        size_mb=short_number(record.model_bytes / 1e6),
        val_accuracy=quantization.accuracy if quantization else kept_epoch.val.get("accuracy") if kept_epoch else None,
        val_auroc=quantization.auroc if quantization else kept_epoch.val.get("auroc") if kept_epoch else None,
    )
    warnings = warnings_of(record)
    # A variant has the findings of the models that it was made from.
    model = record.name if record.parent is None else f"the model that {record.name} was made from"
    nothing_learned = f"{model} is not shown to have learned anything"
    # A student's own caveat says so already.
    if not any("is not shown to have learned anything" in warning for warning in warnings):
        warnings += tuple(f"{nothing_learned[0].upper()}{nothing_learned[1:]}: {one}." for one in record.unproven)
    return Answer(
        rows=(row,),
        sentence=_summary(record),
        warnings=warnings,
        next_command=_next_step(record),
    )


def _summary(record: VariantRecord) -> str:
    if record.quantization is not None:
        quantized = record.quantization
        saved = 1 - record.model_bytes / quantized.parent_bytes
        stored, computed = f"{quantized.bits}-bit integers", "INT8"
        if not record.computes_in_int8:
            stored, computed = f"stored in {quantized.bits} bits and computed in FP32", record.name
        return paragraph(
            f"{quantized.quantized_share:.1%} of the parameters are {stored}; the file is {saved:.0%} smaller than "
            f"FP32 ONNX. Validation images correct in FP32 only: {quantized.lost}; in {computed} only: "
            f"{quantized.won}.",
            _slower_layers(quantized.layer_speeds),
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
        f"Epoch {training.best_epoch} of {len(training.epochs)} is kept, with {training.kept_loss} "
        f"({training.best_val_loss:.4f})."
    )


def _slower_layers(speeds: LayerSpeeds | None) -> str:
    """Return how many layers are slower in INT8, and how many are left in FP32; empty if they were not timed."""
    if speeds is None:
        return ""
    kept = sum(row.in_fp32 for row in speeds.rows)
    rough = f"; {NOISY}, since {BUSY}" if speeds.is_rough else ""
    return f"Layers slower in INT8 here: {len(speeds.rows)} of {speeds.timed_layers}; left in FP32: {kept}{rough}."


def _next_step(record: VariantRecord) -> str:
    """Return the next command: prune a trained variant, quantize one with channels removed, evaluate any other."""
    if record.parent is None:
        source = "" if record.name == BASELINE else f" --from {record.name}"
        return f"chestx prune --method structured{source}"
    if record.structure is not None:
        return f"chestx quantize --method static --from {record.name}"
    return "chestx evaluate"


def of_sensitivity(record: SensitivityRecord | GroupSensitivityRecord | Int8SensitivityRecord) -> Answer:
    """Return the most critical and the most robust layers, or groups of coupled layers."""
    # Here, since only one command has such records.
    from chestx_cli.records.sensitivity import GroupSensitivityRecord, Int8SensitivityRecord

    if isinstance(record, Int8SensitivityRecord):
        return _of_int8_sensitivity(record)
    grouped = isinstance(record, GroupSensitivityRecord)
    rows: tuple[LayerRow | GroupRow, ...] = record.rows
    units, budget = ("groups of coupled layers", "macs") if grouped else ("layers", "sparsity")
    robust = sum(row.max_accuracy_drop <= ROBUST_DROP for row in record.rows)
    return Answer(
        rows=tuple(
            LayerAnswerRow(
                rank=row.rank,
                layer=row.layer,
                mean_loss_increase=row.mean_loss_increase,
                max_accuracy_drop=row.max_accuracy_drop,
            )
            for row in _first_and_last(rows)
        ),
        sentence=(
            f"{robust} of {len(record.rows)} {units} lose at most {ROBUST_DROP:.0%} of accuracy when pruned "
            f"alone, at every amount up to {max(record.amounts):g}; the most critical is {record.rows[0].layer}."
        ),
        warnings=(*_resolution(record.images), *_precision(record), *warnings_of(record)),
        next_command=_of_all_layers(record)
        or f"chestx prune --method guided --budget {budget}{_from_option(record.variant)}",
    )


def _precision(record: SensitivityRecord | GroupSensitivityRecord) -> tuple[str, ...]:
    from chestx_cli.records.sensitivity import GroupSensitivityRecord

    if isinstance(record, GroupSensitivityRecord) or record.check is None:
        return ()
    return (record.check.sentence(record.precision, record.loss),)


def _resolution(images: int) -> tuple[str, ...]:
    """Return a warning if validation images are too few to see the drop that counts as robust."""
    if images * ROBUST_DROP >= 1:
        return ()
    return (f"One of the {images:,} validation images is {1 / images:.1%}: smaller drops cannot be seen.",)


def _of_int8_sensitivity(record: Int8SensitivityRecord) -> Answer:
    """Return the layers most and least sensitive to being quantized alone."""
    return Answer(
        rows=tuple(
            LayerAnswerRow(
                rank=row.rank,
                layer=row.layer,
                mean_loss_increase=row.loss_increase,
                max_accuracy_drop=row.accuracy_drop,
            )
            for row in _first_and_last(record.rows)
        ),
        sentence=f"All layers in 8 bits together change the loss by {record.loss_increase_of_all:+.4f}; the most "
        f"critical is {record.rows[0].layer}.",
        warnings=warnings_of(record),
        next_command=_of_all_layers(record) or f"chestx quantize --method static{_from_option(record.variant)}",
    )


def _of_all_layers(record: Record) -> str:
    """Return the command that measures all layers and stores that, for a record of some; empty for one of all."""
    if not record.stamp.options.get("layers"):
        return ""
    words = shlex.split(record.stamp.command)
    dropped = {STUDY_FLAG, "--layers"}
    return command_line(word for before, word in pairwise(["", *words]) if not {before, word} & dropped)


def _from_option(variant: str) -> str:
    return "" if variant == BASELINE else f" --from {variant}"


def _first_and_last(rows: Sequence[Row]) -> tuple[Row, ...]:
    if len(rows) <= MOST_CRITICAL + MOST_ROBUST:
        return tuple(rows)
    return (*rows[:MOST_CRITICAL], *rows[-MOST_ROBUST:])


def of_benchmark(record: BenchmarkRecord, int8: set[str], decision: Decision | None) -> Answer:
    """Return each variant under its fastest runtime; `decision` is None if no variant was evaluated on test images."""
    fastest_rows = [row for name in dict.fromkeys(row.variant for row in record.rows) if (row := record.fastest(name))]
    sizes_mb = {row.variant: row.size_mb for row in record.cost_rows}
    noisy = is_noisy(record)
    rows = tuple(
        SpeedRow(
            variant=row.variant,
            runtime=row.runtime,
            latency_ms=f"{'~' if noisy else ''}{short_number(row.latency_p50_ms)}",
            # Noisy speed-ups must not be quoted; --full shows them.
            speedup=None if noisy else row.speedup_over_best_fp32,
            interval=None if noisy else row.speedup_over_best_fp32_interval,
            size_mb=short_number(sizes_mb[row.variant]),
            verdict="–" if row.variant == record.baseline else NOISY if noisy else word_of(record, row.variant) or "–",
        )
        for row in fastest_rows
    )
    sentence = decision.sentence if decision else " ".join(recommendation((record,), int8, {})[:1])
    return Answer(
        rows=rows,
        sentence=sentence or f"{counted(len(rows), 'variant')} timed on {record.device}.",
        warnings=(*warnings_of(record), *record.warnings),
        next_command=decision.next_command if decision else "chestx evaluate",
    )


def of_evaluation(record: Record, decision: Decision, also: tuple[str, ...] = ()) -> Answer:
    """Return the errors, verdict and cost of every variant, and the one to ship; `also`: further warnings."""
    return Answer(
        rows=decision.rows,
        sentence=decision.sentence,
        warnings=(*warnings_of(record), *also),
        next_command=decision.next_command,
    )


def of_report(record: ReportRecord, decision: Decision | None, page: str) -> Answer:
    """Return the decision and the path of the page, which opens with the same decision."""
    page_note = f"The page: {page}"
    if decision is None:
        return Answer(
            sentence=page_note,
            warnings=warnings_of(record),
            next_command="chestx evaluate" if record.variants else "chestx train",
        )
    return Answer(
        rows=decision.rows,
        sentence=f"{decision.sentence} {page_note}",
        warnings=warnings_of(record),
        next_command=decision.next_command,
    )


def of_comparison(record: CompareRecord) -> Answer:
    """Return the endpoint and its guards for two variants, with a verdict on each difference."""
    (endpoint,) = record.endpoint_rows
    auroc = record.auroc_rows[0] if record.auroc_rows else None
    shares = {row.measure.partition(" ")[0].lower(): row for row in record.rows}
    rows = [
        MeasureRow(
            measure=endpoint.measure,
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
                state=STATE_IN_SHORT.get(guard.state, guard.state),
            )
        )
    return Answer(
        rows=tuple(rows),
        sentence=paragraph(
            f"{record.second} (B) against {record.first} (A) on {record.images:,} images: {record.short}; "
            f"{record.rows[0].lost or 0} correct in A only, {record.rows[0].won or 0} in B only.",
            f"About {record.needed_images:,} images would settle it." if record.needed_images else "",
        ),
        warnings=warnings_of(record),
        next_command="chestx report" if record.evaluated_on == "test" else "",
    )


def of_search(record: CompressRecord, stopped: str, more: str, study: str = "") -> Answer:
    """Return the Pareto front of a search with the chosen and the parent model, and why the search stopped.

    more: the command that gives more time to a search that ran out of it; empty for a complete one. study: the fold
    that the next command evaluates in, for a search over folds.
    """
    best = record.chosen or record.nearest
    rows = [row for row in record.rows if row.is_on_front or row.variant in (best, record.parent)]
    following = f"chestx evaluate {best}{f' --study {quoted(study)}' if study else ''}" if best else ""
    images = f"the validation images{f' of {len(record.folds)} folds' if record.folds else ''}"
    if record.chosen:
        least = f", with the least {record.objective}" if record.objective else ""
        is_rough = record.times_decide and any(row.is_rough for row in record.rows if row.variant == record.chosen)
        by = f", by {NOISY} times" if is_rough else ""
        sentence = f"{record.chosen} meets all limits on {images}{least}{by}. {stopped}"
    else:
        missed = next((_missed_by(row) for row in record.rows if row.variant == record.nearest), "")
        sentence = f"No model meets all limits; nearest is {record.nearest}, which misses {missed}. {stopped}"
    return Answer(
        rows=tuple(
            SearchRow(
                variant=row.variant,
                latency_ms=f"{'~' if row.is_rough else ''}{short_number(row.latency_p50_ms)}",
                size_mb=short_number(row.size_mb),
                accuracy=row.accuracy,
                drop="–" if row.variant == record.parent else _drop_of(row),
                front_share=row.front_share,
                missed=", ".join(measure.partition(" of ")[0] for measure in row.missed) or "none",
            )
            for row in rows
        ),
        sentence=sentence,
        warnings=(*warnings_of(record), *(note for note in record.notes if note.startswith(NOISY))),
        next_command=more if more and not record.chosen else following,
    )


def _missed_by(row: CompressRow) -> str:
    """Return the limits that a model misses."""
    rough = f" (by {NOISY} times)" if row.is_rough else ""
    return " and ".join(f"{limit}{rough if limit == 'latency' else ''}" for limit in row.missed)


def _drop_of(row: CompressRow) -> str:
    if row.drop is None or row.drop_interval is None:
        return "–"
    low, high = row.drop_interval
    return f"{row.drop:+.3f} ({low:+.2f} to {high:+.2f})"


def of_export(record: ExportRecord) -> Answer:
    """Return the path of the bundle and its largest difference in probability from the variant."""
    difference = record.max_probability_difference
    agreement = f"agree within {difference:.0e}" if difference else "are the same"
    sizes = [
        f"model {short_number(record.model_bytes / 1e6)} MB",
        f"bundle {short_number(record.bundle_bytes / 1e6)} MB",
        "memory not benchmarked"
        if record.added_memory_mb is None
        else f"{short_number(record.added_memory_mb)} MB in memory",
    ]
    return Answer(
        sentence=f"{record.variant} is in {record.bundle} ({', '.join(sizes)}); on {record.checked_images} validation "
        f"images its probabilities {agreement}.",
        warnings=record.notes,
        next_command=f"python3 {quoted(f'{record.bundle}/chestx_bundle.py')} predict IMAGE",
    )


def of_doctor(record: DoctorRecord) -> Answer:
    """Return the components found, their effect, and remedies for missing ones; extras are counted in one row."""
    extras = [row for row in record.rows if row.extra]
    missing = [row for row in record.rows if row.is_missing and not row.extra]
    rows = [CheckRow(what=row.what, state=row.state, meaning=row.meaning) for row in record.rows if not row.extra]
    if extras:
        here = sum(not row.is_missing for row in extras)
        counted_extras = CheckRow(what="Extras", state=f"{here} of {len(extras)} here", meaning="--full lists them")
        rows.insert(record.rows.index(extras[0]), counted_extras)
    absent = ",".join(row.extra for row in extras if row.is_missing)
    return Answer(
        rows=tuple(rows),
        sentence=f"{record.headline[0].upper()}{record.headline[1:]}, {counted(record.threads, 'thread')} of "
        f"{record.processor}.",
        warnings=(
            *(f"{row.what}: {row.remedy}." for row in missing),
            *([f"Extras: pip install 'chestx-cli[{absent}]'."] if absent else []),
        ),
    )


def of_demo(record: DemoRecord, decision: Decision) -> Answer:
    """Return the decision of the demonstration and the path of its page."""
    return Answer(
        rows=decision.rows,
        sentence=f"{decision.sentence} The page: {record.page}",
        warnings=(
            "The images are synthetic: the numbers show that the commands work, and nothing about real patients.",
        ),
    )
