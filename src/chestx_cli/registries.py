"""Extension points: the registries, and the types and functions that plugins need. Importing it loads no room.

This module and the commands of the package itself are the public import paths; all others may change at any time.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chestx_cli.command_table import SUMMARIES
from chestx_cli.core.registry import COMMANDS as COMMANDS

if TYPE_CHECKING:
    from chestx_cli.compression.pruning.criteria import CRITERIA as CRITERIA
    from chestx_cli.compression.pruning.criteria import ChannelWeights as ChannelWeights
    from chestx_cli.compression.pruning.criteria import Criterion as Criterion
    from chestx_cli.compression.pruning.method_bases import Amount as Amount
    from chestx_cli.compression.pruning.method_bases import ChannelsMethod as ChannelsMethod
    from chestx_cli.compression.pruning.method_bases import Pruned as Pruned
    from chestx_cli.compression.pruning.method_bases import PruningTask as PruningTask
    from chestx_cli.compression.pruning.method_bases import ZerosMethod as ZerosMethod
    from chestx_cli.compression.pruning.method_bases import channels_removed as channels_removed
    from chestx_cli.compression.pruning.method_bases import zeros_made as zeros_made
    from chestx_cli.compression.pruning.methods import PRUNING_METHODS as PRUNING_METHODS
    from chestx_cli.compression.pruning.unstructured import held_zeros as held_zeros
    from chestx_cli.compression.quantization.methods import QUANTIZATION_METHODS as QUANTIZATION_METHODS
    from chestx_cli.compression.quantization.methods import Int8Method as Int8Method
    from chestx_cli.compression.quantization.methods import QuantizationMethod as QuantizationMethod
    from chestx_cli.compression.quantization.methods import QuantizedFile as QuantizedFile
    from chestx_cli.compression.quantization.methods import Task as Task
    from chestx_cli.core.command import Run as Run
    from chestx_cli.core.command import Stage as Stage
    from chestx_cli.core.command import stage as stage
    from chestx_cli.core.errors import ChestxError as ChestxError
    from chestx_cli.core.errors import DataError as DataError
    from chestx_cli.core.errors import StudyError as StudyError
    from chestx_cli.core.errors import UsageError as UsageError
    from chestx_cli.core.options import Opt as Opt
    from chestx_cli.core.record import col as col
    from chestx_cli.core.shared_options import Device as Device
    from chestx_cli.core.shared_options import Force as Force
    from chestx_cli.core.shared_options import Seed as Seed
    from chestx_cli.core.shared_options import StudyDir as StudyDir
    from chestx_cli.core.shared_options import Variants as Variants
    from chestx_cli.evaluation.endpoints import ENDPOINTS as ENDPOINTS
    from chestx_cli.evaluation.endpoints import Endpoint as Endpoint
    from chestx_cli.evaluation.predictions import Predictions as Predictions
    from chestx_cli.evaluation.results import StudyResults as StudyResults
    from chestx_cli.evaluation.statistics.influence import Measured as Measured
    from chestx_cli.evaluation.statistics.influence import mean_of as mean_of
    from chestx_cli.evaluation.statistics.metrics import METRICS as METRICS
    from chestx_cli.inference.runtimes import RUNTIMES as RUNTIMES
    from chestx_cli.inference.runtimes import Compute as Compute
    from chestx_cli.inference.runtimes import Model as Model
    from chestx_cli.inference.runtimes import Runtime as Runtime
    from chestx_cli.networks.backbones import BACKBONES as BACKBONES
    from chestx_cli.networks.backbones import Backbone as Backbone
    from chestx_cli.networks.layers import prunable_layers as prunable_layers
    from chestx_cli.networks.losses import LOSSES as LOSSES
    from chestx_cli.records.tabular import TabularRecord as TabularRecord
    from chestx_cli.reporting.figures.drawing import FIGURES as FIGURES
    from chestx_cli.reporting.figures.drawing import FigureEntry as FigureEntry
    from chestx_cli.reporting.figures.style import new_figure as new_figure
    from chestx_cli.store.directory import open_study as open_study


# The module of each name; it is imported at the first use.
_PLACES = {
    "chestx_cli.core.shared_options": ("Device", "Force", "Seed", "StudyDir", "Variants"),
    "chestx_cli.compression.pruning.criteria": ("CRITERIA", "ChannelWeights", "Criterion"),
    "chestx_cli.compression.pruning.method_bases": (
        "Amount",
        "ChannelsMethod",
        "Pruned",
        "PruningTask",
        "ZerosMethod",
        "channels_removed",
        "zeros_made",
    ),
    "chestx_cli.compression.pruning.methods": ("PRUNING_METHODS",),
    "chestx_cli.compression.pruning.unstructured": ("held_zeros",),
    "chestx_cli.compression.quantization.methods": (
        "QUANTIZATION_METHODS",
        "Int8Method",
        "QuantizationMethod",
        "QuantizedFile",
        "Task",
    ),
    "chestx_cli.core.command": ("Run", "Stage", "stage"),
    "chestx_cli.core.errors": ("ChestxError", "DataError", "StudyError", "UsageError"),
    "chestx_cli.core.options": ("Opt",),
    "chestx_cli.core.record": ("col",),
    "chestx_cli.evaluation.endpoints": ("ENDPOINTS", "Endpoint"),
    "chestx_cli.evaluation.predictions": ("Predictions",),
    "chestx_cli.evaluation.results": ("StudyResults",),
    "chestx_cli.evaluation.statistics.influence": ("Measured", "mean_of"),
    "chestx_cli.evaluation.statistics.metrics": ("METRICS",),
    "chestx_cli.inference.runtimes": ("RUNTIMES", "Compute", "Model", "Runtime"),
    "chestx_cli.networks.backbones": ("BACKBONES", "Backbone"),
    "chestx_cli.networks.layers": ("prunable_layers",),
    "chestx_cli.networks.losses": ("LOSSES",),
    "chestx_cli.records.tabular": ("TabularRecord",),
    "chestx_cli.reporting.figures.drawing": ("FIGURES", "FigureEntry"),
    "chestx_cli.reporting.figures.style": ("new_figure",),
    "chestx_cli.store.directory": ("open_study",),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """A command of this package; its module is imported when it is used."""

    name: str
    summary: str

    def load(self) -> Stage[..., Any]:
        """Return the command itself."""
        command: Stage[..., Any] = getattr(importlib.import_module(f"chestx_cli.commands.{self.name}"), self.name)
        return command


for _name, _summary in SUMMARIES.items():
    COMMANDS.add(_name, BuiltIn(name=_name, summary=_summary))

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Return a name that a plugin imports from here, from the module that defines it."""
        if name in _PLACE_OF:
            return getattr(importlib.import_module(_PLACE_OF[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
