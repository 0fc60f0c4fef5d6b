"""The adapter to Torch-Pruning: groups of channels that must be removed together, and their importance.

Only its dependency graph and its importances are used; the tensors are cut in `channel_removal`, and none of its
objects is stored.
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
    """Coupled channels, named by the first layer that outputs them; with all layers that output them.

    Grouped convolutions need the same number of channels in each of their groups: channel i is removed together with
    those at the same position in the other `blocks`.
    """

    name: str
    layers: tuple[str, ...]
    channels: int
    blocks: int
    cuts: tuple[Cut, ...]
    handle: Any


def trace_groups(network: nn.Module, image_size_px: int, *, kept_layer: str) -> tuple[ChannelGroup, ...]:
    """Return the groups of coupled channels of a network in its order; the outputs of `kept_layer` are in none.

    Raises ChestxError for a layer that cannot be cut, and for a network whose channels cannot be traced. Source: Fang
    et al., DepGraph, CVPR 2023.
    """
    import torch
    import torch_pruning

    network.eval()
    with warnings.catch_warnings(), torch.enable_grad():
        # It warns of parameters outside of layers, whose last dimension longer than one it cuts, as it should.
        warnings.simplefilter("ignore")
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(
                network, torch.zeros(1, 3, image_size_px, image_size_px)
            )
            traced = list(graph.get_all_groups(ignored_layers=[network.get_submodule(kept_layer)]))
        # It has no exception types of its own: unsupported operations, such as shuffled channels, raise any type.
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
        # Concatenations, reshapes and the like have no tensors.
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
    """Return the cuts of a layer or bare parameter when the channels that it makes, or takes, go."""
    import numpy as np
    from torch import nn

    at, of = np.asarray(positions, dtype=np.int64), np.asarray(channels, dtype=np.int64)
    if isinstance(target, nn.Parameter):
        yield Cut(tensor=name, dim=dim, positions=at, channels=of)
        return
    tensors = {**dict(target.named_parameters(recurse=False)), **dict(target.named_buffers(recurse=False))}
    if isinstance(target, nn.Conv2d) and not is_output:
        width = target.in_channels // target.groups
        first = np.unique(at % width, return_index=True)[1]
        yield Cut(tensor=f"{name}.weight", dim=1, positions=at[first] % width, channels=of[first])
    elif isinstance(target, nn.Linear) and not is_output:
        yield Cut(tensor=f"{name}.weight", dim=1, positions=at, channels=of)
    elif isinstance(target, (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
        for own, tensor in tensors.items():
            # A BatchNorm's count of batches is one number.
            if tensor.ndim:
                yield Cut(tensor=f"{name}.{own}", dim=0, positions=at, channels=of)
    elif tensors:
        raise ChestxError(f"channels of {name} ({type(target).__name__}) cannot be removed", "use --method iterative")


def _is_depthwise(layer: nn.Conv2d) -> bool:
    return layer.groups == layer.in_channels == layer.out_channels


def score_channels(network: nn.Module, group: ChannelGroup, criterion: Criterion) -> torch.Tensor | None:
    """Return the importance [channels] of a group's channels, higher is more important; None where it is undefined.

    Gradients, where the criterion needs them, are those that the network's parameters hold. Raises ChestxError where a
    formula fails or does not return one finite number per channel, and for an importance that is not there.
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
    """Return the parameters of a network that belong to the channels of a group, ordered by channel.

    Left out are those that have not as many weights for each channel.
    """
    parameters = dict(network.named_parameters())
    weights = []
    for cut in group.cuts:
        rows = _rows_by_channel(cut, group)
        if cut.tensor not in parameters or rows is None:
            continue
        parameter, (layer, _, own) = parameters[cut.tensor], cut.tensor.rpartition(".")

        def by_channel(tensor: torch.Tensor, dim: int = cut.dim, rows: npt.NDArray[np.int64] = rows) -> torch.Tensor:
            return tensor.detach().movedim(dim, 0)[rows.ravel()].reshape(len(rows), -1)

        weights.append(
            ChannelWeights(
                layer=layer,
                tensor=own,
                makes=cut.dim == 0,
                values=by_channel(parameter),
                gradients=None if parameter.grad is None else by_channel(parameter.grad),
            )
        )
    return tuple(weights)


def _rows_by_channel(cut: Cut, group: ChannelGroup) -> npt.NDArray[np.int64] | None:
    """Return the positions [channels, n] along a cut's dimension of each channel; None where their numbers differ."""
    import numpy as np

    order = np.argsort(cut.channels, kind="stable")
    channels, counts = np.unique(cut.channels, return_counts=True)
    if len(set(counts.tolist())) != 1:
        return None
    rows = cut.positions[order].reshape(len(channels), -1)
    if len(channels) == group.channels:
        return rows
    # The inputs of a grouped convolution: one position is the same place of every block.
    size = group.channels // group.blocks
    return np.tile(rows, (group.blocks, 1)) if channels.tolist() == list(range(size)) else None
