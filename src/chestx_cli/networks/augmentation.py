"""Augmentation of whole batches on the training device, with parameters drawn per image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from chestx_cli.records.preprocessing import Preprocessing

ROTATION_DEG = 10.0
JITTER = 0.2


def draw_augmentation(n: int, generator: torch.Generator) -> torch.Tensor:
    """Draw augmentation parameters [4, n], uniform in 0-1, on the CPU so that every device uses the same."""
    import torch

    return torch.rand(4, n, generator=generator)


def augment(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Flip, rotate and jitter grey images [N, 1, H, W] (0-1), each by its own parameters [4, N].

    Horizontal flip with probability 1/2; rotation uniform in ±10° (bilinear, black outside); brightness and contrast
    factors uniform in 0.8-1.2 (colour jitter of a grey image), clipped to 0-1.
    """
    import torch
    from torch.nn import functional as F

    n = images.shape[0]
    if n == 0:
        # affine_grid rejects an empty batch.
        return images
    flip = torch.where(draws[0] < 0.5, -1.0, 1.0)
    angle = (draws[1] * 2 - 1) * math.radians(ROTATION_DEG)
    brightness, contrast = (1 + JITTER * (draws[2:] * 2 - 1)).to(images.device).view(2, n, 1, 1, 1)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros(n)
    rows = torch.stack([torch.stack([flip * cos, -sin, zero], 1), torch.stack([flip * sin, cos, zero], 1)], 1)
    grid = F.affine_grid(rows.to(images.device), list(images.shape), align_corners=False)
    rotated = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    brightened = (rotated * brightness).clamp(0, 1)
    mean = brightened.mean(dim=(1, 2, 3), keepdim=True)
    jittered: torch.Tensor = ((brightened - mean) * contrast + mean).clamp(0, 1)
    return jittered


def normalise(images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Return network input [N, 3, H, W] in channels-last layout from grey images [N, 1, H, W] (0-1)."""
    import torch

    mean = torch.tensor(preprocessing.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(1, 3, 1, 1)
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)
