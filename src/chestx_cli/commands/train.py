"""`chestx train`: fit the baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.commands.shared_options import (
    BatchSize,
    CheckpointEvery,
    Compile,
    Device,
    Force,
    ImageSize,
    LearningRate,
    Precision,
    Restart,
    Seed,
    StudyDir,
)
from chestx_cli.commands.split import split
from chestx_cli.core.command import Run, stage
from chestx_cli.core.errors import StudyError
from chestx_cli.core.files import sha256_of
from chestx_cli.core.options import Opt
from chestx_cli.data.value_range import found_preprocessing
from chestx_cli.evaluation.learned import findings
from chestx_cli.evaluation.predictions import images_of, predictions_of
from chestx_cli.networks.backbones import BACKBONES, build_classifier
from chestx_cli.networks.devices import move_back, move_to, reproducible, resolve_device
from chestx_cli.networks.losses import LOSSES
from chestx_cli.networks.training import BALANCES, fit, recipe_of, training_of
from chestx_cli.networks.training_data import positive_probability, predict_logits, read_fit_data
from chestx_cli.networks.weights.pretrained import LoadedWeights, find_weights, load_weights
from chestx_cli.networks.weights.serialization import store_torch_variant
from chestx_cli.records.variant import BASELINE, VariantRecord
from chestx_cli.study.caveats import caveat, stamps_of, uses_split
from chestx_cli.study.directory import Study
from chestx_cli.study.variants import DECISION_THRESHOLD, Plan, already_made, being_made

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.evaluation.predictions import Predictions
    from chestx_cli.networks.training import Recipe
    from chestx_cli.networks.training_data import FitData
    from chestx_cli.study.checkpoints import Checkpoints
    from chestx_cli.study.split import Split

# Tensors left out of a file of weights that are named.
LISTED = 8

OptionalData = Annotated[
    Path | None,
    Opt(
        help='Images to split if the study has no split yet, as for "chestx split".',
        argument=True,
        identity=False,
        metavar="DATA",
    ),
]


@stage
def train(
    run: Run,
    data: OptionalData = None,
    *,
    study: StudyDir = Path("study"),
    name: Annotated[str, Opt(help="Name of the variant to make.", identity=False)] = BASELINE,
    backbone: Annotated[str, Opt(help="Network from torchvision.", choices=BACKBONES)] = "resnet50",
    weights: Annotated[
        str,
        Opt(
            help="Initial weights: imagenet, none, or a safetensors file or PyTorch checkpoint.",
            metavar="imagenet|none|FILE",
            names_file=True,
        ),
    ] = "imagenet",
    fetch: Annotated[
        bool, Opt(help="Download the ImageNet weights if they are not on this machine.", identity=False)
    ] = False,
    image_size: ImageSize = 224,
    balance: Annotated[
        str, Opt(help="Against class imbalance: weighted sampler, weighted loss, both or none.", choices=BALANCES)
    ] = "both",
    loss: Annotated[str, Opt(help="Cross-entropy, or focal loss with gamma 2.", choices=LOSSES)] = "ce",
    lr: LearningRate = 1e-4,
    batch_size: BatchSize = 32,
    epochs: Annotated[int, Opt(help="Passes over the training images.", minimum=1)] = 12,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Compile = False,
    seed: Seed = 42,
    checkpoint_every: CheckpointEvery = None,
    restart: Restart = False,
    force: Force = False,
) -> VariantRecord:
    """Train the baseline; splits the data first if there is no split yet.

    The network is a torchvision backbone with the head Linear, BatchNorm, ReLU, Dropout, Linear. Training images are
    mirrored, rotated by up to 10° and jittered in brightness and contrast. The epoch of lowest validation loss is kept.
    Where the validation images do not show that it has learned anything, all later tables say UNPROVEN.
    """
    weights_file = find_weights(backbone, weights, fetch=fetch)
    # Asked for here, so that a GPU that is not there is told before anything is written.
    resolve_device(device)
    target = Study(study)
    images = _require_split(run, target, data, seed, image_size)
    initial = f"{weights_file.name} (sha256 {sha256_of(weights_file)})" if weights_file else weights
    plan = Plan(name=name, method="train", options={**run.options, "weights": initial}, split=images)
    checkpoints = being_made(run, target, plan, restart=restart, checkpoint_every=checkpoint_every)
    existing = already_made(run, target, plan, force=force)
    if existing is not None:
        _finish(target, name, checkpoints)
        return existing
    uses_split(run, target, images)
    recipe = recipe_of(run.options, epochs=epochs)
    preprocessing = found_preprocessing(target.read_split_record(), images, image_size, run.reporter)
    fit_data = read_fit_data(target, images, preprocessing, run.reporter)
    with reproducible(seed):
        network = build_classifier(backbone, len(images.classes))
        loaded = load_weights(network, weights_file, BACKBONES[backbone].head) if weights_file else LoadedWeights()
        rows = fit(network, fit_data, recipe, run.reporter, stage="train", checkpoints=checkpoints)
        validated = _validated(network, fit_data, recipe)
    unproven = findings([validated], images.class_pair, "validation images")
    caveats = tuple(caveat(name, finding) for finding in unproven)
    run.stamped(stamps_of(caveats))
    record = store_torch_variant(
        run,
        target,
        plan,
        network,
        backbone=backbone,
        preprocessing=preprocessing,
        training=training_of(rows, recipe, initial),
        unproven=unproven,
        notes=(*_notes(loaded, weights), *caveats),
    )
    _finish(target, name, checkpoints)
    return record


def _validated(network: nn.Module, data: FitData, recipe: Recipe) -> Predictions:
    """Return what a trained network says of the validation images, in FP32 as when it is evaluated."""
    rows, split = data.split.indices("val"), data.split
    logits = predict_logits(move_to(network, recipe.device), data, rows, device=recipe.device, precision="fp32")
    move_back(network)
    return predictions_of(images_of(split, rows), positive_probability(logits, split.positive), DECISION_THRESHOLD)


def _finish(target: Study, name: str, checkpoints: Checkpoints) -> None:
    """Do what is left when a variant lies in its place, or was left to do by a command that was killed then."""
    from chestx_cli.reporting.figures.drawing import draw_older_figures

    checkpoints.clear()
    draw_older_figures(target, ("training-curves",), target.variant(name) / "variant.json")


def _require_split(run: Run, target: Study, data: Path | None, seed: int, image_size: int) -> Split:
    """Return the study's split, made from `data` if there is none; raise StudyError for other `data`."""
    if not target.split_json.exists() and not target.folds_json.exists():
        if data is None:
            raise StudyError(f"no split in {target.root}/", 'name the images: "chestx train DATA"')
        run.call(split, data=data, study=target.root, seed=seed, image_size=image_size)
        return target.read_split()
    images = target.read_split()
    if data is not None and str(data.resolve()) != target.read_split_record().source:
        raise StudyError(
            f"{target.root}/ has a split of other images than {data}",
            f"leave {data} out, or begin another study with --study DIR",
        )
    return images


def _notes(loaded: LoadedWeights, weights: str) -> tuple[str, ...]:
    """Return what was done with a file of weights that was more than the backbone's plain state dict."""
    file, notes = Path(weights).name, []
    if loaded.wrappers or loaded.prefix:
        where = f"'{' / '.join(loaded.wrappers)}' of {file}" if loaded.wrappers else file
        notes.append(
            f"Initial weights are from {where}"
            + (f"; the prefix '{loaded.prefix}' was taken off their names." if loaded.prefix else ".")
        )
    if dropped := loaded.dropped:
        listed = ", ".join(dropped[:LISTED]) + (", …" if len(dropped) > LISTED else "")
        notes.append(f"{len(dropped)} tensors of {file} are left out (the study has a head of its own): {listed}.")
    return tuple(notes)
