"""The fitting loop: training and fine-tuning of any network of a study."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.errors import ChestxError
from chestx_cli.core.machine import environment
from chestx_cli.core.printable import counted
from chestx_cli.core.record import changed_options
from chestx_cli.core.shared_options import ONE_SE, STUDYS
from chestx_cli.core.signals import Interrupted, deferred
from chestx_cli.evaluation.statistics.metrics import measure_epoch
from chestx_cli.networks.augmentation import augment, draw_augmentation, normalise
from chestx_cli.networks.backbones import head_of
from chestx_cli.networks.batchnorm_folding import FoldedNetwork
from chestx_cli.networks.devices import (
    autocast,
    keep_freed_memory,
    move_back,
    move_to,
    resolve_device,
    resolve_precision,
    return_freed_memory,
)
from chestx_cli.networks.epoch_order import batches_of, draw_order, in_runs
from chestx_cli.networks.fit_state import FitState, cpu_copy, restore, snapshot_of
from chestx_cli.networks.losses import LOSSES, losses_of_images, smoothed
from chestx_cli.networks.memory import gradients_kept_in_place
from chestx_cli.networks.parallel.ranks import ALONE
from chestx_cli.networks.parallel.whole_batch import seeing_whole_batch
from chestx_cli.networks.recalibration import reestimate_batchnorm
from chestx_cli.networks.recipe import Recipe, averaging_decay, is_within_one_error, rate_factor
from chestx_cli.networks.training_data import positive_probability, predict_logits
from chestx_cli.records.variant import EpochRow, Training
from chestx_cli.store.checkpoints import RESTART, Checkpoints

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import nn

    from chestx_cli.core.progress import Reporter
    from chestx_cli.core.shared_options import Refinements
    from chestx_cli.networks.parallel.ranks import Ranks
    from chestx_cli.networks.parallel.whole_batch import WholeBatch
    from chestx_cli.networks.training_data import FitData, LossHook
    from chestx_cli.store.split import Split

BALANCES = ("both", "sampler", "loss", "none")


def recipe_of(
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    balance: str,
    loss: str,
    device: str,
    precision: str,
    compiled: bool,
    seed: int,
    refinements: Refinements = STUDYS,
) -> Recipe:
    """Return a recipe from these options, with device and precision resolved for this machine."""
    device = resolve_device(device)
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=lr,
        balance=balance,
        loss=loss,
        device=device,
        precision=resolve_precision(precision, device),
        compiled=compiled,
        seed=seed,
        refinements=refinements,
    )


def fit(
    network: nn.Module,
    data: FitData,
    recipe: Recipe,
    reporter: Reporter,
    *,
    stage: str,
    checkpoints: Checkpoints,
    ranks: Ranks = ALONE,
    continues: bool = False,
) -> list[EpochRow]:
    """Fit a network in place; leaves it on the CPU with the weights of the epoch that is kept (`Refinements.keep`).

    With averaging (`Refinements.ema`) these are the averaged weights, with BatchNorm statistics estimated for them.

    Resumes from the checkpoint of this stage if there is one, and writes one after every epoch and on a stop signal.
    With `continues` the last one has the whole state, from which a call with more epochs continues: with a constant
    learning rate to the same weights as if it had been called with them at first.
    Returns one row per epoch, with the kept epoch marked. Call inside `reproducible`. Afterwards the process keeps the
    memory that it frees (see `keep_freed_memory`). With several `ranks` all processes call it with the same arguments,
    and the first writes. Raises ChestxError if the loss is no longer finite, Interrupted after a stop signal.
    """
    if recipe.device == "cpu":
        return_freed_memory()
    move_to(network, recipe.device)
    state = _begun(network, recipe, ranks)
    data = data.moved_to(recipe.device)
    weight = class_weights(data.split, recipe)
    snapshot = checkpoints.load(stage)
    if snapshot is not None:
        restore(state, snapshot)
        done = f"epoch {state.epoch}"
        done = f"{done} and {counted(state.step, 'step')}" if state.step else done
        reporter.note(f"{stage}: resuming after {done} of {recipe.epochs}")
        changes = changed_options(snapshot.progress.environment, environment())
        if changes:
            reporter.warn(f"started in another environment ({'; '.join(changes)}): the last digits may differ")
    ranks.require_same(
        {**dataclasses.asdict(recipe), "images": data.split.sha256, "epoch": state.epoch, "step": state.step},
        "start all with the same options, on equal machines, in a study on storage that they share",
    )
    n_batches = len(batches_of(data.split.indices("train"), recipe.batch_size))
    # Wrapped after reading the checkpoint, because wrapping copies the first process's weights to all.
    with (
        seeing_whole_batch(network, ranks) as batch,
        _mixed_loss(network, data) as mix_loss,
        gradients_kept_in_place(network) if recipe.device == "cpu" else nullcontext(),
        deferred() as stop_requested,
        reporter.progress(f"{stage}: epochs", recipe.epochs) as advance,
    ):
        state.forward = _forward(state, recipe)

        def save_where_due(*, due: bool, finished: bool = False) -> None:
            stop = ranks.agreed(stop_requested() or 0)
            if ranks.is_first and (due or stop):
                checkpoints.save(stage, snapshot_of(state, finished=finished))
            if stop:
                checkpoints.wait()
                raise Interrupted(stop)

        advance(state.epoch + state.step / n_batches)
        while not _is_over(state, recipe):
            if state.epoch == recipe.refinements.freeze_epochs and not state.step:
                # What is frozen is fixed when the network is wrapped or compiled.
                state.forward = _forward(state, recipe)
            for _ in _train_epoch(state, data, recipe, weight, batch, mix_loss):
                # Only after the first step: see `return_freed_memory`.
                keep_freed_memory()
                advance(1 / n_batches)
                every = checkpoints.every_steps
                save_where_due(due=every is not None and state.step % every == 0)
            # A resumed epoch may have had no step left.
            keep_freed_memory()
            _finish_epoch(state, data, recipe, weight, stage)
            save_where_due(due=True, finished=_is_over(state, recipe) and not continues)
        checkpoints.wait()
    if state.epoch < recipe.epochs:
        reporter.note(
            f"{stage}: stopped after epoch {state.epoch} of {recipe.epochs}: no lower validation loss for "
            f"{recipe.refinements.early_stop}"
        )
    network.load_state_dict(state.kept_weights)
    move_back(network).eval()
    return state.history


def _begun(network: nn.Module, recipe: Recipe, ranks: Ranks) -> FitState:
    """Return the initial state of a fit."""
    import torch

    decay, rate = recipe.refinements.weight_decay, recipe.learning_rate
    optimizer: torch.optim.Optimizer
    if decay:
        # Biases and the scales of normalisation are vectors, and are not decayed.
        parameters = list(network.parameters())
        groups = [
            {"params": [one for one in parameters if one.ndim > 1], "weight_decay": decay},
            {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
    else:
        optimizer = torch.optim.Adam(network.parameters(), lr=rate, fused=True)
    folded = FoldedNetwork(network)
    folded.release()
    return FitState(
        network=network,
        ranks=ranks,
        forward=network,
        folded=folded,
        optimizer=optimizer,
        history=[],
        average=[one.detach().clone() for one in network.parameters()] if recipe.refinements.ema else None,
    )


def _is_over(state: FitState, recipe: Recipe) -> bool:
    """Return whether a fit is complete: all epochs are done, or too many since the best one."""
    patience = recipe.refinements.early_stop
    losses = [row.val_loss for row in state.history]
    since_best = len(losses) - 1 - losses.index(min(losses)) if losses else 0
    return state.epoch >= recipe.epochs or (patience is not None and since_best >= patience)


def _is_frozen(state: FitState, recipe: Recipe) -> bool:
    return state.epoch < recipe.refinements.freeze_epochs


def _mixed_loss(network: nn.Module, data: FitData) -> AbstractContextManager[LossHook | None]:
    """Return a context manager that yields the hook of the loss, if any."""
    return data.mix_loss(network, data.preprocessing.image_size_px) if data.mix_loss else nullcontext()


def _forward(state: FitState, recipe: Recipe) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the forward function of a step: the network, wrapped to average gradients over processes, or compiled.

    In the epochs in which the head alone is trained, the other parameters get no gradients.
    """
    import torch
    from torch.nn.parallel import DistributedDataParallel

    network = forward = state.network
    if recipe.refinements.freeze_epochs:
        network.requires_grad_(not _is_frozen(state, recipe))
        network.get_submodule(head_of(network)).requires_grad_(requires_grad=True)
    if state.ranks.n > 1:
        # Before each step it also copies the first process's running statistics to all.
        forward = DistributedDataParallel(network)
    if not recipe.compiled:
        return forward
    # A kernel per batch size: one for all sizes would depend on which came first, which resuming changes. Kernels that
    # are chosen by timing them would differ between runs.
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(
        forward, dynamic=False, options={"deterministic": True}
    )
    return compiled


def training_of(rows: list[EpochRow], recipe: Recipe, initial_weights: str, ranks: Ranks = ALONE) -> Training:
    """Return the record of one or more consecutive fits; the weights are those of the last kept epoch."""
    kept = [row for row in rows if row.kept][-1]
    return Training(
        device=recipe.device,
        precision=recipe.precision,
        initial_weights=initial_weights,
        processes=ranks.n,
        sync_batchnorm=ranks.sync_batchnorm,
        best_epoch=kept.epoch,
        best_val_loss=kept.val_loss,
        epochs=tuple(rows),
    )


def _train_epoch(
    state: FitState,
    data: FitData,
    recipe: Recipe,
    weight: torch.Tensor | None,
    batch: WholeBatch,
    mix_loss: LossHook | None,
) -> Iterator[None]:
    """Run the remaining optimiser steps of an epoch; yield after each.

    Each process computes its rows of every batch. All gather the logits of the whole batch and compute the loss from
    these, so any loss and its gradients are the same as in a single process.
    """
    import numpy as np
    import torch

    started_s = time.perf_counter() - state.epoch_s
    ranks = state.ranks
    rng = np.random.default_rng([recipe.seed, state.epoch + 1])
    batches = batches_of(draw_order(data.split, recipe.balance, rng), recipe.batch_size)
    if data.shuffle_buffer is not None:
        batches = in_runs(batches, data.shuffle_buffer, ranks, rng)
    n_batches = len(batches)
    refinements, average = recipe.refinements, state.average
    _set_training(state, recipe, training=True)
    with _own_images(batches[state.step :], data, recipe, ranks) as take:
        for step, rows in enumerate(batches):
            # Drawn for every step, so that a resumed epoch draws the same numbers.
            dropout_seed, augmentation_seed = rng.integers(2**31, size=2).tolist()
            mixed = _mixed(len(rows), recipe, rng)
            if step < state.step:
                continue
            torch.manual_seed(dropout_seed)
            generator = torch.Generator().manual_seed(augmentation_seed)
            own_rows = ranks.part(len(rows))
            batch.of(len(rows), own_rows)
            if ranks.batchnorm_parts > 1:
                # A process without images in this batch has no batch statistics.
                _set_training(state, recipe, training=own_rows.stop > own_rows.start)
            labels = torch.from_numpy(data.split.labels[rows]).to(recipe.device)
            draws = draw_augmentation(len(rows), generator)[:, own_rows]
            inputs = normalise(augment(take(own_rows.stop - own_rows.start), draws), data.preprocessing)
            if mixed is not None:
                inputs = mixed.share * inputs + (1 - mixed.share) * inputs[mixed.partners]
            logits = _backward(state, recipe, inputs, labels, mixed, weight, mix_loss)
            done = state.epoch * n_batches + step
            factor = rate_factor(refinements, done, of=recipe.epochs * n_batches, per_epoch=n_batches)
            for group in state.optimizer.param_groups:
                group["lr"] = recipe.learning_rate * factor
            state.optimizer.step()
            if average is not None:
                parameters = [one.detach() for one in state.network.parameters()]
                torch._foreach_lerp_(average, parameters, 1 - averaging_decay(refinements.ema, done))
            # Kept on the device: copying them here would make the host wait for every step.
            state.seen_logits.append(logits)
            state.seen_labels.append(labels)
            state.step += 1
            state.epoch_s = time.perf_counter() - started_s
            yield


def _backward(
    state: FitState,
    recipe: Recipe,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    mixed: _Mixed | None,
    weight: torch.Tensor | None,
    mix_loss: LossHook | None,
) -> torch.Tensor:
    """Compute the gradients of a step; return the logits [N, classes] of the whole batch."""
    # Before the forward pass, at whose end most memory is in use.
    state.optimizer.zero_grad(set_to_none=True)
    with autocast(recipe.device, recipe.precision):
        own_logits = state.forward(inputs)
    logits = state.ranks.gathered(own_logits.float(), len(labels))
    loss_of, smoothing = LOSSES[recipe.loss], recipe.refinements.label_smoothing
    loss = smoothed(loss_of, logits, labels, weight, smoothing)
    if mixed is not None:
        others = smoothed(loss_of, logits, labels[mixed.partners], weight, smoothing)
        loss = mixed.share * loss + (1 - mixed.share) * others
    if mix_loss is not None:
        loss = mix_loss(loss, inputs, logits)
    # The average over processes then equals the sum of their contributions to the gradient.
    (loss * state.ranks.n).backward()
    return logits.detach()


def _set_training(state: FitState, recipe: Recipe, *, training: bool) -> None:
    """Set the mode of the network; what is frozen is evaluated with its stored statistics, and without dropout."""
    if _is_frozen(state, recipe):
        state.network.eval()
        state.network.get_submodule(head_of(state.network)).train(training)
    else:
        state.network.train(training)


@dataclass(frozen=True)
class _Mixed:
    """How the images of a batch are mixed: the share of the first, at least 1/2, and the row of each partner."""

    share: float
    partners: torch.Tensor


def _mixed(n: int, recipe: Recipe, rng: np.random.Generator) -> _Mixed | None:
    """Draw how a batch is mixed (mixup: Zhang et al., ICLR 2018); None without mixing, which draws nothing."""
    import torch

    alpha = recipe.refinements.mixup
    if not alpha:
        return None
    share = float(rng.beta(alpha, alpha))
    partners = torch.from_numpy(rng.permutation(n)).to(recipe.device)
    return _Mixed(share=max(share, 1 - share), partners=partners)


@contextmanager
def _averaged(state: FitState, data: FitData, recipe: Recipe) -> Iterator[None]:
    """Give the network its averaged weights inside the block, with BatchNorm statistics estimated for them."""
    import torch

    if state.average is None:
        yield
        return
    own = [*state.network.parameters(), *state.network.buffers()]
    with torch.no_grad():
        kept = [one.clone() for one in own]
        torch._foreach_copy_(own[: len(state.average)], state.average)
        # Moves the network to the CPU afterwards, and back to the layout of stored files.
        reestimate_batchnorm(state.network, data, device=recipe.device)
        move_to(state.network, recipe.device)
    yield
    with torch.no_grad():
        torch._foreach_copy_([*state.network.parameters(), *state.network.buffers()], kept)


def _own_images(
    batches: list[npt.NDArray[np.int64]], data: FitData, recipe: Recipe, ranks: Ranks
) -> AbstractContextManager[Callable[[int], torch.Tensor]]:
    """Return a context manager that yields a reader of the images of this process, batch by batch."""
    import numpy as np

    rows = np.concatenate([np.empty(0, dtype=np.int64), *(batch[ranks.part(len(batch))] for batch in batches)])
    at_once = None if data.shuffle_buffer is None else max(1, data.shuffle_buffer // ranks.n)
    return data.greys(rows, recipe.device, at_once=at_once)


def _finish_epoch(state: FitState, data: FitData, recipe: Recipe, weight: torch.Tensor | None, stage: str) -> None:
    """Validate, keep the weights if they are to be kept so far, and append the epoch's row; raises ChestxError."""
    import torch

    started_s = time.perf_counter() - state.epoch_s
    loss_of = LOSSES[recipe.loss]
    train_logits, train_labels = torch.cat(state.seen_logits).cpu(), torch.cat(state.seen_labels).cpu()
    state.epoch, state.step = state.epoch + 1, 0
    state.seen_logits, state.seen_labels = [], []
    val_rows = data.split.indices("val")
    own_rows = state.ranks.part(len(val_rows), least=1)
    state.ranks.share_buffers(state.network)
    with _averaged(state, data, recipe):
        own_logits = predict_logits(
            state.folded.refresh(), data, val_rows[own_rows], device=recipe.device, precision=recipe.precision
        )
        state.folded.release()
        validated = cpu_copy(state.network.state_dict()) if state.average is not None else None
    val_logits = state.ranks.gathered(own_logits, len(val_rows), least=1)
    val_labels = torch.from_numpy(data.split.labels[val_rows])
    cpu_weight = None if weight is None else weight.cpu()
    train_loss = float(loss_of(train_logits, train_labels, cpu_weight))
    val_loss = float(loss_of(val_logits, val_labels, cpu_weight))
    if not math.isfinite(train_loss) or not math.isfinite(val_loss):
        raise ChestxError(
            f"{stage} diverged in epoch {state.epoch}: the loss is no longer finite",
            f"lower --lr, or use --precision fp32; {RESTART}",
        )
    is_lowest = is_kept = val_loss < state.lowest_loss
    losses = None
    if recipe.refinements.keep == ONE_SE:
        losses = losses_of_images(loss_of, val_logits, val_labels, cpu_weight)
        if state.lowest_losses is not None and not is_lowest:
            is_kept = is_within_one_error(losses, state.lowest_losses, data.split.groups[val_rows])
    if is_lowest:
        state.lowest_loss, state.lowest_losses = val_loss, losses
    if is_kept:
        state.kept_weights = validated or cpu_copy(state.network.state_dict())
        state.history = [dataclasses.replace(row, kept=False) for row in state.history]
    positive = data.split.positive
    train, val = (
        measure_epoch(_positives(labels, positive), positive_probability(logits, positive))
        for labels, logits in ((train_labels, train_logits), (val_labels, val_logits))
    )
    state.epoch_s = time.perf_counter() - started_s
    state.history.append(
        EpochRow(
            stage=stage,
            epoch=state.epoch,
            train_loss=train_loss,
            train=train,
            val_loss=val_loss,
            val=val,
            duration_s=round(state.epoch_s, 2),
            kept=is_kept,
        )
    )
    state.epoch_s = 0.0


def class_weights(split: Split, recipe: Recipe) -> torch.Tensor | None:
    """Return the class weights, inversely proportional to training frequency, with mean 1 over images; or None."""
    import numpy as np
    import torch

    if recipe.balance not in {"both", "loss"}:
        return None
    counts = np.bincount(split.labels[split.indices("train")])
    return torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32, device=recipe.device)


def _positives(labels: torch.Tensor, positive: int) -> npt.NDArray[np.bool_]:
    is_positive: npt.NDArray[np.bool_] = (labels == positive).numpy()
    return is_positive
