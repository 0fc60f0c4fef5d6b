"""Partial forward passes: layers before a given layer run once, the rest once per weight."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

_IN_PLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


@dataclass(frozen=True, kw_only=True)
class Pause:
    """A forward pass paused before a layer; `finish` runs the rest and may be called repeatedly.

    `finish` takes a replacement weight for that layer, or None for the layer's own. At the end of the network `layer`
    is None and nothing is left to run.
    """

    layer: str | None
    finish: Callable[[torch.Tensor | None], torch.Tensor]


def run_with_pauses(graph_module: fx.GraphModule, inputs: torch.Tensor, layers: frozenset[str]) -> Iterator[Pause]:
    """Run a traced network once over a batch [N, C, H, W], pausing before each of `layers`, in order, and at the end.

    Before a layer that is called several times, it pauses at the first call only. inputs: [N, C, H, W]. Values that no
    later node uses are freed. Call inside `torch.inference_mode`.
    """
    interpreter = _interpreter(graph_module)
    nodes = list(graph_module.graph.nodes)
    values: dict[fx.Node, Any] = {}
    interpreter.args_iter = iter((inputs,))
    waiting = set(layers)
    for index, node in enumerate(nodes):
        stops_here = node.op == "call_module" and node.target in waiting
        if stops_here or node.op == "output":

            def finish(weight: torch.Tensor | None, start: int = index) -> torch.Tensor:
                return _run(interpreter, nodes[start:], dict(values), weight)

            yield Pause(layer=str(node.target) if stops_here else None, finish=finish)
            waiting.discard(str(node.target))
        if node.op != "output":
            _run_node(interpreter, node, values)


def _interpreter(graph_module: fx.GraphModule) -> fx.Interpreter:
    import torch

    return torch.fx.Interpreter(graph_module)


def _run(
    interpreter: fx.Interpreter, nodes: list[fx.Node], values: dict[fx.Node, Any], weight: torch.Tensor | None
) -> torch.Tensor:
    """Run the nodes on top of `values`, whose tensors are not modified; the first node's layer uses `weight` if given.

    Returns the network's output.
    """
    import torch

    kept = {value.untyped_storage().data_ptr() for value in values.values() if isinstance(value, torch.Tensor)}
    first = nodes[0]
    for node in nodes[:-1]:
        if _in_place(interpreter, node):
            (target,) = node.all_input_nodes[:1]
            if values[target].untyped_storage().data_ptr() in kept:
                values[target] = values[target].clone()
        _run_node(interpreter, node, values, weight if (node.op, node.target) == (first.op, first.target) else None)
    logits: torch.Tensor = values[nodes[-1].all_input_nodes[0]]
    return logits


def _run_node(
    interpreter: fx.Interpreter, node: fx.Node, values: dict[fx.Node, Any], weight: torch.Tensor | None = None
) -> None:
    """Compute one node and drop values that no later node uses."""
    interpreter.env = values
    if weight is None:
        values[node] = interpreter.run_node(node)
    else:
        inputs, _ = interpreter.fetch_args_kwargs_from_env(node)
        values[node] = _with_weight(interpreter.module.get_submodule(str(node.target)), weight, *inputs)
    for dead in interpreter.user_to_last_uses.get(node, ()):
        values.pop(dead, None)


def _in_place(interpreter: fx.Interpreter, node: fx.Node) -> bool:
    """Return whether a node overwrites its first argument."""
    if node.op == "call_module":
        return bool(getattr(interpreter.module.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_function":
        return node.target in _IN_PLACE_OPERATORS or bool(node.kwargs.get("inplace", False))
    return node.op == "call_method" and str(node.target).endswith("_")


def _with_weight(layer: nn.Module, weight: torch.Tensor, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """Return a layer's output for another weight without modifying the layer, which other threads may be using."""
    from torch.nn import Conv2d
    from torch.nn.functional import linear

    from chestx_cli.compression.pruning.onednn import PackedConv

    if isinstance(layer, PackedConv):
        return layer.with_weight(weight, x, *others)
    bias: Any = layer.bias
    output: torch.Tensor = (
        layer._conv_forward(x, weight, bias) if isinstance(layer, Conv2d) else linear(x, weight, bias)
    )
    return output
