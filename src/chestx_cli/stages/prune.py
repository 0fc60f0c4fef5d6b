"""`chestx prune`: zero the smallest weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.devices import reproducible
from chestx_cli.errors import UsageError
from chestx_cli.fitting import FitData, Recipe, fit, read_fit_data, recipe_of, training_of
from chestx_cli.models import load_network
from chestx_cli.options import (
    BatchSize,
    CheckpointEvery,
    Compile,
    Device,
    Force,
    LearningRate,
    Name,
    Opt,
    Parent,
    Precision,
    Restart,
    Seed,
    StudyDir,
)
from chestx_cli.pruning import (
    PRUNING_METHODS,
    ZEROS_NOTE,
    Finetune,
    asked_sparsity,
    layer_sparsity,
    overall_sparsity,
    prune_globally,
)
from chestx_cli.records import EpochRow, Pruning, VariantRecord
from chestx_cli.stage import Run, stage
from chestx_cli.study import BASELINE, Study
from chestx_cli.variants import Plan, already_made, being_made, derived_name, open_parent, store_torch_variant

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.checkpoints import Checkpoints

FINETUNE_OPTIONS = frozenset({"lr", "batch_size", "device", "precision", "compile", "seed"})


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
    compile: Compile = False,
    seed: Seed = 42,
    checkpoint_every: CheckpointEvery = None,
    restart: Restart = False,
    force: Force = False,
) -> VariantRecord:
    """Prune a variant by global L1 over all Conv2d and Linear weights; masks are held while fine-tuning.

    Makes zeros, not a smaller network: the dense file and the latency stay as they are.
    """
    schedule = PRUNING_METHODS[method]
    amount = schedule.default_amount if amount is None else amount
    steps = schedule.default_steps if steps is None else steps
    finetune_epochs = schedule.default_finetune_epochs if finetune_epochs is None else finetune_epochs
    if steps > schedule.max_steps:
        raise UsageError(f"--method {method} takes {schedule.max_steps} step, not {steps}", "use --method iterative")
    target = Study(study)
    split, source = open_parent(run, target, parent)
    options = {
        **run.options,
        "amount": amount,
        "steps": steps,
        "finetune_epochs": finetune_epochs,
        "balance": source.options["balance"],
        "loss": source.options["loss"],
    }
    plan = Plan(
        name=name or derived_name(source, schedule.name(amount, steps)),
        method=method,
        # Without fine-tuning its options change nothing, so they make no other variant.
        options={key: value for key, value in options.items() if finetune_epochs or key not in FINETUNE_OPTIONS},
        split=split,
        parent=source,
    )
    checkpoints = being_made(run, target, plan, restart=restart, checkpoint_every=checkpoint_every)
    existing = already_made(run, target, plan, force=force)
    if existing is not None:
        return existing
    recipe = recipe_of(options, epochs=finetune_epochs)
    finetune = None
    if finetune_epochs:
        fit_data = read_fit_data(target, split, source.preprocessing, run.reporter)
        finetune = _finetuner(run, fit_data, recipe, checkpoints)
    network = load_network(target, source)
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
    record = store_torch_variant(
        run,
        target,
        plan,
        network,
        backbone=source.backbone,
        preprocessing=source.preprocessing,
        pruning=pruning,
        training=training_of(rows, recipe, f"variant {source.name}") if rows else None,
        notes=(ZEROS_NOTE,),
    )
    checkpoints.clear()
    return record


def _finetuner(run: Run, data: FitData, recipe: Recipe, checkpoints: Checkpoints) -> Finetune:
    def finetune(network: nn.Module, step: int) -> list[EpochRow]:
        # Another seed per step: the same batches in the same order would be no new epochs.
        seeded = dataclasses.replace(recipe, seed=recipe.seed + step)
        return fit(network, data, seeded, run.reporter, stage=f"prune step {step}", checkpoints=checkpoints)

    return finetune
