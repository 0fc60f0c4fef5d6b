"""NNCF's public recipe of filter pruning, for comparison with `chestx prune --method structured`.

Read in its repository (github.com/openvinotoolkit/nncf): the configurations of ResNet in
`examples/torch/classification/configs/pruning` (`*_geometric_median.json`, and `*_geometric_median_kd.json` with
distillation), and `docs/usage/training_time_compression/other_algorithms`. The levels of pruning rise exponentially
over the first epochs (15 to 20 of 100), by the geometric median; the teacher is the unpruned network; SGD at 0.1 for
batches of 320 with momentum, and four steps to a tenth. All is scaled to the epochs and the size of the batch.

It needs NNCF 2 (3.0 has no filter pruning any more), best in an environment of its own beside this project's packages:

    NNCF_TORCH_LEGACY_TRACING=1 PYTHON -m tools.benchmarks.against_pruners --tools nncf ...

NNCF masks filters. When it freezes the masks, what they mask is removed, and the fine-tuning goes on with the same loss
and a new state of the optimiser: the network computes the same, in a third of the time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from chestx_cli.compression.pruning.channel_removal import without_channels
from chestx_cli.compression.pruning.criteria import ChannelWeights, Criterion
from chestx_cli.compression.pruning.dependency_groups import score_channels, trace_groups
from chestx_cli.networks.backbones import output_layer
from chestx_cli.networks.devices import autocast, move_back, move_to
from tools.benchmarks.reference.finetuning import Descent, finetune, train_epoch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from chestx_cli.networks.recipe import Recipe
    from chestx_cli.networks.training_data import FitData

FIRST_LEVEL = 0.1
# Of 100 epochs. The level reaches its target one epoch before the masks are frozen, so it takes at least two.
PRUNING_EPOCHS, LEAST_EPOCHS = 15, 2
# NNCF keeps multiples of 8 filters, more of them removed than asked; half a point less gives the nearer of two widths.
ROUNDING = 0.005
RATE, BATCH, DECAY = 0.1, 320, 1e-4
SAME_LOGITS = 1e-3


def examples(batch_size: int) -> Descent:
    """Return the optimiser of the examples for this batch size."""

    def sgd(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=DECAY, nesterov=True)

    return Descent(rate=RATE * batch_size / BATCH, begin=sgd, falls_at=(0.2, 0.4, 0.6, 0.8))


def geometric_median(
    network: nn.Module, data: FitData, recipe: Recipe, kept: float, descent: Descent, teacher: nn.Module
) -> nn.Module:
    """Return the network pruned by NNCF's schedule, with a copy of it as teacher, and fine-tuned.

    Epochs before the masks are final are not kept.
    """
    side_px = data.preprocessing.image_size_px
    first = max(LEAST_EPOCHS, round(PRUNING_EPOCHS / 100 * recipe.epochs))
    control, masked = _controlled(network, side_px, kept, first)
    move_to(masked, recipe.device)
    optimizer = descent.of(masked)
    for epoch in range(first):
        control.scheduler.epoch_step()
        descent.set_rate(optimizer, epoch, recipe.epochs)
        train_epoch(
            masked,
            data,
            recipe,
            optimizer,
            epoch,
            before_step=control.scheduler.step,
            mix_loss=lambda loss, _inputs, _logits: loss + control.loss(),
        )
    control.scheduler.epoch_step()
    pruned = removed(masked, control, teacher, side_px)
    move_to(pruned, recipe.device)
    # As NNCF has its copy of the network.
    move_to(teacher, recipe.device).train()

    def distilled(loss: torch.Tensor, inputs: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), autocast(recipe.device, recipe.precision):
            probabilities = teacher(inputs).float().softmax(dim=1)
        distilled_loss: torch.Tensor = loss - (F.log_softmax(logits, dim=1) * probabilities).sum(dim=1).mean()
        return distilled_loss

    finetune(pruned, data, recipe, descent, first=first, mix_loss=distilled)
    return pruned


def _controlled(network: nn.Module, side_px: int, kept: float, epochs: int) -> tuple[Any, nn.Module]:
    """Return NNCF's controller, and the network with its masks."""
    try:
        import nncf.torch
    except ImportError as error:
        raise SystemExit(
            f"no NNCF with filter pruning in this environment ({error}): install a version below 3"
        ) from error

    pruning = {
        "algorithm": "filter_pruning",
        "pruning_init": FIRST_LEVEL,
        "params": {
            "schedule": "exponential",
            "pruning_flops_target": 1 - kept - ROUNDING,
            "pruning_steps": epochs,
            "filter_importance": "geometric_median",
        },
    }
    config = {
        "input_info": {"sample_size": [1, 3, side_px, side_px]},
        "compression": [pruning, {"algorithm": "knowledge_distillation", "type": "softmax"}],
    }
    control, masked = nncf.torch.create_compressed_model(network, nncf.NNCFConfig.from_dict(config))
    return control, masked


def removed(masked: nn.Module, control: Any, like: nn.Module, side_px: int) -> nn.Module:
    """Return the network without the filters that NNCF has masked; raises RuntimeError if it computes anything else.

    like: the network before it was compressed, whose weights are not used.
    """
    move_back(masked).eval()
    images = torch.rand(4, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = masked(images)
    control.prepare_for_export()
    stripped = control.strip(do_copy=False)
    plain = copy.deepcopy(move_back(like))
    weights = stripped.state_dict()
    # NNCF's layers have buffers of their own.
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    groups = trace_groups(plain, side_px, kept_layer=output_layer(plain))
    zeros = {group.name: score_channels(plain, group, MADE) for group in groups}
    narrower = without_channels(
        plain,
        groups,
        {name: np.flatnonzero(scores.numpy() == 0) for name, scores in zeros.items() if scores is not None},
    )
    with torch.no_grad():
        difference = float((narrower(images) - expected).abs().max())
    if difference > SAME_LOGITS:
        raise RuntimeError(f"removing what NNCF masked changes the logits by {difference:.2g}")
    return narrower


def _made(weights: Sequence[ChannelWeights]) -> torch.Tensor:
    """Return how much of each channel is made: 0 if all its weights, scales and shifts are."""
    made = [one.values.abs().flatten(1).sum(dim=1) for one in weights if one.makes]
    return torch.stack(made).sum(dim=0)


MADE = Criterion(importance=_made)
