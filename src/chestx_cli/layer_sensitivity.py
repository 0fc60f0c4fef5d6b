"""Per-layer pruning sensitivity: one layer pruned at a time, everything else as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.fitting import cross_entropy, network_input, positive_probability
from chestx_cli.folding import FoldedNetwork
from chestx_cli.metrics import measure
from chestx_cli.models import present_weight
from chestx_cli.sensitivity_records import LayerMeasurement, LayerRow
from chestx_cli.suffixes import run_with_pauses, weight_set_to

if TYPE_CHECKING:
    import torch
    from torch import nn

    from chestx_cli.fitting import FitData

# Small enough on a CPU for a batch's activations to stay in its cache.
SUFFIX_BATCH = {"cpu": 8, "cuda": 64}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Cross-entropy, accuracy and AUROC of a network on the validation images."""

    loss: float
    accuracy: float
    auroc: float


def quality_of(logits: torch.Tensor, data: FitData) -> Quality:
    """Return the quality of logits [N, classes] of the validation images."""
    import torch

    rows = data.split.indices("val")
    found = measure(data.split.is_positive(rows), positive_probability(logits, data.split.positive))
    if found.auroc is None:
        raise ValueError("the validation split has one class only")
    loss = cross_entropy(logits, torch.from_numpy(data.split.labels[rows]), None)
    return Quality(loss=float(loss), accuracy=found.accuracy, auroc=found.auroc)


def measure_layers(
    network: nn.Module,
    layers: Mapping[str, nn.Module],
    data: FitData,
    amounts: Sequence[float],
    *,
    device: str,
    advance: Callable[..., None],
) -> tuple[Quality, tuple[LayerMeasurement, ...]]:
    """Return the quality of a network, and with each of some layers pruned alone by L1 magnitude; it ends as it was.

    Activations in front of a pruned layer do not depend on it: each batch runs through the network once, and from each
    layer on once per amount, with batch normalisation folded. `advance` is called with the number of images of each
    such run, N * (layers * amounts) in all.
    """
    import torch

    folded = FoldedNetwork(network)
    masks = {name: [_l1_mask(layer, amount) for amount in amounts] for name, layer in layers.items()}
    intact: list[torch.Tensor] = []
    pruned: dict[tuple[str, float], list[torch.Tensor]] = {(name, amount): [] for name in layers for amount in amounts}
    batch = SUFFIX_BATCH[device]
    rows = data.split.indices("val")
    with torch.inference_mode():
        for start in range(0, len(rows), batch):
            inputs = network_input(data, rows[start : start + batch], device)
            for pause in run_with_pauses(folded.graph_module, inputs, frozenset(layers)):
                if pause.layer is None:
                    intact.append(pause.finish().cpu())
                    continue
                layer = folded.graph_module.get_submodule(pause.layer)
                weight = present_weight(layer)
                for amount, mask in zip(amounts, masks[pause.layer], strict=True):
                    with weight_set_to(layer, weight * mask):
                        pruned[pause.layer, amount].append(pause.finish().cpu())
                    advance(len(inputs))
    measurements = []
    for (name, amount), parts in pruned.items():
        found = quality_of(torch.cat(parts), data)
        measurements.append(
            LayerMeasurement(
                layer=name,
                kind=type(layers[name]).__name__,
                weights=present_weight(layers[name]).numel(),
                amount=amount,
                loss=found.loss,
                accuracy=found.accuracy,
                auroc=found.auroc,
            )
        )
    return quality_of(torch.cat(intact), data), tuple(measurements)


def _l1_mask(layer: nn.Module, amount: float) -> torch.Tensor:
    """Return which weights are left, as booleans: the masks of all layers are kept at once."""
    import torch
    from torch.nn.utils import prune

    # The method flattens with view(), which a channels-last weight does not allow.
    weight = present_weight(layer).contiguous()
    mask: torch.Tensor = prune.L1Unstructured(amount).compute_mask(weight, torch.ones_like(weight))
    return mask.bool()


def rank_layers(measurements: Sequence[LayerMeasurement], loss: float, accuracy: float) -> tuple[LayerRow, ...]:
    """Return layers from critical to robust: by mean increase of the loss over the amounts."""
    by_layer: dict[str, list[LayerMeasurement]] = {}
    for found in measurements:
        by_layer.setdefault(found.layer, []).append(found)

    def mean_increase(layer: str) -> float:
        return sum(found.loss - loss for found in by_layer[layer]) / len(by_layer[layer])

    ranked = sorted(by_layer, key=mean_increase, reverse=True)
    return tuple(
        LayerRow(
            rank=rank,
            layer=layer,
            kind=by_layer[layer][0].kind,
            weights=by_layer[layer][0].weights,
            mean_loss_increase=mean_increase(layer),
            max_loss_increase=max(found.loss for found in by_layer[layer]) - loss,
            max_accuracy_drop=accuracy - min(found.accuracy for found in by_layer[layer]),
            min_auroc=min(found.auroc for found in by_layer[layer]),
        )
        for rank, layer in enumerate(ranked, start=1)
    )
