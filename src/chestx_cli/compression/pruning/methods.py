"""Registry of pruning methods: one dataclass per method declares its options and prunes a network.

To add a method, derive a frozen dataclass from `ZerosMethod`, `ChannelsMethod` or `PruningMethod` (`method_bases`),
declare its options as annotated fields, and register it in `PRUNING_METHODS`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Self

from chestx_cli.compression.pruning.allocation import by_sensitivity, prune_zeros_guided
from chestx_cli.compression.pruning.method_bases import (
    Amount,
    ChannelsMethod,
    FinetuneEpochs,
    Pruned,
    PruningMethod,
    PruningStart,
    PruningTask,
    Recalibrated,
    Steps,
    ZerosMethod,
    channels_removed,
    idle_of_zeros,
    require_default,
    zeros_made,
    zeros_statistics,
)
from chestx_cli.compression.pruning.unstructured import (
    cubic_amounts,
    layer_sparsity,
    overall_sparsity,
    prune_globally,
    target_sparsity,
)
from chestx_cli.core.errors import StudyError, UsageError
from chestx_cli.core.options import Opt
from chestx_cli.core.registry import Registry
from chestx_cli.records.sensitivity import GroupSensitivityRecord, SensitivityRecord
from chestx_cli.records.variant import REESTIMATED, Statistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

MACS, SPARSITY = "macs", "sparsity"

PRUNING_METHODS: Registry[type[PruningMethod]] = Registry("pruning method", of=type)


def _prune_magnitudes(method: ZerosMethod, task: PruningTask, amounts: Sequence[float]) -> Pruned:
    target = target_sparsity(overall_sparsity(layer_sparsity(task.network)), amounts)
    recalibrate = task.recalibrate if method.statistics(task.network) == REESTIMATED else None
    rows = prune_globally(task.network, amounts, recalibrate=recalibrate, finetune=task.finetune)
    return zeros_made(method, task, rows, target)


@PRUNING_METHODS.register("oneshot")
@dataclass(frozen=True, kw_only=True)
class Oneshot(ZerosMethod):
    """The smallest weights zeroed at once."""

    amount: Amount = 0.5
    finetune_epochs: FinetuneEpochs = 0

    @property
    def suffix(self) -> str:
        """The default name of variants pruned from the baseline."""
        return f"oneshot-{self.amount * 100:g}"

    def document(self, network: nn.Module) -> dict[str, object]:
        """Return the options that affect the result, with the constant `steps` that earlier records also hold."""
        return {**super().document(network), "steps": 1}

    def prune(self, task: PruningTask) -> Pruned:
        """Zero the share `amount` of smallest weights."""
        return _prune_magnitudes(self, task, (self.amount,))


@PRUNING_METHODS.register("iterative")
@dataclass(frozen=True, kw_only=True)
class Iterative(ZerosMethod):
    """Weights zeroed in steps, fine-tuned after each."""

    amount: Amount = 0.2
    steps: Steps = 3
    gradual: Annotated[bool, Opt(help="Zero most in the first steps, by a cubic law.")] = False

    @property
    def suffix(self) -> str:
        """The default name of variants pruned from the baseline."""
        return f"iterative-{self.steps}x{self.amount * 100:g}{'-gradual' if self.gradual else ''}"

    def prune(self, task: PruningTask) -> Pruned:
        """Zero the share `amount` of the smallest remaining weights in each step; with `gradual`, as many in all."""
        amounts = cubic_amounts(self.amount, self.steps) if self.gradual else (self.amount,) * self.steps
        return _prune_magnitudes(self, task, amounts)


@PRUNING_METHODS.register("structured")
@dataclass(frozen=True, kw_only=True)
class Structured(ChannelsMethod):
    """Channels removed, by a criterion."""

    amount: Amount = 0.5
    steps: Steps = 1

    @property
    def suffix(self) -> str:
        """The default name of variants pruned from the baseline."""
        return f"structured-{self.amount * 100:g}"

    def prune(self, task: PruningTask) -> Pruned:
        """Remove channels until the share `amount` of the MACs is removed."""
        return channels_removed(task, self.cutting(task), amount=self.amount, steps=self.steps)


@PRUNING_METHODS.register("guided")
@dataclass(frozen=True, kw_only=True)
class Guided(ChannelsMethod):
    """Channels or weights, where sensitivity is least."""

    budget: Annotated[str, Opt(help="Budget: MACs (channels) or sparsity (zeros).", choices=(MACS, SPARSITY))] = MACS
    amount: Amount = 0.5
    steps: Steps = 1
    recalibrate: Recalibrated = True

    def __post_init__(self) -> None:
        """Check that options do not exclude each other."""
        super().__post_init__()
        if self.budget == SPARSITY:
            for name in ("criterion", "round_to", "floor"):
                require_default(self, name, "use --budget macs, or --method structured")
        elif not self.recalibrate:
            raise UsageError(
                "--no-recalibrate leaves statistics that do not fit the remaining channels",
                "leave it out, or use --method oneshot or iterative, or --budget sparsity",
                option="recalibrate",
            )

    @property
    def suffix(self) -> str:
        """The default name of variants pruned from the baseline."""
        return f"guided-{self.budget}-{self.amount * 100:g}"

    @property
    def sensitivity(self) -> type[SensitivityRecord] | type[GroupSensitivityRecord]:
        """The measurement of the parent that the method needs; None if it needs none."""
        return SensitivityRecord if self.budget == SPARSITY else GroupSensitivityRecord

    def settled(self, start: PruningStart) -> Self:
        """Return the method with the criterion of the measured sensitivity; raises StudyError if another was chosen."""
        if not isinstance(start.sensitivity, GroupSensitivityRecord):
            return self
        measured, chosen = start.sensitivity.criterion, self.criterion or start.sensitivity.criterion
        if chosen != measured:
            name = start.parent.name
            raise StudyError(
                f"the sensitivity of {name} was measured with --criterion {measured}, not {chosen}",
                f'run "chestx sensitivity --structured --criterion {chosen} --from {name}" first',
            )
        return replace(self, criterion=chosen)

    def statistics(self, network: nn.Module) -> Statistics:
        """Return how BatchNorm statistics are treated."""
        return zeros_statistics(network, recalibrate=self.recalibrate)

    def idle(self, network: nn.Module) -> set[str]:
        """Return the names of options that do not affect the result."""
        if self.budget == MACS:
            return super().idle(network) | {"recalibrate"}
        return super().idle(network) | idle_of_zeros(self, network) | {"criterion", "round_to", "floor"}

    def prune(self, task: PruningTask) -> Pruned:
        """Remove channels or zero weights where the loss increases least."""
        if isinstance(task.sensitivity, GroupSensitivityRecord):
            cutting = replace(self.cutting(task), allocator=by_sensitivity(task.sensitivity))
            return channels_removed(task, cutting, amount=self.amount, steps=self.steps)
        assert task.sensitivity is not None  # noqa: S101 - it is this method's requirement
        network = task.network
        target = target_sparsity(overall_sparsity(layer_sparsity(network)), (self.amount,))
        rows = prune_zeros_guided(
            network,
            task.sensitivity,
            amount=self.amount,
            steps=self.steps,
            recalibrate=task.recalibrate if self.statistics(network) == REESTIMATED else None,
            finetune=task.finetune,
        )
        return zeros_made(self, task, rows, target)
