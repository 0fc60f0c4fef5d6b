"""Re-estimation of a changed network's BatchNorm statistics on the training images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.core.progress import SILENT
from chestx_cli.networks.devices import move_back, move_to
from chestx_cli.networks.training_data import plain_batches

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.core.progress import Reporter
    from chestx_cli.networks.training_data import FitData

RECALIBRATION_BATCH = 32


def batchnorm_layers(network: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    """Return the BatchNorm layers, whose statistics can be re-estimated."""
    from torch import nn

    return [layer for layer in network.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]


def reestimate_batchnorm(
    network: nn.Module, data: FitData, *, device: str, images: int | None = None, reporter: Reporter = SILENT
) -> None:
    """Set the running statistics of all BatchNorm layers to means over one pass through the training images.

    Runs in FP32, in a fixed order, without augmentation; `images` limits the number of images, evenly spaced. Only
    these layers are in training mode: with the whole network in training mode, as in torch's `update_bn`, dropped-out
    blocks would enter the statistics. Pruning masks are applied. Leaves the network on the CPU in evaluation mode.
    """
    import torch

    layers = batchnorm_layers(network)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    move_to(network, device).eval()
    for layer in layers:
        layer.reset_running_stats()
        # A momentum of None means the cumulative average over batches.
        layer.momentum = None
        layer.train()
    rows = data.split.indices("train")
    rows = rows[:: max(1, len(rows) // images)][:images] if images else rows
    # Not inference mode: the hooks that apply masks would leave inference tensors as weights, which cannot be trained.
    with torch.no_grad(), reporter.progress("Re-estimating BatchNorm statistics", len(rows)) as advance:
        for inputs, _ in plain_batches(data, rows, RECALIBRATION_BATCH, device):
            network(inputs)
            advance(len(inputs))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    move_back(network).eval()
