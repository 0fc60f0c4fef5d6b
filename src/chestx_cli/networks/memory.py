"""Estimate of the memory that a training needs, before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.networks.backbones import build_classifier

if TYPE_CHECKING:
    from torch import nn

FLOAT_BYTES = 4
# Weights, gradients, the two moments of Adam, and the copy of the best epoch.
COPIES_OF_WEIGHTS = 5
# Activations are kept for the backward pass and partly allocated again in it; `tools.benchmarks.memory` measures peaks.
ACTIVATION_FACTOR = 1.35
ACTIVATION_BYTES = {"fp32": 4, "bf16": 2}
# The interpreter with torch and the images of a small study.
BASE_BYTES = 1_100_000_000


def training_bytes(backbone: str, image_size_px: int, batch_size: int, precision: str) -> int:
    """Return the estimated peak memory in bytes of a process that trains a backbone in fp32 or bf16.

    The outputs of all layers are counted on torch's meta device, without computing them.
    """
    import torch

    activations = 0

    def count(_layer: nn.Module, _inputs: object, output: object) -> None:
        nonlocal activations
        if isinstance(output, torch.Tensor):
            activations += output.numel()

    with torch.device("meta"):
        network = build_classifier(backbone, 2)
        for layer in network.modules():
            if not any(layer.children()):
                layer.register_forward_hook(count)
        network(torch.empty(batch_size, 3, image_size_px, image_size_px))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    per_step = ACTIVATION_FACTOR * ACTIVATION_BYTES[precision] * activations
    return BASE_BYTES + FLOAT_BYTES * COPIES_OF_WEIGHTS * parameters + int(per_step)
