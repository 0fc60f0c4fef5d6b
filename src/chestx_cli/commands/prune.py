"""`chestx prune`: zero the smallest weights, or remove channels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.compression.pruning.allocation import require_sensitivity
from chestx_cli.compression.pruning.method_bases import PruningMethod, PruningStart, PruningTask
from chestx_cli.compression.pruning.methods import PRUNING_METHODS
from chestx_cli.core.command import Run, stage_of_fields
from chestx_cli.core.options import Methods
from chestx_cli.core.shared_options import CheckpointEvery, Force, Name, Parent, Restart, StudyDir
from chestx_cli.networks.devices import reproducible
from chestx_cli.networks.distillation import distilling
from chestx_cli.networks.recipe import Recipe
from chestx_cli.networks.training import fit, recipe_of, training_of
from chestx_cli.networks.training_data import FitData, read_fit_data
from chestx_cli.networks.weights.serialization import load_network, torch_model
from chestx_cli.records.variant import BASELINE, EpochRow, VariantRecord
from chestx_cli.reporting import answers
from chestx_cli.store.directory import Study, open_study
from chestx_cli.store.variants import Making, Plan, Rerun, derived_name, making, open_parent

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.compression.pruning.unstructured import Finetune


@stage_of_fields(
    examples=("chestx prune --method oneshot --amount 0.5", "chestx prune --method iterative --steps 3 --amount 0.2"),
    after="sensitivity",
    answer=answers.of_variant,
)
def prune(
    run: Run,
    *,
    study: StudyDir = Path("study"),
    method: Annotated[
        PruningMethod,
        Methods(registry=PRUNING_METHODS, default="oneshot", help="How to prune."),
    ],
    parent: Parent = BASELINE,
    name: Name = None,
    checkpoint_every: CheckpointEvery = None,
    restart: Restart = False,
    force: Force = False,
) -> VariantRecord:
    """Zero weights or remove channels of a variant.

    Zeros change neither the dense file nor the latency; removing channels makes the network smaller and faster. Both
    invalidate BatchNorm statistics, so these are re-estimated from the training images.
    """
    target = open_study(study)
    split, source = open_parent(run, target, parent)
    network = load_network(target, source)
    kind = method.sensitivity
    measured = require_sensitivity(run, target, source, kind) if kind else None
    start = PruningStart(parent=source, network=network, sensitivity=measured.record if measured else None)
    method = method.settled(start)
    method_name = PRUNING_METHODS.name_of(type(method))
    options = {
        "method": method_name,
        **method.document(network),
        "balance": source.balance,
        "loss": source.loss,
        **({"sensitivity_sha256": measured.sha256} if measured else {}),
    }
    plan = Plan(
        name=name or derived_name(source, method.name(network)),
        method=method_name,
        options=options,
        split=split,
        parent=source,
    )
    with making(run, target, plan, Rerun(force=force, restart=restart, checkpoint_every=checkpoint_every)) as variant:
        return variant.existing or _pruned(run, target, variant, method, start)


def _pruned(run: Run, study: Study, variant: Making, method: PruningMethod, start: PruningStart) -> VariantRecord:
    source = start.parent
    recipe = recipe_of(
        epochs=method.finetune_epochs,
        batch_size=method.batch_size,
        lr=method.lr,
        balance=source.balance,
        loss=source.loss,
        device=method.device,
        precision=method.precision,
        compiled=method.compile,
        seed=method.seed,
        refinements=method.refinements,
    )
    with reproducible(method.seed):
        data = read_fit_data(study, variant.plan.split, source.preprocessing, run.reporter)
        task = PruningTask(
            parent=source,
            network=start.network,
            sensitivity=start.sensitivity,
            data=data,
            recipe=recipe,
            finetune=_finetuner(run, study, variant, method, data, recipe),
            reporter=run.reporter,
        )
        with run.reporter.progress(f"Pruning {source.name}", None):
            pruned = method.prune(task)
    return variant.store(
        torch_model(pruned.network, source.backbone, source.preprocessing),
        training=training_of(pruned.rows, recipe, f"variant {source.name}") if pruned.rows else None,
        pruning=pruned.pruning,
        structure=pruned.structure,
        notes=pruned.notes,
    )


def _finetuner(
    run: Run, study: Study, variant: Making, method: PruningMethod, data: FitData, recipe: Recipe
) -> Finetune | None:
    source = variant.plan.parent
    if not recipe.epochs or source is None:
        return None
    if method.distill:
        teacher = load_network(study, source)
        mix_loss = distilling(
            teacher,
            recipe,
            temperature=method.temperature,
            weight=method.teacher_weight,
            feature_weight=method.feature_weight,
        )
        data = dataclasses.replace(data, mix_loss=mix_loss)

    def finetune(network: nn.Module, step: int) -> list[EpochRow]:
        # A different seed per step, so that batches and augmentation are not the same in every step.
        seeded = dataclasses.replace(recipe, seed=recipe.seed + step)
        return fit(network, data, seeded, run.reporter, stage=f"prune step {step}", checkpoints=variant.checkpoints)

    return finetune
