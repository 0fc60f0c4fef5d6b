"""Pruning methods and their options, and unstructured L1 pruning with torch.nn.utils.prune."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chestx_cli.errors import UsageError
from chestx_cli.models import present_weight, prunable_layers
from chestx_cli.records import (
    NO_BATCHNORM,
    NOT_REESTIMATED,
    REESTIMATED,
    EpochRow,
    PrunedLayerRow,
    Statistics,
)
from chestx_cli.registry import Registry

if TYPE_CHECKING:
    from torch import nn

# Fine-tunes a network in place for the epochs of one step, told its number, and returns their rows.
Finetune = Callable[["nn.Module", int], list[EpochRow]]
# Re-estimates the BatchNorm statistics of a network in place, its masks held.
Recalibrate = Callable[["nn.Module"], None]


@dataclass(frozen=True, kw_only=True)
class PruningMethod:
    """What a method removes, and the options that it takes with their defaults; `budget` names the choices of one.

    Zeros are weights set to zero, the tensors stay as they are; channels go physically.
    """

    removes: str
    defaults: Mapping[str, Any]
    max_steps: int
    name: Callable[[Mapping[str, Any]], str]


ZEROS, CHANNELS = "zeros", "channels"
BUDGETS = {"macs": CHANNELS, "sparsity": ZEROS}
# Options that only some methods have, and those of distillation.
CHANNEL_DEFAULTS: Mapping[str, Any] = {"criterion": None, "round_to": 8, "floor": 0.1}
DISTILLATION_DEFAULTS: Mapping[str, Any] = {"temperature": 4.0, "teacher_weight": 0.5}
# Without fine-tuning they change nothing.
FINETUNE_OPTIONS = ("lr", "batch_size", "compile")

ZEROS_NOTE = (
    "Zeros alone change neither the dense file nor the latency: the file keeps its size and every multiplication "
    "is still made. They pay only with a sparse format or runtime."
)

STATISTICS_NOTES: Mapping[Statistics, str] = {
    REESTIMATED: "BatchNorm statistics were re-estimated from the training images after the zeros were made, before "
    "any fine-tuning.",
    NOT_REESTIMATED: "Plain method: BatchNorm statistics were not re-estimated after the zeros were made. Without "
    "fine-tuning this can shift the decision and leave the order of the images: accuracy then falls, AUROC does not.",
    NO_BATCHNORM: "The network has no BatchNorm layers: there are no statistics to re-estimate.",
}

PRUNING_METHODS: Registry[PruningMethod] = Registry("pruning method")

PRUNING_METHODS.add(
    "oneshot",
    PruningMethod(
        removes=ZEROS,
        defaults={"amount": 0.5, "steps": 1, "finetune_epochs": 0},
        max_steps=1,
        name=lambda o: f"oneshot-{o['amount'] * 100:g}",
    ),
)
PRUNING_METHODS.add(
    "iterative",
    PruningMethod(
        removes=ZEROS,
        defaults={"amount": 0.2, "steps": 3, "finetune_epochs": 2},
        max_steps=100,
        name=lambda o: f"iterative-{o['steps']}x{o['amount'] * 100:g}",
    ),
)
PRUNING_METHODS.add(
    "structured",
    PruningMethod(
        removes=CHANNELS,
        defaults={"amount": 0.5, "steps": 1, "finetune_epochs": 2, **CHANNEL_DEFAULTS},
        max_steps=100,
        name=lambda o: f"structured-{o['amount'] * 100:g}",
    ),
)
PRUNING_METHODS.add(
    "guided",
    PruningMethod(
        removes=CHANNELS,
        defaults={"amount": 0.5, "steps": 1, "finetune_epochs": 2, "budget": "macs", **CHANNEL_DEFAULTS},
        max_steps=100,
        name=lambda o: f"guided-{o['budget']}-{o['amount'] * 100:g}",
    ),
)


def settled_options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a pruning, with the method's defaults where none was given.

    Raises UsageError for an option that the method does not have.
    """
    entry = PRUNING_METHODS[method]
    settled = {name: value for name, value in given.items() if value is not None}
    defaults = dict(entry.defaults)
    if removes(method, {**defaults, **settled}) == ZEROS:
        defaults = {name: value for name, value in defaults.items() if name not in CHANNEL_DEFAULTS}
    elif not settled.pop("recalibrate"):
        raise UsageError(
            "--no-recalibrate leaves statistics that do not fit the channels that are left",
            "leave it out, or use --method oneshot or iterative, or --budget sparsity",
        )
    if settled.get("distill"):
        defaults.update(DISTILLATION_DEFAULTS)
    for name in ("budget", *CHANNEL_DEFAULTS, *DISTILLATION_DEFAULTS):
        if name in settled and name not in defaults:
            remedy = "add --distill" if name in DISTILLATION_DEFAULTS else "use --method structured or guided"
            raise UsageError(f"--{name.replace('_', '-')} has no effect here", remedy)
    settled = {**defaults, **settled}
    if settled["steps"] > entry.max_steps:
        raise UsageError(
            f"--method {method} takes {entry.max_steps} step, not {settled['steps']}", "use --method iterative"
        )
    if settled["distill"] and not settled["finetune_epochs"]:
        raise UsageError("--distill needs fine-tuning", "give --finetune-epochs 1 or more")
    return settled


def telling_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options of a pruning that its result depends on."""
    if options["finetune_epochs"]:
        return dict(options)
    idle: tuple[str, ...] = FINETUNE_OPTIONS
    if removes(options["method"], options) == ZEROS:
        # Statistics are sums in FP32 over all training images in their order: nothing is drawn for them.
        idle = (*idle, "precision", "seed")
        if statistics_of(options) != REESTIMATED:
            idle = (*idle, "device")
    return {name: value for name, value in options.items() if name not in idle}


def statistics_of(options: Mapping[str, Any]) -> Statistics:
    """Return what becomes of BatchNorm statistics where zeros are made; the option is there if there are any."""
    if "recalibrate" not in options:
        return NO_BATCHNORM
    return REESTIMATED if options["recalibrate"] else NOT_REESTIMATED


def default_name(options: Mapping[str, Any]) -> str:
    """Return what a pruning calls its variant by default, that of the baseline."""
    name = PRUNING_METHODS[options["method"]].name(options)
    is_plain = removes(options["method"], options) == ZEROS and statistics_of(options) == NOT_REESTIMATED
    return f"{name}-plain" if is_plain else name


def removes(method: str, options: Mapping[str, Any]) -> str:
    """Return whether a pruning sets weights to zero or removes channels; --budget decides where there is one."""
    return BUDGETS[options["budget"]] if "budget" in options else PRUNING_METHODS[method].removes


def asked_sparsity(before: float, amount: float, steps: int) -> float:
    """Return the share of zeros after `steps` times `amount` of what is left, from a share `before`."""
    return float(1 - (1 - before) * (1 - amount) ** steps)


@contextmanager
def held_zeros(network: nn.Module) -> Iterator[list[tuple[nn.Module, str]]]:
    """Hold the weights of Conv2d and Linear layers that are zero, or are pruned inside the block, at zero.

    Its value is the layers with the name of the weight, as torch.nn.utils.prune takes them.
    """
    from torch.nn.utils import prune

    parameters = [(layer, "weight") for layer in prunable_layers(network).values()]
    for layer, name in parameters:
        # What an earlier pruning has zeroed stays zero, and is not among what is left.
        prune.custom_from_mask(layer, name, mask=(present_weight(layer) != 0).float())
    yield parameters
    for layer, name in parameters:
        prune.remove(layer, name)


def prune_globally(
    network: nn.Module, *, amount: float, steps: int, recalibrate: Recalibrate | None, finetune: Finetune | None
) -> list[EpochRow]:
    """Zero the smallest weights of all Conv2d and Linear layers taken together, in place, in steps.

    Each step removes the share `amount` of the weights still left, then re-estimates BatchNorm statistics and
    fine-tunes, with all masks held. Returns the rows of the fine-tuning epochs.
    """
    from torch.nn.utils import prune

    rows: list[EpochRow] = []
    with held_zeros(network) as parameters:
        for step in range(1, steps + 1):
            # The method flattens with view(), which a channels-last weight does not allow.
            scores = {(layer, name): present_weight(layer).contiguous() for layer, name in parameters}
            prune.global_unstructured(parameters, prune.L1Unstructured, importance_scores=scores, amount=amount)
            if recalibrate is not None:
                recalibrate(network)
            if finetune is not None:
                rows += finetune(network, step)
    return rows


def prune_by_layer(network: nn.Module, zeros: Mapping[str, int]) -> None:
    """Zero the smallest weights of each layer, in place, until it has as many zeros as asked; it keeps those it has."""
    from torch.nn.utils import prune

    with held_zeros(network):
        for name, layer in prunable_layers(network).items():
            present = present_weight(layer).contiguous()
            more = zeros.get(name, 0) - int((present == 0).sum())
            if more > 0:
                prune.l1_unstructured(layer, "weight", amount=more, importance_scores=present)


def layer_sparsity(network: nn.Module) -> tuple[PrunedLayerRow, ...]:
    """Return the zeros in the weights of each Conv2d and Linear layer."""
    import torch

    rows = []
    for name, layer in prunable_layers(network).items():
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)  # noqa: S101 - Conv2d and Linear layers have one
        zeros = weight.numel() - int(torch.count_nonzero(weight))
        rows.append(PrunedLayerRow(layer=name, weights=weight.numel(), zeros=zeros, sparsity=zeros / weight.numel()))
    return tuple(rows)


def overall_sparsity(rows: tuple[PrunedLayerRow, ...]) -> float:
    """Return the share of zeros over all layers."""
    return sum(row.zeros for row in rows) / sum(row.weights for row in rows)
