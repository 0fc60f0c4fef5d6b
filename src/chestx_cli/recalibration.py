"""BatchNorm statistics of a changed network, taken again from the training images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chestx_cli.devices import move_back, move_to
from chestx_cli.fitting import network_input
from chestx_cli.stage import SilentReporter

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import nn

    from chestx_cli.fitting import FitData
    from chestx_cli.stage import Reporter

RECALIBRATION_BATCH = 32
SILENT = SilentReporter()


def plain_batches(
    data: FitData, rows: npt.NDArray[np.int64], batch_size: int, device: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield images as network input and their labels in batches of nearly equal size, without augmentation."""
    import numpy as np
    import torch

    for part in np.array_split(rows, max(1, math.ceil(len(rows) / batch_size))):
        yield network_input(data, part, device), torch.from_numpy(data.split.labels[part]).to(device)


def batchnorm_layers(network: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    """Return the layers whose statistics can be re-estimated."""
    from torch import nn

    return [layer for layer in network.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]


def reestimate_batchnorm(
    network: nn.Module, data: FitData, *, device: str, images: int | None = None, reporter: Reporter = SILENT
) -> None:
    """Set the running statistics of all BatchNorm layers to the mean over the training images, each seen once.

    Without augmentation and in a fixed order, in FP32; `images` takes only so many, evenly spread over them. Only these
    layers are in training mode: in that of the whole network, as torch's `update_bn` uses it, dropped-out blocks would
    enter the statistics. Pruning masks are applied. Leaves the network on the CPU, in evaluation mode.
    """
    import torch

    layers = batchnorm_layers(network)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    move_to(network, device).eval()
    for layer in layers:
        layer.reset_running_stats()
        # None is the cumulative mean over batches.
        layer.momentum = None
        layer.train()
    rows = data.split.indices("train")
    rows = rows[:: max(1, len(rows) // images)][:images] if images else rows
    # Not in inference mode: the hooks that apply masks would leave its tensors, which cannot be trained, as weights.
    with torch.no_grad(), reporter.progress("Re-estimating BatchNorm statistics", len(rows)) as advance:
        for inputs, _ in plain_batches(data, rows, RECALIBRATION_BATCH, device):
            network(inputs)
            advance(len(inputs))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    move_back(network).eval()
