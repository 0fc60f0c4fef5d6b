"""Settings of a fit: learning rate over its steps, regularisation, averaging, when it ends, and the epoch it keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.shared_options import COSINE, ONECYCLE, STUDYS, Refinements

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

# The one-cycle policy: share of steps with a rising rate; first and last rate as fractions of the peak.
RISE, FIRST, LAST = 0.3, 1 / 25, 1 / 250_000


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
    """Return the learning rate of a step, from 0, as a fraction of --lr; the fit has `of` steps.

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
    """Return the weight of the previous average after `step` steps; smaller at first, when it covers few steps."""
    return min(ema, (1 + step) / (10 + step))


def is_within_one_error(losses: torch.Tensor, lowest: torch.Tensor, patients: npt.NDArray[np.str_]) -> bool:
    """Return whether an epoch's loss exceeds the lowest by at most one standard error of the difference.

    losses and lowest: of the same images [N] in this epoch and in that of the lowest loss; patients: [N]. The images of
    a patient count as one observation. False with fewer than two patients. A later epoch within the error is the rule
    of Breiman et al. (Classification and Regression Trees, 1984, section 3.4.3), with later epochs for smaller trees:
    their learning rate has fallen further.
    """
    import numpy as np

    difference = (losses - lowest).numpy()
    _, patient = np.unique(patients, return_inverse=True)
    residuals = np.bincount(patient, difference - difference.mean())
    n_patients = len(residuals)
    if n_patients < 2:
        return False
    error = math.sqrt(n_patients / (n_patients - 1) * float((residuals**2).sum())) / len(difference)
    return float(difference.mean()) <= error
