"""Fake quantization: an FP32 network that rounds like the INT8 file that it will be exported to.

Import this module only where needed: it imports torch, which is slow to load. Source: Jacob et al., CVPR 2018, with the
straight-through gradient estimator (Bengio et al., 2013).

Written here because files from QAT libraries are slower or larger under ONNX Runtime (ResNet18, torch 2.14). torchao
0.18: its X86InductorQuantizer raises ValueError on torchvision's ResNets; the XNNPACK quantizer of its test package
exports biases and batch normalisation in FP32, so only 9 of 20 convolutions run in INT8 and a batch of 8 takes 145 ms,
compared with 20 of 20 and 56 ms here (2 threads, best of 12). NNCF 3.4: compiles a C++ extension at the first step,
does not export with torch's current exporter, and with the previous one gives 43.8 MiB of FP32 weights (11.0 MiB here)
and no INT8 convolution.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from chestx_cli.networks.batchnorm_folding import FoldedNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chestx_cli.compression.quantization.target_cpus import Numerics

# Lower limits of the quantization step: for a channel with near-zero weights the bias would not fit into 32 bits.
SMALLEST_RELATIVE_STEP = 1e-4
SMALLEST_STEP = 1e-6

# Operations that ONNX Runtime computes in 8 bits: their inputs and outputs are rounded.
_COMPUTING = (
    nn.Conv2d,
    nn.Linear,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Sigmoid,
    torch.sigmoid,
    operator.add,
    operator.mul,
    torch.add,
    torch.mul,
    torch.cat,
    F.adaptive_avg_pool2d,
)
# Operations that only move values: their output shares the range of their input.
_MOVING = (nn.MaxPool2d, nn.Flatten, torch.flatten, torch.permute, "permute", "flatten")
# Fused into the preceding layer's kernel: only their output is rounded.
_CLIPPING = (nn.ReLU, nn.ReLU6, F.relu)
_IDENTITY = (nn.Dropout, nn.Identity)


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to 8 bits within a previously observed range; the gradient passes unless the value is clipped."""

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, numerics: Numerics) -> None:
        super().__init__()
        self.lowest, self.highest = numerics.activation_range
        # Zero must be exactly representable because padding uses it.
        self.low = self.high = 0.0
        self.observing, self.exporting = True, False
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    def fix_range(self) -> None:
        """Stop observing and round within the range observed so far."""
        scale = max((self.high - self.low) / (self.highest - self.lowest), SMALLEST_STEP)
        self.scale.fill_(scale)
        self.zero_point.fill_(round(self.lowest - self.low / scale))
        self.observing = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rounded tensor, or the tensor unchanged while observing its range."""
        if self.observing:
            self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
            return x
        if self.exporting:
            kind = torch.int8 if self.lowest < 0 else torch.uint8
            zero_point = self.zero_point.to(kind)
            integers = torch.onnx.ops.symbolic("QuantizeLinear", (x, self.scale, zero_point), dtype=kind, shape=x.shape)
            return _dequantized(integers, self.scale, zero_point)
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.lowest, self.highest)


class WeightQuantizer(nn.Module):
    """Rounds weights symmetrically per output channel; pruned weights (zeros) stay zero."""

    scale: torch.Tensor
    zero_point: torch.Tensor
    integers: torch.Tensor
    mask: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, limit: int) -> None:
        super().__init__()
        self.limit, self.exporting = limit, False
        self.register_buffer("mask", None if bool((weight != 0).all()) else (weight != 0).to(weight.dtype))
        self.register_buffer("scale", self._step(weight.detach()))
        self.register_buffer("zero_point", torch.zeros(len(weight), dtype=torch.int32))
        self.register_buffer("integers", torch.empty(0, dtype=torch.int8), persistent=False)

    def _step(self, weight: torch.Tensor) -> torch.Tensor:
        scale = weight.abs().flatten(1).amax(1) / self.limit
        return scale.clamp(min=max(float(scale.max()) * SMALLEST_RELATIVE_STEP, SMALLEST_STEP))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the rounded weights [out, ...]; in training mode the steps are updated from the weights."""
        if self.exporting:
            return _dequantized(self.integers, self.scale, self.zero_point.to(torch.int8), axis=0)
        if self.mask is not None:
            weight = weight * self.mask
        if self.training:
            with torch.no_grad():
                self.scale.copy_(self._step(weight))
        return torch.fake_quantize_per_channel_affine(weight, self.scale, self.zero_point, 0, -self.limit, self.limit)

    def store(self, rounded: torch.Tensor) -> None:
        """Store the integers of rounded weights for export."""
        steps = self.scale.reshape(-1, *[1] * (rounded.ndim - 1))
        self.integers = (rounded / steps).round().to(torch.int8).contiguous()
        self.exporting = True


class BiasQuantizer(nn.Module):
    """Rounds a bias to the step of its layer's products, like the 32-bit bias of the exported file.

    An error of half a step can flip the rounding of an output and propagate.
    """

    stored: torch.Tensor

    def __init__(self, source: ActivationQuantizer, weight: WeightQuantizer) -> None:
        super().__init__()
        # A tuple prevents torch from registering them as submodules.
        self.steps = (source, weight)
        self.exporting = False
        self.register_buffer("stored", torch.empty(0), persistent=False)

    def forward(self, bias: torch.Tensor) -> torch.Tensor:
        """Return the rounded bias [out]; unchanged if it does not fit into 32 bits."""
        source, weight = self.steps
        if self.exporting:
            return self.stored
        if source.observing:
            return bias
        step = source.scale * weight.scale
        integers = (bias.detach() / step).round()
        if float(integers.abs().max()) >= 2**31 - 1:
            return bias
        return bias + (integers * step - bias.detach())

    def store(self, rounded: torch.Tensor) -> None:
        """Store the rounded bias for export."""
        self.stored = rounded.detach().clone()
        self.exporting = True


def _dequantized(
    integers: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int | None = None
) -> torch.Tensor:
    dequantized: torch.Tensor = torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (integers, scale, zero_point),
        attrs=None if axis is None else {"axis": axis},
        dtype=torch.float32,
        shape=integers.shape,
    )
    return dequantized


class _FrozenNorm(nn.Module):
    """A batch normalisation that cannot be folded into a convolution; its statistics are frozen."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def train(self, mode: bool = True) -> _FrozenNorm:
        """Keep using the stored statistics in training mode."""
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised tensor."""
        normalised: torch.Tensor = self.norm(x)
        return normalised


def fake_quantized(network: nn.Module, numerics: Numerics) -> fx.GraphModule:
    """Return a traced network with batch normalisation folded and quantizers inserted, in observing state.

    Quantizers are placed as in the static method: on the inputs and outputs of layers, additions, products and
    poolings, except the logits. Raises torch's tracing error for a network with control flow.
    """
    traced = FoldedNetwork(network).graph_module.requires_grad_(True)
    for name, module in list(traced.named_modules()):
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            owner, _, attribute = name.rpartition(".")
            setattr(traced.get_submodule(owner), attribute, _FrozenNorm(module))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            quantizer = WeightQuantizer(module.weight, numerics.weight_limit)
            parametrize.register_parametrization(module, "weight", quantizer)
    _split_silu(traced)
    _insert_quantizers(traced, numerics)
    return traced


def _split_silu(traced: fx.GraphModule) -> None:
    """Replace SiLU by sigmoid and multiplication, as in the exported file: both have 8-bit kernels."""
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and isinstance(traced.get_submodule(node.target), nn.SiLU):
            with traced.graph.inserting_before(node):
                sigmoid = traced.graph.call_function(torch.sigmoid, node.args)
                product = traced.graph.call_function(torch.mul, (node.args[0], sigmoid))
            node.replace_all_uses_with(product)
            traced.graph.erase_node(node)


def observe(traced: fx.GraphModule, batches: Iterable[torch.Tensor], advance: Callable[[int], None]) -> None:
    """Run batches of network input [N, 3, H, W], then fix the range of every quantizer."""
    traced.eval()
    with torch.inference_mode():
        for batch in batches:
            traced(batch)
            advance(len(batch))
    for quantizer in _activation_quantizers(traced):
        quantizer.fix_range()


def make_exportable(traced: fx.GraphModule) -> None:
    """Replace, in place, rounding by ONNX operators and weights by the integers they round to."""
    for module in list(traced.modules()):
        for name in ("bias", "weight"):
            if parametrize.is_parametrized(module, name):
                with torch.no_grad():
                    rounded = getattr(module, name)
                quantizer = module.get_submodule(f"parametrizations.{name}.0")
                assert isinstance(quantizer, BiasQuantizer | WeightQuantizer)  # noqa: S101 - registered by this module
                quantizer.store(rounded)
    for rounding in _activation_quantizers(traced):
        rounding.exporting = True


def _activation_quantizers(traced: fx.GraphModule) -> list[ActivationQuantizer]:
    return [module for module in traced.modules() if isinstance(module, ActivationQuantizer)]


def _insert_quantizers(traced: fx.GraphModule, numerics: Numerics) -> None:
    """Add a quantizer to each input and output of 8-bit kernels; operations that move values share their input's."""
    modules = dict(traced.named_modules())
    wanted: set[fx.Node] = set()
    for node in traced.graph.nodes:
        sources = node.all_input_nodes
        # 8-bit kernels cannot read an FP32 constant of the network directly.
        if _is_one_of(node, _COMPUTING, modules) and not any(source.op == "get_attr" for source in sources):
            wanted.update(_before_dropout(source, modules) for source in sources)
            after = list(node.users)
            clips = len(after) == 1 and _is_one_of(after[0], _CLIPPING, modules)
            wanted.add(after[0] if clips else node)
    wanted -= {_before_dropout(source, modules) for source in next(iter(reversed(traced.graph.nodes))).all_input_nodes}
    names: dict[fx.Node, str] = {}
    for node in traced.graph.nodes:
        moved = _before_dropout(node.args[0], modules) if _is_one_of(node, _MOVING, modules) else None
        if moved in names:
            names[node] = names[moved]
        elif node in wanted:
            names[node] = f"quantizer_{len(set(names.values()))}"
            modules[names[node]] = ActivationQuantizer(numerics)
            traced.add_submodule(names[node], modules[names[node]])
    _round_biases(traced, {node: modules[name] for node, name in names.items()}, modules)
    for node, name in names.items():
        with traced.graph.inserting_after(node):
            rounded = traced.graph.call_module(name, (node,))
        for reader in [user for user in node.users if user is not rounded]:
            reader.replace_input_with(node, rounded)
    traced.recompile()


def _round_biases(traced: fx.GraphModule, sources: dict[fx.Node, nn.Module], modules: dict[str, nn.Module]) -> None:
    """Add a quantizer to every layer's bias, with the step of the layer's input times that of its weights."""
    for node in traced.graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            source = sources[_before_dropout(node.all_input_nodes[0], modules)]
            weight = layer.get_submodule("parametrizations.weight.0")
            assert isinstance(source, ActivationQuantizer)  # noqa: S101 - inserted by this module
            assert isinstance(weight, WeightQuantizer)  # noqa: S101 - registered by this module
            parametrize.register_parametrization(layer, "bias", BiasQuantizer(source, weight))


def _is_one_of(node: fx.Node, kinds: tuple[object, ...], modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], tuple(kind for kind in kinds if isinstance(kind, type)))
    return node.target in kinds


def _before_dropout(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    """Return the node before any dropout or identity, which exported files do not contain."""
    while _is_one_of(node, _IDENTITY, modules):
        (node,) = node.all_input_nodes
    return node
