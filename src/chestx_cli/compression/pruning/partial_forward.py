"""Partial forward passes: layers before a given layer run once, the rest once per weight."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

    from chestx_cli.compression.pruning.onednn import PackedConv

_IN_PLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


@dataclass(kw_only=True, eq=False)
class Replacement:
    """Another weight for a layer; oneDNN's kernels pack it once for all batches, and `packed` keeps it so."""

    weight: torch.Tensor
    packed: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Pause:
    """A forward pass paused before a layer; `finish` runs the rest and may be called repeatedly.

    `finish` takes a replacement of that layer's weight, or None for the layer's own. At the end of the network `layer`
    is None and nothing is left to run.
    """

    layer: str | None
    finish: Callable[[Replacement | None], torch.Tensor]


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

            def finish(replacement: Replacement | None, start: int = index) -> torch.Tensor:
                return _run(interpreter, nodes[start:], dict(values), replacement)

            yield Pause(layer=str(node.target) if stops_here else None, finish=finish)
            waiting.discard(str(node.target))
        if node.op != "output":
            _run_node(interpreter, node, values)


def _interpreter(graph_module: fx.GraphModule) -> fx.Interpreter:
    import torch

    return torch.fx.Interpreter(graph_module)


def _run(
    interpreter: fx.Interpreter, nodes: list[fx.Node], values: dict[fx.Node, Any], replacement: Replacement | None
) -> torch.Tensor:
    """Run the nodes on top of `values`, whose tensors are not modified; the first node's layer may get another weight.

    Returns the network's output.
    """
    kept = frozenset(_storages(values))
    first = nodes[0]
    for node in nodes[:-1]:
        if _in_place(interpreter, node):
            (target,) = node.all_input_nodes[:1]
            if values[target].untyped_storage().data_ptr() in kept:
                values[target] = values[target].clone()
        is_first = (node.op, node.target) == (first.op, first.target)
        _run_node(interpreter, node, values, replacement if is_first else None, kept)
    logits: torch.Tensor = values[nodes[-1].all_input_nodes[0]]
    return logits


def _storages(values: dict[fx.Node, Any]) -> list[int]:
    """Return the addresses of the memory of all tensors, also of those in tuples."""
    import torch
    from torch.utils._pytree import tree_leaves

    leaves = tree_leaves(list(values.values()))
    return [value.untyped_storage().data_ptr() for value in leaves if isinstance(value, torch.Tensor)]


def _run_node(
    interpreter: fx.Interpreter,
    node: fx.Node,
    values: dict[fx.Node, Any],
    replacement: Replacement | None = None,
    kept: frozenset[int] = frozenset(),
) -> None:
    """Compute one node and drop values that no later node uses; memory at addresses in `kept` is not overwritten."""
    from chestx_cli.compression.pruning.onednn import PackedConv

    interpreter.env = values
    layer = interpreter.module.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(layer, PackedConv):
        (x, *others), _ = interpreter.fetch_args_kwargs_from_env(node)
        is_spent = bool(others) and _is_spent(interpreter, node, values, kept)
        values[node] = layer.compute(
            x, others[0] if others else None, _packed(layer, x, replacement), is_spent=is_spent
        )
    elif layer is not None and replacement is not None:
        (x, *_), _ = interpreter.fetch_args_kwargs_from_env(node)
        values[node] = _with_weight(layer, replacement.weight, x)
    else:
        values[node] = interpreter.run_node(node)
    for dead in interpreter.user_to_last_uses.get(node, ()):
        values.pop(dead, None)


def _packed(layer: PackedConv, x: torch.Tensor, replacement: Replacement | None) -> torch.Tensor:
    if replacement is None:
        return layer.packed(x)
    if replacement.packed is None:
        replacement.packed = layer.pack(replacement.weight, x)
    return replacement.packed


def _is_spent(interpreter: fx.Interpreter, node: fx.Node, values: dict[fx.Node, Any], kept: frozenset[int]) -> bool:
    """Return whether nothing needs the memory of the tensor that a convolution adds.

    Only the output of another convolution is: its memory is no parameter's, and is not the network's input.
    """
    from chestx_cli.compression.pruning.onednn import PackedConv

    x, added = node.args[:2]
    owner: Any = added
    if owner is x or owner.op != "call_module":
        return False
    address = values[owner].untyped_storage().data_ptr()
    return (
        isinstance(interpreter.module.get_submodule(str(owner.target)), PackedConv)
        and owner in interpreter.user_to_last_uses.get(node, ())
        and address not in kept
        and _storages(values).count(address) == 1
    )


def _in_place(interpreter: fx.Interpreter, node: fx.Node) -> bool:
    """Return whether a node overwrites its first argument."""
    if node.op == "call_module":
        return bool(getattr(interpreter.module.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_function":
        return node.target in _IN_PLACE_OPERATORS or bool(node.kwargs.get("inplace", False))
    return node.op == "call_method" and str(node.target).endswith("_")


def _with_weight(layer: nn.Module, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return a plain layer's output for another weight without modifying it, since other threads may be using it."""
    from torch.nn import Conv2d
    from torch.nn.functional import linear

    bias: Any = layer.bias
    output: torch.Tensor = (
        layer._conv_forward(x, weight, bias) if isinstance(layer, Conv2d) else linear(x, weight, bias)
    )
    return output
