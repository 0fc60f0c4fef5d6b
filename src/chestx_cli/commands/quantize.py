"""`chestx quantize`: an INT8 ONNX file of a torch variant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from chestx_cli.commands.shared_options import CheckpointEvery, Force, Name, Parent, Restart, Seed, StudyDir
from chestx_cli.compression.quantization.methods import QUANTIZATION_METHODS, QuantizationMethod, QuantizedFile, Task
from chestx_cli.compression.quantization.onnx_graph import count_nonzero, weight_rows
from chestx_cli.compression.quantization.ranges import CALIBRATIONS
from chestx_cli.compression.quantization.static import judge_on
from chestx_cli.compression.quantization.target_cpus import TARGET_CPUS
from chestx_cli.core.command import Run, stage
from chestx_cli.core.errors import UsageError
from chestx_cli.core.machine import has_exact_products
from chestx_cli.core.options import Opt
from chestx_cli.evaluation.statistics.intervals import draw_patients
from chestx_cli.evaluation.statistics.metrics import decide
from chestx_cli.evaluation.verdicts import Paired, compare
from chestx_cli.inference.onnx_export import CHECKED_IMAGES, export_onnx, require_kernels_agree
from chestx_cli.networks.devices import reproducible
from chestx_cli.networks.training_data import read_fit_data
from chestx_cli.networks.weights.serialization import load_network
from chestx_cli.records.variant import BASELINE, MODEL_FILES, Fp32LayerRow, Quantization, VariantRecord
from chestx_cli.study.directory import Study
from chestx_cli.study.variants import (
    Plan,
    already_made,
    being_made,
    derived_name,
    open_parent,
    store_variant,
    variant_record,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chestx_cli.evaluation.statistics.outcome import Outcome
    from chestx_cli.study.split import Split

SMALL_SHARE = 0.25


@stage
def quantize(
    run: Run,
    *,
    study: StudyDir = Path("study"),
    method: Annotated[str, Opt(help="How to quantize.", choices=QUANTIZATION_METHODS)] = "dynamic",
    parent: Parent = BASELINE,
    target_cpu: Annotated[
        str | None,
        Opt(
            help="Processor that the numbers are made for; any, the default, takes 7-bit weights, which no processor "
            "saturates, x86 without VNNI included.",
            choices=TARGET_CPUS,
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        Opt(help="Static: how ranges are taken from the training images; minmax by default.", choices=CALIBRATIONS),
    ] = None,
    calibration_images: Annotated[
        int | None, Opt(help="Static, QAT: training images to calibrate on; 128 by default.", minimum=1)
    ] = None,
    max_drop: Annotated[
        float | None,
        Opt(
            help="Static: leave the worst layers in FP32 until validation accuracy and AUROC drop by at most this.",
            minimum=0,
            maximum=1,
        ),
    ] = None,
    epochs: Annotated[int | None, Opt(help="QAT: epochs of training; 2 by default.", minimum=1)] = None,
    lr: Annotated[float | None, Opt(help="QAT: learning rate of Adam; 1e-5 by default.", above=0)] = None,
    batch_size: Annotated[int | None, Opt(help="QAT: images per step; 32 by default.", minimum=2)] = None,
    device: Annotated[
        str | None, Opt(help="QAT: device to train on; auto by default.", choices=("auto", "cpu", "cuda"))
    ] = None,
    name: Name = None,
    seed: Seed = 42,
    checkpoint_every: CheckpointEvery = None,
    restart: Restart = False,
    force: Force = False,
) -> VariantRecord:
    """Quantize a torch variant to an INT8 ONNX file that ONNX Runtime runs.

    The dynamic method stores the Linear layers' weights in 8 bits and quantizes their inputs batch by batch; the
    convolutions stay in FP32. The static method computes the whole network in 8 bits, calibrated on training images;
    qat fine-tunes it with these roundings first.
    """
    entry = QUANTIZATION_METHODS[method]
    options = {"method": method, **_chosen(run.options, method, entry)}
    target = Study(study)
    split, source = open_parent(run, target, parent)
    plan = Plan(
        name=name or derived_name(source, entry.suffix), method=method, options=options, split=split, parent=source
    )
    checkpoints = being_made(run, target, plan, restart=restart, checkpoint_every=checkpoint_every)
    existing = already_made(run, target, plan, force=force)
    if existing is not None:
        checkpoints.clear()
        return existing
    data = read_fit_data(target, split, source.preprocessing, run.reporter)
    validation = split.indices("val")
    judge = judge_on(data, threshold=source.threshold)
    with reproducible(seed):
        network = load_network(target, source)
        fp32 = export_onnx(network, source.preprocessing.normalised(data.pixels[validation[:CHECKED_IMAGES]]))
        task = Task(
            network=network,
            parent=source,
            fp32=fp32,
            data=data,
            numerics=TARGET_CPUS[options["target_cpu"]],
            judge=judge,
            options=options,
            reporter=run.reporter,
            checkpoints=checkpoints,
        )
        made = entry.quantize(task)
        kernel_difference = None
        if entry.qdq:
            kernel_difference = require_kernels_agree(
                made.content, data.pixels, validation[:CHECKED_IMAGES], source.preprocessing
            )
        before, after = judge(fp32, validation), judge(made.content, validation)
    record = _record(run, plan, source, fp32, made, before, after, kernel_difference)
    store_variant(target, record, made.content)
    checkpoints.clear()
    return record


def _chosen(given: Mapping[str, Any], method: str, entry: QuantizationMethod) -> dict[str, Any]:
    """Return the options that a method takes, as given or by its default; raise UsageError for one without effect."""
    every = {name for other in QUANTIZATION_METHODS.values() for name in other.defaults} - {"seed"}
    for name in sorted(every - set(entry.defaults)):
        if given[name] is not None:
            taking = [key for key, other in QUANTIZATION_METHODS.items() if name in other.defaults]
            raise UsageError(
                f"--{name.replace('_', '-')} changes nothing with --method {method}",
                f"leave it out, or use --method {' or '.join(taking)}",
            )
    return {name: default if given[name] is None else given[name] for name, default in entry.defaults.items()}


def _record(
    run: Run,
    plan: Plan,
    source: VariantRecord,
    fp32: bytes,
    made: QuantizedFile,
    before: Outcome,
    after: Outcome,
    kernel_difference: float | None,
) -> VariantRecord:
    import numpy as np
    import onnx

    paired = _paired(plan.split, before, after, source.threshold)
    graph, quantized = onnx.load_from_string(fp32), onnx.load_from_string(made.content)
    weights = weight_rows(quantized)
    in_8_bits = sum(row.weights for row in weights if row.bits == 8)
    share = in_8_bits / source.parameters
    sizes = {row.layer: row.weights for row in weights}
    return variant_record(
        run,
        plan,
        made.content,
        kind="onnx",
        backbone=source.backbone,
        preprocessing=source.preprocessing,
        model_file=MODEL_FILES["onnx"],
        parameters=source.parameters,
        nonzero_parameters=source.nonzero_parameters - (count_nonzero(graph) - count_nonzero(quantized)),
        macs=source.macs,
        calibration_sha256=made.calibration.sha256 if made.calibration else None,
        training=made.training,
        quantization=Quantization(
            target_cpu=plan.options["target_cpu"],
            quantized_parameters=in_8_bits,
            quantized_share=share,
            parent_bytes=len(fp32),
            calibration_images=len(made.calibration.rows) if made.calibration else None,
            accuracy_before=before.accuracy,
            accuracy=after.accuracy,
            lost=paired.lost,
            won=paired.won,
            difference_interval=paired.interval.bounds,
            p=paired.p,
            auroc_before=before.auroc,
            auroc=after.auroc,
            max_probability_difference=float(np.abs(before.probability - after.probability).max()),
            kernel_difference=kernel_difference,
            trained_difference=made.trained_difference,
            weights=weights,
            fp32_layers=tuple(
                Fp32LayerRow(layer=name, weights=sizes[name], loss_increase=increase)
                for name, increase in made.excluded.items()
            ),
        ),
        notes=(*_size_notes(share, len(fp32), len(made.content)), *_numerics_notes(run, plan.options["target_cpu"])),
    )


def _paired(split: Split, before: Outcome, after: Outcome, threshold: float) -> Paired:
    """Return the paired comparison of the decisions on the validation images in 8 bits with those in FP32."""
    import numpy as np

    rows = split.indices("val")
    truth = split.is_positive(rows)
    first, second = (decide(one.probability, threshold) == truth for one in (before, after))
    return compare(first, second, draw_patients(split.groups[rows], np.random.default_rng(0)), margin=0.0)


def _size_notes(share: float, before_bytes: int, after_bytes: int) -> tuple[str, ...]:
    saved = 1 - after_bytes / before_bytes
    size = (
        f"The file is {saved:.1%} smaller than the same model as FP32 ONNX" if saved > 0 else "The file is no smaller"
    )
    if share >= SMALL_SHARE:
        return (f'{share:.1%} of the parameters are 8-bit integers. {size}; "chestx benchmark" tells if it is faster.',)
    return (
        f"Only {share:.1%} of the parameters are touched: the rest of this network is convolutions. {size}; "
        "do not expect it to be faster.",
    )


def _numerics_notes(run: Run, target_cpu: str) -> tuple[str, ...]:
    """Return for which processors the numbers are safe; warn where this one is not among them."""
    numerics = TARGET_CPUS[target_cpu]
    if numerics.reduced:
        return (f"Weights take 7 of their 8 bits: their products are exact on {numerics.exact_on}.",)
    note = (
        f"Weights take all 8 bits: their products are exact on {numerics.exact_on}. On x86 without VNNI they "
        'saturate unless the session option "session.x64quantprecision" is 1, which is slower; chestx sets it.'
    )
    if not has_exact_products():
        run.reporter.warn(f"this processor is not known to be one that --target-cpu {target_cpu} is made for. {note}")
    return (note,)
