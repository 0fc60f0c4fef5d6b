"""Layer-wise pruning sensitivity: the effect of pruning one layer at a time."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from chestx_cli.compression.pruning.partial_forward import Replacement, run_with_pauses
from chestx_cli.core.errors import ChestxError
from chestx_cli.evaluation.statistics.outcome import Outcome, outcome_of
from chestx_cli.networks.batchnorm_folding import FoldedNetwork
from chestx_cli.networks.devices import keep_freed_memory
from chestx_cli.networks.layers import present_weight
from chestx_cli.networks.training_data import network_input
from chestx_cli.records.sensitivity import LayerMeasurement, LayerRow, PrecisionCheck

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import fx, nn

    from chestx_cli.networks.training_data import FitData

    Rows = npt.NDArray[np.int64]

# On a CPU, small enough for a batch's activations to stay in the cache.
SUFFIX_BATCH = {"cpu": 8, "cuda": 64}
# Batches that a stream computes side by side: a processor packs each replaced weight once for all of them.
BATCHES_TOGETHER = {"cpu": 4, "cuda": 1}
# Measurements that are repeated in FP32, to check another precision, and on how many images.
CHECKED, CHECKED_IMAGES = 12, 16
# Validation images that show the ranges of activations in 8 bits. With all 57 of a study the measurements were as near
# to those in FP32.
CALIBRATION_IMAGES = 16
# Key of the intact network among the pruned ones.
INTACT = ("", 0.0)


def validation_outcome(logits: torch.Tensor, data: FitData, rows: Rows | None = None) -> Outcome:
    """Return the outcome of logits [N, 2] on the images in `rows` [N], by default all validation images.

    Raises ValueError if a class has no images, ChestxError if a logit is not finite.
    """
    if not bool(logits.isfinite().all()):
        raise ChestxError("the network has no finite loss on the validation images", "train it again")
    positive, logits = data.split.positive, logits.double()
    log_odds = (logits[:, positive] - logits[:, 1 - positive]).numpy()
    return outcome_of(log_odds, data.split.is_positive(data.split.indices("val") if rows is None else rows))


@dataclass(frozen=True, kw_only=True)
class LayerSweep:
    """The logits of a network intact and with each layer alone pruned, for the images in `rows` [N].

    layers: the pruned layers. logits: [N, 2] by layer and amount, or by INTACT.
    """

    data: FitData
    rows: Rows
    layers: Mapping[str, nn.Module]
    logits: Mapping[tuple[str, float], torch.Tensor]

    def on(self, rows: Rows) -> LayerSweep:
        """Return the sweep of fewer images."""
        import numpy as np
        import torch

        places = torch.from_numpy(np.flatnonzero(np.isin(self.rows, rows)))
        return replace(
            self, rows=self.rows[places.numpy()], logits={key: logits[places] for key, logits in self.logits.items()}
        )

    @property
    def intact(self) -> Outcome:
        """The outcome of the intact network."""
        return validation_outcome(self.logits[INTACT], self.data, self.rows)

    @property
    def measurements(self) -> tuple[LayerMeasurement, ...]:
        """The outcome of each pruned layer, by layer and amount as they were measured."""
        return tuple(self.measurement(*key) for key in self.logits if key != INTACT)

    def measurement(self, name: str, amount: float) -> LayerMeasurement:
        """Return the outcome of a layer pruned by an amount."""
        outcome = validation_outcome(self.logits[name, amount], self.data, self.rows)
        layer = self.layers[name]
        return LayerMeasurement(
            layer=name,
            kind=type(layer).__name__,
            weights=present_weight(layer).numel(),
            amount=amount,
            loss=outcome.loss,
            accuracy=outcome.accuracy,
            auroc=outcome.auroc,
        )


def measure_layers(
    network: nn.Module,
    amounts: Mapping[str, Sequence[float]],
    data: FitData,
    *,
    device: str,
    precision: str,
    advance: Callable[..., None],
    rows: Rows | None = None,
) -> LayerSweep:
    """Measure a network intact and with each layer alone pruned by L1 magnitude; the network is not changed.

    Activations before a pruned layer do not depend on it, so each batch runs through the network once, and from each
    layer onwards once per amount, with batch normalisation folded and kernels fused. On a CPU each core has its own
    batches. amounts: for each layer to prune, the shares of its weights. precision: of weights and activations, fp32
    or bf16, or int8 of convolutions alone, where `int8_is_available`. advance: called from any thread with the number
    of images of each partial run, N for each layer and amount in total. rows: the images [N], by default all validation
    images.
    """
    import numpy as np
    import torch

    layers = {name: network.get_submodule(name) for name in amounts}
    validation = data.split.indices("val")
    rows = validation if rows is None else rows
    streams, threads = _streams(device, len(rows))
    batches = _even_batches(rows, SUFFIX_BATCH[device], streams)
    # The split lists one class after the other.
    spread = np.linspace(0, len(validation) - 1, min(CALIBRATION_IMAGES, len(validation))).round().astype(np.int64)
    some = (network_input(data, batch, device) for batch in _even_batches(validation[spread], SUFFIX_BATCH[device], 1))
    graph_module = _inference_graph(network, some, device, precision)
    if device == "cpu":
        # Each partial run frees and allocates all its activations.
        keep_freed_memory()
    former_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            masks = pool.map(l1_masks, layers.values(), amounts.values())
            sweep = _Sweep(
                graph_module=graph_module,
                data=data,
                device=device,
                dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
                masks=dict(zip(layers, masks, strict=True)),
                advance=advance,
            )
            try:
                parts = list(pool.map(sweep.logits_of, _together(batches, BATCHES_TOGETHER[device], streams)))
            finally:
                # The pool waits for its threads even after a signal or an error, so tell them to stop.
                sweep.stopped.set()
    finally:
        # torch's thread count is global: the last thread that sets it sets it for all.
        torch.set_num_threads(former_threads)
    keys = (INTACT, *((name, amount) for name in layers for amount in amounts[name]))
    logits = {key: torch.cat([part for some in parts for part in some[key]]) for key in keys}
    return LayerSweep(data=data, rows=rows, layers=layers, logits=logits)


def _inference_graph(
    network: nn.Module, batches: Iterable[torch.Tensor], device: str, precision: str
) -> fx.GraphModule:
    """Return a network's graph in a precision, with batch normalisation folded and kernels fused where possible."""
    graph_module = FoldedNetwork(network).graph_module
    if precision == "bf16":
        # Layers without batch normalisation are the network's own.
        graph_module = copy.deepcopy(graph_module).bfloat16()
    if device == "cpu":
        from chestx_cli.compression.pruning.onednn import pack_convolutions, packing_is_available

        if packing_is_available():
            pack_convolutions(graph_module)
    if precision == "int8":
        from chestx_cli.compression.pruning.onednn_int8 import quantize_convolutions

        quantize_convolutions(graph_module, batches)
    return graph_module


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """State of a sweep, shared by threads that work on one batch each."""

    graph_module: fx.GraphModule
    data: FitData
    device: str
    # Of the network's input.
    dtype: torch.dtype
    masks: Mapping[str, Mapping[float, torch.Tensor]]
    advance: Callable[..., None]
    stopped: threading.Event = field(default_factory=threading.Event)

    def logits_of(self, batches: Sequence[Rows]) -> dict[tuple[str, float], list[torch.Tensor]]:
        """Return the logits [N, classes] of each batch, of the intact network and of each layer pruned by each amount.

        The batches run through the network side by side.
        """
        import torch

        logits: dict[tuple[str, float], list[torch.Tensor]] = {}
        with torch.inference_mode():
            runs = [
                run_with_pauses(
                    self.graph_module, network_input(self.data, rows, self.device).to(self.dtype), frozenset(self.masks)
                )
                for rows in batches
            ]
            for pauses in zip(*runs, strict=True):
                layer = pauses[0].layer
                if layer is None:
                    logits[INTACT] = [pause.finish(None).cpu() for pause in pauses]
                    continue
                weight = present_weight(self.graph_module.get_submodule(layer))
                for amount, mask in self.masks[layer].items():
                    replacement, found = Replacement(weight=weight * mask), logits.setdefault((layer, amount), [])
                    for pause, rows in zip(pauses, batches, strict=True):
                        if self.stopped.is_set():
                            return logits
                        found.append(pause.finish(replacement).cpu())
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


def _even_batches(rows: Rows, most: int, streams: int) -> list[Rows]:
    """Split rows into batches of nearly equal size, at most `most`, equally many per stream."""
    import numpy as np

    rounds = math.ceil(len(rows) / (most * streams))
    return np.array_split(rows, min(len(rows), rounds * streams))


def _together(batches: Sequence[Rows], most: int, streams: int) -> list[Sequence[Rows]]:
    """Return batches in groups of nearly equal size, at most `most`, equally many per stream."""
    groups = min(len(batches), math.ceil(len(batches) / (most * streams)) * streams)
    ends = [len(batches) * at // groups for at in range(groups + 1)]
    return [batches[start:end] for start, end in itertools.pairwise(ends)]


def l1_masks(layer: nn.Module, amounts: Sequence[float]) -> dict[float, torch.Tensor]:
    """Return for each amount a mask of the weights to keep, as booleans, since all masks are in memory at once.

    Equal to those of torch.nn.utils.prune.L1Unstructured up to the order of equal magnitudes, but all amounts in one
    pass: those take 5.5 s for ResNet50 and 4 amounts, these 0.7 s (1 thread).
    """
    import numpy as np
    import torch

    weight = present_weight(layer)
    magnitudes = weight.abs().flatten().cpu().numpy()
    counts = {amount: round(amount * magnitudes.size) for amount in amounts}
    # Where all weights are pruned, there is no place behind them to divide at.
    places = sorted({min(count, magnitudes.size - 1) for count in counts.values()})
    order = np.argpartition(magnitudes, places)
    masks = {}
    for amount, count in counts.items():
        kept = np.ones(magnitudes.size, dtype=np.bool_)
        kept[order[:count]] = False
        masks[amount] = torch.from_numpy(kept).reshape(weight.shape).to(weight.device)
    return masks


def measurements_to_check(measurements: Sequence[LayerMeasurement]) -> dict[str, tuple[float, ...]]:
    """Return the layers and amounts of some measurements, evenly spaced from the largest to the smallest loss."""
    ranked = sorted(measurements, key=lambda one: one.loss, reverse=True)
    n = min(CHECKED, len(ranked))
    chosen = [ranked[round(at * (len(ranked) - 1) / max(1, n - 1))] for at in range(n)]
    amounts: dict[str, tuple[float, ...]] = {}
    for one in chosen:
        amounts[one.layer] = (*amounts.get(one.layer, ()), one.amount)
    return amounts


def images_to_check(data: FitData) -> Rows:
    """Return the validation images on which measurements are repeated, evenly spaced in each class; both have some."""
    import numpy as np

    rows = data.split.indices("val")
    is_positive = data.split.is_positive(rows)
    chosen = []
    for of_class in (rows[is_positive == 1], rows[is_positive == 0]):
        wanted = math.ceil(len(of_class) * min(1.0, CHECKED_IMAGES / len(rows)))
        chosen.append(of_class[np.linspace(0, len(of_class) - 1, wanted).round().astype(np.int64)])
    return np.sort(np.concatenate(chosen))


def check_precision(rough: LayerSweep, exact: LayerSweep) -> PrecisionCheck:
    """Return how far measurements in another precision are from some that were repeated in FP32, on the same images.

    Both are compared as changes from the unpruned network in their own precision.
    """
    from scipy.stats import spearmanr

    rough = rough.on(exact.rows)
    pairs = [(rough.measurement(fine.layer, fine.amount), fine) for fine in exact.measurements]
    loss, exact_loss = rough.intact.loss, exact.intact.loss
    increases = [(one.loss - loss, fine.loss - exact_loss) for one, fine in pairs]
    rough_increases, exact_increases = ([pair[side] for pair in increases] for side in (0, 1))
    can_be_ranked = len(pairs) > 2 and len(set(rough_increases)) > 1 and len(set(exact_increases)) > 1
    return PrecisionCheck(
        layers=len({fine.layer for _, fine in pairs}),
        measurements=len(pairs),
        images=len(exact.rows),
        max_loss_difference=max(abs(one - fine) for one, fine in increases),
        max_accuracy_difference=max(abs(one.accuracy - fine.accuracy) for one, fine in pairs),
        rank_correlation=float(spearmanr(rough_increases, exact_increases).statistic) if can_be_ranked else math.nan,
        loss=loss,
        exact_loss=exact_loss,
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
