"""Methods that turn a torch variant into an INT8 ONNX file."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestx_cli.compression.quantization.onnx_graph import without_weight_shapes
from chestx_cli.compression.quantization.ranges import DEFAULT_IMAGES, CalibrationSet, draw_calibration_set
from chestx_cli.compression.quantization.static import Judge, calibrated_graph, within_drop
from chestx_cli.compression.quantization.target_cpus import ANY_CPU, Numerics
from chestx_cli.core.registry import Registry
from chestx_cli.networks.training import recipe_of, training_of
from chestx_cli.records.variant import DYNAMIC

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.core.progress import Reporter
    from chestx_cli.networks.training_data import FitData
    from chestx_cli.records.variant import Training, VariantRecord
    from chestx_cli.study.checkpoints import Checkpoints


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a method may use: the network, its checked FP32 export, the data, and the options that it takes."""

    network: nn.Module
    parent: VariantRecord
    fp32: bytes
    data: FitData
    numerics: Numerics
    judge: Judge
    options: Mapping[str, Any]
    reporter: Reporter
    checkpoints: Checkpoints


@dataclass(frozen=True, kw_only=True)
class QuantizedFile:
    """What a method made: the ONNX file, what it was calibrated on, and the layers left in FP32 with their effect.

    `trained_difference` is how far the file's validation probabilities are from the trained network's.
    """

    content: bytes
    calibration: CalibrationSet | None = None
    excluded: Mapping[str, float] = field(default_factory=dict)
    training: Training | None = None
    trained_difference: float | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizationMethod:
    """A way to quantize, the suffix that names its variants, and the options that it takes with their defaults.

    A QDQ file is an FP32 graph with conversions to 8 bits in between: computed literally, it checks the 8-bit kernels.
    """

    quantize: Callable[[Task], QuantizedFile]
    suffix: str
    defaults: Mapping[str, Any]
    qdq: bool


QUANTIZATION_METHODS: Registry[QuantizationMethod] = Registry("quantization method")


def _quantize_dynamic(task: Task) -> QuantizedFile:
    """INT8 weights per channel for the Linear layers; their inputs are quantized anew for every batch."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # It logs advice to preprocess the model, which does not apply: the exporter has folded and inferred already.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="chestx-") as folder:
            source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
            source.write_bytes(without_weight_shapes(task.fp32))
            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=["Gemm", "MatMul"],
                per_channel=True,
                reduce_range=task.numerics.reduced,
                weight_type=QuantType.QInt8,
            )
            return QuantizedFile(content=target.read_bytes())
    finally:
        root.setLevel(level)


def _quantize_static(task: Task) -> QuantizedFile:
    """INT8 weights and activations; ranges from training images; layers in FP32 only where --max-drop asks for it."""
    options = task.options
    chosen = draw_calibration_set(task.data.split, options["calibration_images"], options["seed"])
    calibrated = calibrated_graph(
        task.fp32,
        task.data,
        chosen,
        method=options["calibration"],
        numerics=task.numerics,
        reporter=task.reporter,
    )
    if options["max_drop"] is None:
        return QuantizedFile(content=calibrated.quantized(), calibration=chosen)
    kept = within_drop(
        calibrated,
        task.fp32,
        task.judge,
        task.data.split.indices("val"),
        max_drop=options["max_drop"],
        reporter=task.reporter,
    )
    return QuantizedFile(content=kept.content, calibration=chosen, excluded=kept.excluded)


def _quantize_by_training(task: Task) -> QuantizedFile:
    """INT8 as by the static method, after fine-tuning with its roundings, always in FP32."""
    from chestx_cli.compression.quantization.qat import train_quantized

    options = {
        **task.options,
        "precision": "fp32",
        "compile": False,
        **{key: task.parent.options[key] for key in ("balance", "loss")},
    }
    recipe = recipe_of(options, epochs=options["epochs"])
    chosen = draw_calibration_set(task.data.split, options["calibration_images"], options["seed"])
    made = train_quantized(task.network, task.data, chosen, task.numerics, recipe, task.reporter, task.checkpoints)
    return QuantizedFile(
        content=made.content,
        calibration=chosen,
        training=training_of(made.rows, recipe, f"variant {task.parent.name}"),
        trained_difference=made.difference,
    )


QUANTIZATION_METHODS.add(
    DYNAMIC,
    QuantizationMethod(quantize=_quantize_dynamic, suffix="dynamic-int8", defaults={"target_cpu": ANY_CPU}, qdq=False),
)
QUANTIZATION_METHODS.add(
    "static",
    QuantizationMethod(
        quantize=_quantize_static,
        suffix="static-int8",
        defaults={
            "target_cpu": ANY_CPU,
            "calibration": "minmax",
            "calibration_images": DEFAULT_IMAGES,
            "max_drop": None,
            "seed": 42,
        },
        qdq=True,
    ),
)
QUANTIZATION_METHODS.add(
    "qat",
    QuantizationMethod(
        quantize=_quantize_by_training,
        suffix="qat-int8",
        defaults={
            "target_cpu": ANY_CPU,
            "calibration_images": DEFAULT_IMAGES,
            "epochs": 2,
            "lr": 1e-5,
            "batch_size": 32,
            "device": "auto",
            "seed": 42,
        },
        qdq=True,
    ),
)
