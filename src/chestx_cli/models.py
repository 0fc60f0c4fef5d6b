"""Torch models of a study: their size and cost, and storing and rebuilding them as safetensors."""

from __future__ import annotations

import difflib
import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestx_cli.backbones import build_classifier, output_layer
from chestx_cli.errors import IntegrityError, UsageError
from chestx_cli.model_files import read_tensors, require_usable
from chestx_cli.records import MODEL_FILES
from chestx_cli.variants import store_variant, variant_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from chestx_cli.preprocessing import Preprocessing
    from chestx_cli.records import VariantRecord
    from chestx_cli.stage import Run
    from chestx_cli.study import Study
    from chestx_cli.variants import Plan

CHECKED_SIDE_PX = 224
PRUNABLE = ("Conv2d", "Linear")


def prunable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the Conv2d and Linear layers by name, in the order of the network's modules."""
    return {name: module for name, module in network.named_modules() if type(module).__name__ in PRUNABLE}


def chosen_layers(network: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """Return the prunable layers that match a name or pattern (as `layer4.*`), all without patterns.

    Raises UsageError for a pattern that matches none.
    """
    layers = prunable_layers(network)
    return {name: layers[name] for name in matching_layers(tuple(layers), patterns)}


def matching_layers(layers: Sequence[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the layers that match a name or pattern, all without patterns; raise UsageError where one matches none."""
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            close = difflib.get_close_matches(pattern, layers, n=3, cutoff=0.0)
            raise UsageError(f"no layer {pattern!r} in this network", f"did you mean {' or '.join(close)}?")
    return tuple(name for name in layers if not patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns))


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


def store_torch_variant(
    run: Run, study: Study, plan: Plan, network: nn.Module, *, backbone: str, preprocessing: Preprocessing, **parts: Any
) -> VariantRecord:
    """Store a network as a variant and return its record; `parts` are the record's sections and notes."""
    content = serialised(network)
    parameters, nonzero = count_parameters(network)
    record = variant_record(
        run,
        plan,
        content,
        kind="torch",
        backbone=backbone,
        preprocessing=preprocessing,
        model_file=MODEL_FILES["torch"],
        parameters=parameters,
        nonzero_parameters=nonzero,
        macs=count_macs(network, preprocessing.image_size_px),
        **parts,
    )
    store_variant(study, record, content)
    return record


def narrow(network: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Make the layers of a network, in place, as narrow as the shapes of its tensors; their content is undefined.

    Tensors that are missing, larger, or of other dimensions stay: loading them tells of it. Raises ValueError for a
    layer that has no widths to change.
    """
    import torch
    from torch import nn

    for prefix, layer in list(network.named_modules()):
        own = {**layer._parameters, **layer._buffers}
        changed = {}
        for name, tensor in own.items():
            shape = shapes.get(f"{prefix}.{name}" if prefix else name)
            if tensor is not None and shape is not None and _is_narrower(shape, tuple(tensor.shape)):
                changed[name] = shape
        if not changed:
            continue
        _set_widths(layer, changed)
        for name, shape in changed.items():
            empty = torch.empty(shape, dtype=own[name].dtype)
            setattr(layer, name, nn.Parameter(empty) if name in layer._parameters else empty)


def _is_narrower(shape: tuple[int, ...], built: tuple[int, ...]) -> bool:
    return (
        len(shape) == len(built) and shape != built and all(0 < n <= most for n, most in zip(shape, built, strict=True))
    )


def _set_widths(layer: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Set what a layer knows of its own widths to those of its new tensors."""
    from torch import nn

    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
    if not isinstance(layer, kinds):
        # A parameter outside of torch's own layers, as ConvNeXt's scales, has a width that nothing else knows.
        if type(layer).__module__.startswith("torch.nn."):
            raise ValueError(f"a {type(layer).__name__} cannot be made narrower")
        return
    if "weight" not in shapes:
        raise ValueError(f"a {type(layer).__name__} has a bias narrower than its weight")
    weight = shapes["weight"]
    if isinstance(layer, nn.Conv2d):
        if layer.groups == layer.in_channels == layer.out_channels:
            layer.groups = weight[0]
        layer.out_channels, layer.in_channels = weight[0], weight[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = weight
    else:
        (layer.num_features,) = weight


def _require_connected(network: nn.Module) -> None:
    """Raise RuntimeError or ValueError where the widths of a narrowed network's layers do not fit one another."""
    import torch

    # Only shapes are computed.
    shapes = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        torch.func.functional_call(
            network, shapes, (torch.empty(1, 3, CHECKED_SIDE_PX, CHECKED_SIDE_PX, device="meta"),)
        )


def load_network(study: Study, record: VariantRecord) -> nn.Module:
    """Return a torch variant's network in evaluation mode, on the CPU.

    Raises IntegrityError where its tensors do not fit its backbone.
    """
    return load_model_file(study.variant(record.name) / record.model_file, record.backbone, len(record.classes))


def load_model_file(path: Path, backbone: str, n_classes: int) -> nn.Module:
    """Return the network of a safetensors file in evaluation mode; raises IntegrityError where it does not fit.

    Layers that are narrower in the file than in the backbone are made as narrow: a pruned network is its shapes.
    """
    import torch

    # The weights drawn here are overwritten; the caller's random state must not notice.
    with torch.random.fork_rng():
        network = build_classifier(backbone, n_classes)
    try:
        tensors = read_tensors(path)
        wanted = network.state_dict()
        for name, tensor in tensors.items():
            if name in wanted:
                require_usable(name, tensor, wanted[name])
                if tensor.dtype != wanted[name].dtype:
                    raise ValueError(f"{name} is {tensor.dtype}, not {wanted[name].dtype}")
        narrow(network, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        network.load_state_dict(tensors)
        n_logits = tensors[f"{output_layer(backbone)}.weight"].shape[0]
        if n_logits != n_classes:
            raise ValueError(f"{n_logits} classes instead of {n_classes}")
        if any(tensors[name].shape != tensor.shape for name, tensor in wanted.items()):
            _require_connected(network.eval())
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise IntegrityError(
            f"{path} does not fit {backbone}: {reason}", "make the variant again with --force"
        ) from error
    return network.eval()
