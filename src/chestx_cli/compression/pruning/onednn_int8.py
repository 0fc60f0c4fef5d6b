"""Fast 8-bit oneDNN convolutions for inference graphs, on processors that sum products of 8 bits without saturation.

Import this module only where needed: it imports torch, which is slow to load. The kernels are those that torch's own
compiler uses for quantized networks on a CPU. They are private to torch, so `int8_is_available` checks for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from chestx_cli.compression.pruning.onednn import PackedConv, packing_is_available
from chestx_cli.core.errors import ChestxError
from chestx_cli.core.machine import instructions

_LARGEST = 255
_LARGEST_WEIGHT = 127


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The numbers that unsigned 8-bit integers stand for: `scale` times (integer - `zero_point`)."""

    scale: float
    zero_point: int

    @classmethod
    def over(cls, low: float, high: float) -> Grid:
        """Return a grid from `low` to `high` that contains zero."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / _LARGEST or 1.0
        return cls(scale=scale, zero_point=round(-low / scale))


def rounded(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """Return the nearest 8-bit integers to numbers of any shape; those off the grid become its ends."""
    return (x / scale).round_().add_(zero_point).clamp_(0, _LARGEST).to(torch.uint8)


def restored(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """Return the numbers that 8-bit integers of any shape stand for, in FP32."""
    return x.float().sub_(zero_point).mul_(scale)


class Int8Conv(PackedConv):
    """A convolution of unsigned 8-bit activations with signed 8-bit weights, which have a scale for each channel.

    Input, output and the tensor that is added are integers of one grid each (Jacob et al., CVPR 2018, section 2).
    """

    def __init__(self, conv: PackedConv, grids: tuple[Grid, ...], output_grid: Grid) -> None:
        """Quantize a convolution; `grids` are of its input and, if there is one, of the tensor that it adds."""
        limits = conv.weight.detach().abs().flatten(1).amax(1)
        scales = torch.where(limits > 0, limits / _LARGEST_WEIGHT, 1.0)
        weight = (conv.weight.detach() / scales.reshape(-1, 1, 1, 1)).round().to(torch.int8)
        super().__init__(nn.Parameter(weight, requires_grad=False), conv.bias, conv.geometry)
        self.activation = conv.activation
        self.scales, self._zeros = scales, torch.zeros(1, dtype=torch.int64)
        self.grids, self.output_grid = grids, output_grid

    def pack(self, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return a weight of 8-bit integers [C, C in / groups, kernel H, kernel W] as the kernel wants it."""
        packed: torch.Tensor = torch.ops.onednn.qconv_prepack(
            weight, self.scales, self.grids[0].scale, self.grids[0].zero_point, *self._moves(), list(x.shape)
        )
        return packed

    def _moves(self) -> tuple[list[int], list[int], list[int], int]:
        padding, stride, dilation, groups = super()._moves()
        return stride, padding, dilation, groups

    def compute(
        self, x: torch.Tensor, other: torch.Tensor | None, packed: torch.Tensor, *, is_spent: bool = False
    ) -> torch.Tensor:
        """Return the output [N, C, H, W] of `forward` for a packed weight; `other` is overwritten if it `is_spent`."""
        name, parameters = self.activation
        grid, output = self.grids[0], self.output_grid
        of_input = (x, grid.scale, grid.zero_point, packed, self.scales, self._zeros)
        of_output = (*self._moves(), output.scale, output.zero_point, torch.uint8)
        if other is None:
            alone: torch.Tensor = torch.ops.onednn.qconv2d_pointwise(
                *of_input, self.bias, *of_output, name, list(parameters), ""
            )
            return alone
        added = self.grids[1]
        # The kernel overwrites the tensor that it adds, and wants it in the layout of its output.
        total_of = other if is_spent else other.clone(memory_format=torch.channels_last)
        total: torch.Tensor = torch.ops.onednn.qconv2d_pointwise.binary(
            *of_input, total_of, self.bias, *of_output, added.scale, added.zero_point,
            "sum", 1.0, name, list(parameters), "",
        )  # fmt: skip
        return total


def int8_is_available() -> bool:
    """Return whether this build of torch has the private kernels and this processor instructions for them.

    Without these instructions sums saturate, and 8 bits are hardly faster than FP32.
    """
    wanted = ("qconv_prepack", "qconv2d_pointwise")
    has_kernels = packing_is_available() and all(hasattr(torch.ops.onednn, name) for name in wanted)
    return has_kernels and "VNNI" in (instructions() or ())


def quantize_convolutions(graph_module: fx.GraphModule, batches: Iterable[torch.Tensor]) -> None:
    """Replace the packed convolutions of a graph by 8-bit ones in place, keeping their names.

    Between convolutions activations stay integers; all other nodes compute in FP32, and so does a convolution that adds
    a tensor of another shape than its output's. batches: network input [N, C, H, W], from which the range of each
    activation is taken. Raises ChestxError if an activation is not finite.
    """
    graph = graph_module.graph
    packed = {node: conv for node in graph.nodes if (conv := _packed(graph_module, node)) is not None}
    grids, shapes = _watched(graph_module, batches, {*packed, *(arg for node in packed for arg in node.args)})
    convolutions = {
        node: conv for node, conv in packed.items() if all(shapes[added] == shapes[node] for added in node.args[1:])
    }
    wanted = {*convolutions, *(arg for node in convolutions for arg in node.args)}
    grids = {node: grid for node, grid in grids.items() if node in wanted}
    for node, conv in convolutions.items():
        of_input = tuple(grids[arg] for arg in node.args)
        graph_module.set_submodule(str(node.target), Int8Conv(conv, of_input, grids[node]))
    for node, grid in grids.items():
        integers = node in convolutions
        others = [user for user in node.users if (user in convolutions) is not integers]
        if others:
            with graph.inserting_after(node):
                changed = graph.call_function(restored if integers else rounded, (node, grid.scale, grid.zero_point))
            for user in others:
                user.replace_input_with(node, changed)
    graph.lint()
    graph_module.recompile()


def _watched(
    graph_module: fx.GraphModule, batches: Iterable[torch.Tensor], nodes: set[fx.Node]
) -> tuple[dict[fx.Node, Grid], dict[fx.Node, torch.Size]]:
    """Return a grid for each of `nodes`, over all of its values for the batches, and the shape of one of them."""
    ranges: dict[fx.Node, tuple[float, float]] = {}
    shapes: dict[fx.Node, torch.Size] = {}

    class Watching(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if node in nodes:
                # aminmax is 16 times slower for channels-last tensors (torch 2.14).
                least, largest = float(value.amin()), float(value.amax())
                if not math.isfinite(least) or not math.isfinite(largest):
                    raise ChestxError("the network has no finite loss on the validation images", "train it again")
                low, high = ranges.get(node, (0.0, 0.0))
                ranges[node] = min(low, least), max(high, largest)
                shapes[node] = value.shape
            return value

    watching = Watching(graph_module)
    with torch.inference_mode():
        for batch in batches:
            watching.run(batch)
    return {node: Grid.over(*limits) for node, limits in ranges.items()}, shapes


def _packed(graph_module: fx.GraphModule, node: fx.Node) -> PackedConv | None:
    module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, PackedConv) else None
