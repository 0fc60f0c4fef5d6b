"""A whole study of made-up results, written without training anything."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
from PIL import Image

from chestx_cli.compression.pruning.layer_sensitivity import rank_layers
from chestx_cli.core.record import Stamp
from chestx_cli.data.duplicates import NEAR, SAME_PIXELS
from chestx_cli.evaluation.predictions import images_of, predictions_csv, predictions_of
from chestx_cli.evaluation.result_tables import EvaluationOptions, evaluate_all
from chestx_cli.evaluation.results import VariantResults
from chestx_cli.evaluation.statistics import intervals
from chestx_cli.evaluation.statistics.intervals import draw_patients
from chestx_cli.evaluation.verdicts import Margins
from chestx_cli.records.answers import NOT_INFERIOR
from chestx_cli.records.benchmark import BatchRow, BenchmarkRecord, BenchmarkRow, CostRow
from chestx_cli.records.evaluation import EvaluationRecord
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.records.sensitivity import (
    GroupMeasurement,
    GroupRow,
    GroupSensitivityRecord,
    Int8LayerRow,
    Int8SensitivityRecord,
    LayerMeasurement,
    SensitivityRecord,
)
from chestx_cli.records.split import GroupRuleRow, SplitRecord, SplitRow
from chestx_cli.records.variant import (
    EpochRow,
    PrunedLayerRow,
    Pruning,
    Quantization,
    Training,
    VariantRecord,
    WeightRow,
)
from chestx_cli.store.directory import Study
from chestx_cli.store.documents import write_record

CLASSES = ("NORMAL", "PNEUMONIA")
SIZES = {"train": (24, 60), "val": (8, 14), "test": (28, 28)}
AMOUNTS = (0.2, 0.4, 0.6, 0.8)
PARAMETERS = 24_600_000
ONNX_BYTES = 98_140_000


@dataclass(frozen=True, kw_only=True)
class Made:
    """A made-up variant: the strength of its scores, its size and its latency.

    `wrong` are the test images with a wrong decision, the 28 of the negative class first; None draws them at random.
    """

    name: str
    p50_ms: Mapping[str, float]
    strength: float = 1.6
    wrong: tuple[int, ...] | None = None
    sparsity: float = 0.0
    kind: Literal["torch", "onnx"] = "torch"
    model_bytes: int = 98_300_000


FIVE = (
    Made(name="baseline", p50_ms={"pytorch": 41.2, "onnxruntime": 23.4}),
    Made(name="oneshot-50", strength=1.4, sparsity=0.5, p50_ms={"pytorch": 41.6, "onnxruntime": 23.1}),
    Made(name="iterative-3x20", strength=1.7, sparsity=0.488, p50_ms={"pytorch": 41.0, "onnxruntime": 23.9}),
    Made(name="dynamic-int8", kind="onnx", model_bytes=95_400_000, p50_ms={"onnxruntime": 23.0}),
    Made(
        name="iterative-3x20-fine-tuned-dynamic-int8-per-channel",
        kind="onnx",
        model_bytes=24_900_000,
        p50_ms={"onnxruntime": 7.9},
    ),
)


def sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def made_stamp(minute: int, command: str = "chestx", records: Sequence[VariantRecord] = ()) -> Stamp:
    """Return a stamp of a command that read the models of some variants."""
    return Stamp(
        command=command,
        options={"seed": 42},
        inputs={f"{record.name}/{record.model_file}": record.model_sha256 for record in records},
        environment={"torch": "2.13.0", "processor": "Made-up CPU", "threads": "2"},
        created=f"2026-01-01T10:{minute:02}:00+00:00",
        duration_s=1.5,
    )


def write_split(root: Path, classes: tuple[str, ...] = CLASSES) -> Study:
    """Write SIZES images, two per patient, and their split."""
    study, data = Study(root / "study"), root / "data"
    for folder in (study.root, data):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image_id", "path", "label", "group", "split", "sha256", "size_bytes", "width_px", "height_px"])
    n, rows = 0, []
    for part, sizes in SIZES.items():
        for label, size in zip(classes, sizes, strict=True):
            groups = [f"{part}-{label}-{i // 2}" for i in range(size)]
            for group in groups:
                path = data / f"patient{n}.png"
                Image.fromarray(rng.integers(0, 255, (40, 50), dtype=np.uint8)).save(path)
                content = path.read_bytes()
                fields = (f"img-{n:06d}", path.name, label, group, part, sha256(content), len(content), 50, 40)
                writer.writerow(fields)
                n += 1
            total = sum(found[classes.index(label)] for found in SIZES.values())
            rows.append(SplitRow(split=part, label=label, images=size, patients=len(set(groups)), share=size / total))
    study.split_csv.write_text(out.getvalue())
    study.duplicates_csv.write_text(
        "kind,first_image_id,second_image_id,first_label,second_label,first_split,second_split,hash_distance,correlation\n"
        f"{SAME_PIXELS},img-000000,img-000001,a,a,train,train,0,1.0000\n"
        f"{NEAR},img-000002,img-000003,a,a,train,train,3,0.9871\n"
    )
    record = SplitRecord(
        stamp=made_stamp(0, "chestx split data"),
        source=str(data),
        data=str(data),
        layout="class folders",
        images=n,
        patients=sum(row.patients for row in rows),
        classes=classes,
        positive=classes[1],
        ignored_files=1,
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
        values: dict[str, Any] = {"train": {}, "val": {}}
        for part, lag in (("train", 0.0), ("val", 0.03)):
            good = min(0.99, 0.99 - 0.3 * math.exp(-epoch / 2.5) - lag + rng.normal(0, 0.012))
            values[f"{part}_loss"] = 0.62 * math.exp(-epoch / 4) + 0.09 + lag + abs(rng.normal(0, 0.02))
            for metric in ("accuracy", "precision", "recall", "f1"):
                values[part][metric] = good - (0.02 if metric == "f1" else 0)
            for metric in ("auroc", "average_precision"):
                values[part][metric] = None if epoch == 2 else min(1.0, good + 0.04)
        rows.append(EpochRow(stage="train", epoch=epoch, duration_s=8.0, kept=epoch == kept, **values))
    return tuple(rows)


def write_variant(
    study: Study, made: Made, order: int, epochs: Sequence[EpochRow] = (), method: str = "made up"
) -> VariantRecord:
    """Write variant.json with made-up values; every variant but the baseline is made from the baseline."""
    split = study.read_split()
    is_baseline, is_onnx = made.name == "baseline", made.kind == "onnx"
    record = VariantRecord(
        stamp=made_stamp(order, f"chestx make {made.name}"),
        name=made.name,
        kind=made.kind,
        method=method,
        parent=None if is_baseline else "baseline",
        parent_sha256=None if is_baseline else sha256("baseline"),
        backbone="resnet50",
        classes=split.classes,
        positive=split.classes[split.positive],
        preprocessing=Preprocessing(),
        threshold=0.5,
        options={"method": method, "lr": 1e-4},
        model_file="model.onnx" if is_onnx else "model.safetensors",
        model_sha256=sha256(made.name),
        model_bytes=made.model_bytes,
        parameters=PARAMETERS,
        nonzero_parameters=PARAMETERS - int(PARAMETERS * made.sparsity),
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
            target_sparsity=made.sparsity,
            achieved_sparsity=made.sparsity,
            finetune_epochs=0,
            layers=(PrunedLayerRow(layer="conv1", weights=9408, zeros=100, sparsity=0.01),),
        )
        if made.sparsity
        else None,
        quantization=Quantization(
            target_cpu="any",
            quantized_parameters=1_050_000,
            quantized_share=0.043,
            parent_bytes=ONNX_BYTES,
            calibration_images=None,
            accuracy_before=0.95,
            accuracy=0.95,
            lost=0,
            won=0,
            difference_interval=(-0.064, 0.064),
            p=1.0,
            auroc_before=0.99,
            auroc=0.99,
            max_probability_difference=0.01,
            kernel_difference=None,
            trained_difference=None,
            weights=(WeightRow(layer="fc", weights=1_050_000, bits=8),),
        )
        if is_onnx
        else None,
    )
    write_record(study.variant(made.name) / "variant.json", record)
    (study.variant(made.name) / record.model_file).write_text(made.name)
    return record


def write_evaluations(study: Study, variants: Sequence[Made], records: Sequence[VariantRecord]) -> None:
    """Write the predictions of variants, equal except for noise, and the resulting metrics."""
    split = study.read_split()
    rows = split.indices("test")
    rng = np.random.default_rng(11)
    truth, noise = split.is_positive(rows), rng.normal(0, 1, len(rows))
    side = 2 * truth - 1
    found = {}
    for made in variants:
        score = made.strength * side + 1.35 * noise + 0.45 * rng.normal(0, 1, len(rows))
        if made.wrong is not None:
            is_wrong = np.isin(np.arange(len(rows)), made.wrong)
            score = np.abs(score) * np.where(is_wrong, -1.0, 1.0) * side
        probability = 1 / (1 + np.exp(-score))
        found[made.name] = predictions_of(images_of(split, rows), probability, 0.5)
    # Thousands of draws would take most of the time of the tests that need such a study.
    with patch.object(intervals, "BOOTSTRAP_DRAWS", 50):
        patients = draw_patients(split.groups[rows], np.random.default_rng(0))
    options = EvaluationOptions(
        baseline="baseline", reference="the baseline", margins=Margins(), faults=(), prevalences=(0.05, 0.3)
    )
    record = EvaluationRecord(
        stamp=made_stamp(20, "chestx evaluate", records),
        split="test",
        images_sha256=sha256("made up"),
        images=len(rows),
        patients=patients.n,
        positive=split.classes[split.positive],
        baseline="baseline",
        margin=0.02,
        split_sha256=split.sha256,
        **vars(evaluate_all(records, found, patients, options)),
    )
    for variant in records:
        folder = study.variant(variant.name)
        (folder / "predictions.test.csv").write_text(predictions_csv(found[variant.name]))
        write_record(folder / "evaluation.test.json", record.of(variant.name))


def around(ratio: float) -> tuple[float, float] | None:
    return None if ratio == 1 else (ratio * 0.99, ratio * 1.01)


def made_speed(record: VariantRecord, runtime: str, latency_ms: float, baseline: Mapping[str, float]) -> BenchmarkRow:
    over_eager, over_best = (baseline[name] / latency_ms for name in ("pytorch", "onnxruntime"))
    return BenchmarkRow(
        variant=record.name,
        runtime=runtime,
        latency_p50_ms=latency_ms,
        latency_p90_ms=latency_ms * 1.1,
        latency_p99_ms=latency_ms * 1.3,
        images_per_s=(1000 / latency_ms, 1500 / latency_ms),
        speedup_over_eager=over_eager,
        speedup_over_eager_interval=around(over_eager),
        speedup_over_best_fp32=over_best,
        speedup_over_best_fp32_interval=around(over_best),
        batches=tuple(
            BatchRow(
                batch_size=batch,
                p50_ms=latency_ms * batch / factor,
                p90_ms=latency_ms * batch / factor * 1.1,
                p99_ms=latency_ms * batch / factor * 1.3,
                images_per_s=1000 * factor / latency_ms,
                calls=300,
                round_p50_ms=(latency_ms * batch / factor,) * 5,
            )
            for batch, factor in ((1, 1.0), (16, 1.5))
        ),
        model_sha256=record.model_sha256,
    )


def made_cost(made: Made, record: VariantRecord, runtime: str) -> CostRow:
    sparse_bytes = int(made.model_bytes * (1 - made.sparsity) + record.parameters / 8)
    sizes = (made.model_bytes, made.model_bytes * 9 // 10, min(made.model_bytes, sparse_bytes))
    return CostRow(
        variant=record.name,
        runtime=runtime,
        peak_memory_mb=520.0,
        added_memory_mb=310.0,
        size_mb=sizes[0] / 1e6,
        gzip_mb=sizes[1] / 1e6,
        sparse_mb=sizes[2] / 1e6,
        parameters=record.parameters,
        nonzero_parameters=record.nonzero_parameters,
        gmacs=record.macs / 1e9,
        macs=record.macs,
        model_bytes=sizes[0],
        gzip_bytes=sizes[1],
        sparse_bytes=sizes[2],
        model_sha256=record.model_sha256,
    )


def write_benchmarks(study: Study, variants: Sequence[Made], records: Sequence[VariantRecord]) -> None:
    """Write the CPU benchmark of variants, the baseline first, as of one run."""
    pairs = [
        (made, record, runtime, latency_ms)
        for made, record in zip(variants, records, strict=True)
        for runtime, latency_ms in made.p50_ms.items()
    ]
    benchmark = BenchmarkRecord(
        stamp=made_stamp(30, "chestx benchmark", records),
        device="cpu",
        machine="Made-up CPU, Linux x86_64",
        threads=2,
        rounds=5,
        batch_sizes=(1, 16),
        baseline="baseline",
        best_fp32_runtime="onnxruntime",
        rows=tuple(
            made_speed(record, runtime, latency_ms, variants[0].p50_ms) for _, record, runtime, latency_ms in pairs
        ),
        cost_rows=tuple(made_cost(made, record, runtime) for made, record, runtime, _ in pairs),
    )
    for record in records:
        write_record(study.variant(record.name) / "benchmark.cpu.json", benchmark.of(record.name))


def rewrite_benchmarks(study: Study, variants: Sequence[Made], name: str, p50_ms: Mapping[str, float]) -> None:
    """Rewrite the benchmarks of a study with other latencies of one variant."""
    changed = [replace(made, p50_ms=p50_ms) if made.name == name else made for made in variants]
    write_benchmarks(study, changed, [study.read_variant(made.name) for made in changed])


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
        stamp=made_stamp(10, "chestx sensitivity"),
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
    write_int8_sensitivity(study, record, layers)


def write_int8_sensitivity(study: Study, record: VariantRecord, layers: Sequence[str]) -> None:
    """Write what each layer costs in 8 bits: hardly anything, and one much."""
    rng = np.random.default_rng(6)
    increases = sorted((0.08 * rng.random(len(layers)) ** 8 - 0.001).tolist(), reverse=True)
    sensitivity = Int8SensitivityRecord(
        stamp=made_stamp(11, "chestx sensitivity --quantization"),
        variant=record.name,
        split="val",
        images=sum(SIZES["val"]),
        target_cpu="any",
        loss=0.1312,
        accuracy=0.945,
        auroc=0.981,
        loss_increase_of_all=0.02,
        model_sha256=record.model_sha256,
        rows=tuple(
            Int8LayerRow(
                rank=rank,
                layer=layer,
                kind="Conv",
                weights=10_000,
                loss_increase=increase,
                accuracy_drop=0.018 if rank == 1 else 0.0,
                auroc=0.98,
                max_probability_difference=abs(increase),
            )
            for rank, (layer, increase) in enumerate(zip(layers, increases, strict=True), start=1)
        ),
    )
    write_record(study.variant(record.name) / "int8-sensitivity.json", sensitivity)


def write_group_sensitivity(study: Study, record: VariantRecord, layers: Sequence[str]) -> None:
    """Write the sensitivity of coupled groups: every third of some layers begins one."""
    loss, accuracy, auroc = 0.1312, 0.945, 0.981
    names = layers[::3]
    measurements = tuple(
        GroupMeasurement(
            layer=layer,
            channels=64,
            channels_removed=round(64 * amount),
            amount=amount,
            macs_removed=0.02 * amount,
            loss=loss + 0.05 * index * amount**2,
            accuracy=accuracy - 0.01 * amount,
            auroc=auroc - 0.01 * amount,
        )
        for index, layer in enumerate(names)
        for amount in AMOUNTS
    )
    rows = tuple(
        GroupRow(
            rank=rank,
            layer=layer,
            layers=3,
            channels=64,
            macs_share=0.02,
            mean_loss_increase=0.01,
            max_loss_increase=0.02,
            max_accuracy_drop=0.01,
            min_auroc=0.97,
        )
        for rank, layer in enumerate(reversed(names), start=1)
    )
    sensitivity = GroupSensitivityRecord(
        stamp=made_stamp(12, "chestx sensitivity --structured"),
        variant=record.name,
        split="val",
        images=sum(SIZES["val"]),
        criterion="bn-scale",
        loss=loss,
        accuracy=accuracy,
        auroc=auroc,
        amounts=AMOUNTS,
        model_sha256=record.model_sha256,
        rows=rows,
        measurements=measurements,
    )
    write_record(study.variant(record.name) / "sensitivity.structured.json", sensitivity)


def write_study(
    root: Path,
    variants: Sequence[Made] = FIVE,
    *,
    classes: tuple[str, ...] = CLASSES,
    method: str = "made up",
    epochs: int = 12,
    layers: Sequence[str] = (),
) -> Study:
    """Write a whole study of made-up results; the baseline is the first of the variants."""
    study = write_split(root, classes)
    course = make_epochs(epochs)
    records = [
        write_variant(study, made, order, course if made.name == "baseline" else (), method)
        for order, made in enumerate(variants, start=1)
    ]
    write_evaluations(study, variants, records)
    write_benchmarks(study, variants, records)
    write_sensitivity(study, records[0], layers or resnet50_layers())
    write_group_sensitivity(study, records[0], layers or resnet50_layers())
    return study


def timed(
    variant: VariantResults, latency_ms: float, baseline_ms: float, *, word: str = NOT_INFERIOR
) -> VariantResults:
    """Return a variant with a verdict and this latency in each of five rounds."""
    evaluation, benchmark = variant.evaluation, variant.benchmark_on("cpu")
    assert evaluation is not None
    assert benchmark is not None
    speedup = baseline_ms / latency_ms
    (row,) = (row for row in benchmark.rows if row.runtime == "onnxruntime")
    batch = replace(row.batches[0], p50_ms=latency_ms, round_p50_ms=(latency_ms,) * 5)
    row = replace(
        row,
        latency_p50_ms=latency_ms,
        speedup_over_best_fp32=speedup,
        speedup_over_best_fp32_interval=(0.99 * speedup, 1.01 * speedup),
        batches=(batch, *row.batches[1:]),
    )
    comparisons = tuple(replace(one, word=word) for one in evaluation.comparisons)
    return replace(
        variant,
        evaluation=evaluation.replace(comparisons=comparisons),
        benchmarks=(benchmark.replace(rows=(row,)),),
    )
