"""`chestx train`: fit the baseline."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from chestx_cli.commands.split import split
from chestx_cli.compression.pruning.width import at_width
from chestx_cli.core.command import Run, stage_of_fields
from chestx_cli.core.errors import StudyError, UsageError, WeightsError, again
from chestx_cli.core.files import identified
from chestx_cli.core.options import FIELDS, TRAINING, Opt
from chestx_cli.core.printable import paragraph
from chestx_cli.core.progress import SilentReporter
from chestx_cli.core.shared_options import (
    BatchSize,
    CheckpointEvery,
    Compile,
    Device,
    Force,
    ImageSize,
    LearningRate,
    Precision,
    Refinements,
    Restart,
    Seed,
    StudyDir,
)
from chestx_cli.data.likeness.stored import keep_training_images
from chestx_cli.data.value_range import found_value_bits, preprocessing_of
from chestx_cli.evaluation.learned import findings
from chestx_cli.evaluation.predictions import images_of, predictions_of
from chestx_cli.networks.backbones import BACKBONES, build_classifier, head_of
from chestx_cli.networks.devices import move_back, move_to, reproducible, resolve_device
from chestx_cli.networks.losses import LOSSES
from chestx_cli.networks.parallel.launching import train_together
from chestx_cli.networks.parallel.ranks import ALONE, joined, launched, require_possible, require_room, restarted
from chestx_cli.networks.recalibration import reestimate_batchnorm
from chestx_cli.networks.training import BALANCES, fit, recipe_of, training_of
from chestx_cli.networks.training_data import (
    SHUFFLE_BUFFER,
    buffer_of,
    positive_probability,
    predict_logits,
    read_fit_data,
)
from chestx_cli.networks.weights.pretrained import LoadedWeights, find_weights, load_weights
from chestx_cli.networks.weights.serialization import torch_model
from chestx_cli.records.preprocessing import RESIZED, SQUASH, Preprocessing
from chestx_cli.records.variant import BASELINE, VariantRecord
from chestx_cli.reporting import answers
from chestx_cli.store.caveats import caveat, stamps_of, uses_split
from chestx_cli.store.directory import Study, open_study
from chestx_cli.store.variants import DECISION_THRESHOLD, Making, Plan, Rerun, making

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.core.progress import Reporter
    from chestx_cli.core.record import Options
    from chestx_cli.evaluation.predictions import Predictions
    from chestx_cli.networks.parallel.ranks import Ranks
    from chestx_cli.networks.recipe import Recipe
    from chestx_cli.networks.training_data import FitData
    from chestx_cli.store.split import Split

# Largest number of left-out tensors to list by name.
LISTED = 8

InitialWeights = Annotated[
    str,
    Opt(
        help="imagenet, none, or a file of weights.",
        metavar="imagenet|none|FILE",
        names_file=True,
    ),
]
Fetch = Annotated[bool, Opt(help="Download missing ImageNet weights.", identity=False)]
OptionalData = Annotated[
    Path | None,
    Opt(
        help="Images to split first, if there is no split.",
        argument=True,
        identity=False,
        metavar="DATA",
    ),
]


def _require_possible_fit(options: Options) -> None:
    Refinements.of(options).require_possible(options["epochs"])
    if options["ema"] and options["sync_batchnorm"]:
        raise UsageError("--ema estimates BatchNorm statistics itself", again("--no-sync-batchnorm"))


@stage_of_fields(
    examples=("chestx train data/", "chestx train --name resnet18 --backbone resnet18 --epochs 20"),
    after="split",
    answer=answers.of_variant,
    check=_require_possible_fit,
)
def train(
    run: Run,
    data: OptionalData = None,
    *,
    study: StudyDir = Path("study"),
    name: Annotated[str, Opt(help="Name of the variant to make.", identity=False)] = BASELINE,
    backbone: Annotated[str, Opt(help="Network to train.", choices=BACKBONES)] = "resnet50",
    weights: InitialWeights = "imagenet",
    fetch: Fetch = False,
    image_size: ImageSize = 224,
    resize: Annotated[str, Opt(help="How other shapes become that square.", choices=RESIZED)] = SQUASH,
    balance: Annotated[str, Opt(help="How to weight against class imbalance.", choices=BALANCES)] = "both",
    loss: Annotated[str, Opt(help="Cross-entropy, or focal loss with gamma 2.", choices=LOSSES)] = "ce",
    lr: LearningRate = 1e-4,
    batch_size: BatchSize = 32,
    epochs: Annotated[int, Opt(help="Passes over the training images.", minimum=1)] = 12,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Compile = False,
    refinements: Annotated[Refinements, FIELDS],
    seed: Seed = 42,
    processes: Annotated[
        int,
        Opt(help="Processes here that share each batch.", minimum=1, identity=False, panel=TRAINING),
    ] = 1,
    sync_batchnorm: Annotated[
        bool, Opt(help="BatchNorm over all processes' images.", identity=False, panel=TRAINING)
    ] = False,
    shuffle_buffer: Annotated[
        int | None,
        Opt(
            help=f"Read in order, this many shuffled at once; shards {SHUFFLE_BUFFER}.",
            minimum=1,
            panel=TRAINING,
        ),
    ] = None,
    checkpoint_every: CheckpointEvery = None,
    restart: Restart = False,
    force: Force = False,
) -> VariantRecord:
    """Train the baseline; split the data first if need be.

    The network is a torchvision backbone with the head Linear, BatchNorm, ReLU, Dropout, Linear. Training images are
    mirrored, rotated by up to 10° and jittered in brightness and contrast. The epoch of lowest validation loss is kept.
    If the validation images do not show that it has learned anything, all later tables are marked UNPROVEN.

    Several processes, started by --processes or torchrun, share each batch of --batch-size images; each has its own
    GPU or share of the CPUs. BatchNorm then normalises over each process's images, which is noisy below about 16; with
    --sync-batchnorm it normalises over all of them, as one process would.
    """
    weights_file = None
    if not launched():
        # Before torch is loaded, so that an error is reported at once.
        if data is None:
            _require_images(open_study(study))
        weights_file = _found_weights(Study(study), name, backbone, weights, fetch=fetch)
    size = Preprocessing(image_size_px=image_size, resize=resize)
    # Resolved here, so that a missing GPU is reported before anything is written.
    resolved = resolve_device(device)
    _require_whole_batches(refinements.mixup, processes)
    if processes > 1 and not launched():
        require_room(processes, resolved, named=f"--processes {processes}")
        require_possible(processes, batch_size=batch_size, sync_batchnorm=sync_batchnorm, compiled=compile)
        target = open_study(study)
        _require_split(run, target, data, seed, size)
        words = shlex.split(run.line)[1:]
        train_together(processes, words, [word for word in words if word != "--restart"], run.reporter)
        return target.read_variant(name)
    with joined(resolved, processes, batch_size=batch_size, sync_batchnorm=sync_batchnorm, compiled=compile) as ranks:
        _require_whole_batches(refinements.mixup, ranks.n)
        if ranks.n > 1 and processes == 1:
            run.command += f" --processes {ranks.n}"
        if not ranks.is_first:
            run.reporter = SilentReporter()
            # Wait until the first process has made, or found, the files that all of them read.
            ranks.meet()
        if launched():
            # Only now, so that only one process downloads them.
            weights_file = find_weights(backbone, weights, fetch=fetch)
        target = open_study(study)
        images = _require_split(run, target, data, seed, size)
        initial = Initial.of(backbone, weights, weights_file)
        options = {"weights": initial.recorded, **_parts_of(ranks, images, shuffle_buffer)}
        plan = Plan(name=name, method="train", options={**run.options, **options}, split=images)
        rerun = Rerun(force=force, restart=restart and not restarted(), checkpoint_every=checkpoint_every)
        with making(run, target, plan, rerun, leads=ranks.is_first) as variant:
            record = variant.existing
            if record is None:
                recipe = recipe_of(
                    epochs=epochs,
                    batch_size=batch_size,
                    lr=lr,
                    balance=balance,
                    loss=loss,
                    device=device,
                    precision=precision,
                    compiled=compile,
                    seed=seed,
                    refinements=refinements,
                )
                record = _trained(run, target, variant, recipe, initial, size, ranks, shuffle_buffer)
            elif ranks.is_first:
                ranks.meet()
        if ranks.is_first:
            keep_training_images(run, target, images, record.preprocessing)
            # Also for an existing variant, whose command may have been killed before drawing.
            from chestx_cli.reporting.figures.drawing import draw_figures

            draw_figures(target, ("training-curves",), run.reporter)
    return record


def _found_weights(study: Study, name: str, backbone: str, weights: str, *, fetch: bool) -> Path | None:
    """Return the file of the initial weights, if any; raises WeightsError, also naming an existing variant."""
    try:
        return find_weights(backbone, weights, fetch=fetch)
    except WeightsError as error:
        if (study.variant(name) / "variant.json").exists():
            raise WeightsError(
                f"variant {name} exists already, and {error.fact}",
                f'"chestx status" shows what it is and what comes next; {again("--weights none --force")} trains it '
                "again, from scratch",
            ) from error
        raise


def _parts_of(ranks: Ranks, images: Split, shuffle_buffer: int | None) -> dict[str, int]:
    """Return the options by which a fit of several processes differs from that of one."""
    parts = {}
    if ranks.batchnorm_parts > 1:
        parts["batchnorm_parts"] = ranks.batchnorm_parts
    if ranks.n > 1 and buffer_of(images, shuffle_buffer) is not None:
        parts["shuffled_parts"] = ranks.n
    return parts


def _require_whole_batches(mixup: float, processes: int) -> None:
    if mixup and processes > 1:
        raise UsageError("--mixup mixes images of a whole batch, of which each process has a part", again("--mixup 0"))


@dataclass(frozen=True, kw_only=True)
class Initial:
    """The initial network: the backbone, and its weights as named in the option, as a file and as recorded.

    width: share of the channels that each layer of the backbone keeps.
    """

    backbone: str
    name: str
    file: Path | None
    recorded: str
    width: float = 1.0

    @classmethod
    def of(cls, backbone: str, weights: str, file: Path | None, *, width: float = 1.0) -> Self:
        """Return the initial network of the option `weights` and the file that it stands for, if any."""
        recorded = identified(file) if file else weights
        return cls(backbone=backbone, name=Path(weights).name, file=file, recorded=recorded, width=width)


def _trained(
    run: Run,
    target: Study,
    variant: Making,
    recipe: Recipe,
    initial: Initial,
    size: Preprocessing,
    ranks: Ranks,
    shuffle_buffer: int | None,
) -> VariantRecord:
    images = variant.plan.split
    uses_split(run, target, images)
    if ranks.is_first:
        value_bits = found_value_bits(target.read_split_record(), images, run.reporter)
    else:
        # The first may have read every image for it.
        value_bits = ranks.agreed(0)
    as_split = preprocessing_of(target.read_split_record(), size.image_size_px)
    preprocessing = replace(as_split, resize=size.resize, value_bits=value_bits)
    data = read_fit_data(target, images, preprocessing, run.reporter, shuffle_buffer=shuffle_buffer)
    return fit_new(run, variant, recipe, initial, data, ranks)


def fit_new(
    run: Run, variant: Making, recipe: Recipe, initial: Initial, data: FitData, ranks: Ranks = ALONE
) -> VariantRecord:
    """Build a network, fit it and store it as the variant; `initial` describes the network and its weights."""
    images, backbone, preprocessing = variant.plan.split, initial.backbone, data.preprocessing
    with reproducible(recipe.seed):
        with run.reporter.progress(f"Building {backbone}", None):
            network = build_classifier(backbone, len(images.classes))
            loaded = load_weights(network, initial.file, head_of(network)) if initial.file else LoadedWeights()
        if initial.width < 1:
            network = at_width(network, initial.width, preprocessing.image_size_px)
            if initial.file:
                # The weights' statistics are those of the full width.
                reestimate_batchnorm(network, data, device=recipe.device, reporter=run.reporter)
        if ranks.is_first:
            ranks.meet()
            ranks.agreed(preprocessing.value_bits)
        stage = variant.plan.method
        rows = fit(network, data, recipe, run.reporter, stage=stage, checkpoints=variant.checkpoints, ranks=ranks)
        if not ranks.is_first:
            ranks.meet()
            return variant.stored()
        validated = _validated(network, data, recipe, run.reporter)
    unproven = findings([validated], images.class_pair, "validation images")
    caveats = tuple(caveat(variant.plan.name, finding) for finding in unproven)
    run.stamped(stamps_of(caveats))
    record = variant.store(
        torch_model(network, backbone, preprocessing),
        training=training_of(rows, recipe, initial.recorded, ranks),
        unproven=unproven,
        notes=(*_notes(loaded, initial.name), *_width_notes(initial), *caveats),
    )
    ranks.meet()
    return record


def _validated(network: nn.Module, data: FitData, recipe: Recipe, reporter: Reporter) -> Predictions:
    """Return a trained network's predictions for the validation images, in FP32 as in evaluation."""
    rows, split, device = data.split.indices("val"), data.split, recipe.device
    with reporter.progress("Predicting the validation images", len(rows)) as advance:
        logits = predict_logits(move_to(network, device), data, rows, device=device, precision="fp32", advance=advance)
    move_back(network)
    return predictions_of(images_of(split, rows), positive_probability(logits, split.positive), DECISION_THRESHOLD)


def _require_images(target: Study) -> None:
    """Raise StudyError if there is no split, for a command that names no images."""
    if not target.split_json.exists() and not target.folds_json.exists():
        raise StudyError(f"no split in {target.root}/", 'name the images: "chestx train DATA"')


def _require_split(run: Run, target: Study, data: Path | None, seed: int, size: Preprocessing) -> Split:
    """Return the study's split, made from `data` if there is none; raises StudyError if it was made from other data."""
    if data is not None and not target.split_json.exists() and not target.folds_json.exists():
        run.call(split, data=data, study=target.root, seed=seed, image_size=size.image_size_px, resize=size.resize)
        return target.read_split()
    images = target.read_split()
    if data is not None and str(data.resolve()) != target.read_split_record().source:
        raise StudyError(
            f"{target.root}/ has a split of other images than {data}",
            f"leave {data} out, or begin another study with --study DIR",
        )
    return images


def _width_notes(initial: Initial) -> tuple[str, ...]:
    """Return a note on a backbone that has a share of its channels, and what became of its weights."""
    if initial.width == 1:
        return ()
    kept = (
        f"the channels of largest norm of {initial.name}; BatchNorm statistics were re-estimated before the fit"
        if initial.file
        else "random weights"
    )
    return (f"Each layer of the backbone began with {100 * initial.width:g} % of its channels: {kept}.",)


def _notes(loaded: LoadedWeights, file: str) -> tuple[str, ...]:
    """Return notes on a weights file that contained more than the backbone's plain state dict."""
    notes = []
    if loaded.wrappers or loaded.prefix:
        where = f"'{' / '.join(loaded.wrappers)}' of {file}" if loaded.wrappers else file
        notes.append(
            paragraph(
                f"Initial weights are from {where}.",
                f"The prefix '{loaded.prefix}' was removed from the names of tensors." if loaded.prefix else "",
            )
        )
    if dropped := loaded.dropped:
        listed = ", ".join(dropped[:LISTED]) + (", …" if len(dropped) > LISTED else "")
        notes.append(f"{len(dropped)} tensors of {file} are left out (the study has its own head): {listed}.")
    return tuple(notes)
