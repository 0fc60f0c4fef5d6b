"""Fine-tuning as the examples of other tools do it, with the images, batches, augmentation and loss of chestx.

With the same seed, a network sees the same augmented images in the same order as in `networks.training.fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from chestx_cli.networks.augmentation import augment, draw_augmentation, normalise
from chestx_cli.networks.devices import autocast
from chestx_cli.networks.epoch_order import batches_of, draw_order
from chestx_cli.networks.losses import LOSSES
from chestx_cli.networks.training import class_weights
from chestx_cli.networks.training_data import FitData, LossHook, predict_logits
from chestx_cli.records.split import VAL

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.networks.recipe import Recipe

Optimizer = torch.optim.Optimizer


def adam(parameters: Iterable[nn.Parameter], rate: float) -> Optimizer:
    """Return the optimiser of chestx."""
    return torch.optim.Adam(parameters, lr=rate, fused=True)


@dataclass(frozen=True, kw_only=True)
class Descent:
    """An optimiser and its learning rate, which falls to a tenth after each of `falls_at`, shares of the epochs."""

    rate: float
    begin: Callable[[Iterable[nn.Parameter], float], Optimizer] = adam
    falls_at: tuple[float, ...] = ()

    def of(self, network: nn.Module) -> Optimizer:
        """Return the optimiser of a network's parameters."""
        return self.begin(network.parameters(), self.rate)

    def set_rate(self, optimizer: Optimizer, epoch: int, epochs: int) -> None:
        """Set the learning rate of an epoch, from 0, of a fit of `epochs`."""
        falls = sum(epoch >= share * epochs for share in self.falls_at)
        for group in optimizer.param_groups:
            group["lr"] = self.rate / 10**falls


@dataclass(kw_only=True)
class Best:
    """The weights of the epoch with the lowest validation loss, as `fit` keeps them."""

    loss: float = float("inf")
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def offer(self, network: nn.Module, loss: float) -> None:
        """Keep a network's weights if its loss is the lowest so far."""
        if loss < self.loss:
            self.loss = loss
            self.weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}


def train_epoch(
    network: nn.Module,
    data: FitData,
    recipe: Recipe,
    optimizer: Optimizer,
    epoch: int,
    *,
    before_step: Callable[[], None] = lambda: None,
    mix_loss: LossHook | None = None,
    after_backward: Callable[[], None] = lambda: None,
) -> None:
    """Train a network for one epoch, counted from 0."""
    rng = np.random.default_rng([recipe.seed, epoch + 1])
    weight = class_weights(data.split, recipe)
    network.train()
    for rows in batches_of(draw_order(data.split, recipe.balance, rng), recipe.batch_size):
        dropout_seed, augmentation_seed = rng.integers(2**31, size=2).tolist()
        torch.manual_seed(dropout_seed)
        draws = draw_augmentation(len(rows), torch.Generator().manual_seed(augmentation_seed))
        inputs = normalise(augment(data.grey(rows, recipe.device), draws), data.preprocessing)
        before_step()
        with autocast(recipe.device, recipe.precision):
            logits = network(inputs)
        logits = logits.float()
        loss = LOSSES[recipe.loss](logits, torch.from_numpy(data.split.labels[rows]).to(recipe.device), weight)
        if mix_loss is not None:
            loss = mix_loss(loss, inputs, logits)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        after_backward()
        optimizer.step()


def validation_loss(network: nn.Module, data: FitData, recipe: Recipe) -> float:
    """Return the loss by which `fit` chooses the epoch."""
    rows = data.split.indices(VAL)
    logits = predict_logits(network.eval(), data, rows, device=recipe.device, precision=recipe.precision)
    labels = torch.from_numpy(data.split.labels[rows])
    return float(LOSSES[recipe.loss](logits, labels, class_weights(data.split, recipe)))


def finetune(
    network: nn.Module,
    data: FitData,
    recipe: Recipe,
    descent: Descent,
    *,
    first: int = 0,
    mix_loss: LossHook | None = None,
) -> None:
    """Fine-tune a network in place from epoch `first` of the recipe's; leaves it with the weights of the best epoch."""
    optimizer, best = descent.of(network), Best()
    for epoch in range(first, recipe.epochs):
        descent.set_rate(optimizer, epoch, recipe.epochs)
        train_epoch(network, data, recipe, optimizer, epoch, mix_loss=mix_loss)
        best.offer(network, validation_loss(network, data, recipe))
    network.load_state_dict(best.weights)
    network.eval()
