"""Per-layer pruning sensitivity: one layer pruned at a time, everything else as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from chestx_cli.fitting import cross_entropy, positive_probability, predict_logits
from chestx_cli.metrics import measure
from chestx_cli.records import LayerMeasurement, LayerRow

if TYPE_CHECKING:
    import torch
    from torch import nn

    from chestx_cli.fitting import FitData


def measure_network(network: nn.Module, data: FitData, *, device: str) -> tuple[float, float, float]:
    """Return the cross-entropy, accuracy and AUROC of a network on the validation images."""
    import torch

    rows = data.split.indices("val")
    logits = predict_logits(network, data.pixels, rows, data.preprocessing, device=device)
    labels = torch.from_numpy(data.split.labels[rows])
    found = measure(data.split.is_positive(rows), positive_probability(logits, data.split.positive))
    if found.auroc is None:
        raise ValueError("the validation split has one class only")
    return float(cross_entropy(logits, labels, None)), found.accuracy, found.auroc


def measure_layers(
    network: nn.Module,
    layers: Mapping[str, nn.Module],
    data: FitData,
    amounts: Sequence[float],
    *,
    device: str,
    advance: Callable[[], None],
) -> tuple[LayerMeasurement, ...]:
    """Prune each of some layers of a network alone by L1 magnitude and measure; the network ends as it was."""
    import torch

    rows = []
    for name, layer in layers.items():
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)  # noqa: S101 - Conv2d and Linear layers have one
        intact = weight.detach().clone()
        for amount in amounts:
            with torch.no_grad():
                weight.copy_(intact * _l1_mask(intact, amount))
            loss, accuracy, auroc = measure_network(network, data, device=device)
            rows.append(
                LayerMeasurement(
                    layer=name,
                    kind=type(layer).__name__,
                    weights=intact.numel(),
                    amount=amount,
                    loss=loss,
                    accuracy=accuracy,
                    auroc=auroc,
                )
            )
            advance()
        with torch.no_grad():
            weight.copy_(intact)
    return tuple(rows)


def _l1_mask(weight: torch.Tensor, amount: float) -> torch.Tensor:
    import torch
    from torch.nn.utils import prune

    # The method flattens with view(), which a channels-last weight does not allow.
    plain = weight.contiguous()
    mask: torch.Tensor = prune.L1Unstructured(amount).compute_mask(plain, torch.ones_like(plain))
    return mask


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
