"""Quantization sensitivity: each layer alone in 8 bits, all others in FP32, measured on the validation split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.compression.quantization.ranges import DEFAULT_IMAGES, draw_calibration_set
from chestx_cli.compression.quantization.static import calibrated_graph, judge_on, outcomes_alone
from chestx_cli.compression.quantization.target_cpus import ANY_CPU, TARGET_CPUS
from chestx_cli.inference.onnx_export import CHECKED_IMAGES, export_onnx
from chestx_cli.networks.layers import matching_layers
from chestx_cli.networks.training_data import read_fit_data
from chestx_cli.networks.weights.serialization import load_network
from chestx_cli.records.sensitivity import Int8LayerRow, Int8SensitivityRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestx_cli.core.command import Run
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study
    from chestx_cli.store.split import Split

CALIBRATION = "minmax"


def measure_int8_layers(
    run: Run, study: Study, split: Split, variant: VariantRecord, patterns: Sequence[str], seed: int
) -> Int8SensitivityRecord:
    """Measure the effect of computing each layer of a torch variant alone in 8 bits, the largest loss first.

    Number formats, calibration and kernels are the static method's defaults. Call inside `reproducible`. Raises
    UsageError for a pattern that matches no layer.
    """
    data = read_fit_data(study, split, variant.preprocessing, run.reporter)
    rows = split.indices("val")
    fp32 = export_onnx(
        load_network(study, variant), variant.preprocessing.normalised(data.pixels[rows[:CHECKED_IMAGES]])
    )
    calibrated = calibrated_graph(
        fp32,
        data,
        draw_calibration_set(split, DEFAULT_IMAGES, seed),
        method=CALIBRATION,
        numerics=TARGET_CPUS[ANY_CPU],
        reporter=run.reporter,
    )
    judge = judge_on(data, threshold=variant.threshold)
    before, together = judge(fp32, rows), judge(calibrated.quantized(), rows)
    layers = matching_layers(tuple(calibrated.layers), patterns)
    with run.reporter.progress("Quantizing layer by layer", len(layers)) as advance:
        alone = outcomes_alone(calibrated, layers, judge, rows, advance)
    ranked = sorted(alone, key=lambda name: alone[name].loss, reverse=True)
    return Int8SensitivityRecord(
        stamp=run.stamp(),
        notes=(
            f"Measured on {len(rows)} validation images: one image is {1 / len(rows):.1%} of accuracy, so layers "
            'are ranked by loss. "chestx quantize --method static --max-drop" leaves layers in FP32 in this order.',
        ),
        variant=variant.name,
        split="val",
        images=len(rows),
        target_cpu=ANY_CPU,
        loss=before.loss,
        accuracy=before.accuracy,
        auroc=before.auroc,
        loss_increase_of_all=together.loss - before.loss,
        model_sha256=variant.model_sha256,
        rows=tuple(
            Int8LayerRow(
                rank=rank,
                layer=name,
                kind=calibrated.layers[name].kind,
                weights=calibrated.layers[name].weights,
                loss_increase=alone[name].loss - before.loss,
                accuracy_drop=before.accuracy - alone[name].accuracy,
                auroc=alone[name].auroc,
                max_probability_difference=float(abs(alone[name].probability - before.probability).max()),
            )
            for rank, name in enumerate(ranked, start=1)
        ),
    )
