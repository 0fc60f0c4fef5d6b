"""INT8 quantization of exported models with onnxruntime.quantization."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.registry import Registry

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, kw_only=True)
class QuantizationMethod:
    """A way to turn an FP32 ONNX file into an INT8 one, with the suffix that names its variants."""

    quantize: Callable[[Path, Path], None]
    suffix: str


QUANTIZATION_METHODS: Registry[QuantizationMethod] = Registry("quantization method")


def _quantize_dynamic(source: Path, target: Path) -> None:
    """INT8 weights per channel for the Linear layers; their inputs are quantized anew for every batch."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # It logs advice to preprocess the model, which does not apply: the exporter has folded and inferred already.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        quantize_dynamic(
            source, target, op_types_to_quantize=["Gemm", "MatMul"], per_channel=True, weight_type=QuantType.QInt8
        )
    finally:
        root.setLevel(level)


QUANTIZATION_METHODS.add("dynamic", QuantizationMethod(quantize=_quantize_dynamic, suffix="dynamic-int8"))


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """A quantized ONNX file and which weights in it are 8-bit integers."""

    content: bytes
    layers: tuple[str, ...]
    parameters: int
    rounded_to_zero: int


def quantize_onnx(method: str, fp32: bytes) -> QuantizedModel:
    """Return an FP32 ONNX file quantized by a registered method."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="chestx-") as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(fp32)
        QUANTIZATION_METHODS[method].quantize(source, target)
        content = target.read_bytes()
    before, after = onnx.load_from_string(fp32), onnx.load_from_string(content)
    weights = _int8_weights(after)
    return QuantizedModel(
        content=content,
        layers=tuple(weights),
        parameters=sum(weights.values()),
        rounded_to_zero=_count_nonzero(before) - _count_nonzero(after),
    )


def _count_nonzero(model: onnx.ModelProto) -> int:
    """Return how many elements of a model's weights are not zero; scales and zero points are no weights."""
    import numpy as np
    from onnx import numpy_helper

    return sum(
        int(np.count_nonzero(numpy_helper.to_array(tensor)))
        for tensor in model.graph.initializer
        if tensor.dims and not tensor.name.endswith(("_scale", "_zero_point"))
    )


def _int8_weights(model: onnx.ModelProto) -> dict[str, int]:
    """Return the number of elements of each 8-bit weight matrix or filter, by name (zero points have fewer axes)."""
    import math

    import onnx

    small = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    return {
        tensor.name.removesuffix("_quantized"): math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type in small and len(tensor.dims) >= 2
    }
