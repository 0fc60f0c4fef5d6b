"""Knowledge distillation: a network is also trained on the outputs of another for the same augmented images."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from chestx_cli.core.errors import ChestxError
from chestx_cli.networks.devices import autocast, move_to
from chestx_cli.networks.layers import last_feature_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import nn

    from chestx_cli.networks.recipe import Recipe
    from chestx_cli.networks.training_data import LossHook, MixLoss


def distilling(
    teacher: nn.Module, recipe: Recipe, *, temperature: float, weight: float, feature_weight: float = 0.0
) -> MixLoss:
    """Return the `MixLoss` that adds a batch's loss and the distillation loss, times (1 - weight) and `weight`.

    The distillation loss is the Kullback-Leibler divergence between the softened probabilities of teacher and student,
    times the squared temperature, which keeps the scale of the gradients (Hinton et al., 2015, arXiv:1503.02531). With
    a `feature_weight`, `similarity_loss` of both networks' last feature maps is added with this weight.
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

    @contextmanager
    def mix_loss(student: nn.Module, image_size_px: int) -> Iterator[LossHook]:
        if not feature_weight:
            yield mixed
            return
        with (
            _last_map(student, image_size_px, training=True) as of_student,
            _last_map(teacher, image_size_px, training=False) as of_teacher,
        ):

            def with_features(loss: torch.Tensor, inputs: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
                # Also runs the teacher, which computes its feature map.
                total = mixed(loss, inputs, logits)
                return total + feature_weight * similarity_loss(of_student(), of_teacher())

            yield with_features

    return mix_loss


def similarity_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return how much two networks differ in which images of a batch are similar, from features [N, C, H, W].

    This is the mean squared difference of the two matrices [N, N] of inner products, each row scaled to length 1. The
    features may differ in channels and resolution. Source: Tung and Mori, ICCV 2019, equations 2 to 4.
    """
    from torch.nn import functional as F

    def similarities(features: torch.Tensor) -> torch.Tensor:
        flat = features.float().flatten(1)
        return F.normalize(flat @ flat.T, dim=1)

    return F.mse_loss(similarities(student), similarities(teacher))


@contextmanager
def _last_map(network: nn.Module, image_size_px: int, *, training: bool) -> Iterator[Callable[[], torch.Tensor]]:
    """Yield a function that takes the last feature map of the latest forward pass in training or evaluation mode.

    Enter it before the network is compiled: only hooks that exist then are part of the compiled network.
    """
    module = last_feature_map(network, image_size_px)
    if module is None:
        raise ChestxError("this network has no feature map to learn from", "leave --feature-weight out")
    kept: dict[str, torch.Tensor] = {}

    def keep(computed: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        # The student's validation runs the same module, in evaluation mode.
        if computed.training == training:
            kept["map"] = output

    hook = module.register_forward_hook(keep)
    try:
        yield lambda: kept.pop("map")
    finally:
        hook.remove()
