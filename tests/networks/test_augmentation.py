"""Augmentation: per image, within its limits, and equal for equal draws."""

from __future__ import annotations

import torch
from torchvision.transforms.v2 import functional as F

from chestx_cli.networks import augmentation
from chestx_cli.networks.augmentation import augment, draw_augmentation


def images(n: int = 4) -> torch.Tensor:
    """Return images [n, 1, 64, 64] with a bright bar that shows turns and mirrors."""
    grey = torch.full((n, 1, 64, 64), 0.3)
    grey[:, :, 10:20, 8:40] = 0.8
    return grey


def draws(n: int, seed: int) -> torch.Tensor:
    return draw_augmentation(n, torch.Generator().manual_seed(seed))


def test_the_same_draws_make_the_same_images_and_each_its_own() -> None:
    first, again = (augment(images(), draws(4, 3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    assert first.min() >= 0
    assert first.max() <= 1
    assert not torch.equal(first, augment(images(), draws(4, 4)))


def test_a_part_of_a_batch_is_augmented_as_in_the_whole() -> None:
    whole = augment(images(), draws(4, 3))
    parts = [
        augment(images(n), draws(4, 3)[:, rows]) for n, rows in ((3, slice(3)), (1, slice(3, 4)), (0, slice(4, 4)))
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_it_mirrors_and_turns_as_torchvision_does() -> None:
    chosen = torch.tensor([[0.1, 0.9, 0.9], [0.5, 1.0, 0.0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
    found = augment(images(3), chosen)
    assert torch.allclose(found[0], F.horizontal_flip(images(1))[0], atol=1e-4)
    turned = [F.rotate(images(1), angle, interpolation=F.InterpolationMode.BILINEAR)[0] for angle in (10, -10)]
    differences = sorted(float((found[1] - candidate).abs().mean()) for candidate in turned)
    assert differences[0] < 0.01 < differences[1]
    assert (found[2] - F.horizontal_flip(found[1])).abs().mean() > 0.001


def test_brightness_and_contrast_stay_within_a_fifth() -> None:
    flat = torch.full((200, 1, 16, 16), 0.5)
    # Without black corners turned in, a flat image keeps its mean under contrast.
    centre = augment(flat, draws(200, 0))[:, :, 6:10, 6:10].mean(dim=(1, 2, 3))
    assert centre.min() >= 0.5 * (1 - augmentation.JITTER) - 0.02
    assert centre.max() <= 0.5 * (1 + augmentation.JITTER) + 0.02
    assert centre.std() > 0.03
