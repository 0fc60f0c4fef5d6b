"""`chestx sensitivity`: what pruning each layer alone costs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.compression.pruning.channel_removal import Limits
from chestx_cli.compression.pruning.criteria import CRITERIA, usual_criterion
from chestx_cli.compression.pruning.group_sensitivity import measure_groups
from chestx_cli.compression.pruning.layer_sensitivity import (
    CHECKED,
    check_precision,
    images_to_check,
    measure_layers,
    measurements_to_check,
    rank_layers,
)
from chestx_cli.compression.pruning.structured import Cutting
from chestx_cli.compression.quantization.layer_sensitivity import measure_int8_layers
from chestx_cli.core.command import Run, stage
from chestx_cli.core.errors import UsageError, again
from chestx_cli.core.files import write_atomic
from chestx_cli.core.options import Opt
from chestx_cli.core.shared_options import Amounts, Device, Layers, Parent, Seed, StudyDir
from chestx_cli.networks.backbones import output_layer
from chestx_cli.networks.devices import move_to, reproducible, resolve_device, resolve_precision
from chestx_cli.networks.layers import chosen_layers
from chestx_cli.networks.training_data import read_fit_data
from chestx_cli.networks.weights.serialization import load_network
from chestx_cli.records.sensitivity import GroupSensitivityRecord, Int8SensitivityRecord, SensitivityRecord
from chestx_cli.records.variant import BASELINE
from chestx_cli.reporting import answers
from chestx_cli.store.directory import Study, open_study
from chestx_cli.store.documents import write_record
from chestx_cli.store.locks import hold
from chestx_cli.store.tables import rows_csv
from chestx_cli.store.variants import open_parent

if TYPE_CHECKING:
    from chestx_cli.core.record import Options
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.split import Split

GROUPS_NOTE = (
    "Channels of each group were removed alone, physically and in all layers that depend on them. Before each "
    "measurement, also of the unpruned network, BatchNorm statistics were re-estimated from the same training "
    "images; nothing was fine-tuned. Pruning several groups at once costs more than the sum. Groups that look "
    "alike here may differ on other images."
)


def _require_effect(options: Options) -> None:
    if options["structured"] and options["layers"]:
        raise UsageError(
            "--layers has no effect with --structured", "leave it out: whole groups are measured", option="layers"
        )
    if options["precision"] != "fp32":
        for name in (name for name in ("structured", "quantization") if options[name]):
            raise UsageError(f"--precision has no effect with --{name}", "leave it out", option="precision")
    if options["criterion"] is not None and not options["structured"]:
        raise UsageError("--criterion has no effect on single layers", "add --structured", option="criterion")


def _require_precision(precision: str, device: str) -> None:
    if precision == "bf16" and resolve_precision("auto", device) != "bf16":
        raise UsageError("this processor has no bf16, which would be slower than FP32", again("--precision fp32"))
    if precision == "int8":
        from chestx_cli.compression.pruning.onednn_int8 import int8_is_available

        if device != "cpu":
            raise UsageError("8-bit convolutions are computed on the CPU only", again("--device cpu"))
        if not int8_is_available():
            raise UsageError(
                "8-bit convolutions need a processor that is known to have VNNI, and torch's kernels for it",
                again("--precision fp32"),
            )


@stage(
    examples=("chestx sensitivity --amounts 0.2,0.4,0.6,0.8",),
    after="train",
    answer=answers.of_sensitivity,
    check=_require_effect,
)
def sensitivity(
    run: Run,
    *,
    study: StudyDir = Path("study"),
    amounts: Amounts = (0.2, 0.4, 0.6, 0.8),
    layers: Layers = (),
    structured: Annotated[bool, Opt(help="Remove channels of coupled groups instead.")] = False,
    criterion: Annotated[
        str | None,
        Opt(
            help="Which channels to remove with --structured.",
            choices=CRITERIA,
        ),
    ] = None,
    parent: Parent = BASELINE,
    quantization: Annotated[bool, Opt(help="Compute each layer alone in 8 bits instead.")] = False,
    device: Device = "auto",
    precision: Annotated[
        str, Opt(help="bf16 or int8: faster where the processor has it.", choices=("fp32", "bf16", "int8"))
    ] = "fp32",
    seed: Seed = 42,
) -> SensitivityRecord | GroupSensitivityRecord | Int8SensitivityRecord:
    """Measure what pruning or quantizing each layer alone costs.

    Each Conv2d and Linear layer is pruned by L1 magnitude while all others stay; the variant itself is not changed.
    With --precision bf16 or int8 some measurements are repeated in FP32, and the largest difference is stated. With
    --structured, channels of coupled groups are removed; with --quantization, each layer is computed in 8 bits.
    With --layers the result is shown, not stored.
    """
    if structured:
        return _measure_structured(run, open_study(study), parent, amounts, criterion, device, seed)
    target = open_study(study)
    amounts = tuple(dict.fromkeys(amounts))
    split, variant = open_parent(run, target, parent)
    hold(run, target.root, f"the sensitivity of {parent}")
    if quantization:
        return _quantized(run, target, split, variant, layers, seed)
    device = resolve_device(device)
    _require_precision(precision, device)
    data = read_fit_data(target, split, variant.preprocessing, run.reporter)

    n_images = len(split.indices("val"))
    with reproducible(seed):
        network = move_to(load_network(target, variant), device)
        chosen = chosen_layers(network, layers)
        planned = len(chosen) * len(amounts)
        repeated = None if precision == "fp32" else images_to_check(data)
        total = n_images * planned + (0 if repeated is None else len(repeated) * min(CHECKED, planned))
        with run.reporter.progress("Pruning layer by layer", total) as advance:
            measure = partial(measure_layers, network, data=data, device=device, advance=advance)
            sweep = measure(dict.fromkeys(chosen, amounts), precision=precision)
            intact, measurements = sweep.intact, sweep.measurements
            check = None
            if repeated is not None:
                exact = measure(measurements_to_check(measurements), precision="fp32", rows=repeated)
                check = check_precision(sweep, exact)
    rows = rank_layers(measurements, intact.loss, intact.accuracy)
    record = SensitivityRecord(
        stamp=run.stamp(),
        notes=(
            f"Measured on {n_images} validation images: one image is {1 / n_images:.1%} of accuracy, so layers are "
            "ranked by loss. Layers that look alike here may differ on other images. The loss is the plain "
            "cross-entropy; the training loss is weighted by --balance. BatchNorm statistics were not "
            "re-estimated after pruning a layer.",
            *(() if check is None else (check.sentence(precision, intact.loss),)),
        ),
        variant=parent,
        split="val",
        images=n_images,
        loss=intact.loss,
        accuracy=intact.accuracy,
        auroc=intact.auroc,
        amounts=amounts,
        model_sha256=variant.model_sha256,
        rows=rows,
        measurements=measurements,
        precision=precision,
        check=check,
    )
    if layers:
        # A partial result must not replace a complete one.
        run.reporter.note("only some layers were measured: nothing is stored")
        return record
    with target.results_of(variant) as folder:
        write_atomic(folder / "sensitivity.csv", rows_csv(measurements))
        write_record(folder / "sensitivity.json", record)
    from chestx_cli.reporting.figures.drawing import draw_figures

    draw_figures(target, ("sensitivity",), run.reporter)
    return record


def _quantized(
    run: Run, target: Study, split: Split, variant: VariantRecord, layers: tuple[str, ...], seed: int
) -> Int8SensitivityRecord:
    with reproducible(seed):
        record = measure_int8_layers(run, target, split, variant, layers, seed)
    if layers:
        run.reporter.note("only some layers were measured: nothing is stored")
        return record
    with target.results_of(variant) as folder:
        write_atomic(folder / "int8-sensitivity.csv", rows_csv(record.rows))
        write_record(folder / "int8-sensitivity.json", record)
    from chestx_cli.reporting.figures.drawing import draw_figures

    draw_figures(target, ("int8-sensitivity",), run.reporter)
    return record


def _measure_structured(
    run: Run,
    target: Study,
    parent: str,
    amounts: tuple[float, ...],
    criterion_name: str | None,
    device: str,
    seed: int,
) -> GroupSensitivityRecord:
    """Measure the channel groups of a variant and store the record in its folder."""
    amounts = tuple(dict.fromkeys(amounts))
    split, variant = open_parent(run, target, parent)
    hold(run, target.root, f"the structured sensitivity of {parent}")
    device = resolve_device(device)
    data = read_fit_data(target, split, variant.preprocessing, run.reporter)
    network = load_network(target, variant)
    criterion = criterion_name or usual_criterion(network)
    cutting = Cutting(
        criterion=criterion,
        limits=Limits(round_to=1, floor=0),
        kept_layer=output_layer(network),
        device=device,
        precision=resolve_precision("auto", device),
        seed=seed,
    )
    with reproducible(seed):
        whole, rows, measurements = measure_groups(network, data, cutting, amounts, run.reporter)
    record = GroupSensitivityRecord(
        stamp=run.stamp(),
        notes=(GROUPS_NOTE,),
        variant=parent,
        split="val",
        images=len(split.indices("val")),
        criterion=criterion,
        loss=whole.loss,
        accuracy=whole.accuracy,
        auroc=whole.auroc,
        amounts=amounts,
        model_sha256=variant.model_sha256,
        rows=rows,
        measurements=measurements,
    )
    with target.results_of(variant) as folder:
        write_atomic(folder / "sensitivity.structured.csv", rows_csv(measurements))
        write_record(folder / "sensitivity.structured.json", record)
    from chestx_cli.reporting.figures.drawing import draw_figures

    draw_figures(target, ("structured-sensitivity",), run.reporter)
    return record
