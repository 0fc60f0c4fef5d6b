"""Distillation: what a student learns from its teacher's last feature map, and which map that is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from chestx_cli.core.errors import ChestxError
from chestx_cli.networks.backbones import BACKBONES, build_classifier
from chestx_cli.networks.distillation import distilling, similarity_loss
from chestx_cli.networks.layers import last_feature_map
from chestx_cli.networks.recipe import Recipe

SIDE_PX = 32


def recipe(precision: str = "fp32") -> Recipe:
    return Recipe(
        epochs=1,
        batch_size=4,
        learning_rate=0.1,
        balance="none",
        loss="ce",
        device="cpu",
        precision=precision,
        compiled=False,
        seed=0,
    )


def images(n: int = 4) -> torch.Tensor:
    return torch.rand(n, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(1))


def test_the_loss_is_that_of_the_paper_and_needs_neither_equal_channels_nor_equal_resolution() -> None:
    # Two images alike for the student, and unlike for the teacher.
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).reshape(2, 2, 1, 1)
    teacher = torch.zeros(2, 3, 2, 2)
    teacher[0, 0], teacher[1, 1] = 1.0, 5.0
    # Rows of length 1: (0.5 ** 0.5, 0.5 ** 0.5) against (1, 0).
    each = (1 - 0.5**0.5) ** 2 + 0.5
    assert float(similarity_loss(student, teacher)) == pytest.approx(2 * each / 2**2)
    assert float(similarity_loss(teacher, 3 * teacher)) == pytest.approx(0, abs=1e-7)


MAPS = {"resnet18": "layer4", "densenet121": "features", "mobilenet_v3_small": "features", "tiny": "relu2"}


@pytest.mark.parametrize("backbone", MAPS)
def test_the_last_map_is_what_the_pooling_reads(backbone: str) -> None:
    network = build_classifier(backbone, 2)
    assert last_feature_map(network, 64) is network.get_submodule(MAPS[backbone])
    assert backbone in BACKBONES


def test_a_network_without_maps_is_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE_PX**2, 2))
    mix_loss = distilling(flat, recipe(), temperature=1.0, weight=0.5, feature_weight=1.0)
    with pytest.raises(ChestxError, match="no feature map"), mix_loss(flat, SIDE_PX):
        pass


def gradients(
    student: nn.Module, teacher: nn.Module, forward: Any, feature_weight: float, precision: str = "fp32"
) -> torch.Tensor:
    """Return the gradients of a student's first filters for a label loss of 0 and a teacher without weight."""
    mix_loss = distilling(teacher, recipe(precision), temperature=1.0, weight=0.0, feature_weight=feature_weight)
    student.zero_grad()
    with mix_loss(student, SIDE_PX) as hook, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        run = forward(student)
        student.train()
        logits = run(images()).float()
        hook(0 * logits.sum(), images(), logits).backward()
    # Nothing is left on the network.
    assert not any(module._forward_hooks for module in (*student.modules(), *teacher.modules()))
    return student.get_parameter("conv1.weight").grad.flatten().clone()  # type: ignore[union-attr]  # just computed


def test_the_gradient_reaches_the_student_compiled_or_not_in_either_precision() -> None:
    torch.manual_seed(0)
    student, teacher = build_classifier("tiny", 2), build_classifier("tiny", 2)
    plain = gradients(student, teacher, lambda network: network, 3000.0)
    assert float(plain.abs().max()) > 0
    assert float(gradients(student, teacher, lambda network: network, 0.0).abs().max()) == 0
    in_bf16 = gradients(student, teacher, lambda network: network, 3000.0, "bf16")
    assert float(torch.cosine_similarity(plain, in_bf16, dim=0)) > 0.9
    compiled = gradients(student, teacher, lambda network: torch.compile(network, dynamic=False), 3000.0)
    assert torch.allclose(plain, compiled, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))
