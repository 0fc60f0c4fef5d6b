"""Prunable layers of a network, parameter counts and MACs."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable
from typing import TYPE_CHECKING

from chestx_cli.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn
    from torch.utils.hooks import RemovableHandle

PRUNABLE = ("Conv2d", "Linear")


def prunable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the Conv2d and Linear layers by name, in the order of the network's modules."""
    return {name: module for name, module in network.named_modules() if type(module).__name__ in PRUNABLE}


def chosen_layers(network: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """Return the prunable layers that match a name or pattern (such as `layer4.*`); all without patterns.

    Raises UsageError for a pattern that matches no layer.
    """
    layers = prunable_layers(network)
    return {name: layers[name] for name in matching_layers(tuple(layers), patterns)}


def matching_layers(layers: Sequence[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the layers that match a pattern; all without patterns. Raises UsageError if a pattern matches none."""
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            close = difflib.get_close_matches(pattern, layers, n=3, cutoff=0.0)
            raise UsageError(f"no layer {pattern!r} in this network", f"did you mean {' or '.join(close)}?")
    return tuple(name for name in layers if not patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns))


def present_weight(layer: nn.Module) -> torch.Tensor:
    """Return a layer's weight [out, in, ...], masked by pruning; `layer.weight` is only updated in a forward pass."""
    stored = dict(layer.named_parameters())
    if "weight" in stored:
        return stored["weight"].detach()
    return stored["weight_orig"].detach() * dict(layer.named_buffers())["weight_mask"]


def last_feature_layer(network: nn.Module, image_size_px: int) -> nn.Module | None:
    """Return the convolution, or the BatchNorm behind it, that computes the last feature maps of an image.

    Found by running the network: the order of its modules need not be that of computation. None without such a layer.
    """
    from torch import nn

    return _last_with_map(network, image_size_px, (nn.Conv2d, nn.BatchNorm2d))


def last_feature_map(network: nn.Module, image_size_px: int) -> nn.Module | None:
    """Return the module whose output is the last feature map, after activations and sums; None without any.

    It is a block or stage where the network has such modules: the last to end of those whose output is a map.
    """
    from torch import nn

    return _last_with_map(network, image_size_px, (nn.Module,))


def _last_with_map(network: nn.Module, image_size_px: int, kinds: tuple[type[nn.Module], ...]) -> nn.Module | None:
    import torch

    computed: list[nn.Module] = []

    def note(layer: nn.Module, _inputs: object, output: object) -> None:
        # Features pooled to one value per channel have no location in the image.
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            computed.append(layer)

    _run_with(
        [layer.register_forward_hook(note) for layer in network.modules() if isinstance(layer, kinds)],
        network,
        image_size_px,
    )
    return computed[-1] if computed else None


def _run_with(hooks: Sequence[RemovableHandle], network: nn.Module, image_size_px: int) -> None:
    """Run the network on an image of zeros, so that its hooks are called, and remove the hooks."""
    import torch

    try:
        network.eval()
        device = next(network.parameters()).device
        # Not inference mode: the hooks that apply masks would leave inference tensors as weights.
        with torch.no_grad():
            network(torch.zeros(1, 3, image_size_px, image_size_px, device=device))
    finally:
        for hook in hooks:
            hook.remove()


def count_parameters(network: nn.Module) -> tuple[int, int]:
    """Return the number of parameters, and of non-zero parameters."""
    import torch

    parameters = list(network.parameters())
    return sum(p.numel() for p in parameters), sum(int(torch.count_nonzero(p)) for p in parameters)


def count_macs(network: nn.Module, image_size_px: int) -> int:
    """Return the multiply-accumulate operations (MACs) for one image, by torch's flop counter (two flops each)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network.eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.zeros(1, 3, image_size_px, image_size_px))
    return int(counter.get_total_flops()) // 2


def layer_macs(network: nn.Module, image_size_px: int) -> dict[str, int]:
    """Return the multiply-accumulate operations (MACs) for one image of each Conv2d and Linear layer."""
    import torch

    macs: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)  # noqa: S101 - Conv2d and Linear layers have one
            macs[name] = macs.get(name, 0) + output.numel() * weight[0].numel()

        return hook

    hooks = [layer.register_forward_hook(count(name)) for name, layer in prunable_layers(network).items()]
    _run_with(hooks, network, image_size_px)
    return macs
