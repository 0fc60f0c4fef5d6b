"""How much memory training takes, estimated before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.networks.backbones import build_classifier

if TYPE_CHECKING:
    from torch import nn

FLOAT_BYTES = 4
# Weights, gradients and the two moments of Adam, and the copy of the best epoch.
COPIES_OF_WEIGHTS = 5
# Kept for the backward pass, and in part allocated again in it. `tools.benchmarks.memory` measures the peaks.
ACTIVATION_FACTOR = 1.35
ACTIVATION_BYTES = {"fp32": 4, "bf16": 2}
# The interpreter with torch and the images of a small study.
BASE_BYTES = 1_100_000_000


def training_bytes(backbone: str, image_size_px: int, batch_size: int, precision: str) -> int:
    """Return about how many bytes of memory a process takes at its peak to train a backbone in fp32 or bf16.

    Counts the outputs of all layers on torch's meta device: nothing is computed.
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
