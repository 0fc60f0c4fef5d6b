"""Registry of pruning methods: one dataclass per method declares its options and prunes a network.

To add a method, derive a frozen dataclass from `ZerosMethod`, `ChannelsMethod` or `PruningMethod`, declare its options
as annotated fields, and register it in `PRUNING_METHODS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Self

from chestx_cli.compression.pruning.allocation import by_sensitivity, prune_zeros_guided
from chestx_cli.compression.pruning.channel_removal import ROUND_TO, Limits
from chestx_cli.compression.pruning.criteria import CRITERIA, usual_criterion
from chestx_cli.compression.pruning.structured import Cutting, layer_widths, prune_channels
from chestx_cli.compression.pruning.unstructured import (
    cubic_amounts,
    layer_sparsity,
    overall_sparsity,
    prune_globally,
    target_sparsity,
)
from chestx_cli.core.errors import StudyError, UsageError
from chestx_cli.core.options import TRAINING, Opt, declared_fields
from chestx_cli.core.registry import Registry
from chestx_cli.core.shared_options import (
    STUDYS,
    TEACHER_WEIGHT,
    TEMPERATURE,
    BatchSize,
    Compile,
    Device,
    FeatureWeight,
    LearningRate,
    Precision,
    Refinements,
    Seed,
    TeacherWeight,
    Temperature,
)
from chestx_cli.networks.backbones import output_layer
from chestx_cli.networks.layers import count_macs, count_parameters
from chestx_cli.networks.recalibration import batchnorm_layers, reestimate_batchnorm
from chestx_cli.records.sensitivity import GroupSensitivityRecord, SensitivityRecord
from chestx_cli.records.variant import (
    NO_BATCHNORM,
    NOT_REESTIMATED,
    REESTIMATED,
    STATISTICS_NOTES,
    ZEROS_NOTE,
    EpochRow,
    Pruning,
    Statistics,
    Structure,
    VariantRecord,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from chestx_cli.compression.pruning.structured import Allocator
    from chestx_cli.compression.pruning.unstructured import Finetune
    from chestx_cli.core.progress import Reporter
    from chestx_cli.networks.recipe import Recipe
    from chestx_cli.networks.training_data import FitData

DECISION_NOTE = (
    "Channel pruning shifts scores more than their ranking. If accuracy falls but AUROC does not, choose a new "
    "threshold: chestx evaluate --operating-point youden."
)
MACS, SPARSITY = "macs", "sparsity"
FLOOR = 0.1

Amount = Annotated[
    float,
    Opt(
        help="Share of weights, MACs or budget to remove.",
        above=0,
        maximum=0.99,
    ),
]
Steps = Annotated[int, Opt(help="Number of pruning steps.", minimum=1, maximum=100)]
FinetuneEpochs = Annotated[int, Opt(help="Epochs of fine-tuning after each step.", minimum=0, panel=TRAINING)]
Recalibrated = Annotated[bool, Opt(help="Re-estimate BatchNorm statistics.")]
CriterionName = Annotated[str | None, Opt(help="Channel score; by default bn-scale or l2.", choices=CRITERIA)]
RoundTo = Annotated[int, Opt(help="Keep channels in multiples of this.", minimum=1, maximum=64)]
Floor = Annotated[float, Opt(help="Least share of a group's channels to keep.", minimum=0, maximum=1)]

# The sensitivity measurement that a method uses, if any.
Sensitivity = GroupSensitivityRecord | SensitivityRecord | None


@dataclass(frozen=True, kw_only=True)
class PruningStart:
    """Starting point of a pruning: the parent, its network, and the sensitivity measurement that the method uses."""

    parent: VariantRecord
    network: nn.Module
    sensitivity: Sensitivity


@dataclass(frozen=True, kw_only=True)
class PruningTask(PruningStart):
    """Input of a pruning method; it may change the network in place.

    finetune: trains a network in place for the epochs of one step, given the step's number; None without fine-tuning.
    """

    data: FitData
    recipe: Recipe
    finetune: Finetune | None
    reporter: Reporter

    def recalibrate(self, network: nn.Module) -> None:
        """Re-estimate the BatchNorm statistics of a network in place."""
        reestimate_batchnorm(network, self.data, device=self.recipe.device, reporter=self.reporter)


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A pruned network, the rows of its fine-tuning epochs, and the pruning fields of the variant's record."""

    network: nn.Module
    rows: list[EpochRow]
    notes: tuple[str, ...]
    pruning: Pruning | None = None
    structure: Structure | None = None


# Names of the refinements of fine-tuning.
REFINEMENTS = tuple(declared_fields(Refinements))


@dataclass(frozen=True, kw_only=True)
class PruningMethod(Refinements, ABC):
    """Base class of pruning methods with common options; raises UsageError for options that exclude each other."""

    finetune_epochs: FinetuneEpochs = 2
    distill: Annotated[bool, Opt(help="Fine-tune with the parent as teacher.", panel=TRAINING)] = False
    temperature: Temperature = TEMPERATURE
    teacher_weight: TeacherWeight = TEACHER_WEIGHT
    feature_weight: FeatureWeight = 0.0
    lr: LearningRate = 1e-4
    batch_size: BatchSize = 32
    device: Device = "auto"
    precision: Precision = "auto"
    compile: Compile = False
    seed: Seed = 42

    def __post_init__(self) -> None:
        """Check that options do not exclude each other."""
        if self.finetune_epochs:
            self.require_possible(self.finetune_epochs, "--finetune-epochs")
        else:
            for name in REFINEMENTS:
                _require_default(self, name, getattr(STUDYS, name), "give --finetune-epochs 1 or more")
        if self.distill and not self.finetune_epochs:
            raise UsageError("--distill needs fine-tuning", "give --finetune-epochs 1 or more", option="distill")
        if not self.distill:
            _require_default(self, "temperature", TEMPERATURE, "add --distill")
            _require_default(self, "teacher_weight", TEACHER_WEIGHT, "add --distill")
            _require_default(self, "feature_weight", 0.0, "add --distill")

    @property
    def refinements(self) -> Refinements:
        """The settings of fine-tuning that the original study leaves out."""
        return Refinements.of(vars(self))

    @property
    @abstractmethod
    def suffix(self) -> str:
        """The default name of variants pruned from the baseline."""

    @abstractmethod
    def prune(self, task: PruningTask) -> Pruned:
        """Prune a network; called on the instance returned by `settled`."""

    @property
    def sensitivity(self) -> type[SensitivityRecord] | type[GroupSensitivityRecord] | None:
        """The measurement of the parent that the method needs; None if it needs none."""
        return None

    def settled(self, start: PruningStart) -> Self:  # noqa: ARG002 - most methods need nothing of it
        """Return the method with unset options filled in from the parent."""
        return self

    def statistics(self, network: nn.Module) -> Statistics:
        """Return how BatchNorm statistics are treated."""
        return REESTIMATED if batchnorm_layers(network) else NO_BATCHNORM

    def name(self, network: nn.Module) -> str:
        """Return the default name of a variant of the baseline; `network` is the baseline's."""
        return f"{self.suffix}-plain" if self.statistics(network) == NOT_REESTIMATED else self.suffix

    def idle(self, network: nn.Module) -> set[str]:  # noqa: ARG002 - some methods need it
        """Return the names of options that do not affect the result."""
        without_teacher = set() if self.distill else {"temperature", "teacher_weight", "feature_weight"}
        return without_teacher | (set() if self.finetune_epochs else {"lr", "batch_size", "compile", *REFINEMENTS})

    def document(self, network: nn.Module) -> dict[str, object]:
        """Return the options that affect the result, by name, as recorded with a variant."""
        idle = self.idle(network)
        return {name: getattr(self, name) for name in declared_fields(type(self)) if name not in idle}


def _require_default(method: PruningMethod, name: str, default: object, remedy: str) -> None:
    if getattr(method, name) != default:
        raise UsageError(f"--{name.replace('_', '-')} has no effect here", remedy, option=name)


PRUNING_METHODS: Registry[type[PruningMethod]] = Registry("pruning method", of=type)


@dataclass(frozen=True, kw_only=True)
class ZerosMethod(PruningMethod):
    """A method that sets weights to zero and keeps the tensor shapes."""

    recalibrate: Recalibrated = True

    def statistics(self, network: nn.Module) -> Statistics:
        """Return how BatchNorm statistics are treated."""
        return zeros_statistics(network, recalibrate=self.recalibrate)

    def idle(self, network: nn.Module) -> set[str]:
        """Return the names of options that do not affect the result."""
        return super().idle(network) | idle_of_zeros(self, network)


def zeros_statistics(network: nn.Module, *, recalibrate: bool) -> Statistics:
    """Return how BatchNorm statistics are treated when weights are zeroed."""
    if not batchnorm_layers(network):
        return NO_BATCHNORM
    return REESTIMATED if recalibrate else NOT_REESTIMATED


def idle_of_zeros(method: PruningMethod, network: nn.Module) -> set[str]:
    """Return the names of options that do not affect the result of zeroing weights."""
    statistics = method.statistics(network)
    # Without BatchNorm layers, --recalibrate and --no-recalibrate give the same variant.
    idle = {"recalibrate"} if statistics == NO_BATCHNORM else set()
    if not method.finetune_epochs:
        # Statistics are FP32 sums over all training images in a fixed order: the seed does not affect them.
        idle |= {"precision", "seed"} | (set() if statistics == REESTIMATED else {"device"})
    return idle


def zeros_made(method: PruningMethod, task: PruningTask, rows: list[EpochRow], target: float) -> Pruned:
    """Return the result for a task whose network's weights have been zeroed in place; `target`: target sparsity."""
    layers, statistics = layer_sparsity(task.network), method.statistics(task.network)
    pruning = Pruning(
        target_sparsity=target,
        achieved_sparsity=overall_sparsity(layers),
        batchnorm_statistics=statistics,
        finetune_epochs=len(rows),
        layers=layers,
    )
    return Pruned(network=task.network, rows=rows, pruning=pruning, notes=(ZEROS_NOTE, STATISTICS_NOTES[statistics]))


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


@dataclass(frozen=True, kw_only=True)
class ChannelsMethod(PruningMethod):
    """A method that removes channels from the tensors."""

    criterion: CriterionName = None
    round_to: RoundTo = ROUND_TO
    floor: Floor = FLOOR

    def settled(self, start: PruningStart) -> Self:
        """Return the method with the network's default criterion if none was given."""
        return replace(self, criterion=self.criterion or usual_criterion(start.network))

    def cutting(self, task: PruningTask) -> Cutting:
        """Return the rules for choosing channels of the task's network."""
        return Cutting(
            criterion=self.criterion or usual_criterion(task.network),
            limits=Limits(round_to=self.round_to, floor=self.floor),
            kept_layer=output_layer(task.network),
            device=task.recipe.device,
            precision=task.recipe.precision,
            seed=task.recipe.seed,
        )


def channels_removed(
    task: PruningTask, cutting: Cutting, *, amount: float, steps: int, allocator: Allocator | None = None
) -> Pruned:
    """Remove the share `amount` of the MACs of the task's network, distributed by the allocator."""
    parent = task.parent
    pruned, rows = prune_channels(
        task.network,
        task.data,
        cutting,
        amount=amount,
        steps=steps,
        finetune=task.finetune,
        allocator=allocator,
        reporter=task.reporter,
    )
    parameters, _ = count_parameters(pruned)
    structure = Structure(
        criterion=cutting.criterion,
        round_to=cutting.limits.round_to,
        floor=cutting.limits.floor,
        target_macs_removed=amount,
        achieved_macs_removed=1 - count_macs(pruned, task.data.preprocessing.image_size_px) / parent.macs,
        parent_macs=parent.macs,
        parameters_removed=1 - parameters / parent.parameters,
        parent_parameters=parent.parameters,
        batchnorm_statistics=REESTIMATED if batchnorm_layers(pruned) else NO_BATCHNORM,
        finetune_epochs=len(rows),
        layers=layer_widths(task.network, pruned),
    )
    return Pruned(network=pruned, rows=rows, structure=structure, notes=(DECISION_NOTE,))


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
            for name, default in (("criterion", None), ("round_to", ROUND_TO), ("floor", FLOOR)):
                _require_default(self, name, default, "use --budget macs, or --method structured")
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
            allocator = by_sensitivity(task.sensitivity)
            return channels_removed(task, self.cutting(task), amount=self.amount, steps=self.steps, allocator=allocator)
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
