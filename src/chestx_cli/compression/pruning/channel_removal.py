"""Channel removal: allowed widths of each group, their MACs, and the construction of the pruned network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.errors import ChestxError
from chestx_cli.networks.layers import layer_macs
from chestx_cli.networks.weights.serialization import narrow

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import nn

    from chestx_cli.compression.pruning.dependency_groups import ChannelGroup

# Number of channels that each group keeps, by group name.
Widths = Mapping[str, int]

# The width that vector instructions and most kernels process at once.
ROUND_TO = 8
TOLERANCE = 0.01
# Widths are tuned to a tighter tolerance than the promised one, in a limited number of steps.
AIM = 0.001
TUNING_MOVES = 10


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on a group's width: a multiple of `round_to` channels, and at least the share `floor` of the original."""

    round_to: int
    floor: float


def allowed_widths(group: ChannelGroup, limits: Limits, original: int) -> tuple[int, ...]:
    """Return a group's allowed widths in decreasing order from the present one; the floor is a share of `original`."""
    unit = math.lcm(limits.round_to, group.blocks)
    least = max(unit, unit * math.ceil(limits.floor * original / unit))
    return (group.channels, *(width for width in range(group.channels - 1, least - 1, -1) if width % unit == 0))


class MacsByWidth:
    """The MACs of a network as a function of its groups' widths; equal to the flop counter's for the pruned network."""

    def __init__(self, network: nn.Module, groups: Sequence[ChannelGroup], image_size_px: int) -> None:
        self._layers = layer_macs(network, image_size_px)
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        weights = {f"{name}.weight": name for name in self._layers}
        # By layer and weight dimension: the size, and each group with the positions that one of its channels occupies.
        self._taken: dict[tuple[str, int], list[tuple[str, float]]] = {}
        self._sizes: dict[tuple[str, int], int] = {}
        self._channels = {group.name: group.channels for group in groups}
        self._touching: dict[str, set[str]] = {group.name: set() for group in groups}
        for group in groups:
            for cut in group.cuts:
                if cut.tensor in weights:
                    key = (weights[cut.tensor], cut.dim)
                    self._sizes[key] = shapes[cut.tensor][cut.dim]
                    self._taken.setdefault(key, []).append((group.name, len(cut.positions) / group.channels))
                    self._touching[group.name].add(weights[cut.tensor])

    def of_layer(self, layer: str, widths: Widths) -> float:
        """Return the MACs of one layer."""
        macs = float(self._layers[layer])
        for dim in (0, 1):
            key = (layer, dim)
            if key in self._sizes:
                removed = sum(
                    share * (self._channels[group] - widths.get(group, self._channels[group]))
                    for group, share in self._taken[key]
                )
                macs *= 1 - removed / self._sizes[key]
        return macs

    def __call__(self, widths: Widths) -> float:
        """Return the MACs of the network; groups missing from `widths` keep their channels."""
        return sum(self.of_layer(layer, widths) for layer in self._layers)

    def change(self, widths: Widths, group: str, width: int) -> float:
        """Return the change in MACs from setting one group to another width; negative for a saving."""
        changed = {**widths, group: width}
        return sum(self.of_layer(layer, changed) - self.of_layer(layer, widths) for layer in self._touching[group])


class ShareError(ChestxError):
    """Raised for a share of the MACs that no allowed widths remove; `nearest` is the closest removable share."""

    def __init__(self, target: float, nearest: float) -> None:
        super().__init__(
            f"{target:.1%} of the MACs cannot be removed: the nearest is {nearest:.1%}",
            "use another --amount, a lower --floor, or --round-to 1",
        )
        self.nearest = nearest


def fit_widths(
    macs: MacsByWidth,
    allowed: Mapping[str, tuple[int, ...]],
    allocate: Callable[[float], Widths],
    *,
    kept_macs: float,
    whole_macs: float,
) -> Widths:
    """Return widths whose MACs equal `kept_macs` to within 1 % of `whole_macs`.

    allocate: maps a number from 0 (all channels) to 1 (the fewest) to widths, monotonically. Raises ShareError if no
    allowed widths come close enough.
    """
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if macs(allocate(middle)) > kept_macs:
            low = middle
        else:
            high = middle
    widths = min((allocate(low), allocate(high)), key=lambda widths_at: abs(macs(widths_at) - kept_macs))
    widths = _tuned(macs, allowed, dict(widths), kept_macs, AIM * whole_macs)
    reached = macs(widths)
    if abs(reached - kept_macs) > TOLERANCE * whole_macs:
        target, nearest = 1 - kept_macs / whole_macs, 1 - reached / whole_macs
        raise ShareError(target, nearest)
    return widths


def _tuned(
    macs: MacsByWidth, allowed: Mapping[str, tuple[int, ...]], widths: dict[str, int], wanted: float, aim: float
) -> dict[str, int]:
    """Change the widths of single groups until the MACs are within `aim` of `wanted`, or as close as possible.

    Of several changes that reach `aim`, take the one that changes the smallest share of a group's channels.
    """
    error = macs(widths) - wanted
    for _ in range(TUNING_MOVES):
        if abs(error) <= aim:
            break
        moves = []
        for group, choices in allowed.items():
            for width in choices:
                remaining = abs(error + macs.change(widths, group, width))
                moves.append((max(remaining, aim), abs(width - widths[group]) / choices[0], group, width))
        remaining, _, group, width = min(moves)
        if remaining >= abs(error):
            break
        error += macs.change(widths, group, width)
        widths[group] = width
    return widths


def nearest_width(choices: tuple[int, ...], wanted: float) -> int:
    """Return the allowed width nearest to `wanted`; in a tie, the larger."""
    return min(choices, key=lambda width: (abs(width - wanted), -width))


def channels_to_remove(group: ChannelGroup, scores: torch.Tensor, width: int) -> npt.NDArray[np.int64]:
    """Return the lowest-scoring channels [n] to remove to leave `width`, the same positions in each block."""
    import numpy as np

    size = group.channels // group.blocks
    by_place = scores.view(group.blocks, size).mean(dim=0).numpy()
    # A stable sort breaks ties the same way on every machine.
    places = np.argsort(by_place, kind="stable")[: size - width // group.blocks]
    return np.sort((places[None, :] + size * np.arange(group.blocks)[:, None]).ravel()).astype(np.int64)


def without_channels(
    network: nn.Module, groups: Sequence[ChannelGroup], removed: Mapping[str, npt.NDArray[np.int64]]
) -> nn.Module:
    """Return a copy of a network without the given channels; the network itself is not changed.

    removed: for each group's name, the numbers of its channels to remove [n].
    """
    import numpy as np
    import torch

    removed_positions: dict[tuple[str, int], set[int]] = {}
    for group in groups:
        channels = removed.get(group.name)
        if channels is None or not len(channels):
            continue
        for cut in group.cuts:
            removed_positions.setdefault((cut.tensor, cut.dim), set()).update(
                cut.positions[np.isin(cut.channels, channels)].tolist()
            )
    state = dict(network.state_dict())
    for (name, dim), positions in removed_positions.items():
        kept = [i for i in range(state[name].shape[dim]) if i not in positions]
        state[name] = state[name].index_select(dim, torch.tensor(kept)).contiguous()
    narrower = copy.deepcopy(network)
    narrow(narrower, {name: tuple(tensor.shape) for name, tensor in state.items()})
    narrower.load_state_dict(state)
    return narrower.eval()
