"""The fitting loop: training and fine-tuning of any network of a study."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chestx_cli.augmentation import augment, normalise
from chestx_cli.devices import autocast, resolve_device, resolve_precision
from chestx_cli.errors import ChestxError
from chestx_cli.metrics import measure
from chestx_cli.pixels import open_pixels
from chestx_cli.records import EpochRow, Training
from chestx_cli.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import nn

    from chestx_cli.images import Preprocessing
    from chestx_cli.stage import Reporter
    from chestx_cli.study import Split, Study

Loss = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor | None"], "torch.Tensor"]
# From a batch's loss, network input and logits to the loss that is stepped on.
LossHook = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]

LOSSES: Registry[Loss] = Registry("loss")
BALANCES = ("both", "sampler", "loss", "none")
FOCAL_GAMMA = 2.0
PREDICT_BATCH = 64


@LOSSES.register("ce")
def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Return the (class-weighted) mean cross-entropy of logits [N, C]."""
    from torch.nn import functional as F

    return F.cross_entropy(logits, labels, weight=weight)


@LOSSES.register("focal")
def focal(logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Return the (class-weighted) mean focal loss with gamma 2 of logits [N, C] (Lin et al., ICCV 2017)."""
    from torch.nn import functional as F

    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    scale = (1 - log_p.exp()) ** FOCAL_GAMMA
    per_class = log_p.new_ones(len(labels)) if weight is None else weight[labels]
    return -(per_class * scale * log_p).sum() / per_class.sum()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to fit: everything that steers the loop and can be told before it runs."""

    epochs: int
    batch_size: int
    learning_rate: float
    balance: str
    loss: str
    device: str
    precision: str
    seed: int


def recipe_of(options: Mapping[str, Any], *, epochs: int) -> Recipe:
    """Return the recipe that a command's options ask for, with device and precision found for this machine."""
    device = resolve_device(options["device"])
    return Recipe(
        epochs=epochs,
        batch_size=options["batch_size"],
        learning_rate=options["lr"],
        balance=options["balance"],
        loss=options["loss"],
        device=device,
        precision=resolve_precision(options["precision"], device),
        seed=options["seed"],
    )


@dataclass(frozen=True, kw_only=True)
class FitData:
    """What to fit on: the pixels of all images [N, H, W], their split, and how they become network input.

    `mix_loss`, where given, has the last word on a batch's loss; the losses that are recorded are without it.
    """

    pixels: npt.NDArray[np.uint8]
    split: Split
    preprocessing: Preprocessing
    mix_loss: LossHook | None = None


def read_fit_data(study: Study, split: Split, preprocessing: Preprocessing, reporter: Reporter) -> FitData:
    """Return the data of a study for networks with this preprocessing."""
    return FitData(pixels=open_pixels(study, split, preprocessing, reporter), split=split, preprocessing=preprocessing)


@dataclass
class FitState:
    """All that changes while fitting; randomness is drawn per epoch from the seed and has no state of its own."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    history: list[EpochRow]
    best_loss: float = math.inf
    best_weights: dict[str, torch.Tensor] | None = None


def fit(network: nn.Module, data: FitData, recipe: Recipe, reporter: Reporter, *, stage: str) -> list[EpochRow]:
    """Fit a network in place and leave it with the weights of the epoch of lowest validation loss, on the CPU.

    Returns one row per epoch, the kept one marked. Call inside `reproducible`. Raises ChestxError where the loss is no
    longer finite.
    """
    import torch

    # torch's stubs lack a device together with a memory format.
    network.to(recipe.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = FitState(
        network=network, optimizer=torch.optim.Adam(network.parameters(), lr=recipe.learning_rate), history=[]
    )
    weight = _class_weights(data.split, recipe)
    n_batches = len(_batches(data.split.indices("train"), recipe.batch_size))
    with reporter.progress(f"{stage}: epochs", recipe.epochs * n_batches) as advance:
        for epoch in range(1, recipe.epochs + 1):
            _run_epoch(state, data, recipe, weight, epoch, stage, advance)
    assert state.best_weights is not None  # noqa: S101 - every finite loss is below infinity
    network.load_state_dict(state.best_weights)
    network.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    best = min(range(len(state.history)), key=lambda i: state.history[i].val_loss)
    return [dataclasses.replace(row, kept=i == best) for i, row in enumerate(state.history)]


def training_of(rows: list[EpochRow], recipe: Recipe, initial_weights: str) -> Training:
    """Return the record of one or several fits in a row; the weights are those of the last kept epoch."""
    kept = [row for row in rows if row.kept][-1]
    return Training(
        device=recipe.device,
        precision=recipe.precision,
        initial_weights=initial_weights,
        best_epoch=kept.epoch,
        best_val_loss=kept.val_loss,
        epochs=tuple(rows),
    )


def _run_epoch(
    state: FitState,
    data: FitData,
    recipe: Recipe,
    weight: torch.Tensor | None,
    epoch: int,
    stage: str,
    advance: Callable[[], None],
) -> None:
    import torch

    started_s = time.perf_counter()
    loss_of = LOSSES[recipe.loss]
    train_logits, train_labels = _train_epoch(state, data, recipe, weight, epoch, advance)
    val_rows = data.split.indices("val")
    val_logits = predict_logits(
        state.network, data.pixels, val_rows, data.preprocessing, device=recipe.device, precision=recipe.precision
    )
    val_labels = torch.from_numpy(data.split.labels[val_rows])
    cpu_weight = None if weight is None else weight.cpu()
    train_loss = float(loss_of(train_logits, train_labels, cpu_weight))
    val_loss = float(loss_of(val_logits, val_labels, cpu_weight))
    if not math.isfinite(train_loss) or not math.isfinite(val_loss):
        raise ChestxError(
            f"{stage} diverged in epoch {epoch}: the loss is no longer finite", "lower --lr, or use --precision fp32"
        )
    if val_loss < state.best_loss:
        state.best_loss = val_loss
        state.best_weights = {k: v.detach().cpu().clone() for k, v in state.network.state_dict().items()}
    positive = data.split.positive
    train = measure(_positives(train_labels, positive), positive_probability(train_logits, positive))
    val = measure(_positives(val_labels, positive), positive_probability(val_logits, positive))
    state.history.append(
        EpochRow(
            stage=stage,
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=train.accuracy,
            train_precision=train.macro_precision,
            train_recall=train.macro_recall,
            train_f1=train.macro_f1,
            train_auroc=train.auroc,
            train_average_precision=train.average_precision,
            val_loss=val_loss,
            val_accuracy=val.accuracy,
            val_precision=val.macro_precision,
            val_recall=val.macro_recall,
            val_f1=val.macro_f1,
            val_auroc=val.auroc,
            val_average_precision=val.average_precision,
            duration_s=round(time.perf_counter() - started_s, 2),
            kept=False,
        )
    )


def _train_epoch(
    state: FitState,
    data: FitData,
    recipe: Recipe,
    weight: torch.Tensor | None,
    epoch: int,
    advance: Callable[[], None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take one pass of optimiser steps; return the logits and labels that it saw, on the CPU."""
    import numpy as np
    import torch

    rng = np.random.default_rng([recipe.seed, epoch])
    torch.manual_seed(int(rng.integers(2**31)))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    loss_of = LOSSES[recipe.loss]
    state.network.train()
    seen_logits, seen_labels = [], []
    order = draw_order(data.split, recipe.balance, rng)
    for rows in _batches(order, recipe.batch_size):
        images = _grey_batch(data.pixels, rows).to(recipe.device)
        labels = torch.from_numpy(data.split.labels[rows]).to(recipe.device)
        inputs = normalise(augment(images, generator), data.preprocessing)
        with autocast(recipe.device, recipe.precision):
            logits = state.network(inputs)
        loss = loss_of(logits.float(), labels, weight)
        if data.mix_loss is not None:
            loss = data.mix_loss(loss, inputs, logits.float())
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.optimizer.step()
        # Kept on the device: reading them here would make the host wait for every step.
        seen_logits.append(logits.detach().float())
        seen_labels.append(labels)
        advance()
    return torch.cat(seen_logits).cpu(), torch.cat(seen_labels).cpu()


def predict_logits(
    network: nn.Module,
    pixels: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    preprocessing: Preprocessing,
    *,
    device: str = "cpu",
    precision: str = "fp32",
) -> torch.Tensor:
    """Return a network's logits [len(rows), classes] in evaluation mode, on the CPU, without augmentation."""
    import numpy as np
    import torch

    network.eval()
    found = []
    with torch.inference_mode():
        for part in np.array_split(rows, max(1, math.ceil(len(rows) / PREDICT_BATCH))):
            inputs = normalise(_grey_batch(pixels, part).to(device), preprocessing)
            with autocast(device, precision):
                found.append(network(inputs).float())
    return torch.cat(found).cpu()


def positive_probability(logits: torch.Tensor, positive: int) -> npt.NDArray[np.float64]:
    """Return the softmax probability [N] of the positive class."""
    probability: npt.NDArray[np.float64] = logits.double().softmax(dim=1)[:, positive].numpy()
    return probability


def draw_order(split: Split, balance: str, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the training rows of one epoch: shuffled, or drawn with replacement, classes equally likely."""
    import numpy as np

    rows = split.indices("train")
    if balance in {"both", "sampler"}:
        counts = np.bincount(split.labels[rows])
        chance = 1.0 / counts[split.labels[rows]]
        return rng.choice(rows, size=len(rows), replace=True, p=chance / chance.sum())
    return rng.permutation(rows)


def _class_weights(split: Split, recipe: Recipe) -> torch.Tensor | None:
    """Return the weight of each class, inverse to its frequency in training, with mean 1 over the images."""
    import numpy as np
    import torch

    if recipe.balance not in {"both", "loss"}:
        return None
    counts = np.bincount(split.labels[split.indices("train")])
    return torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32, device=recipe.device)


def _batches(rows: npt.NDArray[np.int64], batch_size: int) -> list[npt.NDArray[np.int64]]:
    """Cut rows into batches; a last batch of one joins its neighbour: BatchNorm has no variance over one image."""
    starts = list(range(0, len(rows), batch_size))
    if len(starts) > 1 and len(rows) - starts[-1] == 1:
        starts.pop()
    return [rows[start:end] for start, end in zip(starts, [*starts[1:], len(rows)], strict=True)]


def _grey_batch(pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> torch.Tensor:
    """Return images [N, 1, H, W] scaled to 0-1."""
    import torch

    return torch.from_numpy(pixels[rows][:, None]).float().div_(255)


def _positives(labels: torch.Tensor, positive: int) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = (labels == positive).long().numpy()
    return found
