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

    # Its advice to preprocess the model first does not apply: the exporter has folded and inferred already.
    logging.getLogger().setLevel(logging.ERROR)
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["Gemm", "MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


QUANTIZATION_METHODS.add("dynamic", QuantizationMethod(quantize=_quantize_dynamic, suffix="dynamic-int8"))


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """A quantized ONNX file and which weights in it are 8-bit integers."""

    content: bytes
    layers: tuple[str, ...]
    parameters: int


def quantize_onnx(method: str, fp32: bytes) -> QuantizedModel:
    """Return an FP32 ONNX file quantized by a registered method."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="chestx-") as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(fp32)
        QUANTIZATION_METHODS[method].quantize(source, target)
        content = target.read_bytes()
    weights = _int8_weights(onnx.load_from_string(content))
    return QuantizedModel(content=content, layers=tuple(weights), parameters=sum(weights.values()))


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
