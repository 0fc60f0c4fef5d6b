"""Running a network from the middle: what stands in front of a layer is computed once, what follows again and again."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

_IN_PLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


@dataclass(frozen=True, kw_only=True)
class Pause:
    """A network stopped in front of one of its layers; `finish` runs it from there to the end, as often as wanted.

    At the end of the network there is no layer, and nothing left to run.
    """

    layer: str | None
    finish: Callable[[], torch.Tensor]


def run_with_pauses(graph_module: fx.GraphModule, inputs: torch.Tensor, layers: frozenset[str]) -> Iterator[Pause]:
    """Run a traced network once over a batch; stop in front of each of `layers` in order of execution, and at the end.

    Only values that a later node still reads are kept. Call inside `torch.inference_mode`.
    """
    interpreter = _interpreter(graph_module)
    nodes = list(graph_module.graph.nodes)
    values: dict[fx.Node, Any] = {}
    interpreter.args_iter = iter((inputs,))
    for index, node in enumerate(nodes):
        stops_here = node.op == "call_module" and node.target in layers
        if stops_here or node.op == "output":

            def finish(start: int = index) -> torch.Tensor:
                return _run(interpreter, nodes[start:], dict(values))

            yield Pause(layer=str(node.target) if stops_here else None, finish=finish)
        if node.op != "output":
            _run_node(interpreter, node, values)


def _interpreter(graph_module: fx.GraphModule) -> fx.Interpreter:
    import torch

    return torch.fx.Interpreter(graph_module)


def _run(interpreter: fx.Interpreter, nodes: list[fx.Node], values: dict[fx.Node, Any]) -> torch.Tensor:
    """Run the nodes on top of `values`, whose tensors stay as they are; return the network's output."""
    import torch

    kept = {value.untyped_storage().data_ptr() for value in values.values() if isinstance(value, torch.Tensor)}
    for node in nodes[:-1]:
        if _in_place(interpreter, node):
            (target,) = node.all_input_nodes[:1]
            if values[target].untyped_storage().data_ptr() in kept:
                values[target] = values[target].clone()
        _run_node(interpreter, node, values)
    logits: torch.Tensor = values[nodes[-1].all_input_nodes[0]]
    return logits


def _run_node(interpreter: fx.Interpreter, node: fx.Node, values: dict[fx.Node, Any]) -> None:
    """Compute one node and drop what nothing will read any more."""
    interpreter.env = values
    values[node] = interpreter.run_node(node)
    for dead in interpreter.user_to_last_uses.get(node, ()):
        values.pop(dead, None)


def _in_place(interpreter: fx.Interpreter, node: fx.Node) -> bool:
    """Return whether a node overwrites its first argument."""
    if node.op == "call_module":
        return bool(getattr(interpreter.module.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_function":
        return node.target in _IN_PLACE_OPERATORS or bool(node.kwargs.get("inplace", False))
    return node.op == "call_method" and str(node.target).endswith("_")


@contextmanager
def weight_set_to(layer: nn.Module, weight: torch.Tensor) -> Iterator[None]:
    """Give a layer another weight inside the block."""
    import torch

    assert isinstance(layer.weight, torch.nn.Parameter)  # noqa: S101 - Conv2d and Linear layers have one
    before = layer.weight.data
    layer.weight.data = weight
    try:
        yield
    finally:
        layer.weight.data = before
