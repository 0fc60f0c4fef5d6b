"""`chestx prune`: zero the smallest weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.devices import reproducible, resolve_device, resolve_precision
from chestx_cli.fitting import FitData, Recipe, fit
from chestx_cli.models import load_network
from chestx_cli.options import BatchSize, Device, Force, LearningRate, Name, Opt, Parent, Precision, Seed, StudyDir
from chestx_cli.pixels import open_pixels
from chestx_cli.pruning import (
    PRUNING_METHODS,
    Finetune,
    asked_sparsity,
    layer_sparsity,
    overall_sparsity,
    prune_globally,
)
from chestx_cli.records import EpochRow, Pruning, Training, VariantRecord
from chestx_cli.stage import Run, stage
from chestx_cli.study import BASELINE, Study
from chestx_cli.variants import Plan, already_made, derived_name, store_torch_variant

if TYPE_CHECKING:
    from torch import nn

ZEROS_NOTE = (
    "Zeros alone change neither the dense file nor the latency: the file keeps its size and every multiplication "
    "is still made. They pay only with a sparse format or runtime."
)


@stage
def prune(
    run: Run,
    *,
    study: StudyDir = Path("study"),
    method: Annotated[
        str, Opt(help="One-shot, or in steps with fine-tuning after each.", choices=PRUNING_METHODS)
    ] = "oneshot",
    amount: Annotated[
        float | None,
        Opt(
            help="Share of the remaining weights that a step removes; 0.5 one-shot, 0.2 iterative.",
            above=0,
            maximum=0.99,
        ),
    ] = None,
    steps: Annotated[int | None, Opt(help="Steps; 1 one-shot, 3 iterative.", minimum=1)] = None,
    finetune_epochs: Annotated[
        int | None, Opt(help="Epochs of fine-tuning after each step; 0 one-shot, 2 iterative.", minimum=0)
    ] = None,
    parent: Parent = BASELINE,
    name: Name = None,
    lr: LearningRate = 1e-4,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    precision: Precision = "auto",
    seed: Seed = 42,
    force: Force = False,
) -> VariantRecord:
    """Prune a variant by global L1 over all Conv2d and Linear weights; masks are held while fine-tuning.

    Makes zeros, not a smaller network: the dense file and the latency stay as they are.
    """
    schedule = PRUNING_METHODS[method]
    amount = schedule.default_amount if amount is None else amount
    steps = schedule.default_steps if steps is None else steps
    finetune_epochs = schedule.default_finetune_epochs if finetune_epochs is None else finetune_epochs
    target = Study(study)
    split = target.read_split()
    source = target.read_parent(parent, split)
    options = {
        "method": method,
        "amount": amount,
        "steps": steps,
        "finetune_epochs": finetune_epochs,
        "balance": source.options["balance"],
        "loss": source.options["loss"],
    }
    if finetune_epochs:
        # Without fine-tuning these change nothing, so they make no other variant.
        options |= {"lr": lr, "batch_size": batch_size, "device": device, "precision": precision, "seed": seed}
    plan = Plan(
        name=name or derived_name(source, schedule.name(amount, steps)),
        method=method,
        options=options,
        split=split,
        parent=source,
    )
    existing = already_made(run, target, plan, force=force)
    if existing is not None:
        return existing
    run.uses("split.csv", split.sha256)
    run.uses(f"{parent}/{source.model_file}", source.model_sha256)
    device = resolve_device(device)
    recipe = Recipe(
        epochs=finetune_epochs,
        batch_size=batch_size,
        learning_rate=lr,
        balance=source.options["balance"],
        loss=source.options["loss"],
        device=device,
        precision=resolve_precision(precision, device),
        seed=seed,
    )
    network = load_network(target, source)
    finetune = None
    if finetune_epochs:
        pixels = open_pixels(target, split, source.preprocessing, run.reporter)
        finetune = _finetuner(run, FitData(pixels=pixels, split=split, preprocessing=source.preprocessing), recipe)
    before = overall_sparsity(layer_sparsity(network))
    with reproducible(seed):
        rows = prune_globally(network, amount=amount, steps=steps, finetune=finetune)
    layers = layer_sparsity(network)
    pruning = Pruning(
        asked_sparsity=asked_sparsity(before, amount, steps),
        achieved_sparsity=overall_sparsity(layers),
        finetune_epochs=finetune_epochs * steps,
        layers=layers,
    )
    return store_torch_variant(
        run,
        target,
        plan,
        network,
        backbone=source.backbone,
        preprocessing=source.preprocessing,
        pruning=pruning,
        training=_training(rows, recipe, source),
        notes=(ZEROS_NOTE,),
    )


def _finetuner(run: Run, data: FitData, recipe: Recipe) -> Finetune:
    def finetune(network: nn.Module, step: int) -> list[EpochRow]:
        # Another seed per step: the same batches in the same order would be no new epochs.
        seeded = dataclasses.replace(recipe, seed=recipe.seed + step)
        return fit(network, data, seeded, run.reporter, stage=f"prune step {step}")

    return finetune


def _training(rows: list[EpochRow], recipe: Recipe, source: VariantRecord) -> Training | None:
    """Return how the weights were fine-tuned; the kept epoch is that of the last step."""
    if not rows:
        return None
    kept = [row for row in rows if row.kept][-1]
    return Training(
        device=recipe.device,
        precision=recipe.precision,
        initial_weights=f"variant {source.name}",
        best_epoch=kept.epoch,
        best_val_loss=kept.val_loss,
        epochs=tuple(rows),
    )
