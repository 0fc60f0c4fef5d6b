"""What pruning methods share: task, result, common options, and base classes for zeros and for channels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Self

from chestx_cli.compression.pruning.channel_removal import ROUND_TO, Limits
from chestx_cli.compression.pruning.criteria import CRITERIA, usual_criterion
from chestx_cli.compression.pruning.structured import Cutting, layer_widths, prune_channels
from chestx_cli.compression.pruning.unstructured import (
    layer_sparsity,
    overall_sparsity,
)
from chestx_cli.core.errors import UsageError
from chestx_cli.core.options import TRAINING, Opt, declared_fields
from chestx_cli.core.shared_options import (
    COSINE,
    ONE_SE,
    TEACHER_WEIGHT,
    TEMPERATURE,
    BatchSize,
    Compile,
    Device,
    FeatureWeight,
    Keep,
    LearningRate,
    Precision,
    Refinements,
    Schedule,
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
    from torch import nn

    from chestx_cli.compression.pruning.unstructured import Finetune
    from chestx_cli.core.progress import Reporter
    from chestx_cli.networks.recipe import Recipe
    from chestx_cli.networks.training_data import FitData

DECISION_NOTE = (
    "Channel pruning shifts scores more than their ranking. If accuracy falls but AUROC does not, choose a new "
    "threshold: chestx evaluate --operating-point youden."
)
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
Distill = Annotated[bool, Opt(help="Fine-tune with the parent as teacher.", panel=TRAINING)]
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
# Names of the options that only a teacher makes use of.
OF_TEACHER = ("temperature", "teacher_weight", "feature_weight")


@dataclass(frozen=True, kw_only=True)
class PruningMethod(Refinements, ABC):
    """Base class of pruning methods with common options; raises UsageError for options that exclude each other."""

    finetune_epochs: FinetuneEpochs = 2
    distill: Distill = False
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
            for name in ("distill", *REFINEMENTS):
                require_default(self, name, "give --finetune-epochs 1 or more")
        if not self.has_teacher:
            for name in OF_TEACHER:
                require_default(
                    self, name, "add --distill" if self.finetune_epochs else "give --finetune-epochs 1 or more"
                )

    @property
    def has_teacher(self) -> bool:
        """Whether the parent is the teacher of a fine-tuning."""
        return self.distill and self.finetune_epochs > 0

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
        without_teacher = set() if self.has_teacher else set(OF_TEACHER)
        return without_teacher | (set() if self.finetune_epochs else {"lr", "batch_size", "compile", *REFINEMENTS})

    def document(self, network: nn.Module) -> dict[str, object]:
        """Return the options that affect the result, by name, as recorded with a variant."""
        idle = self.idle(network)
        options = {name: getattr(self, name) for name in declared_fields(type(self)) if name not in idle}
        return {**options, "distill": self.has_teacher}


def require_default(method: PruningMethod, name: str, remedy: str) -> None:
    """Raise UsageError, with a remedy, for an option that has no effect and is not at its method's default."""
    if getattr(method, name) != type(method).__dataclass_fields__[name].default:
        raise UsageError(f"--{name.replace('_', '-')} has no effect here", remedy, option=name)


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


@dataclass(frozen=True, kw_only=True)
class ChannelsMethod(PruningMethod):
    """A method that removes channels from the tensors.

    Its fine-tuning is not the study's, but what recovered most over five folds (docs/compression.md, "Fine-tuning").
    """

    finetune_epochs: FinetuneEpochs = 8
    distill: Distill = True
    lr: LearningRate = 3e-4
    schedule: Schedule = COSINE
    keep: Keep = ONE_SE
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


def channels_removed(task: PruningTask, cutting: Cutting, *, amount: float, steps: int) -> Pruned:
    """Remove the share `amount` of the MACs of the task's network."""
    parent = task.parent
    pruned, rows = prune_channels(
        task.network,
        task.data,
        cutting,
        amount=amount,
        steps=steps,
        finetune=task.finetune,
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
