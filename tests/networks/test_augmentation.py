"""Augmentation: per image, within its limits, the same for the same draws."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from chestx_cli.networks import augmentation
from chestx_cli.networks.augmentation import augment


def images(n: int = 4) -> torch.Tensor:
    """Return images [n, 1, 64, 64] with a bright bar that shows turns and mirrors."""
    grey = torch.full((n, 1, 64, 64), 0.3)
    grey[:, :, 10:20, 8:40] = 0.8
    return grey


def test_the_same_draws_make_the_same_images_and_each_its_own() -> None:
    first, again = (augment(images(), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    assert first.min() >= 0
    assert first.max() <= 1
    assert not torch.equal(first, augment(images(), torch.Generator().manual_seed(4)))


def test_it_mirrors_and_turns_as_torchvision_does(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.tensor([[0.1, 0.9, 0.9], [0.5, 1.0, 0.0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: draws)
    found = augment(images(3), torch.Generator())
    assert torch.allclose(found[0], F.horizontal_flip(images(1))[0], atol=1e-4)
    turned = [F.rotate(images(1), angle, interpolation=F.InterpolationMode.BILINEAR)[0] for angle in (10, -10)]
    differences = sorted(float((found[1] - candidate).abs().mean()) for candidate in turned)
    assert differences[0] < 0.01 < differences[1]
    assert (found[2] - F.horizontal_flip(found[1])).abs().mean() > 0.001


def test_brightness_and_contrast_stay_within_a_fifth() -> None:
    flat = torch.full((200, 1, 16, 16), 0.5)
    # Without black corners turned in, a flat image keeps its mean under contrast.
    centre = augment(flat, torch.Generator().manual_seed(0))[:, :, 6:10, 6:10].mean(dim=(1, 2, 3))
    assert centre.min() >= 0.5 * (1 - augmentation.JITTER) - 0.02
    assert centre.max() <= 0.5 * (1 + augmentation.JITTER) + 0.02
    assert centre.std() > 0.03
