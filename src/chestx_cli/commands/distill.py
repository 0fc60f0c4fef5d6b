"""`chestx distill`: another network learns from a variant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from chestx_cli.commands.train import Fetch, Initial, InitialWeights, fit_new
from chestx_cli.core.command import Run, stage_of_fields
from chestx_cli.core.options import FIELDS, TRAINING, Opt
from chestx_cli.core.shared_options import (
    TEACHER_WEIGHT,
    TEMPERATURE,
    BatchSize,
    CheckpointEvery,
    Compile,
    Device,
    FeatureWeight,
    Force,
    LearningRate,
    Name,
    Precision,
    Refinements,
    Restart,
    Seed,
    StudyDir,
    TeacherWeight,
    Temperature,
)
from chestx_cli.networks.backbones import BACKBONES
from chestx_cli.networks.distillation import distilling
from chestx_cli.networks.training import recipe_of
from chestx_cli.networks.training_data import read_fit_data
from chestx_cli.networks.weights.pretrained import find_weights
from chestx_cli.networks.weights.serialization import load_network
from chestx_cli.records.variant import BASELINE, DISTILLED, VariantRecord
from chestx_cli.reporting import answers
from chestx_cli.store.directory import open_study
from chestx_cli.store.variants import Plan, Rerun, derived_name, making, open_parent


@stage_of_fields(
    examples=(
        "chestx distill --backbone mobilenet_v3_small --fetch",
        "chestx distill --backbone resnet18 --weights none --epochs 40",
        "chestx distill --backbone mobilenet_v3_small --width 0.5",
    ),
    after="prune",
    answer=answers.of_variant,
    check=lambda options: Refinements.of(options).require_possible(options["epochs"]),
)
def distill(
    run: Run,
    *,
    study: StudyDir = Path("study"),
    teacher: Annotated[str, Opt(help="Torch variant to learn from.", flag="--from", identity=False)] = BASELINE,
    name: Name = None,
    backbone: Annotated[str, Opt(help="Network to train.", choices=BACKBONES)] = "mobilenet_v3_small",
    width: Annotated[
        float, Opt(help="Share of its channels in each layer.", above=0, maximum=1, metavar="SHARE")
    ] = 1.0,
    weights: InitialWeights = "imagenet",
    fetch: Fetch = False,
    temperature: Temperature = TEMPERATURE,
    teacher_weight: TeacherWeight = TEACHER_WEIGHT,
    feature_weight: FeatureWeight = 0.0,
    lr: LearningRate = 1e-4,
    batch_size: BatchSize = 32,
    epochs: Annotated[int, Opt(help="Passes over the training images.", minimum=1, panel=TRAINING)] = 12,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Compile = False,
    refinements: Annotated[Refinements, FIELDS],
    seed: Seed = 42,
    checkpoint_every: CheckpointEvery = None,
    restart: Restart = False,
    force: Force = False,
) -> VariantRecord:
    """Train another, smaller network with a variant as teacher.

    The student is a new network: a torchvision backbone with the head of the study. It learns from the labels and from
    the teacher's probabilities on the same augmented images, as with prune --distill (Hinton et al. 2015). Its input is
    the teacher's, and so are the loss and the balance of classes. It can be pruned and quantized like any variant, and
    is stale when its teacher is replaced. With --width 0.5 every layer of the backbone has half of its channels, and
    the network about a quarter of its MACs: with initial weights the channels of largest norm remain.
    """
    target = open_study(study)
    images, source = open_parent(run, target, teacher)
    initial = Initial.of(backbone, weights, find_weights(backbone, weights, fetch=fetch), width=width)
    options = {**run.options, "weights": initial.recorded, "balance": source.balance, "loss": source.loss}
    plan = Plan(
        name=name or derived_name(source, student_suffix(backbone, width)),
        method=DISTILLED,
        options=options,
        split=images,
        parent=source,
    )
    with making(run, target, plan, Rerun(force=force, restart=restart, checkpoint_every=checkpoint_every)) as variant:
        if variant.existing:
            return variant.existing
        recipe = recipe_of(
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            balance=source.balance,
            loss=source.loss,
            device=device,
            precision=precision,
            compiled=compile,
            seed=seed,
            refinements=refinements,
        )
        data = read_fit_data(target, images, source.preprocessing, run.reporter)
        mix_loss = distilling(
            load_network(target, source),
            recipe,
            temperature=temperature,
            weight=teacher_weight,
            feature_weight=feature_weight,
        )
        return fit_new(run, variant, recipe, initial, replace(data, mix_loss=mix_loss))


def student_suffix(backbone: str, width: float) -> str:
    """Return the default name of a student whose teacher is the baseline."""
    return f"{backbone}-student" if width == 1 else f"{backbone}-width-{width * 100:g}-student"
