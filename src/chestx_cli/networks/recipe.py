"""Settings of a fit: learning rate over its steps, regularisation, averaging, and when it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from chestx_cli.core.errors import UsageError
from chestx_cli.core.shared_options import CONSTANT, COSINE, ONECYCLE

if TYPE_CHECKING:
    from collections.abc import Mapping

# The one-cycle policy: share of the steps in which the rate rises, and its first and last value as parts of the peak.
RISE, FIRST, LAST = 0.3, 1 / 25, 1 / 250_000


@dataclass(frozen=True, kw_only=True)
class Refinements:
    """Settings of a fit that the original study leaves out; the defaults are the study's."""

    schedule: str = CONSTANT
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0
    ema: float = 0.0
    early_stop: int | None = None
    label_smoothing: float = 0.0
    mixup: float = 0.0
    freeze_epochs: int = 0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Return the settings among a command's options, by parameter; those that it lacks are the study's."""
        return cls(**{name: options[name] for name in cls.__dataclass_fields__ if name in options})

    def require_possible(self, epochs: int, flag_of_epochs: str = "--epochs") -> None:
        """Raise UsageError for settings that exclude each other in a fit of `epochs`, which that option sets."""
        if self.schedule == ONECYCLE and self.warmup_epochs:
            raise UsageError(
                "--schedule onecycle has its own warm-up",
                "leave --warmup-epochs out, or use cosine",
                option="warmup_epochs",
            )
        for flag, value in (("--warmup-epochs", self.warmup_epochs), ("--freeze-epochs", self.freeze_epochs)):
            if value and value >= epochs:
                raise UsageError(f"{flag} {value:g} leaves none of the {epochs} epochs", f"give more {flag_of_epochs}")


STUDYS = Refinements()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of the fitting loop, with device and precision resolved for this machine."""

    epochs: int
    batch_size: int
    learning_rate: float
    balance: str
    loss: str
    device: str
    precision: str
    compiled: bool
    seed: int
    refinements: Refinements = STUDYS


def rate_factor(refinements: Refinements, step: int, *, of: int, per_epoch: int) -> float:
    """Return the learning rate of a step, from 0, as a part of the given one; the fit has `of` steps.

    constant and cosine rise linearly during the warm-up, then stay or fall to 0 along half a cosine (Loshchilov and
    Hutter, ICLR 2017, without restarts). onecycle rises and falls along cosines (Smith and Topin, 2019,
    arXiv:1708.07120), with the proportions of torch's OneCycleLR.
    """
    if refinements.schedule == ONECYCLE:
        peak = RISE * of - 1
        if step <= peak:
            return _between(FIRST, 1.0, step / peak)
        return _between(1.0, LAST, (step - peak) / (of - 1 - peak))
    warmup = round(refinements.warmup_epochs * per_epoch)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return _between(1.0, 0.0, (step - warmup) / (of - warmup)) if refinements.schedule == COSINE else 1.0


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def averaging_decay(ema: float, step: int) -> float:
    """Return the weight of the former average after `step` steps: less at first, when the average is of few steps."""
    return min(ema, (1 + step) / (10 + step))
