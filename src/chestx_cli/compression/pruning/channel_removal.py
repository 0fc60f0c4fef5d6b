"""Removing channels: how wide each group may be, what that costs in MACs, and the narrower network."""

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

# Channels that each group keeps, by the group's name.
Widths = Mapping[str, int]

TOLERANCE = 0.01
# Widths are tuned to a tighter tolerance than promised, in a limited number of steps.
AIM = 0.001
TUNING_MOVES = 10


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How narrow a group may become: a multiple of `round_to` channels, and not below the share `floor`."""

    round_to: int
    floor: float


def allowed_widths(group: ChannelGroup, limits: Limits, original: int) -> tuple[int, ...]:
    """Return the widths that a group may have, from its present one down; the floor is a share of `original`."""
    unit = math.lcm(limits.round_to, group.blocks)
    least = max(unit, unit * math.ceil(limits.floor * original / unit))
    return (group.channels, *(width for width in range(group.channels - 1, least - 1, -1) if width % unit == 0))


class MacsByWidth:
    """The MACs of a network as its groups' widths change; equals the flop counter's for the network of these widths."""

    def __init__(self, network: nn.Module, groups: Sequence[ChannelGroup], image_size_px: int) -> None:
        self._layers = layer_macs(network, image_size_px)
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        weights = {f"{name}.weight": name for name in self._layers}
        # By layer and dimension of its weight: the size, and how much of it one channel of each group accounts for.
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
        """Return the MACs of the network; groups that `widths` leaves out keep their channels."""
        return sum(self.of_layer(layer, widths) for layer in self._layers)

    def change(self, widths: Widths, group: str, width: int) -> float:
        """Return how many MACs giving one group another width adds; negative where it saves."""
        changed = {**widths, group: width}
        return sum(self.of_layer(layer, changed) - self.of_layer(layer, widths) for layer in self._touching[group])


class ShareError(ChestxError):
    """A share of the MACs that no allowed widths remove; `nearest` is the share that comes closest."""

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
    """Return widths whose MACs are `kept_macs`, within one point of `whole_macs`.

    `allocate` returns widths for a number from 0 (all channels) to 1 (the fewest), ever narrower. Raises ShareError
    where the allowed widths do not come close enough.
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
    """Return widths after changes of single groups that bring the MACs to those wanted, or as close as they do.

    Of the changes that come within `aim`, that of the least share of a group's channels is made.
    """
    off = macs(widths) - wanted
    for _ in range(TUNING_MOVES):
        if abs(off) <= aim:
            break
        moves = []
        for group, choices in allowed.items():
            for width in choices:
                left = abs(off + macs.change(widths, group, width))
                moves.append((max(left, aim), abs(width - widths[group]) / choices[0], group, width))
        left, _, group, width = min(moves)
        if left >= abs(off):
            break
        off += macs.change(widths, group, width)
        widths[group] = width
    return widths


def nearest_width(choices: tuple[int, ...], wanted: float) -> int:
    """Return the allowed width nearest to the target; of two, the wider."""
    return min(choices, key=lambda width: (abs(width - wanted), -width))


def channels_to_remove(group: ChannelGroup, scores: torch.Tensor, width: int) -> npt.NDArray[np.int64]:
    """Return the channels [n] of lowest score that leave a group with `width`; as many of each of its blocks."""
    import numpy as np

    size = group.channels // group.blocks
    by_place = scores.view(group.blocks, size).mean(dim=0).numpy()
    # A stable order, so that ties are broken the same way on every machine.
    places = np.argsort(by_place, kind="stable")[: size - width // group.blocks]
    return np.sort((places[None, :] + size * np.arange(group.blocks)[:, None]).ravel()).astype(np.int64)


def without_channels(
    network: nn.Module, groups: Sequence[ChannelGroup], removed: Mapping[str, npt.NDArray[np.int64]]
) -> nn.Module:
    """Return a copy of a network without some channels of some groups; the network itself stays as it is."""
    import numpy as np
    import torch

    gone: dict[tuple[str, int], set[int]] = {}
    for group in groups:
        channels = removed.get(group.name)
        if channels is None or not len(channels):
            continue
        for cut in group.cuts:
            gone.setdefault((cut.tensor, cut.dim), set()).update(
                cut.positions[np.isin(cut.channels, channels)].tolist()
            )
    state = dict(network.state_dict())
    for (name, dim), positions in gone.items():
        kept = [i for i in range(state[name].shape[dim]) if i not in positions]
        state[name] = state[name].index_select(dim, torch.tensor(kept)).contiguous()
    narrower = copy.deepcopy(network)
    narrow(narrower, {name: tuple(tensor.shape) for name, tensor in state.items()})
    narrower.load_state_dict(state)
    return narrower.eval()
