"""Knowledge distillation: a pruned network is also trained on its parent's outputs for the same augmented images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.networks.devices import autocast, move_to

if TYPE_CHECKING:
    import torch
    from torch import nn

    from chestx_cli.networks.recipe import Recipe
    from chestx_cli.networks.training_data import LossHook


def distilling(teacher: nn.Module, recipe: Recipe, *, temperature: float, weight: float) -> LossHook:
    """Return a hook that combines a batch's loss and the distillation loss with weights (1 - weight) and `weight`.

    The distillation loss is the Kullback-Leibler divergence between the softened probabilities of teacher and student,
    times the squared temperature, which keeps the scale of the gradients (Hinton et al., 2015, arXiv:1503.02531).
    """
    import torch
    from torch.nn import functional as F

    move_to(teacher, recipe.device).eval()

    def mixed(loss: torch.Tensor, inputs: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), autocast(recipe.device, recipe.precision):
            teacher_logits = teacher(inputs).float()
        divergence = F.kl_div(
            F.log_softmax(logits / temperature, dim=1),
            F.log_softmax(teacher_logits / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - weight) * loss + weight * temperature**2 * divergence

    return mixed
