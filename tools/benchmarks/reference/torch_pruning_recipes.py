"""Torch-Pruning's public recipes, for comparison with `chestx prune --method structured`.

Read in its repository (github.com/VainF/Torch-Pruning, and the description of the package, version 1.6.1):

- `local`: "High-level Pruners" of the README: `BasePruner` with the group L2 norm. Its `round_to=8` is left out, since
  with it no ratio comes within three points of a quarter of ResNet50's MACs.
- `isomorphic`: the README's remedy for the ranking over the whole network, which may prune some layers too much.
- `group-sl`: sparse learning, then progressive pruning, both with `GroupNormPruner` and the scores divided by their
  largest; the best results of `reproduce/readme.md`. The README calls it optional and not always better. Its epochs
  count: of all of them a quarter regularises, as in `resnet50_group_sl.sh` (30 and 90 epochs).

`EXAMPLES` is the optimiser of `reproduce/main.py`, SGD at 0.01 for batches of 128, with a rate proportional to the size
of the batch. None of the recipes re-estimates BatchNorm statistics or has a teacher.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from chestx_cli.networks.backbones import output_layer
from chestx_cli.networks.devices import move_to
from chestx_cli.networks.layers import count_macs
from tools.benchmarks.reference.finetuning import Descent, finetune, train_epoch

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.networks.recipe import Recipe
    from chestx_cli.networks.training_data import FitData

REGULARISATION = 5e-4
# Enough for a step to remove less than a percentage point of the MACs.
STEPS = 200
RATE, BATCH, DECAY = 0.01, 128, 5e-4


def examples(batch_size: int, decay: float = DECAY) -> Descent:
    """Return the optimiser of the examples for this batch size."""

    def sgd(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)

    return Descent(rate=RATE * batch_size / BATCH, begin=sgd, falls_at=(0.6, 0.8))


def at_macs(network: nn.Module, side_px: int, kept: float, prune: Callable[[nn.Module, float], None]) -> nn.Module:
    """Return a copy of a network, pruned by `prune` at the ratio that keeps the share `kept` of its MACs."""
    whole = count_macs(network, side_px)

    def pruned(ratio: float) -> nn.Module:
        narrower = copy.deepcopy(network)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prune(narrower, ratio)
        return narrower

    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if count_macs(pruned(middle), side_px) > kept * whole else (low, middle)
    return pruned(high)


def pruner_of(network: nn.Module, side_px: int, kind: str, importance: Any, **options: Any) -> Any:
    """Return one of Torch-Pruning's pruners, which keeps the network's outputs."""
    import torch_pruning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(torch_pruning.pruner, kind)(
            network,
            torch.zeros(1, 3, side_px, side_px),
            importance=importance,
            ignored_layers=[network.get_submodule(output_layer(network))],
            **options,
        )


def _progressively(pruner: Any, network: nn.Module, side_px: int, kept: float) -> nn.Module:
    """Prune a network in small steps until at most the share `kept` of its MACs is left."""
    target = kept * count_macs(network, side_px)
    while count_macs(network, side_px) > target and pruner.current_step < pruner.iterative_steps:
        pruner.step()
    return network


def local(network: nn.Module, data: FitData, recipe: Recipe, kept: float, descent: Descent) -> nn.Module:
    """Return the network pruned evenly in all layers and fine-tuned."""
    import torch_pruning

    side_px, importance = data.preprocessing.image_size_px, torch_pruning.importance.GroupMagnitudeImportance(p=2)

    def prune(narrower: nn.Module, ratio: float) -> None:
        pruner_of(narrower, side_px, "BasePruner", importance, pruning_ratio=ratio).step()

    pruned = move_to(at_macs(network, side_px, kept, prune), recipe.device)
    finetune(pruned, data, recipe, descent)
    return pruned


def isomorphic(network: nn.Module, data: FitData, recipe: Recipe, kept: float, descent: Descent) -> nn.Module:
    """Return the network pruned by rank among layers of the same structure and fine-tuned."""
    import torch_pruning

    side_px, importance = data.preprocessing.image_size_px, torch_pruning.importance.GroupMagnitudeImportance(p=2)
    options = {"global_pruning": True, "isomorphic": True, "pruning_ratio": 1.0, "iterative_steps": STEPS}
    pruner = pruner_of(network, side_px, "BasePruner", importance, **options)
    pruned = move_to(_progressively(pruner, network, side_px, kept), recipe.device)
    finetune(pruned, data, recipe, descent)
    return pruned


def group_sl(network: nn.Module, data: FitData, recipe: Recipe, kept: float, descent: Descent) -> nn.Module:
    """Return the network trained with the regulariser, then pruned by rank and fine-tuned."""
    import torch_pruning

    side_px = data.preprocessing.image_size_px
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer="max")
    options = {"global_pruning": True, "pruning_ratio": 1.0, "iterative_steps": STEPS, "reg": REGULARISATION}
    pruner = pruner_of(network, side_px, "GroupNormPruner", importance, **options)
    pruner.update_regularizer()
    # The regulariser replaces the decay of weights.
    learning, first = examples(recipe.batch_size, decay=0.0), recipe.epochs // 4
    optimizer = learning.of(network)
    for epoch in range(first):
        train_epoch(network, data, recipe, optimizer, epoch, after_backward=lambda: pruner.regularize(network))
    optimizer.zero_grad(set_to_none=True)
    pruned = move_to(_progressively(pruner, network.eval(), side_px, kept), recipe.device)
    finetune(pruned, data, recipe, descent, first=first)
    return pruned
