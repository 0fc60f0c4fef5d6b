"""Registry of quantization methods, which turn a torch variant into a smaller ONNX file: one dataclass per method.

To add a method, derive a frozen dataclass from `QuantizationMethod`, or from `Int8Method` if it computes in 8 bits,
declare its options as annotated fields, and register it in `QUANTIZATION_METHODS`.
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from chestx_cli.compression.quantization.layer_speed import choose_by_speed
from chestx_cli.compression.quantization.onnx_graph import without_weight_shapes
from chestx_cli.compression.quantization.ranges import (
    CALIBRATIONS,
    DEFAULT_IMAGES,
    CalibrationSet,
    draw_calibration_set,
)
from chestx_cli.compression.quantization.static import Judge, calibrated_graph, within_drop
from chestx_cli.compression.quantization.stored_weights import BLOCK_SIZE, in_4_bits, in_16_bits, round_to_4_bits
from chestx_cli.compression.quantization.target_cpus import ANY_CPU, TARGET_CPUS, Numerics
from chestx_cli.core.files import temporary_folder
from chestx_cli.core.options import METHOD, TRAINING, Opt, declared_fields
from chestx_cli.core.registry import Registry
from chestx_cli.core.shared_options import BatchSize, Device, LearningRate, Seed
from chestx_cli.inference.onnx_export import CHECKED_IMAGES, PERCENT, export_onnx
from chestx_cli.networks.recalibration import reestimate_batchnorm
from chestx_cli.networks.training import recipe_of, training_of
from chestx_cli.records.variant import DYNAMIC

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.core.progress import Reporter
    from chestx_cli.networks.training_data import FitData
    from chestx_cli.records.variant import LayerSpeeds, Training, VariantRecord
    from chestx_cli.store.checkpoints import Checkpoints

CalibrationImages = Annotated[int, Opt(help="Training images to calibrate on.", minimum=1)]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Input of a quantization method: network, checked FP32 export, data, and a function that measures files."""

    network: nn.Module
    parent: VariantRecord
    fp32: bytes
    data: FitData
    judge: Judge
    reporter: Reporter
    checkpoints: Checkpoints


@dataclass(frozen=True, kw_only=True)
class QuantizedFile:
    """Result of a quantization method: the ONNX file, its calibration set, and how it was made.

    excluded: layers left in FP32, each with the loss increase that it would cause alone in 8 bits. trained_difference:
    largest difference between the file's validation probabilities and the trained network's. speeds: the layers' times,
    if they were measured.
    """

    content: bytes
    calibration: CalibrationSet | None = None
    excluded: Mapping[str, float] = field(default_factory=dict)
    training: Training | None = None
    trained_difference: float | None = None
    speeds: LayerSpeeds | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizationMethod(ABC):
    """Base class of quantization methods; the annotated fields of a subclass are its options.

    qdq: whether the result is a QDQ file: an FP32 graph with quantize-dequantize pairs, which can also be computed node
    by node in FP32 to verify the 8-bit kernels.
    """

    qdq: ClassVar[bool]

    @property
    @abstractmethod
    def suffix(self) -> str:
        """The suffix of its variants' names."""

    @abstractmethod
    def quantize(self, task: Task) -> QuantizedFile:
        """Return the quantized ONNX file; called inside `reproducible`."""

    def document(self) -> dict[str, object]:
        """Return the options by name, as recorded with a variant."""
        return {name: getattr(self, name) for name in declared_fields(type(self))}


QUANTIZATION_METHODS: Registry[type[QuantizationMethod]] = Registry("quantization method", of=type)


@dataclass(frozen=True, kw_only=True)
class Int8Method(QuantizationMethod):
    """A method whose layers compute in 8 bits."""

    target_cpu: Annotated[
        str,
        Opt(
            help="Processor to quantize for.",
            choices=TARGET_CPUS,
            panel=METHOD,
        ),
    ] = ANY_CPU

    @property
    def numerics(self) -> Numerics:
        """The 8-bit number formats of the target processor."""
        return TARGET_CPUS[self.target_cpu]


@QUANTIZATION_METHODS.register(DYNAMIC)
@dataclass(frozen=True, kw_only=True)
class Dynamic(Int8Method):
    """Linear layers in INT8, their inputs batch by batch."""

    suffix = "dynamic-int8"
    qdq = False

    def quantize(self, task: Task) -> QuantizedFile:
        """Return the quantized ONNX file."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # quantize_dynamic advises to preprocess the model, but the exporter has already folded constants and inferred
        # shapes.
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)
        try:
            with temporary_folder() as folder:
                source, target = folder / "fp32.onnx", folder / "int8.onnx"
                source.write_bytes(without_weight_shapes(task.fp32))
                quantize_dynamic(
                    source,
                    target,
                    op_types_to_quantize=["Gemm", "MatMul"],
                    per_channel=True,
                    reduce_range=self.numerics.reduced,
                    weight_type=QuantType.QInt8,
                )
                return QuantizedFile(content=target.read_bytes())
        finally:
            root.setLevel(level)


@QUANTIZATION_METHODS.register("static")
@dataclass(frozen=True, kw_only=True)
class Static(Int8Method):
    """All layers in INT8, calibrated on training images."""

    qdq = True

    calibration: Annotated[str, Opt(help="How ranges are computed from images.", choices=CALIBRATIONS)] = "minmax"
    calibration_images: CalibrationImages = DEFAULT_IMAGES
    max_drop: Annotated[
        float | None,
        Opt(
            help="Keep layers in FP32 until the drop is at most this.",
            minimum=0,
            maximum=1,
        ),
    ] = None
    int4_weights: Annotated[bool, Opt(help="Store weights in 4 bits per block, for INT8.")] = False
    skip_slower: Annotated[bool, Opt(help="Keep layers in FP32 that INT8 makes slower here.")] = False
    seed: Seed = 42

    @property
    def suffix(self) -> str:
        """The suffix of its variants' names."""
        weights = "static-int8-int4-weights" if self.int4_weights else "static-int8"
        return f"{weights}-skip-slower" if self.skip_slower else weights

    def quantize(self, task: Task) -> QuantizedFile:
        """Return the quantized ONNX file."""
        chosen = draw_calibration_set(task.data.split, self.calibration_images, self.seed)
        calibrated = calibrated_graph(
            _rounded_to_4_bits(task, BLOCK_SIZE) if self.int4_weights else task.fp32,
            task.data,
            chosen,
            method=self.calibration,
            numerics=self.numerics,
            reporter=task.reporter,
            int4_weights=self.int4_weights,
        )
        speeds = choose_by_speed(calibrated, task.parent, task.reporter) if self.skip_slower else None
        if speeds is not None:
            calibrated = replace(calibrated, always_fp32=tuple(row.layer for row in speeds.rows if row.in_fp32))
        if self.max_drop is None:
            return QuantizedFile(content=calibrated.quantized(), calibration=chosen, speeds=speeds)
        kept = within_drop(
            calibrated,
            task.fp32,
            task.judge,
            task.data.split.indices("val"),
            max_drop=self.max_drop,
            reporter=task.reporter,
        )
        if speeds is not None:
            speeds = replace(speeds, left_by_drop=len(kept.excluded))
        return QuantizedFile(content=kept.content, calibration=chosen, excluded=kept.excluded, speeds=speeds)


@QUANTIZATION_METHODS.register("qat")
@dataclass(frozen=True, kw_only=True)
class Qat(Int8Method):
    """As static, after fine-tuning with its roundings."""

    suffix = "qat-int8"
    qdq = True

    calibration_images: CalibrationImages = DEFAULT_IMAGES
    epochs: Annotated[int, Opt(help="Epochs of training.", minimum=1, panel=TRAINING)] = 2
    lr: LearningRate = 1e-5
    batch_size: BatchSize = 32
    device: Device = "auto"
    seed: Seed = 42

    def quantize(self, task: Task) -> QuantizedFile:
        """Return the quantized ONNX file."""
        from chestx_cli.compression.quantization.qat import train_quantized

        recipe = recipe_of(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            balance=task.parent.balance,
            loss=task.parent.loss,
            device=self.device,
            precision="fp32",
            compiled=False,
            seed=self.seed,
        )
        chosen = draw_calibration_set(task.data.split, self.calibration_images, self.seed)
        trained = train_quantized(
            task.network, task.data, chosen, self.numerics, recipe, task.reporter, task.checkpoints
        )
        return QuantizedFile(
            content=trained.content,
            calibration=chosen,
            training=training_of(trained.rows, recipe, f"variant {task.parent.name}"),
            trained_difference=trained.difference,
        )


@QUANTIZATION_METHODS.register("fp16")
@dataclass(frozen=True, kw_only=True)
class Fp16(QuantizationMethod):
    """Weights stored in 16 bits, computed in FP32."""

    suffix = "fp16"
    qdq = False

    def quantize(self, task: Task) -> QuantizedFile:
        """Return the file with half the bytes per weight."""
        import onnx

        model = onnx.load_from_string(task.fp32)
        in_16_bits(model)
        return QuantizedFile(content=model.SerializeToString())


def _rounded_to_4_bits(task: Task, block_size: int) -> bytes:
    """Return the FP32 file of the network with rounded weights and BatchNorm statistics estimated for them.

    Rounding shifts the means of the layers' outputs; the new statistics correct this. Folding them multiplies whole
    filters by a number, which does not change the 4-bit integers of their blocks.
    """
    network = copy.deepcopy(task.network)
    round_to_4_bits(network, block_size)
    reestimate_batchnorm(network, task.data, device="cpu", reporter=task.reporter)
    checked = task.data.pixels[task.data.split.indices("val")[:CHECKED_IMAGES]]
    with task.reporter.progress(f"Exporting the rounded {task.parent.name} to ONNX", PERCENT) as advance:
        return export_onnx(network, task.parent.preprocessing.normalised(checked), advance)


@QUANTIZATION_METHODS.register("int4")
@dataclass(frozen=True, kw_only=True)
class Int4(QuantizationMethod):
    """Weights stored in 4 bits per block, computed in FP32."""

    suffix = "int4"
    qdq = False

    block_size: Annotated[int, Opt(help="Most weights that share a scale.", minimum=8, maximum=256)] = BLOCK_SIZE

    def quantize(self, task: Task) -> QuantizedFile:
        """Return the file with about an eighth of the bytes per weight."""
        import onnx

        model = onnx.load_from_string(_rounded_to_4_bits(task, self.block_size))
        in_4_bits(model, self.block_size)
        return QuantizedFile(content=model.SerializeToString())
