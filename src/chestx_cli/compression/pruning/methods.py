"""Pruning methods and their options, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chestx_cli.core.errors import UsageError
from chestx_cli.core.registry import Registry
from chestx_cli.records.variant import NO_BATCHNORM, NOT_REESTIMATED, REESTIMATED

if TYPE_CHECKING:
    from chestx_cli.records.variant import Statistics


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
