"""The memory of a training: its estimate before it runs, and what keeps it low."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.networks.backbones import build_classifier
from chestx_cli.networks.devices import has_glibc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import nn

FLOAT_BYTES = 4
# Weights, gradients, the two moments of Adam, and the copy of the best epoch.
COPIES_OF_WEIGHTS = 5
# Outputs of all layers count once: some share memory, others are allocated again in the backward pass. Where glibc
# cannot be made to keep them dense they take more. `tools.benchmarks.memory` measures peaks.
ACTIVATION_FACTOR, SCATTERED_FACTOR = 1.0, 1.35
ACTIVATION_BYTES = {"fp32": 4, "bf16": 2}
# The interpreter with torch and the images of a small study.
BASE_BYTES = 1_100_000_000


def training_bytes(
    backbone: str,
    image_size_px: int,
    batch_size: int,
    precision: str,
    *,
    is_averaged: bool = False,
    teacher: str | None = None,
    width: float = 1.0,
    teacher_width: float = 1.0,
) -> int:
    """Return the estimated peak memory in bytes of a process that trains a backbone in fp32 or bf16.

    With averaged weights there is one more copy of them. A teacher, given by its backbone, adds its own weights and,
    while the student's activations are kept for the backward pass, the input and output of one of its layers at a time.
    The widths are the shares of their channels that the layers of both have.
    """
    own = _counted(backbone, image_size_px, batch_size).at_width(width)
    weights = (COPIES_OF_WEIGHTS + is_averaged) * own.parameters
    activations = (ACTIVATION_FACTOR if has_glibc() else SCATTERED_FACTOR) * own.activations
    if teacher is not None:
        other = _counted(teacher, image_size_px, batch_size).at_width(teacher_width)
        weights += other.parameters
        activations += other.largest
    return BASE_BYTES + FLOAT_BYTES * weights + int(ACTIVATION_BYTES[precision] * activations)


@dataclass(frozen=True)
class _Counted:
    """Number of values: parameters, outputs of all layers for a batch, and input and output of the `largest` layer."""

    parameters: int
    activations: int
    largest: int

    def at_width(self, share: float) -> _Counted:
        """Return the numbers of a network with a share of its channels, of parameters an upper limit."""
        return _Counted(*(math.ceil(share * count) for count in (self.parameters, self.activations, self.largest)))


def _counted(backbone: str, image_size_px: int, batch_size: int) -> _Counted:
    """Count on torch's meta device, which computes nothing."""
    import torch

    activations = largest = 0

    def count(_layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal activations, largest
        if isinstance(output, torch.Tensor):
            activations += output.numel()
            read = sum(one.numel() for one in inputs if isinstance(one, torch.Tensor))
            largest = max(largest, read + output.numel())

    with torch.device("meta"):
        network = build_classifier(backbone, 2)
        for layer in network.modules():
            if not any(layer.children()):
                layer.register_forward_hook(count)
        network(torch.empty(batch_size, 3, image_size_px, image_size_px))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return _Counted(parameters, activations, largest)


@contextmanager
def gradients_kept_in_place(network: nn.Module) -> Iterator[None]:
    """Give each parameter's gradient the same memory in all steps of the block, also if it is set to None between them.

    Otherwise gradients take memory that activations have just left, and divide the space for those of the next step.
    Values are copied, so they are the same; a parameter that gets no gradient in a step has none.
    """
    import torch

    def keeping(place: torch.Tensor) -> Callable[[torch.Tensor], None]:
        def keep(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None  # noqa: S101 - called after it was computed
            parameter.grad = place.copy_(parameter.grad)

        return keep

    hooks = [
        one.register_post_accumulate_grad_hook(keeping(torch.empty_like(one)))
        for one in network.parameters()
        if one.requires_grad
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
