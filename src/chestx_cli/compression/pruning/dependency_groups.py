"""Adapter to Torch-Pruning: groups of coupled channels, which must be removed together, and their importance.

Only the dependency graph and the importances are used; `channel_removal` cuts the tensors, and no Torch-Pruning object
is stored.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chestx_cli.compression.pruning.criteria import ChannelWeights
from chestx_cli.core.errors import ChestxError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import nn

    from chestx_cli.compression.pruning.criteria import Criterion, Formula


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A cut along one dimension of one tensor: position `positions[i]` is removed with channel `channels[i]`."""

    tensor: str
    dim: int
    positions: npt.NDArray[np.int64]
    channels: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Coupled channels, named after the first layer that outputs them; `layers`: all layers that output them.

    blocks: grouped convolutions need equally many channels in each of their groups, so channel i is removed together
    with the channels at the same position in the other blocks.
    """

    name: str
    layers: tuple[str, ...]
    channels: int
    blocks: int
    cuts: tuple[Cut, ...]
    handle: Any


def trace_groups(network: nn.Module, image_size_px: int, *, kept_layer: str) -> tuple[ChannelGroup, ...]:
    """Return the groups of coupled channels of a network in network order, excluding the outputs of `kept_layer`.

    Raises ChestxError for a layer whose channels cannot be removed and for a network whose channels cannot be traced.
    Source: Fang et al., DepGraph, CVPR 2023.
    """
    import torch
    import torch_pruning

    network.eval()
    with warnings.catch_warnings(), torch.enable_grad():
        # It warns about parameters outside layers, although it handles them correctly: it cuts their last dimension
        # longer than 1.
        warnings.simplefilter("ignore")
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(
                network, torch.zeros(1, 3, image_size_px, image_size_px)
            )
            traced = list(graph.get_all_groups(ignored_layers=[network.get_submodule(kept_layer)]))
        # Torch-Pruning has no exception types of its own: unsupported operations, such as channel shuffles, raise any
        # type.
        except Exception as error:
            raise ChestxError(
                f"Torch-Pruning cannot follow the channels of this network ({type(error).__name__}: {error})",
                "make zeros with --method oneshot or iterative, or use another --backbone",
            ) from error
    order = {name: i for i, (name, _) in enumerate(network.named_modules())}
    names: dict[Any, str] = {module: name for name, module in network.named_modules()}
    names.update({parameter: name for name, parameter in network.named_parameters()})
    groups = [_channel_group(graph, group, names, order) for group in traced]
    return tuple(sorted(groups, key=lambda group: order[group.name]))


def _channel_group(graph: Any, group: Any, names: dict[Any, str], order: dict[str, int]) -> ChannelGroup:
    from torch import nn

    layers, blocks, cuts = set(), 1, []
    for i in range(len(group)):
        dependency, positions, channels = group[i].dep, group[i].idxs, group[i].root_idxs
        target = dependency.target.module
        # Concatenations, reshapes and similar operations have no tensors.
        if target not in names:
            continue
        is_output = graph.is_out_channel_pruning_fn(dependency.handler)
        if isinstance(target, (nn.Conv2d, nn.Linear)) and is_output:
            layers.add(names[target])
        if isinstance(target, nn.Conv2d) and not _is_depthwise(target):
            blocks = math.lcm(blocks, target.groups)
        dim = dependency.target.pruning_dim
        cuts += list(_cuts(target, names[target], positions, channels, is_output=is_output, dim=dim))
    return ChannelGroup(
        name=min(layers, key=lambda name: order[name]),
        layers=tuple(sorted(layers, key=lambda name: order[name])),
        channels=len(group[0].idxs),
        blocks=blocks,
        cuts=tuple(cuts),
        handle=group,
    )


def _cuts(
    target: Any, name: str, positions: list[int], channels: list[int], *, is_output: bool, dim: int
) -> Iterator[Cut]:
    """Yield the cuts of a layer or bare parameter for removing channels that it outputs or reads."""
    import numpy as np
    from torch import nn

    tensor_positions, channel_of = np.asarray(positions, dtype=np.int64), np.asarray(channels, dtype=np.int64)
    if isinstance(target, nn.Parameter):
        yield Cut(tensor=name, dim=dim, positions=tensor_positions, channels=channel_of)
        return
    tensors = {**dict(target.named_parameters(recurse=False)), **dict(target.named_buffers(recurse=False))}
    if isinstance(target, nn.Conv2d) and not is_output:
        width = target.in_channels // target.groups
        first = np.unique(tensor_positions % width, return_index=True)[1]
        yield Cut(tensor=f"{name}.weight", dim=1, positions=tensor_positions[first] % width, channels=channel_of[first])
    elif isinstance(target, nn.Linear) and not is_output:
        yield Cut(tensor=f"{name}.weight", dim=1, positions=tensor_positions, channels=channel_of)
    elif isinstance(target, (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
        for parameter_name, tensor in tensors.items():
            # BatchNorm's `num_batches_tracked` is a scalar.
            if tensor.ndim:
                yield Cut(tensor=f"{name}.{parameter_name}", dim=0, positions=tensor_positions, channels=channel_of)
    elif tensors:
        raise ChestxError(f"channels of {name} ({type(target).__name__}) cannot be removed", "use --method iterative")


def _is_depthwise(layer: nn.Conv2d) -> bool:
    return layer.groups == layer.in_channels == layer.out_channels


def score_channels(network: nn.Module, group: ChannelGroup, criterion: Criterion) -> torch.Tensor | None:
    """Return the importance of a group's channels [channels], higher is more important; None if undefined.

    Gradients are read from the network's parameters if the criterion needs them. Raises ChestxError if a formula fails
    or does not return one finite number per channel, and for an unknown importance.
    """
    if not isinstance(criterion.importance, str):
        scores = _formula_scores(criterion.importance, network, group)
    else:
        import torch_pruning

        importance = getattr(torch_pruning.importance, criterion.importance, None)
        if importance is None:
            raise ChestxError(
                f"Torch-Pruning has no importance {criterion.importance!r}", "correct the name in the criterion"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = importance(**criterion.options)(group.handle)
    return None if scores is None else scores.detach().double().cpu()


def _formula_scores(formula: Formula, network: nn.Module, group: ChannelGroup) -> torch.Tensor | None:
    import torch

    try:
        scores = formula(channel_weights(network, group))
    # A plugin's formula may raise anything.
    except Exception as error:
        raise ChestxError(
            f"a criterion's formula failed for {group.name}: {type(error).__name__}: {error}",
            "correct it; with --debug the same command shows where it fails",
        ) from error
    if scores is None:
        return None
    returned = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
    if returned != [group.channels] or not bool(torch.isfinite(scores).all()):
        finite = "numbers that are not finite" if returned == [group.channels] else returned
        raise ChestxError(
            f"a criterion's formula returned {finite} for {group.name} of {group.channels} channels",
            "it has to return a tensor of one finite number per channel, or None",
        )
    return scores


def channel_weights(network: nn.Module, group: ChannelGroup) -> tuple[ChannelWeights, ...]:
    """Return the parameters that belong to a group's channels, ordered by channel.

    Parameters with unequal numbers of weights per channel are left out.
    """
    parameters = dict(network.named_parameters())
    weights = []
    for cut in group.cuts:
        rows = _rows_by_channel(cut, group)
        if cut.tensor not in parameters or rows is None:
            continue
        parameter, (layer, _, tensor_name) = parameters[cut.tensor], cut.tensor.rpartition(".")

        def by_channel(tensor: torch.Tensor, dim: int = cut.dim, rows: npt.NDArray[np.int64] = rows) -> torch.Tensor:
            return tensor.detach().movedim(dim, 0)[rows.ravel()].reshape(len(rows), -1)

        weights.append(
            ChannelWeights(
                layer=layer,
                tensor=tensor_name,
                makes=cut.dim == 0,
                values=by_channel(parameter),
                gradients=None if parameter.grad is None else by_channel(parameter.grad),
            )
        )
    return tuple(weights)


def _rows_by_channel(cut: Cut, group: ChannelGroup) -> npt.NDArray[np.int64] | None:
    """Return each channel's positions along a cut's dimension, [channels, n]; None if the numbers differ."""
    import numpy as np

    order = np.argsort(cut.channels, kind="stable")
    channels, counts = np.unique(cut.channels, return_counts=True)
    if len(set(counts.tolist())) != 1:
        return None
    rows = cut.positions[order].reshape(len(channels), -1)
    if len(channels) == group.channels:
        return rows
    # Inputs of a grouped convolution: each position stands for the same place in every block.
    size = group.channels // group.blocks
    return np.tile(rows, (group.blocks, 1)) if channels.tolist() == list(range(size)) else None
