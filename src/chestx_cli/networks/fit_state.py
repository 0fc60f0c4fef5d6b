"""The state of a fit: its snapshot for a checkpoint, and its restoration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chestx_cli.core.machine import environment
from chestx_cli.records.variant import EpochRow
from chestx_cli.store.checkpoints import Progress, Snapshot

if TYPE_CHECKING:
    import torch
    from torch import nn

    from chestx_cli.networks.batchnorm_folding import FoldedNetwork
    from chestx_cli.networks.parallel.ranks import Ranks


@dataclass
class FitState:
    """The mutable state of a fit; resuming from its snapshot gives bit-identical results to an uninterrupted fit."""

    network: nn.Module
    ranks: Ranks
    # The network, possibly wrapped or compiled, and its twin for validation; both use the network's weights.
    forward: Callable[[torch.Tensor], torch.Tensor]
    folded: FoldedNetwork
    optimizer: torch.optim.Optimizer
    history: list[EpochRow]
    # Exponential moving averages of the parameters, in their order; None without averaging.
    average: list[torch.Tensor] | None = None
    lowest_loss: float = math.inf
    # Losses [N] of the validation images in the epoch of the lowest loss, if the choice of the epoch uses them.
    lowest_losses: torch.Tensor | None = None
    kept_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    # Progress: finished epochs, steps in the current epoch, and the logits and labels of these steps, on the device.
    epoch: int = 0
    step: int = 0
    seen_logits: list[torch.Tensor] = field(default_factory=list)
    seen_labels: list[torch.Tensor] = field(default_factory=list)
    epoch_s: float = 0.0


def snapshot_of(state: FitState, *, finished: bool = False) -> Snapshot:
    """Return a copy of a fit's state; for a finished fit, only the kept weights and the history."""
    tensors = {f"kept/{name}": value for name, value in state.kept_weights.items()}
    if not finished:
        tensors |= {f"network/{name}": value for name, value in cpu_copy(state.network.state_dict()).items()}
        for index, slots in state.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in cpu_copy(slots).items()}
        for index, value in enumerate(state.average or ()):
            tensors |= {f"average/{index}": value for value in cpu_copy({"": value}).values()}
        if state.lowest_losses is not None:
            tensors["lowest/losses"] = state.lowest_losses
        if state.step:
            import torch

            tensors |= {
                "seen/logits": torch.cat(state.seen_logits).cpu(),
                "seen/labels": torch.cat(state.seen_labels).cpu(),
            }
    progress = Progress(
        history=tuple(state.history),
        lowest_loss=state.lowest_loss if math.isfinite(state.lowest_loss) else None,
        epoch=state.epoch,
        step=state.step,
        epoch_s=state.epoch_s,
        environment=environment(),
    )
    return Snapshot(tensors=tensors, progress=progress)


def restore(state: FitState, snapshot: Snapshot) -> None:
    """Restore a fit from a snapshot."""
    import torch

    names = ("kept", "lowest", "network", "optimizer", "average", "seen")
    parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    for key, tensor in snapshot.tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    if parts["network"]:
        state.network.load_state_dict(parts["network"])
    parameters = [one for group in state.optimizer.param_groups for one in group["params"]]
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in parts["optimizer"].items():
        number, _, name = key.partition("/")
        slot = slots.setdefault(int(number), {})
        # The fused optimiser traverses a parameter and its moments in memory order, so both need the same layout.
        slot[name] = tensor if name == "step" else torch.empty_like(parameters[int(number)]).copy_(tensor)
    if slots:
        known = state.optimizer.state_dict()
        state.optimizer.load_state_dict({"state": slots, "param_groups": known["param_groups"]})
    for number, tensor in parts["average"].items():
        assert state.average is not None  # noqa: S101 - the checkpoint is of the same options
        state.average[int(number)].copy_(tensor)
    state.kept_weights = parts["kept"]
    state.lowest_losses = parts["lowest"].get("losses")
    progress = snapshot.progress
    state.history = list(progress.history)
    state.lowest_loss = math.inf if progress.lowest_loss is None else progress.lowest_loss
    state.epoch, state.step, state.epoch_s = progress.epoch, progress.step, progress.epoch_s
    if parts["seen"]:
        device = next(state.network.parameters()).device
        state.seen_logits, state.seen_labels = (
            [parts["seen"]["logits"].to(device)],
            [parts["seen"]["labels"].to(device)],
        )


def cpu_copy(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies of tensors on the CPU, in the contiguous layout of stored files; shapes and types are kept."""
    import torch

    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
