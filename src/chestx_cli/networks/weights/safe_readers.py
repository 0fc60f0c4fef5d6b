"""Readers of untrusted model files: content is validated before use and never executed."""

from __future__ import annotations

import io
import json
import math
import zipfile
from typing import TYPE_CHECKING

from chestx_cli.core.files import read_regular
from chestx_cli.networks.weights.zstd import SUFFIX, decompressed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnx
    import torch

# The largest backbone needs a tenth of this; protobuf's limit is also 2 GiB.
MAX_MODEL_BYTES = 2**31 - 1
MAX_HEADER_BYTES = 16 * 2**20
MAX_ONNX_NODES = 20_000
# Elements of one activation of one image; the largest backbone at the largest image size needs a quarter of this.
MAX_ACTIVATION = 2**30
# Earlier releases could execute code from a file opened with weights_only=True.
SAFE_TORCH = (2, 13)
# Operators that torch's exporter and ONNX Runtime's quantization use for the backbones; none branches, loops or reads
# other files.
ONNX_OPERATORS = frozenset(
    {
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Concat",
        "Conv",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "Flatten",
        "Gather",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "HardSigmoid",
        "HardSwish",
        "LayerNormalization",
        "LeakyRelu",
        "MatMul",
        "MatMulInteger",
        "MaxPool",
        "Mul",
        "QuantizeLinear",
        "Range",
        "ReduceMean",
        "Relu",
        "Reshape",
        "Round",
        "Shape",
        "Sigmoid",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
    }
)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name.

    Raises OSError, and ValueError if header and content do not match exactly: sizes, offsets, overlaps, duplicate
    names, unknown types.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = read_regular(path, MAX_MODEL_BYTES)
    _require_single_names(content)
    try:
        return load(content)
    # RuntimeError and KeyError: types of the format that this version of torch lacks.
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise ValueError(str(error)) from error


def _require_single_names(content: bytes) -> None:
    """Raise ValueError for duplicate keys in a safetensors header, which the library accepts."""
    size = int.from_bytes(content[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {size:,} bytes, more than {MAX_HEADER_BYTES:,}")
    try:
        json.loads(content[8 : 8 + size], object_pairs_hook=_single)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None


def _single(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in {other for other, _ in pairs[:i]})
        raise ValueError(f"its header lists {twice!r} twice")
    return members


def require_usable(name: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    """Raise ValueError for a stored tensor that is not dense, not of the number type of `like`, or not finite."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ValueError(f"{name} is not a plain tensor")
    if tensor.is_floating_point() != like.is_floating_point() or tensor.is_complex():
        raise ValueError(f"{name} has numbers of type {tensor.dtype}, not of {like.dtype}")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
        raise ValueError(f"{name} has numbers that are not finite")


def read_stored(path: Path) -> bytes:
    """Return the content of a torch.save file that is safe to load with weights_only=True.

    Raises OSError, and ValueError if the file is compressed or this version of torch is too old to be safe.
    """
    import torch

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < SAFE_TORCH:
        raise ValueError(
            f"torch {torch.__version__} cannot read .pth files safely, {SAFE_TORCH[0]}.{SAFE_TORCH[1]} can"
        )
    content = read_regular(path, MAX_MODEL_BYTES)
    _require_stored(content)
    return content


def _require_stored(content: bytes) -> None:
    """Raise ValueError for a zip with compressed or overlapping records, which torch never writes."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise ValueError("it is cut or damaged") from error
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("its records are compressed")
    if sum(record.file_size for record in records) > len(content):
        raise ValueError("its records are larger than the file")


def read_onnx(path: Path, n_classes: int) -> bytes:
    """Return the content of an ONNX file that computes logits from images using only operators that chestx writes.

    The file may be compressed by zstd. It must contain all its data, with none external.

    Raises OSError, and ValueError for any other file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    content = read_unpacked(path)
    try:
        model = onnx.load_from_string(content)
    except (DecodeError, ValueError) as error:
        raise ValueError(f"not an ONNX model: {error}") from error
    _require_known_graph(model)
    _require_signature(model, n_classes)
    for tensor in _tensors(model):
        _require_own_data(tensor)
    try:
        onnx.checker.check_model(content)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    # Both report damage by their own exception types, which have no narrower common base.
    except Exception as error:
        raise ValueError(str(error).strip().splitlines()[0]) from error
    _require_moderate(inferred)
    return content


def read_unpacked(path: Path) -> bytes:
    """Return the content of a model file, unpacked if its name says that it is compressed.

    Raises OSError, and ValueError for damage.
    """
    content = read_regular(path, MAX_MODEL_BYTES)
    return decompressed(content, MAX_MODEL_BYTES) if path.suffix == SUFFIX else content


def _require_known_graph(model: onnx.ModelProto) -> None:
    """Raise ValueError unless a model is a single plain graph of known operators."""
    if model.functions or model.graph.sparse_initializer or model.training_info:
        raise ValueError("it holds more than one plain graph")
    if len(model.graph.node) > MAX_ONNX_NODES:
        raise ValueError(f"it has {len(model.graph.node):,} nodes, more than {MAX_ONNX_NODES:,}")
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in ONNX_OPERATORS:
            raise ValueError(f"it uses the operator {node.op_type[:50]!r}, which chestx does not write")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ValueError(f"its {node.op_type} contains a subgraph")


def _require_signature(model: onnx.ModelProto, n_classes: int) -> None:
    """Raise ValueError unless a graph maps FP32 images [N, 3, H, W] to FP32 logits [N, classes]."""
    import onnx

    values = (*model.graph.input, *model.graph.output)
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values]
    if (
        len(model.graph.input) != 1
        or len(model.graph.output) != 1
        or any(value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT for value in values)
        or [len(shape) for shape in shapes] != [4, 2]
        or (shapes[0][1], shapes[1][1]) != (3, n_classes)
    ):
        raise ValueError(f"it does not compute logits of {n_classes} classes from images")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise ValueError(f"its {node.op_type} holds a sparse tensor")
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _require_own_data(tensor: onnx.TensorProto) -> None:
    """Raise ValueError for a tensor with external data, data that does not match its shape, or non-finite values."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    name = tensor.name[:100]
    if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
        raise ValueError(f"{name!r} lies in another file")
    try:
        values = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise ValueError(f"{name!r}: {error}") from error
    if tensor.data_type == onnx.TensorProto.INT4:
        # numpy has no such type; all of its values are finite integers.
        return
    if values.dtype.kind not in "fiub" or (values.dtype.kind == "f" and not np.isfinite(values).all()):
        raise ValueError(f"{name!r} has numbers that are not finite, or none at all")


def _require_moderate(model: onnx.ModelProto) -> None:
    """Raise ValueError if an activation of one image has more than `MAX_ACTIVATION` elements."""
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        # The first axis is the batch.
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
        if math.prod(max(dim, 1) for dim in dims) > MAX_ACTIVATION:
            raise ValueError(f"{value.name[:100]!r} would take {dims} numbers for each image")
