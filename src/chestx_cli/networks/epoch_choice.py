"""Which epoch of a fit is kept, if the lowest of several noisy validation losses is not to decide alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from chestx_cli.networks.losses import Loss


def losses_of_images(
    loss_of: Loss, logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None
) -> torch.Tensor:
    """Return the share [N] of each image in a loss; for a mean weighted by class, their mean is the loss.

    logits: [N, C]; labels: [N]; weight: class weights [C] or None.
    """
    import torch

    alone = torch.stack([loss_of(logits[i : i + 1], labels[i : i + 1], weight) for i in range(len(labels))]).double()
    if weight is None:
        return alone
    weights = weight[labels].double()
    return alone * weights / weights.mean()


def is_within_one_error(losses: torch.Tensor, lowest: torch.Tensor, patients: npt.NDArray[np.str_]) -> bool:
    """Return whether an epoch's loss exceeds the lowest by at most one standard error of the difference.

    losses and lowest: of the same images [N] in this epoch and in that of the lowest loss; patients: [N]. The images of
    a patient count as one observation. False with fewer than two patients. A later epoch within the error is the rule
    of Breiman et al. (Classification and Regression Trees, 1984, section 3.4.3), with later epochs for smaller trees:
    their learning rate has fallen further.
    """
    difference = (losses - lowest).numpy()
    _, patient = np.unique(patients, return_inverse=True)
    residuals = np.bincount(patient, difference - difference.mean())
    n_patients = len(residuals)
    if n_patients < 2:
        return False
    error = math.sqrt(n_patients / (n_patients - 1) * float((residuals**2).sum())) / len(difference)
    return float(difference.mean()) <= error
