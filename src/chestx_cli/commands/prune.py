"""`chestx prune`: zero the smallest weights, or remove channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from chestx_cli.commands.shared_options import (
    BatchSize,
    CheckpointEvery,
    Compile,
    Device,
    Force,
    LearningRate,
    Name,
    Parent,
    Precision,
    Restart,
    Seed,
    StudyDir,
)
from chestx_cli.compression.pruning.allocation import by_sensitivity, prune_zeros_guided, require_sensitivity
from chestx_cli.compression.pruning.channel_removal import Limits
from chestx_cli.compression.pruning.criteria import CRITERIA, usual_criterion
from chestx_cli.compression.pruning.methods import (
    BUDGETS,
    PRUNING_METHODS,
    ZEROS,
    default_name,
    removes,
    settled_options,
    statistics_of,
    telling_options,
)
from chestx_cli.compression.pruning.structured import Cutting, layer_widths, prune_channels
from chestx_cli.compression.pruning.unstructured import (
    Finetune,
    Recalibrate,
    asked_sparsity,
    layer_sparsity,
    overall_sparsity,
    prune_globally,
)
from chestx_cli.core.command import Run, answering
from chestx_cli.core.errors import StudyError
from chestx_cli.core.options import Opt
from chestx_cli.networks.backbones import output_layer
from chestx_cli.networks.devices import reproducible
from chestx_cli.networks.distillation import distilling
from chestx_cli.networks.layers import count_macs, count_parameters
from chestx_cli.networks.recalibration import batchnorm_layers, reestimate_batchnorm
from chestx_cli.networks.training import Recipe, fit, recipe_of, training_of
from chestx_cli.networks.training_data import FitData, read_fit_data
from chestx_cli.networks.weights.serialization import load_network, store_torch_variant
from chestx_cli.records.sensitivity import GroupSensitivityRecord, SensitivityRecord
from chestx_cli.records.variant import (
    BASELINE,
    NO_BATCHNORM,
    REESTIMATED,
    STATISTICS_NOTES,
    ZEROS_NOTE,
    EpochRow,
    Pruning,
    Structure,
    VariantRecord,
)
from chestx_cli.reporting import answers
from chestx_cli.study.directory import Study
from chestx_cli.study.variants import Plan, already_made, being_made, derived_name, open_parent

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.study.checkpoints import Checkpoints

DECISION_NOTE = (
    "Removing channels moves the decision more than the order of the images: where accuracy falls and AUROC does not, "
    "the threshold is to be taken from the validation split anew."
)

Sensitivity = GroupSensitivityRecord | SensitivityRecord | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruned:
    """A pruned network, the epochs that it was fine-tuned for, and what the record says of the pruning."""

    network: nn.Module
    rows: list[EpochRow]
    parts: dict[str, Any]


@answering(answers.of_variant)
def prune(
    run: Run,
    *,
    study: StudyDir = Path("study"),
    method: Annotated[
        str,
        Opt(
            help="Zeros at once, zeros in steps with fine-tuning, channels removed physically, or channels or zeros "
            "where the measured sensitivity is least.",
            choices=PRUNING_METHODS,
        ),
    ] = "oneshot",
    amount: Annotated[
        float | None,
        Opt(
            help="Share to remove: of the remaining weights in each step (0.5 one-shot, 0.2 iterative), of all MACs "
            "(0.5 structured), or of the budget (0.5 guided).",
            above=0,
            maximum=0.99,
        ),
    ] = None,
    steps: Annotated[int | None, Opt(help="Steps; 3 iterative, otherwise 1.", minimum=1)] = None,
    finetune_epochs: Annotated[
        int | None,
        Opt(help="Epochs of fine-tuning after each step; 0 one-shot, otherwise 2.", minimum=0),
    ] = None,
    budget: Annotated[
        str | None, Opt(help="What --method guided spends: MACs (channels) or sparsity (zeros).", choices=BUDGETS)
    ] = None,
    criterion: Annotated[
        str | None,
        Opt(
            help="What tells the channels to remove; bn-scale by default, l2 in networks without BatchNorm, and with "
            "guided that of the sensitivity.",
            choices=CRITERIA,
        ),
    ] = None,
    round_to: Annotated[
        int | None, Opt(help="Channels stay in multiples of this; 8 by default.", minimum=1, maximum=64)
    ] = None,
    floor: Annotated[
        float | None,
        Opt(help="Least share of a group's channels that stays; 0.1 by default.", minimum=0, maximum=1),
    ] = None,
    recalibrate: Annotated[
        bool,
        Opt(
            help="Re-estimate BatchNorm statistics from the training images after each step; zeros can be made without "
            "it, as the plain method."
        ),
    ] = True,
    distill: Annotated[bool, Opt(help="Fine-tune with the parent as teacher.")] = False,
    temperature: Annotated[
        float | None, Opt(help="Temperature that softens teacher and student; 4 by default.", above=0)
    ] = None,
    teacher_weight: Annotated[
        float | None, Opt(help="Share of the teacher in the loss; 0.5 by default.", above=0, maximum=1)
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
    """Prune a variant: one-shot and iterative make zeros, structured and guided remove channels.

    Zeros change neither the dense file nor the latency; removed channels make a smaller and faster network. Both leave
    BatchNorm statistics that no longer fit, so these are re-estimated from the training images.
    """
    target = Study(study)
    split, source = open_parent(run, target, parent)
    inherited = {"balance": source.options["balance"], "loss": source.options["loss"]}
    settled = settled_options(method, {**run.options, **inherited})
    network = load_network(target, source)
    options, sensitivity = _settled_here(run, target, source, network, settled)
    plan = Plan(
        name=name or derived_name(source, default_name(options)),
        method=method,
        options=telling_options(options),
        split=split,
        parent=source,
    )
    checkpoints = being_made(run, target, plan, restart=restart, checkpoint_every=checkpoint_every)
    existing = already_made(run, target, plan, force=force)
    if existing is not None:
        checkpoints.clear()
        return existing
    recipe = recipe_of(options, epochs=options["finetune_epochs"])
    with reproducible(seed):
        data = read_fit_data(target, split, source.preprocessing, run.reporter)
        finetune = _finetuner(run, target, source, data, recipe, options, checkpoints)
        if removes(method, options) == ZEROS:
            done = _prune_zeros(network, options, _recalibrator(run, data, recipe, options), finetune, sensitivity)
        else:
            done = _prune_channels(run, network, data, recipe, options, finetune, sensitivity, source)
    record = store_torch_variant(
        run,
        target,
        plan,
        done.network,
        backbone=source.backbone,
        preprocessing=source.preprocessing,
        training=training_of(done.rows, recipe, f"variant {source.name}") if done.rows else None,
        **done.parts,
    )
    checkpoints.clear()
    return record


def _settled_here(
    run: Run, study: Study, source: VariantRecord, network: nn.Module, options: dict[str, Any]
) -> tuple[dict[str, Any], Sensitivity]:
    """Return the options with what the network and a guided pruning settle, and the sensitivity that this takes."""
    zeros = removes(options["method"], options) == ZEROS
    if not batchnorm_layers(network):
        # With or without: the variant is the same.
        options = {name: value for name, value in options.items() if name != "recalibrate"}
    if "budget" not in options:
        usual = {} if zeros else {"criterion": options["criterion"] or usual_criterion(network)}
        return {**options, **usual}, None
    if zeros:
        found: Sensitivity = require_sensitivity(run, study, source, SensitivityRecord)
    else:
        found = measured = require_sensitivity(run, study, source, GroupSensitivityRecord)
        asked = options["criterion"] or measured.criterion
        if asked != measured.criterion:
            raise StudyError(
                f"the sensitivity of {source.name} was measured with --criterion {measured.criterion}, not {asked}",
                f'run "chestx sensitivity --structured --criterion {asked} --from {source.name}" first',
            )
        options = {**options, "criterion": asked}
    (sha256,) = (value for key, value in run.inputs.items() if "/sensitivity" in key)
    return {**options, "sensitivity_sha256": sha256}, found


def _finetuner(
    run: Run,
    study: Study,
    source: VariantRecord,
    data: FitData,
    recipe: Recipe,
    options: Mapping[str, Any],
    checkpoints: Checkpoints,
) -> Finetune | None:
    if not recipe.epochs:
        return None
    if options["distill"]:
        hook = distilling(
            load_network(study, source),
            recipe,
            temperature=options["temperature"],
            weight=options["teacher_weight"],
        )
        data = dataclasses.replace(data, mix_loss=hook)

    def finetune(network: nn.Module, step: int) -> list[EpochRow]:
        # Another seed per step: the same batches in the same order would be no new epochs.
        seeded = dataclasses.replace(recipe, seed=recipe.seed + step)
        return fit(network, data, seeded, run.reporter, stage=f"prune step {step}", checkpoints=checkpoints)

    return finetune


def _recalibrator(run: Run, data: FitData, recipe: Recipe, options: Mapping[str, Any]) -> Recalibrate | None:
    if statistics_of(options) != REESTIMATED:
        return None
    return lambda network: reestimate_batchnorm(network, data, device=recipe.device, reporter=run.reporter)


def _prune_zeros(
    network: nn.Module,
    options: Mapping[str, Any],
    recalibrate: Recalibrate | None,
    finetune: Finetune | None,
    sensitivity: Sensitivity,
) -> Pruned:
    amount, steps = options["amount"], options["steps"]
    before = overall_sparsity(layer_sparsity(network))
    if isinstance(sensitivity, SensitivityRecord):
        asked = asked_sparsity(before, amount, 1)
        rows = prune_zeros_guided(
            network, sensitivity, amount=amount, steps=steps, recalibrate=recalibrate, finetune=finetune
        )
    else:
        asked = asked_sparsity(before, amount, steps)
        rows = prune_globally(network, amount=amount, steps=steps, recalibrate=recalibrate, finetune=finetune)
    layers = layer_sparsity(network)
    statistics = statistics_of(options)
    pruning = Pruning(
        asked_sparsity=asked,
        achieved_sparsity=overall_sparsity(layers),
        batchnorm_statistics=statistics,
        finetune_epochs=options["finetune_epochs"] * steps,
        layers=layers,
    )
    notes = (ZEROS_NOTE, STATISTICS_NOTES[statistics])
    return Pruned(network=network, rows=rows, parts={"pruning": pruning, "notes": notes})


def _prune_channels(
    run: Run,
    network: nn.Module,
    data: FitData,
    recipe: Recipe,
    options: Mapping[str, Any],
    finetune: Finetune | None,
    sensitivity: Sensitivity,
    source: VariantRecord,
) -> Pruned:
    cutting = Cutting(
        criterion=options["criterion"],
        limits=Limits(round_to=options["round_to"], floor=options["floor"]),
        kept_layer=output_layer(source.backbone),
        device=recipe.device,
        precision=recipe.precision,
        seed=recipe.seed,
    )
    pruned, rows = prune_channels(
        network,
        data,
        cutting,
        amount=options["amount"],
        steps=options["steps"],
        finetune=finetune,
        allocator=by_sensitivity(sensitivity) if isinstance(sensitivity, GroupSensitivityRecord) else None,
        reporter=run.reporter,
    )
    parameters, _ = count_parameters(pruned)
    structure = Structure(
        criterion=options["criterion"],
        round_to=options["round_to"],
        floor=options["floor"],
        asked_macs_removed=options["amount"],
        achieved_macs_removed=1 - count_macs(pruned, data.preprocessing.image_size_px) / source.macs,
        parent_macs=source.macs,
        parameters_removed=1 - parameters / source.parameters,
        parent_parameters=source.parameters,
        batchnorm_statistics=REESTIMATED if batchnorm_layers(pruned) else NO_BATCHNORM,
        finetune_epochs=options["finetune_epochs"] * options["steps"],
        layers=layer_widths(network, pruned),
    )
    return Pruned(network=pruned, rows=rows, parts={"structure": structure, "notes": (DECISION_NOTE,)})
