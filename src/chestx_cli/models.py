"""Torch models of a study: their size and cost, and storing and rebuilding them as safetensors."""

from __future__ import annotations

import difflib
import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.backbones import build_classifier
from chestx_cli.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from chestx_cli.records import VariantRecord
    from chestx_cli.study import Study

MODEL_FILE = "model.safetensors"
PRUNABLE = ("Conv2d", "Linear")


def prunable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the Conv2d and Linear layers by name, in the order of the network's modules."""
    return {name: module for name, module in network.named_modules() if type(module).__name__ in PRUNABLE}


def chosen_layers(network: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """Return the prunable layers that match a name or pattern (as `layer4.*`), all without patterns.

    Raises UsageError for a pattern that matches none.
    """
    layers = prunable_layers(network)
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            close = difflib.get_close_matches(pattern, layers, n=3, cutoff=0.0)
            raise UsageError(f"no layer {pattern!r} in this network", f"did you mean {' or '.join(close)}?")
    if not patterns:
        return layers
    return {name: layer for name, layer in layers.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)}


def present_weight(layer: nn.Module) -> torch.Tensor:
    """Return a layer's weight with its pruning mask applied; `layer.weight` itself is that of the last forward pass."""
    stored = dict(layer.named_parameters())
    if "weight" in stored:
        return stored["weight"].detach()
    return stored["weight_orig"].detach() * dict(layer.named_buffers())["weight_mask"]


def count_parameters(network: nn.Module) -> tuple[int, int]:
    """Return the number of parameters and of those that are not zero."""
    import torch

    parameters = list(network.parameters())
    return sum(p.numel() for p in parameters), sum(int(torch.count_nonzero(p)) for p in parameters)


def count_macs(network: nn.Module, image_size_px: int) -> int:
    """Return the multiply-accumulate operations of one image, from torch's flop counter (two flops each)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network.eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.zeros(1, 3, image_size_px, image_size_px))
    return int(counter.get_total_flops()) // 2


def serialised(network: nn.Module) -> bytes:
    """Return a network's tensors as the content of a safetensors file."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()})


def load_network(study: Study, record: VariantRecord) -> nn.Module:
    """Return a torch variant's network in evaluation mode, on the CPU.

    Raises IntegrityError where its tensors do not fit its backbone.
    """
    return load_model_file(study.variant(record.name) / record.model_file, record.backbone, len(record.classes))


def load_model_file(path: Path, backbone: str, n_classes: int) -> nn.Module:
    """Return the network of a safetensors file in evaluation mode; raises IntegrityError where it does not fit."""
    import torch
    from safetensors.torch import load_file

    # The weights drawn here are overwritten; the caller's random state must not notice.
    with torch.random.fork_rng():
        network = build_classifier(backbone, n_classes)
    try:
        network.load_state_dict(load_file(path))
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise IntegrityError(
            f"{path} does not fit {backbone}: {reason}", "make the variant again with --force"
        ) from error
    return network.eval()
