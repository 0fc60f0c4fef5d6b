"""Torch models of a study: stored as safetensors and rebuilt from their tensor shapes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.errors import IntegrityError
from chestx_cli.networks.backbones import build_classifier, output_layer
from chestx_cli.networks.layers import count_macs, count_parameters
from chestx_cli.networks.weights.safe_readers import read_tensors, require_usable
from chestx_cli.store.variants import Model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study

CHECKED_SIDE_PX = 224


def serialised(network: nn.Module) -> bytes:
    """Return a network's tensors as safetensors file content."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()})


def torch_model(network: nn.Module, backbone: str, preprocessing: Preprocessing) -> Model:
    """Return a network as a storable model, with its counts of parameters and MACs."""
    parameters, nonzero = count_parameters(network)
    return Model(
        kind="torch",
        content=serialised(network),
        backbone=backbone,
        preprocessing=preprocessing,
        parameters=parameters,
        nonzero_parameters=nonzero,
        macs=count_macs(network, preprocessing.image_size_px),
    )


def narrow(network: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Narrow a network's layers in place to the shapes of stored tensors; the new tensors are uninitialised.

    Layers whose stored tensors are missing, larger or of other dimensions are unchanged; loading them then fails.
    Raises ValueError for a layer whose width cannot be changed.
    """
    import torch
    from torch import nn

    for prefix, layer in list(network.named_modules()):
        tensors = {**layer._parameters, **layer._buffers}
        changed = {}
        for name, tensor in tensors.items():
            shape = shapes.get(f"{prefix}.{name}" if prefix else name)
            if tensor is not None and shape is not None and _is_narrower(shape, tuple(tensor.shape)):
                changed[name] = shape
        if not changed:
            continue
        _set_widths(layer, changed)
        for name, shape in changed.items():
            empty = torch.empty(shape, dtype=tensors[name].dtype)
            setattr(layer, name, nn.Parameter(empty) if name in layer._parameters else empty)


def _is_narrower(shape: tuple[int, ...], built: tuple[int, ...]) -> bool:
    return (
        len(shape) == len(built) and shape != built and all(0 < n <= most for n, most in zip(shape, built, strict=True))
    )


def _set_widths(layer: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Set a layer's width attributes from the shapes of its new tensors."""
    from torch import nn

    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
    if not isinstance(layer, kinds):
        # A parameter outside torch's own layers, such as ConvNeXt's layer scale, has no width attribute.
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
    """Raise RuntimeError or ValueError if the layer widths of a narrowed network do not match."""
    import torch

    # On the meta device only shapes are computed.
    shapes = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        torch.func.functional_call(
            network, shapes, (torch.empty(1, 3, CHECKED_SIDE_PX, CHECKED_SIDE_PX, device="meta"),)
        )


def load_network(study: Study, record: VariantRecord) -> nn.Module:
    """Return a torch variant's network on the CPU, in evaluation mode.

    Raises IntegrityError if its tensors do not fit its backbone.
    """
    return load_model_file(study.variant(record.name) / record.model_file, record.backbone, len(record.classes))


def load_model_file(path: Path, backbone: str, n_classes: int) -> nn.Module:
    """Return the network of a safetensors file in evaluation mode; raises IntegrityError if it does not fit.

    Layers that are narrower in the file than in the backbone are narrowed: pruning is stored only in the shapes.
    """
    import torch

    # The initial weights are overwritten, so drawing them must not change the caller's random state.
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
        n_logits = tensors[f"{output_layer(network)}.weight"].shape[0]
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
