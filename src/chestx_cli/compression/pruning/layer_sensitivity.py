"""Layer-wise pruning sensitivity: the effect of pruning one layer at a time."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chestx_cli.compression.pruning.partial_forward import run_with_pauses
from chestx_cli.evaluation.statistics.outcome import Outcome, outcome_of
from chestx_cli.networks.batchnorm_folding import FoldedNetwork
from chestx_cli.networks.layers import present_weight
from chestx_cli.networks.training_data import network_input
from chestx_cli.records.sensitivity import LayerMeasurement, LayerRow, PrecisionCheck

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import fx, nn

    from chestx_cli.networks.training_data import FitData

# On a CPU, small enough for a batch's activations to stay in the cache.
SUFFIX_BATCH = {"cpu": 8, "cuda": 64}
# Layers that are measured again in FP32, to check another precision.
CHECKED_LAYERS = 6
# Key of the intact network among the pruned ones.
INTACT = ("", 0.0)


def validation_outcome(logits: torch.Tensor, data: FitData) -> Outcome:
    """Return the outcome of logits [N, 2] on the validation images; raises ValueError if a class has no images."""
    positive, logits = data.split.positive, logits.double()
    log_odds = (logits[:, positive] - logits[:, 1 - positive]).numpy()
    return outcome_of(log_odds, data.split.is_positive(data.split.indices("val")))


def measure_layers(
    network: nn.Module,
    layers: Mapping[str, nn.Module],
    data: FitData,
    amounts: Sequence[float],
    *,
    device: str,
    precision: str,
    advance: Callable[..., None],
) -> tuple[Outcome, tuple[LayerMeasurement, ...]]:
    """Measure a network intact and with each layer alone pruned by L1 magnitude; the network is not changed.

    Activations before a pruned layer do not depend on it, so each batch runs through the network once, and from each
    layer onwards once per amount, with batch normalisation folded and kernels fused. On a CPU each core has its own
    batches. precision: of weights and activations, fp32 or bf16. advance: called from any thread with the number of
    images of each partial run, N * layers * amounts in total.
    """
    import torch

    graph_module = FoldedNetwork(network).graph_module
    if precision == "bf16":
        # Layers without batch normalisation are the network's own.
        graph_module = copy.deepcopy(graph_module).bfloat16()
    if device == "cpu":
        from chestx_cli.compression.pruning.onednn import pack_convolutions, packing_is_available

        if packing_is_available():
            pack_convolutions(graph_module)
    sweep = _Sweep(
        graph_module=graph_module,
        data=data,
        device=device,
        masks={name: {amount: _l1_mask(layer, amount) for amount in amounts} for name, layer in layers.items()},
        advance=advance,
    )
    rows = data.split.indices("val")
    streams, threads = _streams(device, len(rows))
    batches = _even_batches(rows, SUFFIX_BATCH[device], streams)
    former_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            try:
                parts = list(pool.map(sweep.logits_of, batches))
            finally:
                # The pool waits for its threads even after a signal or an error, so tell them to stop.
                sweep.stopped.set()
    finally:
        # torch's thread count is global: the last thread that sets it sets it for all.
        torch.set_num_threads(former_threads)
    pruned = {
        (name, amount): torch.cat([part[name, amount] for part in parts]) for name in layers for amount in amounts
    }
    measurements = []
    for (name, amount), logits in pruned.items():
        outcome = validation_outcome(logits, data)
        measurements.append(
            LayerMeasurement(
                layer=name,
                kind=type(layers[name]).__name__,
                weights=present_weight(layers[name]).numel(),
                amount=amount,
                loss=outcome.loss,
                accuracy=outcome.accuracy,
                auroc=outcome.auroc,
            )
        )
    return validation_outcome(torch.cat([part[INTACT] for part in parts]), data), tuple(measurements)


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """State of a sweep, shared by threads that work on one batch each."""

    graph_module: fx.GraphModule
    data: FitData
    device: str
    masks: Mapping[str, Mapping[float, torch.Tensor]]
    advance: Callable[..., None]
    stopped: threading.Event = field(default_factory=threading.Event)

    def logits_of(self, rows: npt.NDArray[np.int64]) -> dict[tuple[str, float], torch.Tensor]:
        """Return the logits [len(rows), classes] of the intact network and of each layer pruned by each amount."""
        import torch

        logits = {}
        with torch.inference_mode():
            inputs = network_input(self.data, rows, self.device).to(next(self.graph_module.parameters()).dtype)
            for pause in run_with_pauses(self.graph_module, inputs, frozenset(self.masks)):
                if pause.layer is None:
                    logits[INTACT] = pause.finish(None).cpu()
                    continue
                weight = present_weight(self.graph_module.get_submodule(pause.layer))
                for amount, mask in self.masks[pause.layer].items():
                    if self.stopped.is_set():
                        return logits
                    logits[pause.layer, amount] = pause.finish(weight * mask).cpu()
                    self.advance(len(rows))
        return logits


def _streams(device: str, images: int) -> tuple[int, int]:
    """Return the number of batches to compute in parallel, and the number of threads for each.

    Cores that share a batch wait for each other after every layer; cores with a batch each do not.
    """
    import torch

    if device != "cpu":
        return 1, torch.get_num_threads()
    streams = min(torch.get_num_threads(), images)
    return streams, torch.get_num_threads() // streams


def _even_batches(rows: npt.NDArray[np.int64], most: int, streams: int) -> list[npt.NDArray[np.int64]]:
    """Split rows into batches of nearly equal size, at most `most`, equally many per stream."""
    import numpy as np

    rounds = math.ceil(len(rows) / (most * streams))
    return np.array_split(rows, min(len(rows), rounds * streams))


def _l1_mask(layer: nn.Module, amount: float) -> torch.Tensor:
    """Return a mask of the weights to keep, as booleans to save memory: all layers' masks are in memory at once."""
    import torch
    from torch.nn.utils import prune

    # compute_mask flattens with view(), which fails for a channels-last weight.
    weight = present_weight(layer).contiguous()
    mask: torch.Tensor = prune.L1Unstructured(amount).compute_mask(weight, torch.ones_like(weight))
    return mask.bool()


def layers_to_check(rows: Sequence[LayerRow]) -> tuple[str, ...]:
    """Return some layers, evenly spaced from the most critical to the most robust one."""
    n = min(CHECKED_LAYERS, len(rows))
    return tuple(rows[round(at * (len(rows) - 1) / max(1, n - 1))].layer for at in range(n))


def check_precision(
    measurements: Sequence[LayerMeasurement], exact: Sequence[LayerMeasurement], loss: float, exact_loss: float
) -> PrecisionCheck:
    """Return how far measurements in another precision are from those of the same layers in FP32.

    Both are compared as changes from the unpruned network in their own precision: `loss` and `exact_loss`.
    """
    from scipy.stats import spearmanr

    by_key = {(one.layer, one.amount): one for one in measurements}
    pairs = [(by_key[one.layer, one.amount], one) for one in exact]
    increases = [(rough.loss - loss, fine.loss - exact_loss) for rough, fine in pairs]
    return PrecisionCheck(
        layers=len({one.layer for one in exact}),
        measurements=len(pairs),
        max_loss_difference=max(abs(rough - fine) for rough, fine in increases),
        max_accuracy_difference=max(abs(rough.accuracy - fine.accuracy) for rough, fine in pairs),
        rank_correlation=float(spearmanr(*zip(*increases, strict=True)).statistic) if len(pairs) > 2 else math.nan,
    )


def rank_layers(measurements: Sequence[LayerMeasurement], loss: float, accuracy: float) -> tuple[LayerRow, ...]:
    """Return layers from critical to robust, ranked by mean loss increase over the amounts."""
    by_layer: dict[str, list[LayerMeasurement]] = {}
    for measurement in measurements:
        by_layer.setdefault(measurement.layer, []).append(measurement)

    def mean_increase(layer: str) -> float:
        return sum(measurement.loss - loss for measurement in by_layer[layer]) / len(by_layer[layer])

    ranked = sorted(by_layer, key=mean_increase, reverse=True)
    return tuple(
        LayerRow(
            rank=rank,
            layer=layer,
            kind=by_layer[layer][0].kind,
            weights=by_layer[layer][0].weights,
            mean_loss_increase=mean_increase(layer),
            max_loss_increase=max(measurement.loss for measurement in by_layer[layer]) - loss,
            max_accuracy_drop=accuracy - min(measurement.accuracy for measurement in by_layer[layer]),
            min_auroc=min(measurement.auroc for measurement in by_layer[layer]),
        )
        for rank, layer in enumerate(ranked, start=1)
    )
