"""`chestx sensitivity`: what pruning each layer alone costs."""

from __future__ import annotations

import math
from pathlib import Path

from chestx_cli.devices import reproducible, resolve_device
from chestx_cli.errors import ChestxError
from chestx_cli.files import write_atomic
from chestx_cli.fitting import read_fit_data
from chestx_cli.layer_sensitivity import measure_layers, rank_layers
from chestx_cli.locks import hold
from chestx_cli.models import chosen_layers, load_network
from chestx_cli.options import Amounts, Device, Layers, Parent, Seed, StudyDir
from chestx_cli.records import SensitivityRecord
from chestx_cli.stage import Run, stage
from chestx_cli.study import BASELINE, Study, write_record
from chestx_cli.variants import open_parent, rows_csv


@stage
def sensitivity(
    run: Run,
    *,
    study: StudyDir = Path("study"),
    amounts: Amounts = (0.2, 0.4, 0.6, 0.8),
    layers: Layers = (),
    parent: Parent = BASELINE,
    device: Device = "auto",
    seed: Seed = 42,
) -> SensitivityRecord:
    """Measure how much each layer's pruning alone costs on the validation split.

    Each Conv2d and Linear layer is pruned by L1 magnitude while all others stay; the variant itself is not touched.
    With --layers the result is shown and not stored.
    """
    target = Study(study)
    amounts = tuple(dict.fromkeys(amounts))
    split, variant = open_parent(run, target, parent)
    hold(run, target.root, f"the sensitivity of {parent}")
    device = resolve_device(device)
    data = read_fit_data(target, split, variant.preprocessing, run.reporter)
    import torch

    n_images = len(split.indices("val"))
    with reproducible(seed):
        network = load_network(target, variant).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        chosen = chosen_layers(network, layers)
        total = n_images * len(chosen) * len(amounts)
        with run.reporter.progress("Pruning layer by layer", total) as advance:
            intact, measurements = measure_layers(network, chosen, data, amounts, device=device, advance=advance)
    if not math.isfinite(intact.loss):
        raise ChestxError(f"variant {parent!r} gives no finite loss", "train it again")
    record = SensitivityRecord(
        stamp=run.stamp(),
        notes=(
            f"Measured on {n_images} validation images: one image is {1 / n_images:.1%} of accuracy, so the order "
            "goes by loss. Layers that look alike here may differ on other images. The loss is the plain "
            "cross-entropy in FP32; that of training is weighted as --balance says.",
        ),
        variant=parent,
        split="val",
        images=n_images,
        loss=intact.loss,
        accuracy=intact.accuracy,
        auroc=intact.auroc,
        amounts=amounts,
        model_sha256=variant.model_sha256,
        rows=rank_layers(measurements, intact.loss, intact.accuracy),
        measurements=measurements,
    )
    if layers:
        # A part must not take the place of the whole.
        run.reporter.note("only some layers were measured: nothing is stored")
        return record
    folder = target.variant(parent)
    write_record(folder / "sensitivity.json", record)
    write_atomic(folder / "sensitivity.csv", rows_csv(measurements))
    from chestx_cli.figures import draw_figures

    draw_figures(target, ("sensitivity",))
    return record
