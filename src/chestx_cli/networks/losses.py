"""Registry of losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from chestx_cli.core.registry import Registry

if TYPE_CHECKING:
    import torch

Loss = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor | None"], "torch.Tensor"]

LOSSES: Registry[Loss] = Registry("loss", of=Callable)

FOCAL_GAMMA = 2.0


@LOSSES.register("ce")
def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Return the mean cross-entropy of logits [N, C] and labels [N], with class weights [C] or None."""
    from torch.nn import functional as F

    return F.cross_entropy(logits, labels, weight=weight)


def smoothed(
    loss_of: Loss, logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None, share: float
) -> torch.Tensor:
    """Return a loss with the share `share` of each target spread evenly over all classes (Szegedy et al., CVPR 2016).

    logits: [N, C]; labels: [N]; weight: class weights [C] or None. For cross-entropy without class weights this is
    torch's `label_smoothing`; it is the same for every loss.
    """
    loss = loss_of(logits, labels, weight)
    if not share:
        return loss
    n_classes = logits.shape[1]
    spread = sum((loss_of(logits, labels.new_full(labels.shape, one), weight) for one in range(n_classes)), 0 * loss)
    return (1 - share) * loss + share / n_classes * spread


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


@LOSSES.register("focal")
def focal(logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Return the mean focal loss with gamma 2 (Lin et al., ICCV 2017).

    logits: [N, C]; labels: [N]; weight: class weights [C] or None.
    """
    from torch.nn import functional as F

    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    scale = (1 - log_p.exp()) ** FOCAL_GAMMA
    per_class = log_p.new_ones(len(labels)) if weight is None else weight[labels]
    return -(per_class * scale * log_p).sum() / per_class.sum()
