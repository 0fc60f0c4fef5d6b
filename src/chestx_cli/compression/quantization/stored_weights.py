"""Weights stored in fewer bits than they are computed in: FP16, or blocks of 4-bit integers.

The nodes that unpack them have only constant inputs, so ONNX Runtime evaluates them once, when it opens the file, and
inference is as fast as with unpacked weights.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from chestx_cli.compression.quantization.grey_input import BLOCK_CHANNELS
from chestx_cli.networks.layers import prunable_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt
    import onnx
    from torch import nn

    from chestx_cli.compression.quantization.target_cpus import Numerics

    Floats = npt.NDArray[np.float32]

# The first version of ONNX's operators and of its file format that has 4-bit integers.
OPSET, IR_VERSION = 21, 10
FP16_SUFFIX, INT4_SUFFIX, SCALE_SUFFIX = "_fp16", "_int4", "_scale"
SMALLEST, LARGEST = -8, 7
# Input channels of the layer that reads the image: in FP32 the colours, in INT8 those or the pixels of a grey block.
IN_FP32, IN_INT8 = (3,), (3, BLOCK_CHANNELS)
# Default and smallest number of weights that share a scale. With 32, the FP16 scale adds half a bit per weight.
BLOCK_SIZE, LEAST_BLOCK = 32, 8
# A block's scale is its value of largest magnitude divided by one of these, so that this value is stored as -8 or 7.
# Rounding a rounded block again does not change it, even if it has been multiplied by a number in between.
DIVISORS = (-8.0, 7.0)


def in_16_bits(model: onnx.ModelProto) -> None:
    """Store the FP32 weights of a graph as FP16; biases stay in FP32, since they are few."""
    nodes: list[onnx.NodeProto] = []
    for tensor in _weights(model, in_8_bits=False):
        _store_halved(model, tensor, nodes)
    _unpack_first(model, nodes)


def in_4_bits(model: onnx.ModelProto, block_size: int, numerics: Numerics | None = None) -> None:
    """Store the weights of a graph as 4-bit integers, with an FP16 scale for each block of `block_size` weights.

    Without `numerics`, FP32 weights are packed, and unpacked to FP32; with it, INT8 weights, which are unpacked to INT8
    within its limits. If a tensor cannot be divided into blocks of that size, its blocks are smaller. The filters that
    read the image, and tensors that cannot be divided into blocks of at least eight, are stored as FP16, or stay in
    INT8.
    """
    nodes: list[onnx.NodeProto] = []
    for tensor in _weights(model, in_8_bits=numerics is not None):
        block = _block_of(tensor.dims, block_size, IN_FP32 if numerics is None else IN_INT8)
        if block is not None:
            _store_packed(model, tensor, nodes, block, numerics)
        elif numerics is None:
            _store_halved(model, tensor, nodes)
    model.ir_version = max(model.ir_version, IR_VERSION)
    for opset in model.opset_import:
        opset.version = max(opset.version, OPSET)
    _unpack_first(model, nodes)


def round_to_4_bits(network: nn.Module, block_size: int) -> None:
    """Round a network's weights, in place, to the values that `in_4_bits` will store for its export."""
    import torch

    for layer in prunable_layers(network).values():
        weight = layer.get_parameter("weight").detach()
        block = _block_of(weight.shape, block_size, IN_FP32)
        if block is not None:
            integers, scales = _packed(weight.contiguous().numpy().reshape(-1, block), limit=None)
            weight.copy_(torch.from_numpy(integers * scales.astype("float32")).reshape(weight.shape))


def _block_of(shape: Sequence[int], block_size: int, image_channels: tuple[int, ...]) -> int | None:
    """Return the number of weights per block of a tensor; None if it is not stored in 4 bits.

    image_channels: input channels of the layer that reads the image, which is not stored in 4 bits.
    """
    size = math.prod(shape)
    reads_image = shape[1] in image_channels
    return next((n for n in range(block_size, LEAST_BLOCK - 1, -1) if size % n == 0 and not reads_image), None)


def _weights(model: onnx.ModelProto, *, in_8_bits: bool) -> list[onnx.TensorProto]:
    """Return the weight matrices and filters that are stored in 8 bits, or in FP32."""
    import onnx

    kind = onnx.TensorProto.INT8 if in_8_bits else onnx.TensorProto.FLOAT
    return [tensor for tensor in model.graph.initializer if tensor.data_type == kind and len(tensor.dims) >= 2]


def _store_halved(model: onnx.ModelProto, tensor: onnx.TensorProto, nodes: list[onnx.NodeProto]) -> None:
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    most = float(np.finfo(np.float16).max)
    halved = np.clip(numpy_helper.to_array(tensor), -most, most).astype(np.float16)
    name = f"{tensor.name}{FP16_SUFFIX}"
    nodes.append(helper.make_node("Cast", [name], [tensor.name], f"{name}_unpack", to=onnx.TensorProto.FLOAT))
    _replace(model, tensor, [numpy_helper.from_array(halved, name)])


def _store_packed(
    model: onnx.ModelProto,
    tensor: onnx.TensorProto,
    nodes: list[onnx.NodeProto],
    block: int,
    numerics: Numerics | None,
) -> None:
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    values = numpy_helper.to_array(tensor).astype(np.float32).reshape(-1, block)
    integers, scales = _packed(values, limit=numerics.weight_limit if numerics else None)
    name = f"{tensor.name}{INT4_SUFFIX}"
    # Two integers per byte, the first in the lower four bits.
    halves = integers.reshape(-1).view(np.uint8) & 0xF
    halves = np.concatenate([halves, np.zeros(len(halves) % 2, np.uint8)])
    stored = onnx.TensorProto(name=name, data_type=onnx.TensorProto.INT4, dims=tensor.dims)
    stored.raw_data = (halves[0::2] | halves[1::2] << 4).tobytes()
    parts = [
        stored,
        numpy_helper.from_array(scales, f"{name}{SCALE_SUFFIX}"),
        numpy_helper.from_array(np.array([-1, block]), f"{name}_blocks"),
        numpy_helper.from_array(np.array(tensor.dims), f"{name}_shape"),
    ]
    steps: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
        ("Cast", (), {"to": onnx.TensorProto.FLOAT}),
        ("Reshape", (f"{name}_blocks",), {}),
        ("Mul", (f"{name}_scales",), {}),
    ]
    if numerics is not None:
        steps += [("Round", (), {}), ("Cast", (), {"to": onnx.TensorProto.INT8})]
    steps.append(("Reshape", (f"{name}_shape",), {}))
    widened = helper.make_node(
        "Cast", [f"{name}{SCALE_SUFFIX}"], [f"{name}_scales"], f"{name}_scales", to=onnx.TensorProto.FLOAT
    )
    nodes.append(widened)
    source = name
    for at, (operator, others, attributes) in enumerate(steps):
        target = tensor.name if at == len(steps) - 1 else f"{name}_{at}"
        nodes.append(helper.make_node(operator, [source, *others], [target], f"{target}_unpack", **attributes))
        source = target
    _replace(model, tensor, parts)


def _packed(values: Floats, *, limit: int | None) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Return blocks [n, size] as 4-bit integers with the scales [n, 1] of least squared error.

    With a `limit`, unpacked values are rounded to integers of at most this magnitude.
    """
    import numpy as np

    extremes = np.take_along_axis(values, np.abs(values).argmax(axis=1, keepdims=True), axis=1)
    integers = np.zeros(values.shape, np.int8)
    scales = np.ones(extremes.shape, np.float16)
    least = np.full(extremes.shape, np.inf)
    for divisor in DIVISORS:
        tried = (extremes / divisor).astype(np.float16)
        tried[tried == 0] = 1
        wide = tried.astype(np.float32)
        rounded = np.clip(np.rint(values / wide), SMALLEST, LARGEST)
        products = rounded * wide
        if limit is not None:
            products = np.rint(products)
        error = np.square(products - values).sum(axis=1, keepdims=True, dtype=np.float64)
        if limit is not None:
            error[np.abs(products).max(axis=1, keepdims=True) > limit] = np.inf
        better = error < least
        integers = np.where(better, rounded.astype(np.int8), integers)
        scales, least = np.where(better, tried, scales), np.where(better, error, least)
    return integers, scales


def _replace(model: onnx.ModelProto, tensor: onnx.TensorProto, parts: list[onnx.TensorProto]) -> None:
    # The unpacked tensor keeps the old one's name and shape, so existing shape annotations stay valid.
    model.graph.initializer.remove(tensor)
    model.graph.initializer.extend(parts)


def _unpack_first(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    every = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(every)
