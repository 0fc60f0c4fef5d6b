"""A whole study of made-up results, written without training anything."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from chestx_cli.evaluation import class_rows
from chestx_cli.images import Preprocessing
from chestx_cli.layer_sensitivity import rank_layers
from chestx_cli.metrics import measure
from chestx_cli.predictions import Predictions, write_predictions
from chestx_cli.record import Stamp
from chestx_cli.records import (
    BenchmarkRecord,
    BenchmarkRow,
    EpochRow,
    EvaluationRecord,
    EvaluationRow,
    GroupRuleRow,
    LayerMeasurement,
    PrunedLayerRow,
    Pruning,
    SensitivityRecord,
    SplitRecord,
    SplitRow,
    Training,
    VariantRecord,
)
from chestx_cli.stats import discordant, mcnemar_exact, wilson_interval
from chestx_cli.study import Study, write_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CLASSES = ("NORMAL", "PNEUMONIA")
SIZES = {"train": (60, 178), "val": (15, 40), "test": (20, 36)}
AMOUNTS = (0.2, 0.4, 0.6, 0.8)
PARAMETERS = 24_600_000


@dataclass(frozen=True, kw_only=True)
class Made:
    """A made-up variant: the strength of its scores and what it weighs and takes."""

    name: str
    strength: float = 1.6
    sparsity: float = 0.0
    kind: str = "torch"
    model_bytes: int = 98_500_000
    eager_ms: float | None = 41.2
    onnx_ms: float = 23.4


FIVE = (
    Made(name="baseline"),
    Made(name="oneshot-50", strength=1.4, sparsity=0.5, eager_ms=41.6, onnx_ms=23.1),
    Made(name="iterative-3x20", strength=1.7, sparsity=0.488, eager_ms=41.0, onnx_ms=23.9),
    Made(name="dynamic-int8", kind="onnx", model_bytes=95_400_000, eager_ms=None, onnx_ms=23.0),
    Made(
        name="iterative-3x20-fine-tuned-dynamic-int8-per-channel",
        kind="onnx",
        model_bytes=24_900_000,
        eager_ms=None,
        onnx_ms=7.9,
    ),
)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def made_stamp(second: int = 0) -> Stamp:
    return Stamp(
        command="chestx",
        options={},
        inputs={},
        environment={},
        created=f"2026-01-01T00:00:{second:02}Z",
        duration_s=1.0,
    )


def write_split(root: Path, classes: tuple[str, ...] = CLASSES) -> Study:
    """Write a split of SIZES images, about two per patient."""
    study = Study(root)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image_id", "path", "label", "group", "split", "sha256", "size_bytes", "width_px", "height_px"])
    n, rows = 0, []
    for part, sizes in SIZES.items():
        for label, size in zip(classes, sizes, strict=True):
            groups = [f"{part}-{label}-{i // 2}" for i in range(size)]
            for group in groups:
                writer.writerow([f"img-{n:06d}", f"{label}/{n}.png", label, group, part, sha256(str(n)), 1000, 64, 64])
                n += 1
            total = sum(found[classes.index(label)] for found in SIZES.values())
            rows.append(SplitRow(split=part, label=label, images=size, patients=len(set(groups)), share=size / total))
    study.root.mkdir(parents=True, exist_ok=True)
    study.split_csv.write_text(out.getvalue())
    record = SplitRecord(
        stamp=made_stamp(),
        data=str(root),
        layout="class folders",
        images=n,
        patients=sum(row.patients for row in rows),
        classes=classes,
        positive=classes[1],
        ignored_files=0,
        rows=tuple(rows),
        group_rules=(GroupRuleRow(rule="NIH", images=n),),
        split_csv_sha256=sha256(out.getvalue()),
    )
    write_record(study.split_json, record)
    return study


def make_epochs(n: int) -> tuple[EpochRow, ...]:
    """Return a plausible course of n epochs; the AUROC is undefined, as with one class, in the second."""
    rng = np.random.default_rng(3)
    kept = max(1, n - 2)
    rows = []
    for epoch in range(1, n + 1):
        values: dict[str, Any] = {}
        for part, lag in (("train", 0.0), ("val", 0.03)):
            good = min(0.99, 0.99 - 0.3 * math.exp(-epoch / 2.5) - lag + rng.normal(0, 0.012))
            values[f"{part}_loss"] = 0.62 * math.exp(-epoch / 4) + 0.09 + lag + abs(rng.normal(0, 0.02))
            for metric in ("accuracy", "precision", "recall", "f1"):
                values[f"{part}_{metric}"] = good - (0.02 if metric == "f1" else 0)
            for metric in ("auroc", "average_precision"):
                values[f"{part}_{metric}"] = None if epoch == 2 else min(1.0, good + 0.04)
        rows.append(EpochRow(stage="train", epoch=epoch, duration_s=8.0, kept=epoch == kept, **values))
    return tuple(rows)


def write_variant(study: Study, made: Made, order: int, epochs: Sequence[EpochRow] = ()) -> VariantRecord:
    """Write variant.json with made-up values."""
    split = study.read_split()
    zeros = int(PARAMETERS * made.sparsity)
    record = VariantRecord(
        stamp=made_stamp(order),
        name=made.name,
        kind=made.kind,
        method="train" if made.name == "baseline" else "made up",
        parent=None if made.name == "baseline" else "baseline",
        parent_sha256=None,
        backbone="resnet50",
        classes=split.classes,
        positive=split.classes[split.positive],
        preprocessing=Preprocessing(),
        threshold=0.5,
        options={},
        model_file="model.onnx" if made.kind == "onnx" else "model.safetensors",
        model_sha256=sha256(made.name),
        model_bytes=made.model_bytes,
        parameters=PARAMETERS,
        nonzero_parameters=PARAMETERS - zeros,
        macs=4_100_000_000,
        split_sha256=split.sha256,
        training=Training(
            device="cpu",
            precision="bf16",
            initial_weights="imagenet",
            best_epoch=next(row.epoch for row in epochs if row.kept),
            best_val_loss=0.1,
            epochs=tuple(epochs),
        )
        if epochs
        else None,
        pruning=Pruning(
            asked_sparsity=made.sparsity,
            achieved_sparsity=made.sparsity,
            finetune_epochs=0,
            layers=(PrunedLayerRow(layer="conv1", weights=9408, zeros=100, sparsity=0.01),),
        )
        if made.sparsity
        else None,
    )
    write_record(study.variant(made.name) / "variant.json", record)
    return record


def make_evaluation_row(record: VariantRecord, own: Predictions, baseline: Predictions) -> EvaluationRow:
    """Return the metrics that follow from predictions; the interval of the AUROC is made up, a bootstrap takes long."""
    metrics = measure(own.is_positive, own.probability)
    assert metrics.auroc is not None
    assert metrics.average_precision is not None
    counts = {
        name: int(((own.is_positive == truth) & (own.decision == called)).sum())
        for name, truth, called in (
            ("true_negatives", 0, 0),
            ("false_positives", 0, 1),
            ("false_negatives", 1, 0),
            ("true_positives", 1, 1),
        )
    }
    n, correct = len(own.decision), int(own.correct.sum())
    lost, won = discordant(baseline.correct, own.correct)
    is_baseline = record.name == "baseline"
    return EvaluationRow(
        variant=record.name,
        correct=correct,
        accuracy=metrics.accuracy,
        accuracy_interval=wilson_interval(correct, n),
        macro_precision=metrics.macro_precision,
        macro_recall=metrics.macro_recall,
        macro_f1=metrics.macro_f1,
        auroc=metrics.auroc,
        auroc_interval=(metrics.auroc - 0.04, min(1.0, metrics.auroc + 0.03)),
        average_precision=metrics.average_precision,
        only_baseline_correct=None if is_baseline else lost,
        only_variant_correct=None if is_baseline else won,
        mcnemar_p=None if is_baseline else mcnemar_exact(lost, won),
        verdict="made up",
        model_sha256=record.model_sha256,
        **counts,
    )


def write_evaluations(study: Study, variants: Sequence[Made], records: Sequence[VariantRecord]) -> None:
    """Write the evaluation and the predictions of variants, all alike but for noise, with the metrics that follow."""
    split = study.read_split()
    rows = split.indices("test")
    rng = np.random.default_rng(11)
    truth, noise = split.is_positive(rows), rng.normal(0, 1, len(rows))
    found = {}
    for made in variants:
        score = made.strength * (2 * truth - 1) + 1.35 * noise + 0.45 * rng.normal(0, 1, len(rows))
        probability = 1 / (1 + np.exp(-score))
        decision = (probability >= 0.5).astype(np.int64)
        found[made.name] = Predictions(
            image_ids=split.ids[rows], is_positive=truth, probability=probability, decision=decision
        )
    record = EvaluationRecord(
        stamp=made_stamp(),
        split="test",
        images=len(rows),
        patients=len(set(split.groups[rows].tolist())),
        positive=split.classes[split.positive],
        baseline="baseline",
        split_sha256=split.sha256,
        rows=tuple(make_evaluation_row(variant, found[variant.name], found["baseline"]) for variant in records),
        class_rows=tuple(row for variant in records for row in class_rows(variant, found[variant.name], split)),
        misses=(),
    )
    for variant in records:
        folder = study.variant(variant.name)
        write_predictions(folder / "predictions.test.csv", found[variant.name])
        write_record(folder / "evaluation.test.json", record.of(variant.name))


def write_benchmarks(study: Study, variants: Sequence[Made], records: Sequence[VariantRecord]) -> None:
    """Write the CPU benchmark of variants, as of one run."""
    for made, record in zip(variants, records, strict=True):
        rows = tuple(
            BenchmarkRow(
                variant=made.name,
                runtime=runtime,
                model_bytes=made.model_bytes,
                size_mb=made.model_bytes / 1e6,
                parameters=PARAMETERS,
                nonzero_parameters=record.nonzero_parameters,
                macs=record.macs,
                gmacs=record.macs / 1e9,
                latency_p50_ms=latency_ms,
                latency_p90_ms=latency_ms * 1.1,
                latency_p99_ms=latency_ms * 1.3,
                throughput_images_per_s=1500 / latency_ms,
                speedup_over_eager=41.2 / latency_ms,
                speedup_over_best_fp32=23.4 / latency_ms,
                samples=100,
                model_sha256=record.model_sha256,
            )
            for runtime, latency_ms in (("pytorch", made.eager_ms), ("onnxruntime", made.onnx_ms))
            if latency_ms is not None
        )
        benchmark = BenchmarkRecord(
            stamp=made_stamp(),
            device="cpu",
            threads=4,
            rounds=5,
            latency_batch=1,
            throughput_batch=16,
            baseline="baseline",
            best_fp32_runtime="onnxruntime",
            rows=rows,
        )
        write_record(study.variant(made.name) / "benchmark.cpu.json", benchmark)


def resnet50_layers() -> tuple[str, ...]:
    """Return the names of ResNet50's convolutions and of the head's Linear layers, in network order."""
    names = ["conv1"]
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            names += [f"layer{stage}.{block}.conv{i}" for i in (1, 2, 3)]
            names += [f"layer{stage}.0.downsample.0"] * (block == 0)
    return (*names, "fc.0", "fc.4")


def write_sensitivity(study: Study, record: VariantRecord, layers: Sequence[str]) -> None:
    """Write a sensitivity in which a few layers matter much and most hardly at all."""
    rng = np.random.default_rng(5)
    loss, accuracy, auroc = 0.1312, 0.945, 0.981
    measurements = tuple(
        LayerMeasurement(
            layer=layer,
            kind="Linear" if layer.startswith("fc") else "Conv2d",
            weights=10_000,
            amount=amount,
            loss=loss + weight * amount**3 + rng.normal(0, 0.002),
            accuracy=max(0.5, accuracy - 0.2 * weight * amount),
            auroc=max(0.5, auroc - 0.1 * weight * amount),
        )
        for layer, weight in zip(layers, rng.lognormal(-3.5, 1.4, len(layers)), strict=True)
        for amount in AMOUNTS
    )
    sensitivity = SensitivityRecord(
        stamp=made_stamp(),
        variant=record.name,
        split="val",
        images=sum(SIZES["val"]),
        loss=loss,
        accuracy=accuracy,
        auroc=auroc,
        amounts=AMOUNTS,
        model_sha256=record.model_sha256,
        rows=rank_layers(measurements, loss, accuracy),
        measurements=measurements,
    )
    write_record(study.variant(record.name) / "sensitivity.json", sensitivity)


def write_study(
    root: Path,
    variants: Sequence[Made] = FIVE,
    *,
    classes: tuple[str, ...] = CLASSES,
    epochs: int = 12,
    layers: Sequence[str] = (),
) -> Study:
    """Write a whole study of made-up results."""
    study = write_split(root, classes)
    course = make_epochs(epochs)
    records = [
        write_variant(study, made, order, course if made.name == "baseline" else ())
        for order, made in enumerate(variants)
    ]
    write_evaluations(study, variants, records)
    write_benchmarks(study, variants, records)
    write_sensitivity(study, records[0], layers or resnet50_layers())
    return study
