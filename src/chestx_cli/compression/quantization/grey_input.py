"""The first convolution of an INT8 file as a convolution of grey pixels: exact input, and fewer products.

Preprocessing repeats grey pixels on three channels with a mean and a standard deviation each, so that every channel is
an affine map of the first, and the three filters of an output add up to one filter of grey pixels and a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    from chestx_cli.records.preprocessing import Preprocessing

    Floats = npt.NDArray[np.float32]

# Pixels per side of a block, whose pixels become channels: 8-bit kernels add the products of four channels at a time.
BLOCK = 2
BLOCK_CHANNELS = BLOCK * BLOCK
WHITE = 255
# Names of values and nodes.
CHANNEL, SHIFTED, BLOCKS = "grey_channel", "grey_shifted", "grey_blocks"


@dataclass(frozen=True, kw_only=True)
class GreyConvolution:
    """A convolution of blocks of grey pixels.

    weight: filters [out, 4, height, width] that move by one block. bias: [out]. pads: blocks added before and after
    height and width, in ONNX's order. zero: the first channel at the grey level that padding stands for, to be
    subtracted. span: black and white after that.
    """

    weight: Floats
    bias: Floats
    pads: tuple[int, int, int, int]
    zero: float
    span: tuple[float, float]


def grey_convolution(
    weight: Floats, bias: Floats, pads: tuple[int, int, int, int], side_px: int, preprocessing: Preprocessing
) -> GreyConvolution:
    """Return the convolution of grey pixels that replaces one of three channels [out, 3, height, width] with stride 2.

    They agree except at the border: padding is zero in each channel, which is a different grey level in each. Here it
    is one level, that with the least squared error over all filters.
    """
    import numpy as np

    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    filters = weight.astype(np.float64)
    grey = (filters * (std[0] / std).reshape(1, -1, 1, 1)).sum(1)
    constant = (filters * ((mean[0] - mean) / std).reshape(1, -1, 1, 1)).sum(1)
    energy = float(np.square(grey).sum())
    best = -float((grey * constant).sum()) / energy if energy else 0.0
    level = int(np.clip(round(WHITE * (mean[0] + std[0] * best)), 0, WHITE))
    zero = (level / WHITE - mean[0]) / std[0]
    rows = _blocks_along(pads[0], pads[2], weight.shape[2], side_px)
    columns = _blocks_along(pads[1], pads[3], weight.shape[3], side_px)
    whole = np.pad(grey, [(0, 0), rows.taps, columns.taps])
    outputs, height, width = whole.shape
    blocks = whole.reshape(outputs, height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(0, 2, 4, 1, 3)
    return GreyConvolution(
        weight=blocks.reshape(outputs, BLOCK_CHANNELS, height // BLOCK, width // BLOCK).astype(np.float32),
        bias=(bias + (constant + zero * grey).sum((1, 2))).astype(np.float32),
        pads=(rows.pads[0], columns.pads[0], rows.pads[1], columns.pads[1]),
        zero=float(zero),
        span=(-level / (WHITE * std[0]), (WHITE - level) / (WHITE * std[0])),
    )


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    """Along one axis: zeros before and after the filter that make it whole blocks, and blocks of padding."""

    taps: tuple[int, int]
    pads: tuple[int, int]


def _blocks_along(before: int, after: int, size: int, side_px: int) -> _Blocks:
    outputs = (side_px + before + after - size) // BLOCK + 1
    ahead = before % BLOCK
    behind = -(ahead + size) % BLOCK
    blocks, first = (ahead + size + behind) // BLOCK, (before + ahead) // BLOCK
    return _Blocks(taps=(ahead, behind), pads=(first, outputs - 1 + blocks - side_px // BLOCK - first))


def read_grey(graph: onnx.ModelProto, preprocessing: Preprocessing) -> dict[str, tuple[float, float]]:
    """Make an FP32 graph read only the first channel of its input, in place; return the ranges that are then exact.

    The ranges, by value name, have a step for each of the 256 grey levels. Nothing is changed, and nothing returned,
    unless the only reader of the input is a convolution of its three channels with stride 2 and stored weights, and the
    side of the images is even.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    (source,) = graph.graph.input
    side_px = source.type.tensor_type.shape.dim[-1].dim_value
    readers = [node for node in graph.graph.node if source.name in node.input]
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    is_even = side_px > 0 and side_px % BLOCK == 0
    if (
        not is_even
        or len(readers) != 1
        or not _moves_by_a_block(readers[0])
        or not tensors.keys() >= {*readers[0].input[1:]}
    ):
        return {}
    (node,) = readers
    weight_name, bias_name = [*node.input[1:], f"{node.name}_bias"][:2]
    weight = tensors[weight_name]
    bias = tensors.get(bias_name, np.zeros(len(weight), np.float32))
    top, left, bottom, right = _ints(node, "pads") or [0, 0, 0, 0]
    made = grey_convolution(weight, bias, (top, left, bottom, right), side_px, preprocessing)
    start, end, axis, zero = f"{CHANNEL}_start", f"{CHANNEL}_end", f"{CHANNEL}_axis", f"{SHIFTED}_by"
    tensors |= {start: np.array([0]), end: np.array([1]), axis: np.array([1]), zero: np.array(made.zero, np.float32)}
    tensors |= {weight_name: made.weight, bias_name: made.bias}
    nodes = [
        helper.make_node("Slice", [source.name, start, end, axis], [CHANNEL], CHANNEL),
        helper.make_node("Sub", [CHANNEL, zero], [SHIFTED], SHIFTED),
        helper.make_node("SpaceToDepth", [SHIFTED], [BLOCKS], BLOCKS, blocksize=BLOCK),
        helper.make_node(
            "Conv",
            [BLOCKS, weight_name, bias_name],
            list(node.output),
            node.name,
            kernel_shape=made.weight.shape[2:],
            pads=made.pads,
        ),
    ]
    others = [other for other in graph.graph.node if other is not node]
    del graph.graph.node[:], graph.graph.initializer[:], graph.graph.value_info[:]
    graph.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in tensors.items())
    graph.graph.node.extend([*nodes, *others])
    graph.CopyFrom(onnx.shape_inference.infer_shapes(graph))
    return {BLOCKS: made.span}


def _moves_by_a_block(node: onnx.NodeProto) -> bool:
    """Return whether a node is a convolution of all channels that moves by two pixels and states its padding."""
    if node.op_type != "Conv":
        return False
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    padding = next((attribute.s for attribute in node.attribute if attribute.name == "auto_pad"), b"NOTSET")
    is_dense = numbers.get("group", 1) == 1 and set(_ints(node, "dilations")) <= {1}
    return is_dense and padding == b"NOTSET" and _ints(node, "strides") == [BLOCK, BLOCK]


def _ints(node: onnx.NodeProto, name: str) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == name), [])
