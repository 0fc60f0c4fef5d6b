"""ONNX graphs before and after 8-bit quantization: layers, weights, and rewrites for 8-bit kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.compression.quantization.stored_weights import FP16_SUFFIX, INT4_SUFFIX, SCALE_SUFFIX
from chestx_cli.records.variant import WeightRow

if TYPE_CHECKING:
    import onnx

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
LAYER_OPS = ("Conv", "Gemm", "MatMul")
# Name suffixes of a layer's rounded weight and bias: fake quantization's, and the static method's.
_STORED = {".parametrizations.weight.0.integers": ".weight_quantized", ".parametrizations.bias.0.stored": ".bias"}
_SPATIAL_AXES = ([-2, -1], [2, 3])


@dataclass(frozen=True, kw_only=True)
class GraphLayer:
    """A layer with weights: its name in the network, operator, number of weights, and graph nodes.

    An activation that alone reads the layer's output is one of the nodes: both are quantized, or neither.
    """

    name: str
    kind: str
    weights: int
    nodes: tuple[str, ...]


def quantizable_graph(fp32: bytes) -> onnx.ModelProto:
    """Load an FP32 ONNX file as a graph with inferred shapes and operators that have 8-bit kernels."""
    import onnx

    model = onnx.load_from_string(fp32)
    means_to_pooling(model)
    return onnx.shape_inference.infer_shapes(model)


def means_to_pooling(model: onnx.ModelProto) -> None:
    """Replace means over height and width by global average pooling, which has an 8-bit kernel."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        keeps = all(attribute.i for attribute in node.attribute if attribute.name == "keepdims")
        if keeps and sorted(numpy_helper.to_array(constants[node.input[1]]).tolist()) in _SPATIAL_AXES:
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]
    drop_unused_constants(model)


def drop_unused_constants(model: onnx.ModelProto) -> None:
    """Remove unused constants."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def without_weight_shapes(fp32: bytes) -> bytes:
    """Return an FP32 ONNX file without the redundant shape annotations of its weights.

    ONNX Runtime transposes weights that it quantizes but keeps the annotations, which some versions of ONNX then
    reject.
    """
    import onnx

    model = onnx.load_from_string(fp32)
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    content: bytes = model.SerializeToString()
    return content


def layers_of(graph: onnx.ModelProto) -> dict[str, GraphLayer]:
    """Return the layers of an FP32 graph by name, in execution order."""
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    layers = {}
    for node in graph.graph.node:
        if node.op_type not in LAYER_OPS or node.input[1] not in constants:
            continue
        weight = constants[node.input[1]]
        # The exporter renames a transposed weight; only the node keeps the layer's name.
        name = weight.name.removesuffix(".weight") if weight.name.endswith(".weight") else node.name
        after = readers.get(node.output[0], [])
        fused = [after[0].name] if len(after) == 1 and after[0].op_type in {"Relu", "Clip"} else []
        layers[name] = GraphLayer(
            name=name, kind=node.op_type, weights=math.prod(weight.dims), nodes=(node.name, *fused)
        )
    return layers


def free_outputs(model: onnx.ModelProto) -> None:
    """Keep the logits in FP32, in place: 8 bits would give many images the same probability."""
    outputs = {value.name for value in model.graph.output}
    producers = {name: node for node in model.graph.node for name in node.output}
    for name in outputs:
        dequantize = producers[name]
        if dequantize.op_type != "DequantizeLinear":
            continue
        quantize = producers[dequantize.input[0]]
        source = producers[quantize.input[0]]
        source.output[list(source.output).index(quantize.input[0])] = name
        for node in (quantize, dequantize):
            model.graph.node.remove(node)
    drop_unused_constants(model)


def named_weights(model: onnx.ModelProto) -> None:
    """Rename the weights and biases of an exported fake-quantized network to the static method's names."""
    names = {
        tensor.name: tensor.name.removesuffix(stored) + usual
        for tensor in model.graph.initializer
        for stored, usual in _STORED.items()
        if tensor.name.endswith(stored)
    }
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)


def integer_biases(model: onnx.ModelProto) -> None:
    """Replace the FP32 biases of 8-bit layers by 32-bit integers in the step of their products, as kernels expect.

    A bias that does not fit stays in FP32, and its layer is then computed in FP32.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        sources = [producers[name] for name in node.input[:2] if name in producers]
        if (
            node.op_type in {"Conv", "Gemm"}
            and len(node.input) == 3
            and node.input[2] in constants
            and [source.op_type for source in sources] == ["DequantizeLinear"] * 2
        ):
            steps = [numpy_helper.to_array(constants[source.input[1]]) for source in sources]
            step = (steps[0] * steps[1]).astype(np.float32)
            integers = np.round(numpy_helper.to_array(constants[node.input[2]]).astype(np.float64) / step)
            if np.abs(integers).max() < np.iinfo(np.int32).max:
                name, output = f"{node.input[2]}_quantized", f"{node.name}_bias"
                parts = {name: integers.astype(np.int32), f"{name}_scale": step}
                parts[f"{name}_zero_point"] = np.zeros(len(step), np.int32)
                model.graph.initializer.extend(numpy_helper.from_array(part, key) for key, part in parts.items())
                nodes.append(
                    helper.make_node("DequantizeLinear", list(parts), [output], f"{output}_dequantize", axis=0)
                )
                node.input[2] = output
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unused_constants(model)


def weight_rows(model: onnx.ModelProto) -> tuple[WeightRow, ...]:
    """Return the weight matrices and filters of a quantized graph (zero points and biases have fewer axes)."""
    import onnx

    kinds = onnx.TensorProto
    bits = {kinds.INT4: 4, kinds.INT8: 8, kinds.UINT8: 8, kinds.FLOAT16: 16, kinds.FLOAT: 32}
    scales = _block_scales(model)
    return tuple(
        WeightRow(layer=_layer_of(tensor.name), weights=math.prod(tensor.dims), bits=bits[tensor.data_type])
        for tensor in model.graph.initializer
        if tensor.data_type in bits and len(tensor.dims) >= 2 and tensor.name not in scales
    )


def _layer_of(stored: str) -> str:
    """Return the name of the layer that a stored weight tensor belongs to."""
    for suffix in (FP16_SUFFIX, INT4_SUFFIX, "_quantized", ".weight"):
        stored = stored.removesuffix(suffix)
    return stored


def _block_scales(model: onnx.ModelProto) -> set[str]:
    """Return the names of the scales of weights that are stored in blocks."""
    return {f"{tensor.name}{SCALE_SUFFIX}" for tensor in model.graph.initializer if tensor.name.endswith(INT4_SUFFIX)}


def count_weights(model: onnx.ModelProto) -> tuple[int, int]:
    """Return the number of a model's weights and of those that are not zero; scales and shapes do not count."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    numbers = onnx.TensorProto
    kinds = {numbers.FLOAT, numbers.FLOAT16, numbers.INT32, numbers.INT8, numbers.UINT8, numbers.INT4}
    names = {tensor.name for tensor in model.graph.initializer}
    steps = {name for node in model.graph.node if node.op_type in _CONVERSIONS for name in node.input[1:]}
    steps |= _block_scales(model)
    # In dynamically quantized layers, scales and zero points are inputs of other operators.
    steps |= {
        name + suffix
        for name in (name.removesuffix("_quantized") for name in names if name.endswith("_quantized"))
        for suffix in ("_scale", "_zero_point")
    }
    counted = [
        numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type in kinds and tensor.dims and tensor.name not in steps
    ]
    return sum(weights.size for weights in counted), sum(int(np.count_nonzero(weights)) for weights in counted)
